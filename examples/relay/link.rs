//! One connection: bytes both ways until both have ended.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::report::{Report, Way};
use crate::stream::{Got, Passed, Sink, Source, Stream, is_gone};

/// Two for each way; no operation allocates another. Larger ones gained nothing.
const BUFFER: usize = 64 << 10;

/// What the two ways of a connection share.
struct Fate {
    report: Rc<Report>,
    linger: Duration,
    moved: Cell<u64>,
    /// One way has ended so that the other cannot last: it gets to its end, or until it is quiet.
    doomed: Cell<bool>,
}

/// Carries bytes both ways. An end is passed on, and the other way continues; a failure ends both.
pub async fn carry(
    from: &mut Stream,
    to: &mut Stream,
    report: &Rc<Report>,
    linger: Duration,
) -> io::Result<()> {
    let fate = Fate {
        report: Rc::clone(report),
        linger,
        moved: Cell::new(0),
        doomed: Cell::new(false),
    };
    let result = {
        let forward = pin!(fate.pump(from.source.as_mut(), &mut to.sink, Way::Forward));
        let back = pin!(fate.pump(to.source.as_mut(), &mut from.sink, Way::Back));
        let both = pin!(both_or_error(forward, back));
        let quiet = pin!(fate.until_quiet());
        // In this order: `until_quiet` relies on it.
        first(both, quiet).await
    };
    if result.is_err() {
        from.fail();
        to.fail();
    }
    result
}

impl Fate {
    /// Carries bytes one way, and then its end. The next read is under way while what was read is
    /// written.
    async fn pump(
        &self,
        source: Option<&mut Source>,
        sink: &mut Sink,
        way: Way,
    ) -> io::Result<()> {
        let Some(source) = source else { return Ok(()) };
        let (mut empty, mut full, mut length) = (vec![0; BUFFER], vec![0; BUFFER], 0);
        loop {
            let (read, written) = join(source.read(empty), sink.write(full, length)).await;
            (full, empty) = (read.1, written.1);
            match written.0 {
                Err(error) if is_gone(&error) => {
                    // What its reader left unread is lost, and what it wrote may still come.
                    self.doomed.set(true);
                    *sink = Sink::Nowhere;
                }
                written => written?,
            }
            length = match read.0? {
                Got::Bytes(read) => read,
                Got::End => break,
                Got::Gone => {
                    self.doomed.set(true);
                    break;
                }
            };
            self.moved.set(self.moved.get() + length as u64);
            self.report.carried(way, length as u64);
        }
        match sink.finish().await {
            Ok(Passed::Alone) => {}
            Ok(Passed::OnlyByClosing) => self.doomed.set(true),
            Err(error) if is_gone(&error) => self.doomed.set(true),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends when the connection is doomed and nothing has moved for a while. Must be polled after
    /// the two ways, in the same task: nothing wakes it when it becomes doomed.
    async fn until_quiet(&self) -> io::Result<()> {
        poll_fn(|_| if self.doomed.get() { Poll::Ready(()) } else { Poll::Pending }).await;
        loop {
            let moved = self.moved.get();
            ioqueue::sleep(self.linger)?.await?;
            if moved == self.moved.get() {
                return Ok(());
            }
        }
    }
}

/// Both outputs.
async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut left, mut right) = (None, None);
    poll_fn(|context| {
        if left.is_none() {
            if let Poll::Ready(output) = a.as_mut().poll(context) {
                left = Some(output);
            }
        }
        if right.is_none() {
            if let Poll::Ready(output) = b.as_mut().poll(context) {
                right = Some(output);
            }
        }
        match (left.take(), right.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (left, right) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Until both are done, or one has failed.
async fn both_or_error<A, B>(a: A, b: B) -> io::Result<()>
where
    A: Future<Output = io::Result<()>>,
    B: Future<Output = io::Result<()>>,
{
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (false, false);
    poll_fn(|context| {
        if !a_done {
            match a.as_mut().poll(context) {
                Poll::Ready(Ok(())) => a_done = true,
                other => {
                    if other.is_ready() {
                        return other;
                    }
                }
            }
        }
        if !b_done {
            match b.as_mut().poll(context) {
                Poll::Ready(Ok(())) => b_done = true,
                other => {
                    if other.is_ready() {
                        return other;
                    }
                }
            }
        }
        if a_done && b_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// The output of whichever is done first; `a` is polled first.
pub async fn first<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|context| match a.as_mut().poll(context) {
        Poll::Pending => b.as_mut().poll(context),
        ready => ready,
    })
    .await
}
