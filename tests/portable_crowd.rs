//! Answers that are sent while others are ready: a kernel may begin many at once, and does so on the ring.
//! What comes of each, and in which order, is what it is for one that is sent alone.

#[macro_use]
mod each_kernel;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
#[cfg(target_os = "linux")]
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use each_kernel::{
    Blocking, HalfWay, LONG, Marked, Stream, collects, goes_both_ways, is_simulated, is_windows,
    kind_of, look_around, narrow_tcp_to_host, noise, pipe_in, poll_once, queue_on, tcp_to_host,
    turn, ways_out,
};
#[cfg(target_os = "linux")]
use ioqueue::Event;
use ioqueue::error::is_cancelled;
use ioqueue::{IoBuf, Operation, Queue, Registered, op};

// ---------------------------------------------------------------------------------------------
// Crowds

/// A pipe to wait for, and its end for blocking calls.
type Gate = (Rc<Registered<Stream>>, Box<dyn Blocking>);

/// Has a task be ready together with others, which are resumed after it.
struct Crowd {
    queue: Queue,
    first: Gate,
    others: Vec<Gate>,
}

impl Crowd {
    fn new(queue: &Queue) -> Self {
        let gate = || {
            let (ours, theirs) = pipe_in(queue);
            (Rc::new(ours), theirs)
        };
        let others = (0..5).map(|_| gate()).collect();
        Self { queue: queue.clone(), first: gate(), others }
    }

    /// From here until the task next waits the others are ready.
    async fn gather(&mut self) {
        for (ours, _) in &self.others {
            let ours = ours.clone();
            let other = async move { assert_eq!(ours.read(vec![0; 1]).await.0.unwrap(), 1) };
            self.queue.spawn(other).detach();
        }
        self.look_around().await; // Each of them waits.
        let first = self.first.0.read(vec![0; 1]);
        self.first.1.write_all(b"!").unwrap();
        for (_, theirs) in &mut self.others {
            theirs.write_all(b"!").unwrap();
        }
        assert_eq!(first.await.0.unwrap(), 1);
    }

    /// Has the queue look at its kernel a few times: a task that only yields is resumed without that.
    async fn look_around(&mut self) {
        for _ in 0..3 {
            let first = self.first.0.read(vec![0; 1]);
            self.first.1.write_all(b"!").unwrap();
            assert_eq!(first.await.0.unwrap(), 1);
        }
    }

    /// Begins an answer. Where the kernel begins those of a crowd together it waits for that.
    #[track_caller]
    fn answer<H, B: IoBuf>(&self, from: &Registered<H>, with: B) -> Operation<op::Write<B>> {
        let mut sending = from.write(with);
        if collects(&self.queue) {
            assert!(poll_once(&mut sending).is_pending(), "it was begun alone");
        }
        sending
    }

    /// What it has of the queue's, which is not the queue itself.
    fn into_handles(self) -> impl Any {
        (self.first, self.others)
    }
}

/// Runs a task: only those are resumed in the midst of others.
fn as_a_task<T: 'static>(queue: &Queue, body: impl Future<Output = T> + 'static) -> T {
    queue.block_on(queue.spawn(body)).unwrap()
}

/// Something has come, which is to be answered.
async fn asked<H>(ours: &Registered<H>) {
    let (count, bytes) = ours.read(vec![0; 1]).await;
    assert_eq!((count.unwrap(), &bytes[..]), (1, &b"?"[..]));
}

async fn ask<H>(ours: &Registered<H>, theirs: &mut (impl Write + ?Sized)) {
    theirs.write_all(b"?").unwrap();
    asked(ours).await;
}

/// Whether a send for which there is room is over when it was begun, but for an answer in a crowd.
fn sends_at_once(queue: &Queue) -> bool {
    !is_windows(queue) && !cfg!(ioqueue_collect)
}

/// Connections of each kind: an end on the queue, and one for blocking calls.
fn connections(queue: &Queue) -> Vec<HalfWay> {
    let both_ways = |way: &HalfWay| is_simulated(queue) || goes_both_ways(way.name);
    ways_out(queue).into_iter().filter(both_ways).collect()
}

/// One of the kind on which nothing is ever under way: what was sent has come.
fn quick_connection(queue: &Queue) -> HalfWay {
    connections(queue).pop().unwrap()
}

/// All that comes until the end.
fn rest(mut of: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    match of.read_to_end(&mut all) {
        Ok(_) => {}
        // How pipes of Windows say so.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => panic!("{error}"),
    }
    all
}

fn another(queue: &Queue) -> Queue {
    queue_on(queue.kernel_kind()).unwrap()
}

/// Message `number`: each has its own bytes, and a length that no neighbour has.
fn message(number: usize) -> Vec<u8> {
    vec![number as u8; 300 + number * 37 % 1009]
}

/// What was sent, by what a send says of itself.
fn sent(said: &(std::io::Result<usize>, Vec<u8>)) -> &[u8] {
    match &said.0 {
        Ok(count) => &said.1[..*count],
        Err(error) => {
            assert!(is_cancelled(error), "{error}");
            &[]
        }
    }
}

on_each_kernel! {
    /// As a busy server has it: many are asked at once, and each is answered in its turn.
    fn answers_of_a_crowd_arrive_whole_each_on_its_own_connection(queue) {
        const MEMBERS: usize = 8;
        const ROUNDS: usize = 5;
        let (mut tasks, mut peers) = (Vec::new(), Vec::new());
        let (together, answered) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for number in 0..MEMBERS {
            let HalfWay { ours, theirs, .. } = quick_connection(queue);
            let (together, answered) = (together.clone(), answered.clone());
            // Some by the calls that are for sockets only.
            let is_sockets = number % 2 == 0 && !is_windows(queue);
            tasks.push(queue.spawn(async move {
                for round in 0..ROUNDS {
                    let expected = message(MEMBERS * round + number);
                    let (count, bytes) = if is_sockets {
                        assert_eq!(ours.recv(vec![0; 8]).await.1, b"?");
                        counted(ours.send(expected.clone()), &together).await
                    } else {
                        assert_eq!(ours.read(vec![0; 8]).await.1, b"?");
                        counted(ours.write(expected.clone()), &together).await
                    };
                    assert_eq!(count.unwrap(), expected.len());
                    assert!(bytes == expected, "another buffer came back");
                    answered.set(answered.get() + 1);
                }
            }));
            peers.push(theirs);
        }
        turn(queue); // All of them wait to be asked.
        for round in 0..ROUNDS {
            for theirs in &mut peers {
                theirs.write_all(b"?").unwrap();
            }
            queue.block_on(async {
                while answered.get() < MEMBERS * (round + 1) {
                    look_around().await;
                }
            }).unwrap();
            for (number, theirs) in peers.iter_mut().enumerate() {
                let expected = message(MEMBERS * round + number);
                let mut bytes = vec![0; expected.len()];
                theirs.read_exact(&mut bytes).unwrap();
                assert!(bytes == expected, "{round}: {number}");
            }
        }
        for (task, theirs) in tasks.into_iter().zip(peers) {
            queue.block_on(task).unwrap();
            assert_eq!(rest(theirs), b"");
        }
        if collects(queue) {
            // The last of them finds nobody else ready, but what the others have begun.
            assert_eq!(together.get(), MEMBERS * ROUNDS);
        }
    }

    /// On every kind of connection, over and over, with peers that are slow or fast, and answers for which
    /// there is often no room, or room for a part.
    fn large_answers_of_a_crowd_lose_and_double_nothing(queue) {
        let size = each_kernel::rounds(queue, 400_000);
        for make in [tcp_to_host, narrow_tcp_to_host] {
            let expected = noise(size);
            let tasks: Vec<_> = (1..7).map(|number| {
                let (ours, mut theirs) = make(queue);
                let bytes = expected[number..].to_vec();
                let answering = queue.spawn(async move {
                    let mut bytes = bytes;
                    for _ in 0..4 {
                        asked(&ours).await;
                        let (result, back) = ours.write_all(bytes).await;
                        result.unwrap();
                        bytes = back;
                    }
                });
                let expected = expected[number..].to_vec();
                let reading = thread::spawn(move || {
                    let mut bytes = vec![0; expected.len()];
                    for _ in 0..4 {
                        theirs.write_all(b"?").unwrap();
                        bytes.fill(0);
                        for part in bytes.chunks_mut(1 << (9 + number)) {
                            theirs.read_exact(part).unwrap();
                        }
                        assert!(bytes == expected, "{number}");
                    }
                    assert_eq!(rest(theirs), b"");
                });
                (answering, reading)
            }).collect();
            for (answering, reading) in tasks {
                queue.block_on(answering).unwrap();
                reading.join().unwrap();
            }
        }
    }

    /// Nobody else is ready, so there is nobody to wait for.
    fn an_answer_alone_is_over_when_it_was_begun(queue) {
        let at_once = sends_at_once(queue);
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            as_a_task(queue, async move {
                for _ in 0..3 {
                    ask(&ours, &mut theirs).await;
                    assert!(send(&ours, "alone").await || !at_once, "{name}");
                }
            });
        }
    }

    /// Whoever sends on and on is not held up by others.
    fn what_answers_nothing_is_over_when_it_was_begun(queue) {
        let (at_once, together) = (sends_at_once(queue), collects(queue));
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            let all = as_a_task(queue, async move {
                crowd.gather().await;
                assert!(send(&ours, "1").await || !at_once, "{name}: nothing ever came");
                crowd.look_around().await;
                ask(&ours, &mut theirs).await;
                assert!(send(&ours, "2").await || !at_once, "{name}: it is alone");
                crowd.gather().await;
                assert!(send(&ours, "3").await || !at_once, "{name}: it was answered alone");
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                assert!(!send(&ours, "4").await || !together, "{name}: it was begun alone");
                crowd.gather().await;
                assert!(send(&ours, "5").await || !at_once, "{name}: it was answered in a crowd");
                crowd.look_around().await;
                ask(&ours, &mut theirs).await;
                assert!(send(&ours, "6").await || !at_once, "{name}: the crowd is gone");
                drop(ours);
                rest(theirs)
            });
            assert_eq!(all, b"123456");
        }
    }

    /// Of several buffers it is made at once, as ever.
    fn an_answer_of_several_buffers_arrives(queue) {
        let is_direct = !is_windows(queue);
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            let all = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                let mut sending = ours.write_vectored(["one", "and", "another"]);
                let (count, parts) = match poll_once(&mut sending) {
                    Poll::Ready(output) => output,
                    Poll::Pending => {
                        assert!(!is_direct, "{name}: it waits, and there is room");
                        sending.await
                    }
                };
                assert_eq!((count.unwrap(), parts), (13, ["one", "and", "another"]), "{name}");
                drop(ours);
                rest(theirs)
            });
            assert_eq!(all, b"oneandanother");
        }
    }

    /// Whatever is begun behind an answer that waits for others comes after it, also what answers something
    /// again; and the end comes last.
    fn what_is_behind_an_answer_keeps_its_order(queue) {
        for makes_room in [true, false] {
            let make = if makes_room { tcp_to_host } else { narrow_tcp_to_host };
            let (ours, mut theirs) = make(queue);
            let mut crowd = Crowd::new(queue);
            // Two things are asked, of which the second is received after the first was answered.
            theirs.write_all(b"??").unwrap();
            let reading = thread::spawn(move || rest(theirs));
            let expected = as_a_task(queue, async move {
                asked(&ours).await;
                crowd.gather().await;
                let mut sends = vec![crowd.answer(&ours, message(0))];
                let mut asking = Box::pin(asked(&ours));
                assert!(poll_once(&mut asking).is_ready() || is_windows(&crowd.queue));
                sends.extend((1..40).map(|number| ours.write(message(number))));
                let shutting = ours.shutdown(Shutdown::Write);
                let late = ours.write(message(40));
                let mut expected = Vec::new();
                for send in sends {
                    let (count, bytes) = send.await;
                    expected.extend_from_slice(&bytes[..count.unwrap()]);
                }
                shutting.await.unwrap();
                let error = late.await.0.unwrap_err();
                assert_eq!(kind_of(&crowd.queue, &error), ErrorKind::BrokenPipe);
                drop(asking);
                expected
            });
            assert!(reading.join().unwrap() == expected);
        }
    }

    /// An answer for which somebody else's data waits already is not begun with those of others.
    fn an_answer_waits_behind_what_was_sent_before(queue) {
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            theirs.write_all(b"?").unwrap();
            let (sends, all) = as_a_task(queue, async move {
                let large = ours.write(noise(each_kernel::rounds(&crowd.queue, 8 << 20)));
                let waiting = ours.write(message(1));
                asked(&ours).await;
                crowd.gather().await;
                let answering = ours.write(message(2));
                let reading = thread::spawn(move || rest(theirs));
                let sends = [large.await, waiting.await, answering.await];
                drop(ours);
                (sends, reading.join().unwrap())
            });
            assert!(all == sends.each_ref().map(sent).concat(), "{name}");
            assert_eq!(sent(&sends[2]), message(2), "{name}");
        }
    }

    /// Gone before the answer was begun, or while it waits for those of others. The buffer comes back.
    fn an_answer_to_nobody_is_an_error(queue) {
        for is_gone in [true, false] {
            for HalfWay { name, ours, mut theirs } in connections(queue) {
                let mut crowd = Crowd::new(queue);
                as_a_task(queue, async move {
                    ask(&ours, &mut theirs).await;
                    crowd.gather().await;
                    let mut theirs = Some(theirs);
                    if is_gone {
                        theirs.take();
                    }
                    let answering = crowd.answer(&ours, message(1));
                    let behind = ours.write(message(2));
                    drop(theirs);
                    let (result, bytes) = answering.await;
                    assert!(bytes == message(1), "{name}");
                    // Over TCP the first learns nothing.
                    if name == "Unix socket" && (is_gone || collects(&crowd.queue)) {
                        let kind = kind_of(&crowd.queue, &result.unwrap_err());
                        assert_eq!(kind, ErrorKind::BrokenPipe, "{name}");
                    }
                    let (result, bytes) = behind.await;
                    assert!(bytes == message(2), "{name}");
                    assert!(result.is_err() || !is_gone || name == "TCP", "{name}");
                });
            }
        }
    }

    /// The same of a connection that was reset.
    fn an_answer_after_a_reset_is_an_error(queue) {
        let (ours, mut theirs) = tcp_to_host(queue);
        let mut crowd = Crowd::new(queue);
        as_a_task(queue, async move {
            ask(&ours, &mut theirs).await;
            theirs.reset_when_closed();
            drop(theirs);
            ours.read(vec![0; 1]).await.0.unwrap_err(); // Now it is known.
            crowd.gather().await;
            let answering = crowd.answer(&ours, message(1));
            let behind = ours.write(message(2));
            for (number, send) in [(1, answering), (2, behind)] {
                let (result, bytes) = send.await;
                let kind = kind_of(&crowd.queue, &result.unwrap_err());
                let kinds =
                    [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
                assert!(kinds.contains(&kind), "{number}: {kind:?}");
                assert!(bytes == message(number), "{number}");
            }
        });
    }

    /// Nobody was where the last datagram went to: the system says so once, and of the next one.
    #[cfg(target_os = "linux")]
    not_simulated("on Windows a receive says so")
    fn an_answer_says_what_became_of_the_one_before(queue) {
        let (ours, theirs) = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap()).into();
        ours.connect(theirs.local_addr().unwrap()).unwrap();
        let ours = queue.register(ours).unwrap();
        let mut crowd = Crowd::new(queue);
        as_a_task(queue, async move {
            theirs.send_to(b"?", ours.get().local_addr().unwrap()).unwrap();
            drop(theirs);
            // Past the queue, which is to answer the question with the next one.
            assert_eq!(ours.get().send(b"lost").unwrap(), 4);
            assert!(ours.ready(Event::Error).await.unwrap().contains(Event::Error));
            // A receive takes the error, too; and there is another.
            ours.recv(vec![0; 8]).await.0.unwrap_err();
            asked(&ours).await;
            assert_eq!(ours.get().send(b"lost").unwrap(), 4);
            ours.ready(Event::Error).await.unwrap();
            crowd.gather().await;
            let (result, bytes) = crowd.answer(&ours, message(1)).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert!(bytes == message(1));
        });
    }

    /// What the cancel was too late for says what it did, and what it says is what arrives.
    fn a_cancelled_answer_says_what_it_did(queue) {
        for has_limit in [true, false] {
            for HalfWay { name, ours, mut theirs } in connections(queue) {
                let mut crowd = Crowd::new(queue);
                let (sends, all) = as_a_task(queue, async move {
                    ask(&ours, &mut theirs).await;
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, message(1));
                    let behind = ours.write(message(2));
                    let first = match has_limit {
                        true => answering.timeout(LONG).await,
                        false => answering.cancel().await,
                    };
                    if collects(&crowd.queue) {
                        assert_eq!(sent(&first).len(), first.1.len(), "{name}: it was handed over");
                    }
                    let second = behind.await;
                    drop(ours);
                    ([first, second], rest(theirs))
                });
                assert!(all == sends.each_ref().map(sent).concat(), "{name}");
                assert_eq!(sends.map(|it| it.1), [message(1), message(2)], "{name}");
            }
        }
    }

    /// The buffer is the kernel's until that has been looked at, and dropped once.
    fn a_dropped_answer_keeps_its_buffer_for_the_kernel(queue) {
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            let (buffer, drops) = Marked::new(700);
            let expected = buffer.bytes().to_vec();
            let (all, drops) = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                let answering = crowd.answer(&ours, buffer);
                let behind = ours.write("behind");
                drop(answering);
                if collects(&crowd.queue) {
                    assert_eq!(drops.count(), 0, "{name}");
                }
                assert_eq!(behind.await.0.unwrap(), 6, "{name}");
                drop(ours);
                (rest(theirs), drops)
            });
            queue.run().unwrap();
            assert_eq!(drops.count(), 1, "{name}");
            let before = all.strip_suffix(b"behind").unwrap();
            // Else it was cancelled in time.
            assert!(before == expected || before.is_empty() && !collects(queue), "{name}");
        }
    }

    /// However the registration ends: what is said to be sent arrives, then the end; and nothing comes to what
    /// has the handle's value then.
    fn a_connection_ends_while_answers_are_under_way(queue) {
        // The simulation's handles are closed by their drop only.
        for how in 0..if is_simulated(queue) { 3 } else { 4 } {
            for HalfWay { name, ours, mut theirs } in connections(queue) {
                let mut crowd = Crowd::new(queue);
                let (sends, all) = as_a_task(queue, async move {
                    ask(&ours, &mut theirs).await;
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, message(1));
                    let behind = ours.write(message(2));
                    let mut kept: Option<Box<dyn Any>> = None;
                    match how {
                        0 => drop(ours),
                        1 => kept = Some(Box::new(ours.into_inner())),
                        2 => {
                            crowd.queue.unregister(&ours).unwrap();
                            kept = Some(Box::new(ours));
                        }
                        _ => ours.close().await.unwrap(),
                    }
                    let mut next = connections(&crowd.queue);
                    let sends = [answering.await, behind.await];
                    crowd.look_around().await;
                    drop(kept);
                    while let Some(HalfWay { ours, theirs, .. }) = next.pop() {
                        drop(ours);
                        assert_eq!(rest(theirs), b"", "{name}: {how}");
                    }
                    (sends, rest(theirs))
                });
                assert!(all == sends.each_ref().map(sent).concat(), "{name}: {how}");
                if collects(queue) {
                    assert_eq!(sent(&sends[0]), message(1), "{name}: {how}");
                }
                assert_eq!(sends.map(|it| it.1), [message(1), message(2)], "{name}: {how}");
            }
        }
    }

    /// Refused, as all that is begun then.
    fn an_answer_after_the_end_of_its_registration_is_refused(queue) {
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                crowd.queue.unregister(&ours).unwrap();
                let (result, bytes) = ours.write(message(1)).await;
                assert!(result.is_err() && bytes == message(1), "{name}: {result:?}");
                drop(ours);
                assert_eq!(rest(theirs), b"", "{name}");
            });
        }
    }

    /// However the queue ends: it drains, and the memory comes back.
    fn a_queue_ends_while_answers_are_under_way(queue) {
        for how in 0..3 {
            for operations_first in [true, false] {
                let other = another(queue);
                let HalfWay { name, ours, theirs } = quick_connection(&other);
                let (mut crowd, mut theirs) = (Crowd::new(&other), theirs);
                let (buffer, drops) = Marked::new(700);
                let expected = buffer.bytes().to_vec();
                let (handles, sends) = as_a_task(&other, {
                    theirs.write_all(b"?").unwrap();
                    async move {
                        asked(&ours).await;
                        crowd.gather().await;
                        let sends = (crowd.answer(&ours, buffer), ours.write("behind"));
                        ((ours, crowd.into_handles()), sends)
                    }
                });
                let mut sends = Some(sends);
                if operations_first {
                    sends.take();
                }
                match how {
                    0 => other.close(Duration::from_secs(5)).unwrap(),
                    1 if is_windows(queue) => {}
                    1 => other.close(Duration::ZERO).unwrap(),
                    _ => {}
                }
                drop(other);
                drop(sends);
                drop(handles);
                assert_eq!(drops.count(), 1, "{name}");
                let all = rest(theirs);
                let first = all.strip_suffix(b"behind").unwrap_or(&all);
                assert!(first == expected || is_windows(queue) && first.is_empty(), "{name}");
            }
        }
        assert!(!queue.running());
    }

    /// What it has begun goes with it, when the kernel is done.
    fn a_task_that_panics_has_begun_an_answer(queue) {
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            let (buffer, drops) = Marked::new(700);
            let expected = buffer.bytes().to_vec();
            theirs.write_all(b"?").unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                as_a_task(queue, async move {
                    asked(&ours).await;
                    crowd.gather().await;
                    let _answering = crowd.answer(&ours, buffer);
                    resume_unwind(Box::new("on purpose"));
                });
            }));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"on purpose"), "{name}");
            queue.run().unwrap();
            assert_eq!(drops.count(), 1, "{name}");
            let all = rest(theirs);
            assert!(all == expected || is_windows(queue) && all.is_empty(), "{name}");
        }
    }

    fn a_task_that_is_dropped_has_begun_an_answer(queue) {
        for HalfWay { name, ours, mut theirs } in connections(queue) {
            let mut crowd = Crowd::new(queue);
            let (buffer, drops) = Marked::new(700);
            let expected = buffer.bytes().to_vec();
            theirs.write_all(b"?").unwrap();
            let begun = Rc::new((Cell::new(false), RefCell::new(None::<Waker>)));
            let task = queue.spawn({
                let begun = begun.clone();
                async move {
                    asked(&ours).await;
                    crowd.gather().await;
                    let _answering = crowd.answer(&ours, buffer);
                    begun.0.set(true);
                    begun.1.take().unwrap().wake();
                    pending::<()>().await;
                }
            });
            queue.block_on(poll_fn(|context| {
                if begun.0.get() {
                    return Poll::Ready(());
                }
                begun.1.replace(Some(context.waker().clone()));
                Poll::Pending
            })).unwrap();
            if collects(queue) {
                assert_eq!((drops.count(), queue.pending().len()), (0, 1), "{name}");
            }
            drop(task);
            queue.run().unwrap();
            assert_eq!(drops.count(), 1, "{name}");
            let all = rest(theirs);
            assert!(all == expected || is_windows(queue) && all.is_empty(), "{name}");
        }
    }
}

/// Awaits it, and counts it if it has to wait.
async fn counted<F: Future + Unpin>(mut operation: F, waits: &Cell<usize>) -> F::Output {
    if let Poll::Ready(output) = poll_once(&mut operation) {
        return output;
    }
    waits.set(waits.get() + 1);
    operation.await
}

/// Sends, and says whether that was over when it was begun.
async fn send<H>(on: &Registered<H>, bytes: &'static str) -> bool {
    let mut sending = on.write(bytes);
    if poll_once(&mut sending).is_ready() {
        return true;
    }
    assert_eq!(sending.await.0.unwrap(), bytes.len());
    false
}

/// Where there is no room, and nobody but the peer makes some.
#[cfg(unix)]
mod without_room {
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixStream;

    use ioqueue::Elapsed;

    use super::*;

    /// A buffer that does something when it is asked how long it is for the last of so many times.
    struct Odd<F> {
        asks_left: Cell<u32>,
        act: RefCell<Option<F>>,
    }

    // SAFETY: the bytes are there for ever.
    unsafe impl<F: FnOnce() + 'static> IoBuf for Odd<F> {
        fn io_ptr(&self) -> *const u8 {
            b"answer".as_ptr()
        }

        fn io_len(&self) -> usize {
            self.asks_left.set(self.asks_left.get().wrapping_sub(1));
            if self.asks_left.get() == 0 {
                self.act.take().unwrap()();
            }
            6
        }
    }

    /// A pair of Unix sockets.
    fn pair(queue: &Queue) -> (Registered<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (queue.register(ours).unwrap(), theirs)
    }

    /// Fills all the room there is, without the queue's knowing. How much that was.
    fn fill(to: &Registered<UnixStream>) -> usize {
        let to = to.get().as_fd().as_raw_fd();
        let mut total = 0;
        for bytes in [&[b'f'; 4096][..], b"f"] {
            loop {
                let (at, flags) = (bytes.as_ptr().cast(), libc::MSG_DONTWAIT);
                // SAFETY: the bytes are ours, and so many.
                match unsafe { libc::send(to, at, bytes.len(), flags) } {
                    ..=0 => break,
                    count => total += count as usize,
                }
            }
        }
        total
    }

    /// Reads as much, which makes room.
    fn take(from: &mut UnixStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).unwrap();
        bytes
    }

    on_each_kernel! {
        not_simulated("its pipes and sockets are filled by other tests"):

        /// What a task has begun is out when `block_on` is over: nobody need look at the queue again.
        fn an_answer_is_out_when_block_on_is_over(queue) {
            let (ours, mut theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            let begun = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                (crowd.answer(&ours, "answer"), ours, theirs, crowd.into_handles())
            });
            let (sending, _ours, mut theirs, _handles) = begun;
            theirs.set_nonblocking(true).unwrap();
            let mut answer = [0; 8];
            assert_eq!(theirs.read(&mut answer).unwrap(), 6);
            assert_eq!(queue.block_on(sending).unwrap().0.unwrap(), 6);
        }

        /// What a caller does itself with the handle comes after what it has begun.
        fn what_is_sent_by_hand_comes_after_an_answer(queue) {
            let (ours, mut theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            let handles = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                crowd.gather().await;
                let sending = crowd.answer(&ours, "one");
                let mut by_hand: &UnixStream = ours.get();
                by_hand.write_all(b"two").unwrap();
                assert_eq!(take(&mut theirs, 6), b"onetwo");
                assert_eq!(sending.await.0.unwrap(), 3);
                (ours, theirs, crowd.into_handles())
            });
            drop(handles);
        }

        fn an_answer_waits_for_room(queue) {
            let (ours, mut theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            let all = as_a_task(queue, async move {
                for round in 0..3 {
                    ask(&ours, &mut theirs).await;
                    let filled = fill(&ours);
                    crowd.gather().await;
                    let mut answering = crowd.answer(&ours, message(round));
                    let behind = ours.write("behind");
                    crowd.look_around().await;
                    assert!(poll_once(&mut answering).is_pending());
                    let before = take(&mut theirs, filled);
                    assert!(before.iter().all(|&byte| byte == b'f'));
                    let (count, bytes) = answering.await;
                    assert_eq!(count.unwrap(), bytes.len());
                    assert_eq!(behind.await.0.unwrap(), 6);
                    let after = [message(round), b"behind".to_vec()].concat();
                    assert!(take(&mut theirs, after.len()) == after);
                }
                drop(ours);
                rest(theirs)
            });
            assert_eq!(all, b"");
        }

        /// As much of it as there is room for is sent, and it says so; the next one waits.
        fn an_answer_for_which_there_is_some_room_is_short(queue) {
            let (ours, mut theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            as_a_task(queue, async move {
                for _ in 0..3 {
                    ask(&ours, &mut theirs).await;
                    crowd.gather().await;
                    let large = noise(8 << 20);
                    let answering = crowd.answer(&ours, large);
                    let mut behind = ours.write("behind");
                    let (count, large) = answering.await;
                    let count = count.unwrap();
                    assert!(count > 0 && count < large.len(), "{count}");
                    crowd.look_around().await;
                    assert!(poll_once(&mut behind).is_pending());
                    // Nor is there room for another answer.
                    theirs.write_all(b"?").unwrap();
                    asked(&ours).await;
                    crowd.gather().await;
                    let mut again = ours.write("again");
                    crowd.look_around().await;
                    assert!(poll_once(&mut again).is_pending());
                    assert!(take(&mut theirs, count) == large[..count]);
                    assert_eq!((behind.await.0.unwrap(), again.await.0.unwrap()), (6, 5));
                    assert_eq!(take(&mut theirs, 11), b"behindagain");
                }
            });
        }

        /// However it is given up, and whether it has been found by then that there is no room.
        fn an_answer_without_room_is_given_up(queue) {
            for how in 0..5 {
                let (ours, mut theirs) = pair(queue);
                let mut crowd = Crowd::new(queue);
                let (buffer, drops) = Marked::new(700);
                as_a_task(queue, async move {
                    ask(&ours, &mut theirs).await;
                    let filled = fill(&ours);
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, buffer);
                    let behind = ours.write("behind");
                    let (result, buffer) = match how {
                        0 => answering.cancel().await,
                        1 => {
                            crowd.look_around().await;
                            answering.cancel().await
                        }
                        2 => answering.timeout(Duration::from_millis(5)).await,
                        _ => {
                            if how == 3 {
                                crowd.look_around().await;
                            }
                            drop(answering);
                            crowd.look_around().await;
                            (Err(ErrorKind::Other.into()), Marked::new(0).0)
                        }
                    };
                    let error = result.unwrap_err();
                    assert!(how > 1 || is_cancelled(&error), "{how}: {error}");
                    assert!(how != 2 || Elapsed::is(&error), "{how}: {error}");
                    assert_eq!(drops.count(), u32::from(how > 2), "{how}");
                    drop(buffer);
                    assert_eq!(drops.count(), 1, "{how}");
                    take(&mut theirs, filled);
                    assert_eq!(behind.await.0.unwrap(), 6, "{how}");
                    drop(ours);
                    assert_eq!(rest(theirs), b"behind", "{how}");
                });
            }
        }

        /// It is cancelled with its registration, and not sent to whatever has the number then.
        fn an_answer_without_room_is_not_the_next_ones(queue) {
            for how in 0..4 {
                let (ours, mut theirs) = pair(queue);
                let mut crowd = Crowd::new(queue);
                as_a_task(queue, async move {
                    ask(&ours, &mut theirs).await;
                    let filled = fill(&ours);
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, message(1));
                    let behind = ours.write(message(2));
                    let mut kept: Option<Box<dyn Any>> = None;
                    match how {
                        0 => drop(ours),
                        1 => kept = Some(Box::new(ours.into_inner())),
                        2 => {
                            crowd.queue.unregister(&ours).unwrap();
                            kept = Some(Box::new(ours));
                        }
                        _ => ours.close().await.unwrap(),
                    }
                    let next: Vec<_> = (0..2).map(|_| pair(&crowd.queue)).collect();
                    for send in [answering, behind] {
                        assert!(is_cancelled(&send.await.0.unwrap_err()), "{how}");
                    }
                    drop(kept);
                    assert_eq!(rest(theirs).len(), filled, "{how}");
                    for (ours, theirs) in next {
                        drop(ours);
                        assert_eq!(rest(theirs), b"", "{how}");
                    }
                });
            }
        }

        fn a_queue_ends_while_an_answer_waits_for_room(queue) {
            for closes in [true, false] {
                let other = another(queue);
                let (ours, mut theirs) = pair(&other);
                let mut crowd = Crowd::new(&other);
                let (buffer, drops) = Marked::new(700);
                theirs.write_all(b"?").unwrap();
                let (handles, mut answering, filled) = as_a_task(&other, async move {
                    asked(&ours).await;
                    let filled = fill(&ours);
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, buffer);
                    ((ours, crowd.into_handles()), answering, filled)
                });
                if closes {
                    other.close(Duration::from_secs(5)).unwrap();
                    let Poll::Ready((result, _)) = poll_once(&mut answering) else {
                        panic!("it waits for a queue that is closed");
                    };
                    assert!(is_cancelled(&result.unwrap_err()));
                }
                drop(other);
                drop((answering, handles));
                assert_eq!(drops.count(), 1);
                assert_eq!(rest(theirs).len(), filled);
            }
        }

        /// The kernel says that there is room for what went before just when an answer is begun, with something
        /// behind it.
        fn room_for_what_went_before_hurries_nothing(queue) {
            let (ours, mut theirs) = pair(queue);
            let (another, _theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            let all = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                let filled = fill(&ours);
                let early = ours.write("early");
                let reading = another.read(vec![0; 1]);
                crowd.look_around().await;
                assert!(is_cancelled(&early.cancel().await.0.unwrap_err()));
                drop(reading);
                crowd.gather().await;
                take(&mut theirs, filled);
                // The kernel is called for that, and hears of the room.
                drop(another);
                let answering = crowd.answer(&ours, "answer");
                let behind = ours.write(", and more");
                assert_eq!((answering.await.0.unwrap(), behind.await.0.unwrap()), (6, 10));
                drop(ours);
                rest(theirs)
            });
            assert_eq!(all, b"answer, and more");
        }

        /// A peer that will send no more still reads. There is no edge for what there was room for all along.
        fn answers_after_the_peers_end_wait_for_room_only(queue) {
            let (ours, mut theirs) = pair(queue);
            let mut crowd = Crowd::new(queue);
            let all = as_a_task(queue, async move {
                ask(&ours, &mut theirs).await;
                let reading = ours.read(vec![0; 1]);
                crowd.look_around().await;
                theirs.shutdown(Shutdown::Write).unwrap();
                assert_eq!(reading.await.0.unwrap(), 0);
                for _ in 0..3 {
                    let filled = fill(&ours);
                    let waiting = ours.write("waiting ");
                    crowd.look_around().await;
                    take(&mut theirs, filled);
                    assert_eq!(waiting.await.0.unwrap(), 8);
                    // The end answers every read.
                    assert_eq!(ours.read(vec![0; 1]).await.0.unwrap(), 0);
                    crowd.gather().await;
                    assert_eq!(crowd.answer(&ours, "answer ").await.0.unwrap(), 7);
                    assert_eq!(ours.read(vec![0; 1]).await.0.unwrap(), 0);
                    crowd.gather().await;
                    assert_eq!(ours.write_vectored(["in ", "parts "]).await.0.unwrap(), 9);
                    assert_eq!(ours.read(vec![0; 1]).await.0.unwrap(), 0);
                    let before = take(&mut theirs, 24);
                    assert_eq!(before, b"waiting answer in parts ");
                    let filled = fill(&ours);
                    crowd.gather().await;
                    let answering = crowd.answer(&ours, "late");
                    crowd.look_around().await;
                    take(&mut theirs, filled);
                    assert_eq!(answering.await.0.unwrap(), 4);
                    assert_eq!(take(&mut theirs, 4), b"late");
                }
                drop(ours);
                rest(theirs)
            });
            assert_eq!(all, b"");
        }

        /// The code of an answer's buffer answers itself, and has all handed over that makes a crowd: its own answer
        /// is none any more. Nor is there an edge for what there was room for all along.
        fn what_is_no_answer_any_more_is_sent_all_the_same(queue) {
            for nth in 1..=3 {
                let (ours, mut theirs) = pair(queue);
                let ((gate, mut opens), (quiet, _never)) = (pair(queue), pair(queue));
                let mut crowd = Crowd::new(queue);
                as_a_task(queue, async move {
                    // Watched for room, and the peer will send no more.
                    let reading = ours.read(vec![0; 1]);
                    crowd.look_around().await;
                    theirs.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(reading.await.0.unwrap(), 0);
                    let filled = fill(&ours);
                    let waiting = ours.write("waiting");
                    crowd.look_around().await;
                    take(&mut theirs, filled);
                    assert_eq!(waiting.await.0.unwrap(), 7);
                    assert_eq!(take(&mut theirs, 7), b"waiting");
                    // Two others answer first, and nobody is ready then.
                    let mut asking = Vec::new();
                    for _ in 0..2 {
                        let (ours, theirs) = pair(&crowd.queue);
                        asking.push(theirs);
                        let other = async move {
                            asked(&ours).await;
                            assert_eq!(ours.write("other").await.0.unwrap(), 5);
                        };
                        crowd.queue.spawn(other).detach();
                    }
                    let (ready, reading) = (gate.read(vec![0; 1]), quiet.read(vec![0; 1]));
                    crowd.look_around().await;
                    // The end answers every read.
                    assert_eq!(ours.read(vec![0; 1]).await.0.unwrap(), 0);
                    asking.iter_mut().for_each(|theirs| theirs.write_all(b"?").unwrap());
                    opens.write_all(b"!").unwrap();
                    assert_eq!(ready.await.0.unwrap(), 1);
                    let (ours, early) = (Rc::new(ours), Rc::new(RefCell::new(None)));
                    let (again, told) = (ours.clone(), early.clone());
                    let act = move || {
                        // The kernel is called for that.
                        drop((reading, quiet));
                        told.replace(Some(again.write("early")));
                    };
                    let (asks_left, act) = (Cell::new(nth), RefCell::new(Some(act)));
                    assert_eq!(ours.write(Odd { asks_left, act }).await.0.unwrap(), 6);
                    let early = early.take();
                    let is_asked = early.is_some();
                    if let Some(early) = early {
                        assert_eq!(early.await.0.unwrap(), 5);
                    }
                    drop(ours);
                    let expected = if is_asked { "earlyanswer" } else { "answer" };
                    assert_eq!(rest(theirs), expected.as_bytes(), "{nth}");
                    for mut theirs in asking {
                        assert_eq!(take(&mut theirs, 5), b"other");
                    }
                });
            }
        }
    }
}
