#![cfg(windows)]
//! The queue beside other event loops: their executors, their ticks, their continuations.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::windows::io::{AsHandle, AsRawHandle};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ioqueue::iocp::Parked;
use ioqueue::{AsAnyHandle, Continuation, Queue, Registered, wait_with};
use support::{
    Buffer, accept, call_recv, call_send, depth_of_port, ends, recv, send, tcp_pair, tcp_socket,
    update_accept_context,
};
use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::Threading::WaitForSingleObject;

// ---------------------------------------------------------------------------------------------
// A foreign executor

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// An executor that knows of the queue only that it has to be polled: whoever is woken is polled.
struct Executor {
    queue: Queue,
    tasks: RefCell<Vec<Foreign>>,
}

/// A task of the executor's, and whether it was woken.
type Foreign = (Arc<Flag>, Pin<Box<dyn Future<Output = ()>>>);

impl Executor {
    fn new(queue: Queue) -> Self {
        Self { queue, tasks: RefCell::default() }
    }

    fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.borrow_mut().push((flag, Box::pin(future)));
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let mut future = pin!(future);
        let mut ready = Vec::new();
        loop {
            if flag.0.swap(false, Ordering::SeqCst) {
                let waker = Waker::from(flag.clone());
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    return output;
                }
            }
            self.turn();
            let idle = !flag.0.load(Ordering::SeqCst)
                && self.tasks.borrow().iter().all(|(flag, _)| !flag.0.load(Ordering::SeqCst));
            self.queue.poll(&mut ready, (!idle).then_some(Duration::ZERO)).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
        }
    }

    fn turn(&self) {
        let tasks = self.tasks.take();
        for (flag, mut future) in tasks {
            if flag.0.swap(false, Ordering::SeqCst) {
                let waker = Waker::from(flag.clone());
                if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    continue;
                }
            }
            self.tasks.borrow_mut().push((flag, future));
        }
    }
}

async fn echo(server: Registered<TcpStream>) {
    let mut received = recv(&server, [0; 64]).await;
    while let (Ok(count @ 1..), buffer) = received {
        let sent = send(&server, &buffer.bytes[..count as usize]).await;
        assert_eq!(sent.0.unwrap(), count);
        received = recv(&server, [0; 64]).await;
    }
}

async fn ask(client: &Registered<TcpStream>, question: &[u8]) {
    assert_eq!(send(client, question).await.0.unwrap() as usize, question.len());
    let mut answer: Vec<u8> = Vec::new();
    while answer.len() < question.len() {
        let (result, state) = recv(client, [0; 64]).await;
        answer.extend(&state.bytes[..result.unwrap() as usize]);
    }
    assert_eq!(answer, question);
}

// Q15, scenario 61
#[test]
fn futures_work_under_a_hand_written_executor() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let executor = Executor::new(queue.clone());
        let mut clients = Vec::new();
        for _ in 0..8 {
            let (client, server) = tcp_pair();
            executor.spawn(echo(queue.register(server).unwrap()));
            clients.push(queue.register(client).unwrap());
        }
        executor.block_on(async {
            for round in 0..10 {
                for client in &clients {
                    ask(client, format!("round {round}").as_bytes()).await;
                }
            }
        });
        drop(clients);
        // The servers see the end and are done.
        executor.block_on(poll_fn(|context| {
            context.waker().wake_by_ref();
            if executor.tasks.borrow().is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(!queue.running());
    });
}

// Q15, scenario 61: tasks of the queue awaited by the other executor, and the other way round.
#[test]
fn tasks_of_the_queue_may_be_awaited_by_another_executor() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let executor = Executor::new(queue.clone());
        let (client, server) = tcp_pair();
        let (client, server) = (queue.register(client).unwrap(), queue.register(server).unwrap());
        let task = queue.spawn(echo(server));
        let asking = queue.spawn(async move {
            for _ in 0..5 {
                ask(&client, b"task").await;
            }
            7
        });
        assert_eq!(executor.block_on(asking), 7);
        executor.block_on(task);
        assert!(!queue.running());
    });
}

// Q15: two queues of one thread under one executor.
#[test]
fn an_executor_may_await_the_futures_of_two_queues() {
    ends(|| {
        let (one, other) = (Queue::new().unwrap(), Queue::new().unwrap());
        let (client, server) = tcp_pair();
        let (client, server) = (one.register(client).unwrap(), other.register(server).unwrap());
        let task = other.spawn(echo(server));
        let mut asking = pin!(ask(&client, b"both"));
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag);
        let mut ready = Vec::new();
        while asking.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            one.poll(&mut ready, Some(Duration::from_millis(1))).unwrap();
            other.poll(&mut ready, Some(Duration::from_millis(1))).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
        }
        drop(task);
        other.run().unwrap();
    });
}

// ---------------------------------------------------------------------------------------------
// A host loop

// Q15, Q3, scenario 62: what it does between its own frames never blocks.
#[test]
fn a_host_loop_serves_the_queue_with_zero_timeouts() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (client, server) = tcp_pair();
        let (client, server) = (queue.register(client).unwrap(), queue.register(server).unwrap());
        queue.spawn(echo(server)).detach();
        let done = Rc::new(Cell::new(0));
        let counted = done.clone();
        queue
            .spawn(async move {
                for _ in 0..50 {
                    ask(&client, b"frame").await;
                    counted.set(counted.get() + 1);
                }
            })
            .detach();
        let mut ready = Vec::new();
        let mut frames = 0_u64;
        while queue.running() {
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
            frames += 1;
        }
        assert_eq!(done.get(), 50);
        assert!(frames > 50);
    });
}

// Q15: the host waits for the port as for any handle, and asks the queue when there is something.
#[test]
fn a_host_may_wait_on_the_port() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let task = queue.spawn(async move {
            let mut sum = 0;
            for _ in 0..10 {
                let (result, state) = recv(&server, [0; 8]).await;
                sum += u32::from(state.bytes[..result.unwrap() as usize][0]);
            }
            sum
        });
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        ready.pop().unwrap().resume();
        for number in 1..=10 {
            client.write_all(&[number]).unwrap();
            let port = queue.as_handle().as_raw_handle();
            assert_eq!(unsafe { WaitForSingleObject(port, 20_000) }, WAIT_OBJECT_0);
            while ready.is_empty() || depth_of_port(&queue) > 0 {
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            }
            for continuation in ready.drain(..) {
                continuation.resume();
            }
            // The waker made the task ready, without a packet.
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
        }
        assert_eq!(queue.block_on(task).unwrap(), 55);
    });
}

// Q15: what the port says nothing of, timers and tasks that are to go on, the queue says when it is asked.
#[test]
fn a_host_that_asks_how_long_it_may_wait_misses_nothing() {
    ends(|| {
        let queue = Queue::new().unwrap();
        assert_eq!(queue.poll_delay(), None);
        let (mut client, server) = tcp_pair();
        let (server, own) = (queue.register(server).unwrap(), queue.clone());
        let task = queue.spawn(async move {
            for number in 1..=5 {
                own.sleep(Duration::from_millis(2)).await.unwrap();
                ioqueue::yield_now().await;
                client.write_all(&[number]).unwrap();
                let (result, state) = recv(&server, [0; 8]).await;
                assert_eq!(state.bytes[..result.unwrap() as usize], [number]);
            }
        });
        let (start, mut ready) = (Instant::now(), Vec::new());
        loop {
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
            if !queue.running() {
                break;
            }
            let in_ms = |delay: Duration| delay.as_nanos().div_ceil(1_000_000) as u32;
            let delay = queue.poll_delay().map(in_ms);
            let port = queue.as_handle().as_raw_handle();
            let answer = unsafe { WaitForSingleObject(port, delay.unwrap_or(20_000)) };
            assert!(answer == WAIT_OBJECT_0 || delay.is_some(), "nothing was told of");
        }
        assert!(start.elapsed() >= Duration::from_millis(10));
        queue.block_on(task).unwrap();
        assert_eq!(queue.poll_delay(), None);
    });
}

// ---------------------------------------------------------------------------------------------
// Continuations of another loop

/// What a key means to the loop below.
enum Step {
    Receiving(Parked<Buffer>),
    Sending(Parked<Buffer>),
}

/// An event loop that knows no futures: an echo server whose connections are numbers.
struct Loop {
    queue: Queue,
    connections: Vec<Option<(Registered<TcpStream>, Option<Step>)>>,
}

impl Loop {
    fn start(
        server: &Registered<TcpStream>,
        buffer: Buffer,
        key: usize,
        call: fn(
            ioqueue::RawHandle,
            *mut Buffer,
            *mut ioqueue::iocp::OVERLAPPED,
        ) -> ioqueue::iocp::Outcome,
    ) -> Parked<Buffer> {
        let mut overlapped = server.overlapped(buffer).unwrap();
        // SAFETY: one call with what it is given, which says what that returned.
        unsafe { overlapped.start(server, call) }.unwrap();
        wait_with(key, server, overlapped).unwrap()
    }

    fn add(&mut self, server: TcpStream) {
        let server = self.queue.register(server).unwrap();
        let key = self.connections.len();
        let first = Self::start(&server, Buffer::new([0; 64]), key, call_recv);
        self.connections.push(Some((server, Some(Step::Receiving(first)))));
    }

    /// Resumes connection `key`.
    fn resume(&mut self, key: usize) {
        let place = &mut self.connections[key];
        let (server, step) = place.as_mut().unwrap();
        let next = match step.take().unwrap() {
            Step::Receiving(ticket) => {
                let (result, mut buffer) = ticket.take().expect("its key came");
                match result.unwrap() {
                    0 => None,
                    count => {
                        buffer.bytes.truncate(count as usize);
                        Some(Step::Sending(Self::start(server, buffer, key, call_send)))
                    }
                }
            }
            Step::Sending(ticket) => {
                let (result, mut buffer) = ticket.take().expect("its key came");
                assert_eq!(result.unwrap() as usize, buffer.bytes.len());
                buffer.bytes.resize(64, 0);
                Some(Step::Receiving(Self::start(server, buffer, key, call_recv)))
            }
        };
        match next {
            Some(next) => *step = Some(next),
            None => *place = None,
        }
    }

    fn run(&mut self) {
        let mut ready = Vec::new();
        while self.connections.iter().any(Option::is_some) {
            self.queue.poll(&mut ready, None).unwrap();
            for continuation in ready.drain(..) {
                let key = continuation.resume().expect("only keys are parked");
                self.resume(key);
            }
        }
    }
}

// W3, Q15, scenario 63
#[test]
fn numbers_drive_an_echo_server_without_futures() {
    ends(|| {
        let mut server = Loop { queue: Queue::new().unwrap(), connections: Vec::new() };
        let clients: Vec<_> = (0..6)
            .map(|_| {
                let (client, end) = tcp_pair();
                server.add(end);
                client
            })
            .collect();
        let thread = thread::spawn(move || {
            for round in 0..20_u8 {
                for mut client in &clients {
                    client.write_all(&[round; 32]).unwrap();
                }
                for mut client in &clients {
                    let mut answer = [0; 32];
                    client.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, [round; 32]);
                }
            }
        });
        server.run();
        thread.join().unwrap();
        assert!(!server.queue.running());
    });
}

/// Actions to be done by the loop that owns them.
type Actions = Rc<RefCell<VecDeque<&'static str>>>;

// W3, scenario 63: closures and wakers, beside keys, in the order of their packets.
#[test]
fn every_form_of_continuation_comes_back_from_poll() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let actions = Actions::default();
        let parked: Vec<_> = ["waker", "call", "key"]
            .into_iter()
            .enumerate()
            .map(|(number, name)| {
                let (client, server) = tcp_pair();
                let server = queue.register(server).unwrap();
                let log = actions.clone();
                let note = move || log.borrow_mut().push_back(name);
                let continuation = match name {
                    "waker" => support::waker(note).into(),
                    "call" => Continuation::call(note),
                    _ => Continuation::from(number),
                };
                let mut overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
                // SAFETY: one call with what it is given, which says what that returned.
                unsafe { overlapped.start(&server, call_recv) }.unwrap();
                (client, wait_with(continuation, &server, overlapped).unwrap(), server)
            })
            .collect();
        assert_eq!(format!("{:?}", parked[0].1), "Parked(Wait(in flight))");
        for (sent, (client, ..)) in parked.iter().enumerate() {
            (&*client).write_all(b"x").unwrap();
            while depth_of_port(&queue) <= sent {
                thread::yield_now();
            }
        }
        let mut ready = Vec::new();
        queue.poll(&mut ready, None).unwrap();
        assert_eq!(format!("{ready:?}"), "[Waker, Call, Key(2)]");
        assert!(actions.borrow().is_empty(), "poll resumes nothing");
        let keys: Vec<_> = ready.into_iter().map(Continuation::resume).collect();
        assert_eq!(keys, [None, None, Some(2)]);
        assert_eq!(actions.take(), ["waker", "call"]);
        for (_, ticket, _) in parked {
            assert!(ticket.is_over());
            assert_eq!(ticket.take().unwrap().0.unwrap(), 1);
        }
    });
}

// W3: an operation that had ended before it was parked comes back all the same, by poll.
#[test]
fn what_had_ended_before_it_was_parked_comes_back_too() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        client.write_all(&[1; 100]).unwrap();
        let mut ready = Vec::new();
        for key in 0..100 {
            let ticket = Loop::start(&server, Buffer::new([0; 1]), key, call_recv);
            while ready.is_empty() {
                assert!(queue.running());
                queue.poll(&mut ready, None).unwrap();
            }
            assert_eq!(ready.pop().unwrap().resume(), Some(key));
            assert_eq!(ticket.take_exact().unwrap().bytes, 1);
        }
        assert!(!queue.running() && ready.is_empty());
    });
}

// W3, Q13: a ticket that is not over comes back, and cancelling it hands its continuation back.
#[test]
fn a_parked_operation_can_be_asked_and_cancelled() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let ticket = Loop::start(&server, Buffer::new([4; 8]), 9, call_recv);
        assert!(!ticket.is_over());
        let ticket = ticket.take().unwrap_err();
        ticket.cancel();
        let mut ready = Vec::new();
        while ready.is_empty() {
            queue.poll(&mut ready, None).unwrap();
        }
        assert_eq!(ready.pop().unwrap().resume(), Some(9));
        let completion = ticket.take_exact().unwrap();
        assert!(completion.status.is_cancelled());
        assert_eq!(completion.state.bytes, [4; 8]);

        // Dropped instead: nothing comes back, and what was parked is dropped.
        let (beside, drops) = support::tracked();
        let mut overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
        // SAFETY: one call with what it is given, which says what that returned.
        unsafe { overlapped.start(&server, call_recv) }.unwrap();
        let continuation = Continuation::call(move || {
            let _beside = &beside;
            panic!("resumed");
        });
        drop(wait_with(continuation, &server, overlapped).unwrap());
        assert_eq!(drops.count(), 1);
        queue.run().unwrap();
    });
}

// W3, Q15: a loop may park its own continuations and still have tasks of the queue's.
#[test]
fn keys_and_tasks_share_a_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = queue.register(listener).unwrap();
        let accepting = queue.spawn(async move {
            let (result, (socket, _)) = accept(&listener, tcp_socket()).await;
            result.unwrap();
            update_accept_context(&socket, listener.get());
            socket
        });
        let (mut peer, end) = tcp_pair();
        let end = queue.register(end).unwrap();
        let ticket = Loop::start(&end, Buffer::new([0; 8]), 1, call_recv);
        let client = TcpStream::connect(address).unwrap();
        peer.write_all(b"key").unwrap();
        let mut keys = Vec::new();
        let mut ready = Vec::new();
        while queue.running() {
            queue.poll(&mut ready, None).unwrap();
            keys.extend(ready.drain(..).filter_map(Continuation::resume));
        }
        assert_eq!(keys, [1]);
        assert_eq!(ticket.take().unwrap().0.unwrap(), 3);
        let socket = queue.block_on(accepting).unwrap();
        assert!(!socket.as_any_handle().raw().is_null());
        drop(client);
    });
}
