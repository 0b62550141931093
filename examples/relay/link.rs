//! One connection: bytes both ways until both have ended.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::report::{Report, Way};
use crate::stream::{Got, Passed, Sink, Source, Stream};

/// Two for each way, used again for every operation. Under Wine twice as fast as 64 KiB, and 256 KiB no
/// faster.
pub const BUFFER: usize = 128 << 10;

/// What the two ways of a connection share.
struct Fate {
    report: Rc<Report>,
    linger: Duration,
    moved: Cell<u64>,
    /// How many writes are under way.
    writing: Cell<u32>,
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
        writing: Cell::new(0),
        doomed: Cell::new(false),
    };
    let forward = fate.pump(from.source.as_mut(), &mut to.sink, Way::Forward);
    let back = fate.pump(to.source.as_mut(), &mut from.sink, Way::Back);
    let both = async { try_join(forward, back).await.map(|_| ()) };
    // In this order: `until_quiet` relies on it.
    let result = first(both, fate.until_quiet()).await;
    (from.complete, to.complete) = (result.is_ok(), result.is_ok());
    result
}

impl Fate {
    /// Carries bytes one way, and then its end. The next read is under way while what was read is
    /// written.
    async fn pump(&self, source: Option<&mut Source>, sink: &mut Sink, way: Way) -> io::Result<()> {
        let Some(source) = source else { return Ok(()) };
        let (mut empty, mut full) = (Vec::with_capacity(BUFFER), Vec::with_capacity(BUFFER));
        loop {
            let both = try_join(source.read(empty), self.write(sink, full)).await?;
            let ((got, read), written) = both;
            (full, empty) = (read, written);
            match got {
                Got::Bytes => {}
                Got::End => break,
                Got::Gone => {
                    self.doomed.set(true);
                    break;
                }
            }
            if !matches!(sink, Sink::Nowhere) {
                self.moved.set(self.moved.get() + full.len() as u64);
                self.report.carried(way, full.len() as u64);
            }
        }
        match sink.finish().await {
            Ok(Passed::Alone) => {}
            Ok(Passed::OnlyByClosing) => self.doomed.set(true),
            Err(error) if sink.is_gone(&error) => self.doomed.set(true),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes what was read. When nobody is left to read it that is lost, like the rest; what the
    /// reader wrote before it went may still come.
    async fn write(&self, sink: &mut Sink, buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        self.writing.set(self.writing.get() + 1);
        let written = sink.write_all(buffer).await;
        self.writing.set(self.writing.get() - 1);
        match written {
            (Err(error), buffer) if sink.is_gone(&error) => {
                self.doomed.set(true);
                *sink = Sink::Nowhere;
                Ok(buffer)
            }
            (result, buffer) => result.map(|()| buffer),
        }
    }

    /// Ends when the connection is doomed, nothing has moved for a while and nothing is being written:
    /// a slow reader is not a quiet writer. Must be polled after the two ways, in the same task:
    /// nothing wakes it when it becomes doomed.
    async fn until_quiet(&self) -> io::Result<()> {
        poll_fn(|_| if self.doomed.get() { Poll::Ready(()) } else { Poll::Pending }).await;
        loop {
            let moved = self.moved.get();
            ioqueue::sleep(self.linger)?.await?;
            if moved == self.moved.get() && self.writing.get() == 0 {
                return Ok(());
            }
        }
    }
}

/// Both outputs, or the first error; what is not done then is dropped, which cancels it.
async fn try_join<A, B>(
    a: impl Future<Output = io::Result<A>>,
    b: impl Future<Output = io::Result<B>>,
) -> io::Result<(A, B)> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (None, None);
    poll_fn(|context| {
        if a_done.is_none() {
            if let Poll::Ready(output) = a.as_mut().poll(context)? {
                a_done = Some(output);
            }
        }
        if b_done.is_none() {
            if let Poll::Ready(output) = b.as_mut().poll(context)? {
                b_done = Some(output);
            }
        }
        match (a_done.take(), b_done.take()) {
            (Some(a), Some(b)) => Poll::Ready(Ok((a, b))),
            undone => {
                (a_done, b_done) = undone;
                Poll::Pending
            }
        }
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
