//! What may go to another thread, and what may not. Checked when this is compiled.

use std::fmt::{Debug, Display};
use std::panic::{RefUnwindSafe, UnwindSafe};

use ioqueue::error::{Closed, NtStatus, Refused, Undrained};
use ioqueue::iocp::{Cancel, Cancelled, Completion, Exact, Outcome, Parked, Wait};
use ioqueue::{
    AnyHandle, AsAnyHandle, Continuation, Elapsed, ForeignPacket, HandleId, HandleKind, Interval,
    Misuse, Notifier, Overlapped, Pending, PendingState, Persist, PersistError, PersistFailure,
    Queue, RawHandle, Registered, Runnable, Sleep, Task,
};

/// Each type implements all the traits.
macro_rules! is {
    ($($of:ty),* => $($name:path),*) => {
        const _: fn() = || {
            fn check<T: ?Sized $(+ $name)*>() {}
            $(check::<$of>();)*
        };
    };
}

/// No type implements any of the traits: otherwise `check` would be ambiguous.
macro_rules! is_not {
    ($types:tt => $($name:path),*) => {
        $(is_not!(@each $name; $types);)*
    };
    (@each $name:path; [$($of:ty),*]) => {
        const _: fn() = || {
            trait Ambiguous<Which> {
                fn check() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Implements;
            impl<T: ?Sized + $name> Ambiguous<Implements> for T {}
            $(<$of as Ambiguous<_>>::check();)*
        };
    };
}

/// A state that could go anywhere.
type State = Vec<u8>;

// Q1, and the decisions in docs/ARCHITECTURE.md: what a thread starts, the thread owns.
is_not!(
    [Queue, Overlapped<State>, Wait<State>, Exact<State>, Cancel<State>, Parked<State>,
    Registered<std::fs::File>, Continuation, Runnable, Sleep, Interval, AnyHandle<'static>,
    dyn AsAnyHandle]
    => Send, Sync
);

// A task may be awaited elsewhere when its output may go there.
is!(Task<State> => Send, Sync, Unpin, Debug);
is_not!([Task<std::rc::Rc<()>>] => Send);

// Q11
is!(Notifier => Send, Sync, Clone, Debug, Unpin);

// Q9 and error.rs: errors travel, and say what they are.
is!(
    Misuse, PersistError, Closed, Undrained, Elapsed
    => Send, Sync, Copy, Eq, std::error::Error, Debug, Display, Into<std::io::Error>, UnwindSafe,
       RefUnwindSafe
);
is!(Refused<State> => Send, Sync, std::error::Error, Into<std::io::Error>);
is!(
    NtStatus, PersistFailure, PendingState, HandleId, HandleKind, Persist, Outcome, ForeignPacket
    => Send, Sync, Copy, Debug, Eq, UnwindSafe, RefUnwindSafe
);
is!(NtStatus => Display, std::hash::Hash);
is!(HandleId => Display, Ord, std::hash::Hash);
is!(Pending => Send, Sync, Clone, Debug);
// A result that has left the queue goes wherever its state does.
is!(Completion<State>, Cancelled<State> => Send, Sync, Debug);
is_not!([Completion<std::rc::Rc<()>>] => Send);
is_not!([Refused<std::rc::Rc<()>>] => Send);

// Nothing is pinned: the memory that must not move is the queue's, whatever is in it.
is!(
    Overlapped<std::marker::PhantomPinned>, Wait<std::marker::PhantomPinned>,
    Exact<std::marker::PhantomPinned>, Cancel<std::marker::PhantomPinned>,
    Parked<std::marker::PhantomPinned>
    => Unpin
);
is!(Queue, Registered<std::fs::File>, Continuation, Sleep, Interval => Unpin, Debug);
is!(Queue => Clone);
is!(Wait<State> => Future<Output = (std::io::Result<u32>, State)>);
is!(Exact<State> => Future<Output = Completion<State>>);
is!(Cancel<State> => Future<Output = Cancelled<State>>);
is!(Task<State> => Future<Output = State>);

// What another event loop parks.
is!(std::task::Waker, usize => Into<Continuation>);

// A cycle through a reference cannot be made: the queue keeps no borrow of what is handed to it.
const _: fn(Overlapped<&'static str>) = drop;

/// W2: every borrowed handle, every owning wrapper, and what points to one.
#[cfg(windows)]
mod handles {
    use std::os::windows::io::{BorrowedHandle, BorrowedSocket, OwnedHandle, OwnedSocket};
    use std::{fs, io, net, process, rc, sync};

    use super::*;

    is!(
        BorrowedHandle<'static>, OwnedHandle, fs::File, io::Stdin, io::Stdout, io::Stderr,
        process::ChildStdin, process::ChildStdout, process::ChildStderr,
        BorrowedSocket<'static>, OwnedSocket, net::TcpStream, net::TcpListener, net::UdpSocket,
        Registered<fs::File>, Registered<net::TcpStream>, AnyHandle<'static>, dyn AsAnyHandle,
        &'static fs::File, &'static mut net::TcpStream, Box<OwnedHandle>, rc::Rc<OwnedSocket>,
        sync::Arc<fs::File>, Box<dyn AsAnyHandle>
        => AsAnyHandle
    );
    // Q15
    is!(Queue => std::os::windows::io::AsHandle);
}

/// Q6, on Unix.
#[cfg(unix)]
mod descriptors {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::net as unix;
    use std::{fs, io, net, process, rc, sync};

    use super::*;

    is!(
        BorrowedFd<'static>, OwnedFd, fs::File, io::Stdin, io::Stdout, io::Stderr,
        process::ChildStdin, process::ChildStdout, process::ChildStderr,
        net::TcpStream, net::TcpListener, net::UdpSocket,
        unix::UnixStream, unix::UnixListener, unix::UnixDatagram,
        Registered<fs::File>, AnyHandle<'static>, dyn AsAnyHandle, &'static fs::File,
        Box<OwnedFd>, rc::Rc<OwnedFd>, sync::Arc<fs::File>
        => AsAnyHandle
    );
    // Q15
    is!(Queue => AsFd);
}

/// A kernel that is not there is refused, not pretended; and so are overlapped calls, where there is no
/// completion port.
#[cfg(unix)]
#[test]
fn without_a_completion_port_there_are_no_overlapped_calls() {
    let refused = Queue::builder().kernel(ioqueue::KernelKind::CompletionPort).build().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
    let refused = Overlapped::on(&Queue::new().unwrap(), 7).unwrap_err();
    assert_eq!(refused.error().kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(refused.into_value(), 7);
    let _: Option<RawHandle> = None;
}

/// The rest of this file is checked by compiling it.
#[test]
fn a_handle_id_is_its_value() {
    let id = HandleId::new(0x44 as RawHandle);
    // Descriptors are numbers to everybody.
    let value = if cfg!(unix) { "68" } else { "0x44" };
    assert_eq!((id.to_string(), format!("{id:?}")), (value.into(), format!("HandleId({value})")));
}
