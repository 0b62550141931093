//! What a simulation does: scripted per operation, or drawn at given rates.

use std::time::Duration;

use windows_sys::Win32::Foundation as win;

use crate::error::NtStatus;

/// How one operation is to go, for [`Sim::plan`](super::Sim::plan).
///
/// What it does not say is drawn.
///
/// ```
/// use ioqueue::sim::{OnCancel, Plan, StatusWord};
///
/// let quick = Plan::at_once().bytes(5);
/// let refused = Plan::fails(1450);
/// let lost_race = Plan::pends().on_cancel(OnCancel::Finishes).status_word(StatusWord::OnDequeue);
/// ```
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) start: Start,
    pub(super) status: Option<NtStatus>,
    pub(super) bytes: Option<u32>,
    pub(super) data: Option<Vec<u8>>,
    pub(super) word: Option<StatusWord>,
    pub(super) packet: Option<bool>,
    pub(super) gap: Duration,
    pub(super) cancel: Option<OnCancel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    AtOnce,
    Fails(u32),
    /// `None`: until told.
    Pends(Option<Duration>),
    Never,
}

impl Plan {
    fn new(start: Start) -> Self {
        Self {
            start,
            status: None,
            bytes: None,
            data: None,
            word: None,
            packet: None,
            gap: Duration::ZERO,
            cancel: None,
        }
    }

    /// It says how the operation ends.
    pub(super) fn is_ending(&self) -> bool {
        self.status.is_some() || self.bytes.is_some() || self.data.is_some()
    }

    /// The call says that the operation has ended. With a warning as its [`status`](Self::status)
    /// the call says `ERROR_MORE_DATA`, or `WSAEMSGSIZE` on a socket.
    pub fn at_once() -> Self {
        Self::new(Start::AtOnce)
    }

    /// The call fails with this error code: nothing was started.
    pub fn fails(code: u32) -> Self {
        Self::new(Start::Fails(code))
    }

    /// The call says `ERROR_IO_PENDING`, and the operation ends when
    /// [`Sim::complete`](super::Sim::complete) says so or a cancel does.
    pub fn pends() -> Self {
        Self::new(Start::Pends(None))
    }

    /// The call says `ERROR_IO_PENDING`, and the operation ends that much later. After zero it has
    /// ended before the call returned (pitfall 11).
    pub fn pends_for(time: Duration) -> Self {
        Self::new(Start::Pends(Some(time)))
    }

    /// The operation never ends, cancelled or not.
    pub fn never_ends() -> Self {
        Self::new(Start::Never)
    }

    /// How it ends. Success by default.
    #[must_use]
    pub fn status(mut self, status: NtStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// How many bytes it moves: the first of what a write was given, or of what a read finds. All
    /// that were asked for by default.
    #[must_use]
    pub fn bytes(mut self, bytes: u32) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// What a read finds.
    #[must_use]
    pub fn data(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// When the status word becomes final.
    #[must_use]
    pub fn status_word(mut self, word: StatusWord) -> Self {
        self.word = Some(word);
        self
    }

    /// How long the packet comes after the status word, for [`StatusWord::BeforePacket`].
    #[must_use]
    pub fn packet_after(mut self, gap: Duration) -> Self {
        self.word = Some(StatusWord::BeforePacket);
        self.gap = gap;
        self
    }

    /// Whether a packet comes, whatever the handle's modes say.
    #[must_use]
    pub fn packet(mut self, comes: bool) -> Self {
        self.packet = Some(comes);
        self
    }

    /// What a cancel does.
    #[must_use]
    pub fn on_cancel(mut self, cancel: OnCancel) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

/// When an operation's status word becomes final, against its packet (pitfall 55).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusWord {
    /// Some time before the packet is queued.
    BeforePacket,
    /// As the packet is queued.
    WithPacket,
    /// As the packet is taken off the port.
    OnDequeue,
}

/// What `CancelIoEx` does to a pending operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// It is aborted before the call returns.
    Aborts,
    /// It is aborted that much later.
    AbortsAfter(Duration),
    /// It is aborted, having moved some of its bytes (pitfall 10).
    AbortsHalfway,
    /// The call succeeds, but the operation ends as it would have (pitfall 10).
    Finishes,
    /// `ERROR_NOT_FOUND`: it can't be cancelled any more, and ends as it would have (pitfall 17).
    NotFound,
}

/// How the oldest operation on a handle ends, for [`Sim::complete`](super::Sim::complete).
#[derive(Debug, Clone)]
pub struct End {
    pub(super) status: Option<NtStatus>,
    pub(super) bytes: Option<u32>,
    pub(super) data: Option<Vec<u8>>,
}

impl End {
    /// With success, everything moved.
    pub fn success() -> Self {
        Self { status: None, bytes: None, data: None }
    }

    /// With success, that many bytes moved.
    pub fn bytes(bytes: u32) -> Self {
        Self { bytes: Some(bytes), ..Self::success() }
    }

    /// With success, these bytes read.
    pub fn data(data: impl Into<Vec<u8>>) -> Self {
        Self { data: Some(data.into()), ..Self::success() }
    }

    /// With a status, and bytes.
    pub fn status(status: NtStatus, bytes: u32) -> Self {
        Self { status: Some(status), bytes: Some(bytes), data: None }
    }
}

/// How often what happens: probabilities from 0 to 1 (and two amounts), each drawn where it applies.
///
/// [`Faults::none`] is a Windows that behaves as one wishes: each operation pends, and ends in full
/// the next time somebody looks. [`Faults::orders`] lets no operation fail, but leaves nothing else to
/// rely on. [`Faults::default`] has some of everything a program has to live with;
/// [`Faults::wild`] has more of it, and what should be rare.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Faults {
    /// An operation ends before its call returns, and the call says so.
    pub at_once: f64,
    /// The call fails: nothing was started.
    pub fails_at_once: f64,
    /// An operation that pended ends with an error.
    pub fails_late: f64,
    /// A read, or a device's answer, is shorter than asked for, where the kind of handle allows it.
    pub short: f64,
    /// A write moves fewer bytes than it was given, and says so: to a device, a pipe of bytes
    /// (`WriteFile` with `PIPE_NOWAIT`; serial ports with a time-out) or a stream socket (`WSASend` on
    /// a non-blocking one). Never to a file, nor of a message.
    pub short_writes: f64,
    /// An operation ends with `STATUS_BUFFER_OVERFLOW`, where the kind of handle allows it.
    pub more_data: f64,
    /// An operation never ends, whatever happens to it.
    pub never_ends: f64,
    /// The longest that a pending operation takes.
    pub longest: Duration,
    /// An operation that is due later ends now, between any two calls of the program.
    pub haste: f64,
    /// The status word is final some time before the packet is queued.
    pub status_first: f64,
    /// The status word becomes final only as the packet is taken off the port.
    pub status_last: f64,
    /// A cancel finds nothing, though the operation still pends.
    pub cancel_finds_nothing: f64,
    /// A cancelled operation ends as it would have.
    pub cancel_loses: f64,
    /// A cancelled operation is aborted later.
    pub cancel_is_slow: f64,
    /// A cancelled operation had moved some of its bytes: a write to a stream, or what a device was asked.
    /// A cancelled read of a file or a stream never takes anything with it.
    pub cancel_halfway: f64,
    /// A new handle queues packets for what ends at once, though told not to (pitfall 2).
    pub ignores_skip: f64,
    /// A new handle does not tell its modes (no right to read attributes).
    pub denies_queries: f64,
    /// Setting notification modes fails (pitfall 30).
    pub modes_fail: f64,
    /// Taking a handle off its port fails.
    pub unbind_fails: f64,
    /// Taking a handle off its port works though something is in flight on it, whose packets then
    /// come nowhere (pitfall 23). Otherwise that fails.
    pub unbind_loses: f64,
    /// A new handle gets the value that was closed last.
    pub reuses_values: f64,
    /// A wait ends before its time (pitfall 4).
    pub early: f64,
    /// A wait ends a clock tick after its time.
    pub late: f64,
    /// Fewer packets are handed out at once than are queued.
    pub small_batches: f64,
    /// Posting a packet fails for want of memory (pitfall 15), at most thrice in a row.
    pub post_fails: f64,
    /// How many packets that were posted a port holds: to a full one none can be posted (pitfall 15).
    /// For those of operations there is always room.
    pub room_for_posts: usize,
    /// How many bytes a stream between two simulated ends keeps that nobody has read: what is written
    /// beyond that waits. Without a limit writes end at any time, in any order; with one, in theirs.
    pub room_for_bytes: usize,
    /// A packet turns up that is not the queue's: null, random, stale, forged, or a job's.
    pub foreign: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            at_once: 0.25,
            fails_at_once: 0.03,
            fails_late: 0.05,
            short: 0.2,
            short_writes: 0.1,
            more_data: 0.05,
            never_ends: 0.0,
            longest: Duration::from_millis(20),
            haste: 0.05,
            status_first: 0.3,
            status_last: 0.3,
            cancel_finds_nothing: 0.1,
            cancel_loses: 0.15,
            cancel_is_slow: 0.3,
            cancel_halfway: 0.1,
            ignores_skip: 0.0,
            denies_queries: 0.05,
            modes_fail: 0.02,
            unbind_fails: 0.1,
            unbind_loses: 0.5,
            reuses_values: 0.7,
            early: 0.1,
            late: 0.1,
            small_batches: 0.3,
            post_fails: 0.05,
            room_for_posts: usize::MAX,
            room_for_bytes: usize::MAX,
            foreign: 0.02,
        }
    }
}

impl Faults {
    /// No faults, and nothing that has to be drawn.
    pub fn none() -> Self {
        Self {
            at_once: 0.0,
            fails_at_once: 0.0,
            fails_late: 0.0,
            short: 0.0,
            short_writes: 0.0,
            more_data: 0.0,
            never_ends: 0.0,
            longest: Duration::ZERO,
            haste: 0.0,
            status_first: 0.0,
            status_last: 0.0,
            cancel_finds_nothing: 0.0,
            cancel_loses: 0.0,
            cancel_is_slow: 0.0,
            cancel_halfway: 0.0,
            ignores_skip: 0.0,
            denies_queries: 0.0,
            modes_fail: 0.0,
            unbind_fails: 0.0,
            unbind_loses: 0.0,
            reuses_values: 1.0,
            early: 0.0,
            late: 0.0,
            small_batches: 0.0,
            post_fails: 0.0,
            room_for_posts: usize::MAX,
            room_for_bytes: usize::MAX,
            foreign: 0.0,
        }
    }

    /// The usual faults without failures: every operation does what it was asked to, in any order, at
    /// any time, or a part of it. For tests of programs that rightly end at their first I/O error.
    pub fn orders() -> Self {
        Self { fails_at_once: 0.0, fails_late: 0.0, more_data: 0.0, ..Self::default() }
    }

    /// More of everything, also of what breaks promises: operations that never end, handles that
    /// ignore what they were told.
    pub fn wild() -> Self {
        Self {
            at_once: 0.3,
            fails_at_once: 0.1,
            fails_late: 0.15,
            short: 0.3,
            short_writes: 0.3,
            more_data: 0.15,
            never_ends: 0.02,
            longest: Duration::from_millis(50),
            haste: 0.15,
            ignores_skip: 0.1,
            denies_queries: 0.1,
            modes_fail: 0.1,
            unbind_fails: 0.3,
            early: 0.3,
            late: 0.3,
            small_batches: 0.5,
            post_fails: 0.3,
            room_for_posts: 3,
            foreign: 0.1,
            ..Self::default()
        }
    }
}

/// What kind of thing a handle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A disk file: reads and writes at offsets, never waiting for anybody.
    File,
    /// A directory to be watched.
    Directory,
    /// A pipe of bytes.
    Pipe,
    /// A pipe of messages: a read may find more than fits.
    MessagePipe,
    /// A connected stream socket.
    Socket,
    /// A datagram socket.
    Datagram,
    /// A device that answers [`control`](super::Sim::control), and anything else, as it likes.
    Device,
    /// An event: a handle that does no I/O.
    Event,
    /// A console, which no port takes.
    Console,
}

impl Kind {
    pub(super) fn is_socket(self) -> bool {
        matches!(self, Self::Socket | Self::Datagram)
    }

    /// Reads wait for data from the other side, in the order they were started.
    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::Pipe | Self::MessagePipe | Self::Socket | Self::Datagram)
    }

    pub(super) fn has_messages(self) -> bool {
        matches!(self, Self::MessagePipe | Self::Datagram)
    }

    /// A write may move less than it was given: see [`Faults::short_writes`].
    pub(super) fn may_write_less(self) -> bool {
        matches!(self, Self::Pipe | Self::Socket)
    }

    /// What a call that starts nothing fails with. `ReadFile`, "Remarks": ERROR_INVALID_USER_BUFFER
    /// or ERROR_NOT_ENOUGH_MEMORY with too many requests outstanding; `WSARecv`: WSAENOBUFS and the
    /// connection's own errors.
    pub(super) fn errors_at_once(self) -> &'static [u32] {
        const NO_BUFFERS: u32 = 10_055;
        const RESET: u32 = 10_054;
        if self.is_socket() {
            &[NO_BUFFERS, RESET]
        } else {
            &[
                win::ERROR_INVALID_USER_BUFFER,
                win::ERROR_NOT_ENOUGH_MEMORY,
                win::ERROR_ACCESS_DENIED,
            ]
        }
    }

    /// What an operation that pended fails with.
    pub(super) fn errors_late(self) -> &'static [i32] {
        match self {
            Self::Socket => &[win::STATUS_CONNECTION_RESET, win::STATUS_IO_TIMEOUT],
            // An unreachable peer shows up on a later receive (pitfall 13).
            Self::Datagram => &[win::STATUS_PORT_UNREACHABLE],
            Self::Pipe | Self::MessagePipe => &[win::STATUS_PIPE_BROKEN],
            Self::File => &[win::STATUS_DISK_FULL, win::STATUS_DEVICE_DATA_ERROR],
            _ => &[win::STATUS_DEVICE_NOT_CONNECTED, win::STATUS_INSUFFICIENT_RESOURCES],
        }
    }

    /// How what is pending ends when the last handle is closed.
    ///
    /// - Sockets: `closesocket` says that pending overlapped operations are cancelled
    ///   (WSA_OPERATION_ABORTED); AFD also ends them with its own disconnect (pitfall 27).
    /// - Pipes: NPFS breaks the pipe; a cancel as the I/O manager does it is as good.
    /// - Directories: `FsRtlNotifyCleanup` ends a watch with STATUS_NOTIFY_CLEANUP, which counts as
    ///   a success.
    /// - Disk requests are not cancelled by a close (they are in the driver's hands): they end as
    ///   they would have. Devices do either.
    pub(super) fn ends_on_close(self) -> &'static [Option<i32>] {
        match self {
            Self::Socket | Self::Datagram => {
                &[Some(win::STATUS_CANCELLED), Some(win::STATUS_LOCAL_DISCONNECT)]
            }
            Self::Pipe | Self::MessagePipe => {
                &[Some(win::STATUS_PIPE_BROKEN), Some(win::STATUS_CANCELLED)]
            }
            Self::Directory => &[Some(win::STATUS_NOTIFY_CLEANUP)],
            Self::File => &[None],
            Self::Device | Self::Event | Self::Console => &[Some(win::STATUS_CANCELLED), None],
        }
    }
}

/// What is special about a handle, for [`Sim::open`](super::Sim::open).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traits {
    /// Opened for synchronous use.
    pub synchronous: bool,
    /// A socket of a layered provider, without `XP1_IFS_HANDLES` (pitfall 2).
    pub layered: bool,
    /// Queues packets for what ends at once, though told not to. Drawn where `None`.
    pub ignores_skip: Option<bool>,
    /// Does not tell its modes. Drawn where `None`.
    pub denies_queries: Option<bool>,
    /// Can't be taken off a port: Windows before 8.1. Drawn each time where `None`.
    pub stays_bound: Option<bool>,
}
