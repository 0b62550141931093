//! A queue on a thread of its own (SPEC Q15).

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use ioqueue::Remote;
use ioqueue::error::Closed;

/// Somebody else's executor.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

/// Tells when it is dropped, and on which thread.
struct Tells(mpsc::Sender<thread::ThreadId>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

#[test]
fn a_block_runs_on_the_queues_thread_and_answers_here() {
    let remote = Remote::new().unwrap();
    let there = remote.run(|| async {
        ioqueue::sleep(Duration::from_millis(1)).unwrap().await.unwrap();
        thread::current().id()
    });
    let there = block_on(there).unwrap();
    assert_ne!(there, thread::current().id());
    // Another block, the same thread; waited for by blocking.
    assert_eq!(remote.run(|| async { thread::current().id() }).wait().unwrap(), there);
    remote.join().unwrap();
}

#[test]
fn blocks_of_eight_threads_are_all_answered() {
    let remote = Remote::new().unwrap();
    let threads = [(); 8].map(|()| {
        let remote = remote.clone();
        thread::spawn(move || {
            for number in 0..200_u32 {
                assert_eq!(remote.run(move || async move { number }).wait(), Ok(number));
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn dropping_an_answer_drops_its_block_on_the_queues_thread() {
    let remote = Remote::new().unwrap();
    let there = remote.run(|| async { thread::current().id() }).wait().unwrap();
    let (tell, told) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let answer = remote.run(move || async move {
        let _tells = Tells(tell);
        begin.send(()).unwrap();
        pending::<()>().await;
    });
    begun.recv().unwrap();
    drop(answer);
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(there));
}

#[test]
fn a_detached_block_goes_on() {
    let remote = Remote::new().unwrap();
    let (go, may_go) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    remote
        .run(move || async move {
            ioqueue::sleep(Duration::from_millis(1)).unwrap().await.unwrap();
            may_go.recv().unwrap();
            tell.send(7).unwrap();
        })
        .detach();
    go.send(()).unwrap();
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(7));
}

#[test]
fn what_is_unfinished_when_the_queue_ends_is_closed() {
    let remote = Remote::new().unwrap();
    let (tell, told) = mpsc::channel();
    let there = remote.run(|| async { thread::current().id() }).wait().unwrap();
    let (begin, begun) = mpsc::channel();
    let answer = remote.run(move || async move {
        let _tells = Tells(tell);
        begin.send(()).unwrap();
        pending::<()>().await;
    });
    begun.recv().unwrap();
    remote.join().unwrap();
    assert_eq!(told.recv(), Ok(there));
    assert_eq!(block_on(answer), Err(Closed));
}

// Q15: also one that was not begun.
#[test]
fn what_was_not_begun_when_the_queue_ends_is_closed() {
    for _ in 0..50 {
        let remote = Remote::new().unwrap();
        let answers: Vec<_> = (0..3).map(|_| remote.run(pending::<()>)).collect();
        remote.join().unwrap();
        for answer in answers {
            assert_eq!(block_on(answer), Err(Closed));
        }
    }
}

#[test]
fn a_panic_comes_out_of_the_answer_and_the_queue_goes_on() {
    let remote = Remote::new().unwrap();
    let answer = remote.run(|| async { panic!("as planned") });
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _: Result<(), Closed> = answer.wait();
    }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"as planned"));
    assert_eq!(remote.run(|| async { 1 }).wait(), Ok(1));
}

#[test]
fn a_queue_that_cannot_be_made_says_why() {
    let kind = if cfg!(windows) {
        ioqueue::KernelKind::Uring
    } else {
        ioqueue::KernelKind::CompletionPort
    };
    let refused = Remote::with(ioqueue::Queue::builder().kernel(kind)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
}
