//! A simulated Windows, to test what is built on the queue against every order of events.
//!
//! A real system shows a program one order of events, nearly always the same one. A [`Sim`] is a
//! whole Windows of its own, as far as a queue can see: handles, completion ports, operations in
//! flight, a clock. What it does is drawn from a seed, on any system, and the same seed gives the
//! same run. The queue on it is the one that ships; only the calls below it are replaced.
//!
//! It does whatever is allowed, however rare: operations that end before their call returns, out of
//! order, short, or with an error; cancels that come too late; packets that are not the queue's;
//! waits that end early; handle values that come back; status words that are final long before
//! their packet. [`Faults`] says how often. A [`Plan`] says what happens to one operation.
//!
//! - **Memory** that an operation was given is the simulated kernel's until the operation has ended.
//!   It scribbles there, and fails the test when somebody else wrote to it, freed it for other use,
//!   or gave it to another call. Under AddressSanitizer a use after free shows at once.
//! - **Time** moves when a queue waits, or when [`Sim::advance`] says so. A timeout of an hour costs
//!   nothing.
//! - **Hangs**: a queue that waits for ever for what can't happen fails the test instead, and says
//!   what it waits for. So does a program that asks and asks, and one that starts and cancels, or
//!   sleeps, for a million calls in which no operation ends by itself.
//! - **Seeds**: every failure of the simulation, and every panic within [`explore`], names its seed. With
//!   that in `IOQUEUE_SIM_SEED` the test fails again, with the same message.
//!
//! # An order bug, found
//!
//! This program reads both halves of a file at once, and puts them together as they come. Its author
//! has never seen it fail: on a real disk the first read is the first to end.
//!
//! ```
//! use std::cell::RefCell;
//! use std::rc::Rc;
//! use std::time::Duration;
//!
//! use ioqueue::sim::{self, Faults, Sim};
//!
//! fn load(sim: &Sim) -> Vec<u8> {
//!     let queue = sim.queue().unwrap();
//!     let file = queue.register(sim.file("left right")).unwrap();
//!     let text = Rc::new(RefCell::new(Vec::new()));
//!     for start in [0, 5] {
//!         let half = sim.read(&queue, &file, start, vec![0; 5]);
//!         let text = Rc::clone(&text);
//!         queue
//!             .spawn(async move {
//!                 let (read, bytes) = half.await;
//!                 text.borrow_mut().extend(&bytes[..read.unwrap() as usize]);
//!             })
//!             .detach();
//!     }
//!     queue.run().unwrap();
//!     text.take()
//! }
//!
//! // The test. Reads of a file may take up to 5 ms here, and nothing else goes wrong.
//! let test = |seed| {
//!     let mut faults = Faults::none();
//!     faults.longest = Duration::from_millis(5);
//!     let sim = Sim::with_faults(seed, faults);
//!     assert_eq!(load(&sim), b"left right");
//!     sim.check();
//! };
//!
//! // In a test this would be `sim::explore(0..100, test)`, which panics with the seed.
//! let failure = sim::find_failure(0..100, test).expect("the bug shows");
//! assert!(failure.message.contains("left == right"));
//!
//! // The same seed fails again, for as long as it takes to understand why.
//! assert_eq!(sim::find_failure([failure.seed], test), Some(failure));
//! ```
//!
//! # Handles, operations, results
//!
//! [`Sim::file`], [`Sim::pipe`], [`Sim::socket`], [`Sim::device`] and [`Sim::open`] open
//! [`SimHandle`]s, which are persisted, registered and unregistered like any others.
//! [`Sim::read`], [`Sim::write`] and [`Sim::control`] submit an operation; the calls below them,
//! [`Sim::read_file`], [`Sim::write_file`] and [`Sim::device_control`], stand where `ReadFile`,
//! `WriteFile` and `DeviceIoControl` stand in a program:
//!
//! ```
//! use ioqueue::sim::{End, Plan, Sim};
//!
//! let sim = Sim::quiet();
//! let queue = sim.queue()?;
//! let device = queue.register(sim.device())?;
//! sim.plan(&device, Plan::pends());
//! // SAFETY: one call, with what was given, and what it returned.
//! let asked = unsafe {
//!     device.submit(vec![0_u8; 16], |handle, answer, overlapped| {
//!         let answer = &mut *answer;
//!         sim.device_control(handle, answer.as_mut_ptr(), answer.len(), overlapped)
//!     })
//! };
//! sim.complete(&device, End::data("42"));
//! let (length, answer) = queue.block_on(asked)?;
//! assert_eq!(&answer[..length? as usize], b"42");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! End a test with [`Sim::check`]: the kernel has given everything back. What a closed queue said it
//! leaked, [`Sim::check_leaked`] takes off.
//!
//! # A network
//!
//! The simulated system is one host with a network of its own, in which [`Sim::listener`],
//! [`Sim::unconnected`] and [`Sim::datagrams`] make sockets:
//!
//! ```
//! use ioqueue::sim::Sim;
//!
//! let sim = Sim::quiet();
//! let queue = sim.queue()?;
//! let (listener, address) = sim.listener();
//! let listener = queue.register(listener)?;
//! let client = queue.register(sim.unconnected())?;
//!
//! let accepting = listener.accept();
//! queue.block_on(client.connect(address))??;
//! let (server, _from) = queue.block_on(accepting)??;
//! let server = queue.register(server)?;
//! queue.block_on(client.write_all("hello"))?.0?;
//! assert_eq!(&queue.block_on(server.read_exact([0; 5]))?.1, b"hello");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A connection is made whether or not anybody accepts it, a listener that is closed resets those that
//! nobody has accepted, where nobody listens is refused, and where no host is (an address other than
//! 127.0.0.1) is not answered for 21 seconds. Datagrams keep their order and are never lost on their way;
//! one to nobody is told of by a later receive. [`Faults::room_for_bytes`] makes streams narrow.
//!
//! # A program of your own
//!
//! A program that reads and writes with the [portable operations](crate::op) runs on both as it is, if it
//! is generic over the handle (`Registered<H>`): they work on a [`SimHandle`] too. So does it on Linux'
//! own kernels, which nothing here simulates.
//!
//! One that makes calls of Windows does so through a trait of a few lines, `read(..)` and `write(..)` say,
//! which the program implements with `ReadFile` and the test with a [`Sim`]. `tests/both` in the
//! repository is one, with which the same tests run here and on Windows.
//!
//! [`Sim::reopen`] opens a file once more: another file object, for another registration.
//! [`SimHandle::duplicate`] is the same file object, which cannot be registered twice.
//!
//! A peer that blocks is a thread with a queue of its own on the same `Sim`: see
//! [`Sim::expect_other_threads`].
//!
//! Choose the faults by what the program promises. [`Sim::new`] lets operations fail now and then: a test
//! that unwraps their results will say so. [`Faults::orders`] lets none fail, but leaves no order, no time
//! and no length to rely on; that is where mistakes like these show:
//!
//! - results are put together as they come, as above;
//! - a read that took too long is dropped and tried again, and what it had read by then is lost
//!   ([`Wait::timeout`](crate::iocp::Wait::timeout) loses nothing);
//! - a write is taken to be whole.
//!
//! Errors have Windows' codes on every system. Elsewhere than on Windows their text means nothing: it is
//! that system's for the same number.
//!
//! # What it can't do
//!
//! It knows nothing of what a driver does beyond this, has no processes or names, and no wait packets
//! (`NtAssociateWaitCompletionPacket`), which the queue does not use. It has no urgent data, one network
//! with one host, and files that are never renamed, locked or cut. A wait for readiness answers through its
//! byte count, where Windows fills in a structure. It does not model two threads that race inside one call.
//!
//! Its rules are from Microsoft's documentation, which the code names rule by rule, and where Wine does as
//! that says the same tests run on both. Nothing of it was compared with a real Windows.

use std::any::Any;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::nt::sim::EXPLORING;
#[doc(inline)]
pub use crate::nt::sim::{End, Faults, Kind, OnCancel, Plan, Sim, SimHandle, StatusWord, Traits};

/// A test that failed, and the seed that makes it fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What the test panicked with.
    pub message: String,
}

/// Runs `test` once with each seed.
///
/// With the environment variable `IOQUEUE_SIM_SEED` it runs with that seed only.
///
/// # Panics
/// When the test panics, with the seed and the test's message.
#[track_caller]
pub fn explore(seeds: impl IntoIterator<Item = u64>, test: impl FnMut(u64)) {
    let failure = match env::var("IOQUEUE_SIM_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) => find_failure([seed], test),
        Ok(Err(_)) => panic!("IOQUEUE_SIM_SEED is not a number"),
        Err(_) => find_failure(seeds, test),
    };
    if let Some(Failure { seed, message }) = failure {
        panic!("with seed {seed} (IOQUEUE_SIM_SEED={seed} repeats it): {message}");
    }
}

/// The first seed with which `test` panics, and its message.
pub fn find_failure(
    seeds: impl IntoIterator<Item = u64>,
    mut test: impl FnMut(u64),
) -> Option<Failure> {
    seeds.into_iter().find_map(|seed| {
        let before = EXPLORING.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| test(seed)));
        EXPLORING.set(before);
        let panic = result.err()?;
        Some(Failure { seed, message: message(&*panic) })
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).into()
    } else {
        "a panic without a message".into()
    }
}
