//! What blocks and has no other form (stdin, stdout, on Windows waiting for a pipe to be free) is done on
//! a thread, and awaited by the queue.

use std::future::poll_fn;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;

/// A thread that turns each `Q` into an `A`, one at a time. Nothing is allocated per question.
///
/// Dropped while the thread works: its answer is dropped, and then it ends. It may not live to see
/// that: nobody joins it.
pub struct OnThread<Q, A> {
    questions: SyncSender<Q>,
    desk: Arc<Mutex<Desk<A>>>,
}

/// Where the answer is put, and who waits for it.
struct Desk<A> {
    answer: Option<A>,
    waiting: Option<Waker>,
}

impl<Q: Send + 'static, A: Send + 'static> OnThread<Q, A> {
    pub fn new(mut work: impl FnMut(Q) -> A + Send + 'static) -> io::Result<Self> {
        let (questions, asked) = sync_channel(1);
        let desk = Arc::new(Mutex::new(Desk { answer: None, waiting: None }));
        let theirs = Arc::clone(&desk);
        thread::Builder::new().spawn(move || {
            for question in asked {
                let answer = work(question);
                let mut desk = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                desk.answer = Some(answer);
                let waiting = desk.waiting.take();
                drop(desk);
                if let Some(waker) = waiting {
                    waker.wake();
                }
            }
        })?;
        Ok(Self { questions, desk })
    }

    /// Asks, and waits for the answer. Ask no other before it is there.
    pub async fn ask(&mut self, question: Q) -> A {
        // The thread takes questions until this is dropped, and has no other: there is room.
        let _ = self.questions.send(question);
        poll_fn(|context| {
            let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = desk.answer.take() {
                return Poll::Ready(answer);
            }
            desk.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Does `work`, which blocks, on a thread of its own.
#[cfg(windows)]
pub async fn blocking<A: Send + 'static>(
    mut work: impl FnMut() -> io::Result<A> + Send + 'static,
) -> io::Result<A> {
    OnThread::new(move |()| work())?.ask(()).await
}
