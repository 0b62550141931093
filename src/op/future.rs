//! The futures of portable operations.

use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Request;
use crate::iocp::{self, Begun, Cancelled, Wait};
use crate::time::Elapsed;

/// A portable operation that was started: a future of its result.
///
/// It goes on whether it is polled or not, and works under any executor, as long as somebody polls the
/// queue. **Dropping it cancels the operation**; its buffer stays until the kernel is done, and is
/// dropped then. What it had done by then is lost: bytes that it has read are gone.
/// [`cancel`](Self::cancel) can be awaited and loses nothing. Not `Send`.
///
/// If the queue is closed meanwhile the result is [`Closed`](crate::error::Closed), or how the operation
/// ended if it was faster.
///
/// # Panics
/// When it is polled after its end, or after the queue was closed and the kernel did not give the
/// operation back ([`Undrained`](crate::error::Undrained)).
#[must_use = "dropping it cancels the operation (but a close), and its result is lost"]
pub struct Operation<R: Request> {
    stage: Begun<R>,
}

// Nothing in it is pinned: the memory that must not move is the queue's.
impl<R: Request> Unpin for Operation<R> {}

impl<R: Request> Operation<R> {
    #[inline(always)]
    pub(super) fn new(begun: Begun<R>) -> Self {
        Self { stage: begun }
    }

    #[inline(always)]
    fn take_stage(&mut self) -> Begun<R> {
        std::mem::replace(&mut self.stage, Begun::Taken)
    }

    fn into_wait(mut self) -> Result<Wait<R>, R::Output> {
        match self.take_stage() {
            Begun::Over(output) => Err(ManuallyDrop::into_inner(output).expect(OVER)),
            Begun::Yields(output) => Err(ManuallyDrop::into_inner(output)),
            Begun::Waits(ticket) => Ok(Wait::for_ticket(ManuallyDrop::into_inner(ticket))),
            Begun::Taken => panic!("{OVER}"),
        }
    }

    /// Asks for the operation to be cancelled, and waits for how it ended: with an error that
    /// [`is_cancelled`](crate::error::is_cancelled), or after all with a result. The buffer comes back
    /// either way.
    pub fn cancel(self) -> Cancel<R> {
        Cancel(match self.into_wait() {
            Ok(wait) => Late::Wait(wait.cancel()),
            Err(output) => Late::Over(Some(output)),
        })
    }

    /// Gives the operation so much time from now; then it is cancelled, and this waits for how that
    /// ended. Nothing is lost: what was faster than its cancel says what it did, and the buffer comes back
    /// either way. [`Elapsed::is`](crate::Elapsed::is) knows the error.
    ///
    /// A `Timeout` has no cancel of its own, and dropping it drops the operation. For an operation that ends
    /// by a clock or by something else, keep the operation, poll it beside a [`sleep`](crate::sleep) and the
    /// other, then `cancel` it.
    pub fn timeout(self, duration: Duration) -> Timeout<R> {
        Timeout(match self.into_wait() {
            Ok(wait) => Late::Wait(wait.timeout(duration)),
            Err(output) => Late::Over(Some(output)),
        })
    }
}

impl<R: Request> Drop for Operation<R> {
    #[inline(always)]
    fn drop(&mut self) {
        let is_left = match &self.stage {
            Begun::Over(output) => output.is_some(),
            Begun::Yields(_) | Begun::Waits(_) => true,
            Begun::Taken => false,
        };
        if is_left {
            drop_stage(self.take_stage());
        }
    }
}

#[cold]
fn drop_stage<R: Request>(stage: Begun<R>) {
    match stage {
        Begun::Over(output) => drop(ManuallyDrop::into_inner(output)),
        Begun::Yields(output) => drop(ManuallyDrop::into_inner(output)),
        Begun::Waits(ticket) => drop(ManuallyDrop::into_inner(ticket)),
        Begun::Taken => {}
    }
}

const OVER: &str = "an operation was polled after its end";

impl<R: Request> Future for Operation<R> {
    type Output = R::Output;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut self.stage {
            Begun::Waits(ticket) => match ticket.success() {
                Some(count) => {
                    let (request, _queue) = ticket.take_done();
                    // Nothing is left to be dropped, or asked. Said before user code may run: that of the
                    // queue's end, if this was all that was left of it, and the buffer's.
                    self.stage = Begun::Taken;
                    Poll::Ready(request.finish(Ok(count)))
                }
                None => self.wait(context),
            },
            Begun::Over(output) => Poll::Ready(output.take().expect(OVER)),
            Begun::Yields(_) | Begun::Taken => self.yields(context),
        }
    }
}

impl<R: Request> Operation<R> {
    #[inline(always)]
    fn wait(&mut self, context: &Context<'_>) -> Poll<R::Output> {
        let Begun::Waits(ticket) = &self.stage else { unreachable!("looked at") };
        if !ticket.may_be_over() && !ticket.queue().park(ticket.slot(), context.waker()) {
            return Poll::Pending;
        }
        self.conclude()
    }

    /// It has ended, or its queue, or code ran that may have polled the queue.
    #[cold]
    fn conclude(&mut self) -> Poll<R::Output> {
        let Begun::Waits(ticket) = self.take_stage() else { unreachable!("looked at") };
        let ticket = ManuallyDrop::into_inner(ticket);
        if !ticket.may_be_over() {
            self.stage = Begun::waits(ticket);
            return Poll::Pending;
        }
        drop(ticket.slot().take_waiter());
        match iocp::conclude_call(ticket) {
            Ok(output) => Poll::Ready(output),
            Err(ticket) => {
                self.stage = Begun::waits(ticket);
                Poll::Pending
            }
        }
    }

    /// Lets the others go first.
    #[cold]
    fn yields(&mut self, context: &Context<'_>) -> Poll<R::Output> {
        let Begun::Yields(output) = self.take_stage() else { panic!("{OVER}") };
        self.stage = Begun::Over(ManuallyDrop::new(Some(ManuallyDrop::into_inner(output))));
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// An operation that is to end, or has ended before it was told to.
enum Late<R: Request, F> {
    Over(Option<R::Output>),
    Wait(F),
}

/// The end of a cancelled [`Operation`].
#[must_use = "the operation may finish after all: await how it ended"]
pub struct Cancel<R: Request>(Late<R, iocp::Cancel<R>>);

impl<R: Request> Unpin for Cancel<R> {}

impl<R: Request> Future for Cancel<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut self.0 {
            Late::Over(output) => Poll::Ready(output.take().expect(OVER)),
            Late::Wait(cancel) => {
                Pin::new(cancel).poll(context).map(|ended| iocp::finish(ended.into_completion()))
            }
        }
    }
}

/// An [`Operation`] with a time limit. When the time is up its result is an error made from
/// [`Elapsed`], unless the operation was faster than its cancel.
#[must_use = "dropping it cancels the operation"]
pub struct Timeout<R: Request>(Late<R, iocp::Timeout<R>>);

impl<R: Request> Unpin for Timeout<R> {}

impl<R: Request> Future for Timeout<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut self.0 {
            Late::Over(output) => Poll::Ready(output.take().expect(OVER)),
            Late::Wait(timeout) => {
                let ended = std::task::ready!(Pin::new(&mut *timeout).poll(context));
                Poll::Ready(match ended {
                    Cancelled::Cancelled(completion)
                        if timeout.is_up() && !(R::WRITES && completion.sent().is_ok()) =>
                    {
                        completion.state.finish(Err(Elapsed.into()))
                    }
                    ended => iocp::finish(ended.into_completion()),
                })
            }
        }
    }
}

macro_rules! debug {
    ($($of:ident),*) => {$(
        impl<R: Request> fmt::Debug for $of<R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($of)).finish_non_exhaustive()
            }
        }
    )*};
}
debug!(Operation, Cancel, Timeout);
