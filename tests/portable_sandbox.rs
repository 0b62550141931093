#![cfg(target_os = "linux")]
//! Where io_uring is refused, as sandboxes and container runtimes do: the queue falls back (U1).
//!
//! Each case is a process of its own: a filter of system calls is for good, and so is what the environment
//! says.

#[macro_use]
mod each_kernel;

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{io, iter, thread};

use each_kernel::{
    Marked, TempFile, ends, look_around, noise, pipe, poll_with, queue_on, read_full, tcp,
    write_full,
};
use ioqueue::{Event, KernelKind, Queue};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A step of a filter of system calls.
fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Answers calls of these numbers with an error, on this thread and those it starts, and lets all others
/// pass.
fn refuse(calls: &[libc::c_long], error: i32) {
    // The number is the first member of `struct seccomp_data`.
    let mut program = vec![step(LOAD, 0, 0, 0)];
    for &call in calls {
        program.push(step(JUMP_IF_EQUAL, 0, 1, call as u32));
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter(program);
}

/// Refuses what hands over a full queue of a ring's submissions and asks for no completions.
fn refuse_full_queues(error: i32) {
    // Where the number and the second and fourth argument are in `struct seccomp_data`: their lower halves.
    const NUMBER: u32 = 0;
    const COUNT: u32 = 24;
    const FLAGS: u32 = 40;
    const ENTRIES: u32 = 256;
    const GET_EVENTS: u32 = 1;
    filter(vec![
        step(LOAD, 0, 0, NUMBER),
        step(JUMP_IF_EQUAL, 0, 5, libc::SYS_io_uring_enter as u32),
        step(LOAD, 0, 0, COUNT),
        step(JUMP_IF_EQUAL, 0, 3, ENTRIES),
        step(LOAD, 0, 0, FLAGS),
        step(JUMP_IF_SET, 1, 0, GET_EVENTS),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
}

/// Refuses to have a ring tell an eventfd of what comes.
fn refuse_eventfds(error: i32) {
    // Where the number and the second argument are in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const WHAT: u32 = 24;
    const REGISTER_EVENTFD: u32 = 4;
    filter(vec![
        step(LOAD, 0, 0, NUMBER),
        step(JUMP_IF_EQUAL, 0, 3, libc::SYS_io_uring_register as u32),
        step(LOAD, 0, 0, WHAT),
        step(JUMP_IF_EQUAL, 0, 1, REGISTER_EVENTFD),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
}

/// Puts a filter of system calls before this thread and those it starts.
fn filter(mut program: Vec<libc::sock_filter>) {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is ours and lives through the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter);
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}

/// A little of everything works on the queue.
fn works(queue: &Queue) {
    let (reader, writer) = pipe(queue);
    let (client, server) = tcp(queue);
    let contents = noise(100_000);
    let temporary = TempFile::new(&contents);
    each_kernel::forget_contents(&temporary.open());
    let file = queue.register(temporary.open()).unwrap();
    queue
        .block_on(async {
            let early = (reader.read(vec![0; 8]), server.recv(vec![0; 8]));
            look_around().await;
            write_full(&writer, "pipe").await;
            write_full(&client, "tcp").await;
            assert_eq!(early.0.await.1, b"pipe");
            assert_eq!(early.1.await.1, b"tcp");
            assert!(read_full(&file, contents.len()).await == contents);
            let reads: Vec<_> = (0..64).map(|at| file.read_at(vec![0; 100], at * 1000)).collect();
            for (at, read) in reads.into_iter().enumerate() {
                assert!(read.await.1 == contents[at * 1000..at * 1000 + 100]);
            }
            queue.sleep(Duration::from_millis(1)).await.unwrap();
        })
        .unwrap();
    queue.close(Duration::from_secs(5)).unwrap();
}

/// Runs one test of this program again in a process of its own, in which `body` has its place.
fn in_a_child(test: &str, kernel: Option<&str>, body: fn()) {
    const CHILD: &str = "IOQUEUE_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return ends(body);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    match kernel {
        Some(kernel) => child.env("IOQUEUE_KERNEL", kernel),
        None => child.env_remove("IOQUEUE_KERNEL"),
    };
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter(|line| line.starts_with("SKIPPED")).for_each(|line| eprintln!("{line}"));
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
}

/// What a queue does where the ring is refused: without it if nobody asked for it, an error if somebody did.
fn falls_back(error: i32) {
    let queue = Queue::new().unwrap();
    assert_eq!(queue.kernel_kind(), KernelKind::Readiness);
    works(&queue);
    works(&Queue::current().unwrap());
    let refused = Queue::builder().kernel(KernelKind::Uring).build().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(error), "{refused}");
}

#[test]
fn a_ring_that_is_not_permitted_is_done_without() {
    in_a_child("a_ring_that_is_not_permitted_is_done_without", None, || {
        refuse(&[libc::SYS_io_uring_setup], libc::EPERM);
        falls_back(libc::EPERM);
    });
}

#[test]
fn a_system_without_rings_is_done_with() {
    in_a_child("a_system_without_rings_is_done_with", None, || {
        let all = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
        refuse(&all, libc::ENOSYS);
        falls_back(libc::ENOSYS);
    });
}

/// A filter may know one of the three calls only.
#[test]
fn a_ring_that_may_be_made_and_not_used_is_done_without() {
    in_a_child("a_ring_that_may_be_made_and_not_used_is_done_without", None, || {
        let before = each_kernel::handle_count();
        refuse(&[libc::SYS_io_uring_enter], libc::EPERM);
        falls_back(libc::EPERM);
        // Those of the thread's own queue: epoll, its bell, its timer. And no ring.
        let left = each_kernel::handle_count() - before;
        assert!(left <= 3, "{left} descriptors are left");
    });
}

/// How many rings this thread may still register with itself (`IORING_REGISTER_RING_FDS`): a few, and each
/// is kept open by that for as long as the thread lives.
fn places_for_rings() -> usize {
    const REGISTER: u32 = 20;
    const UNREGISTER: u32 = 21;
    // `struct io_uring_params`, and `struct io_uring_rsrc_update` with its offset, of which all ones are any.
    let mut parameters = [0_u64; 15];
    // SAFETY: the structures are ours, zeroed or filled in, and so long; the descriptor is nobody's yet.
    unsafe {
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        if ring < 0 {
            return 0;
        }
        let ring = OwnedFd::from_raw_fd(ring as i32);
        let update = |what: u32, offset: u32| {
            let mut update = [u64::from(offset), ring.as_raw_fd() as u64];
            if what == UNREGISTER {
                update[1] = 0;
            }
            let fd = ring.as_raw_fd();
            let count = libc::syscall(libc::SYS_io_uring_register, fd, what, &raw mut update, 1);
            (count == 1).then_some(update[0] as u32)
        };
        let places: Vec<_> = iter::from_fn(|| update(REGISTER, u32::MAX)).collect();
        places.iter().for_each(|&place| assert!(update(UNREGISTER, place).is_some()));
        places.len()
    }
}

#[test]
fn a_ring_that_is_given_up_leaves_nothing() {
    in_a_child("a_ring_that_is_given_up_leaves_nothing", None, || {
        let before = places_for_rings();
        if before == 0 {
            return each_kernel::skip("this system registers no rings");
        }
        let kept = queue_on(KernelKind::Uring).unwrap();
        assert_eq!(places_for_rings(), before - 1, "a queue registers its ring");
        drop(kept);
        refuse(&[libc::SYS_io_uring_enter], libc::EPERM);
        for _ in 0..before {
            Queue::builder().kernel(KernelKind::Uring).build().unwrap_err();
        }
        assert_eq!(places_for_rings(), before);
    });
}

/// A filter that comes when the ring is at work: whoever asks the queue learns of it, and nobody waits for
/// ever. What the kernel has stays its own.
#[test]
fn a_ring_that_may_not_be_used_any_more_says_so() {
    in_a_child("a_ring_that_may_not_be_used_any_more_says_so", None, || {
        let Some(queue) = queue_on(KernelKind::Uring) else { return };
        let (reader, writer) = pipe(&queue);
        let (buffer, drops) = Marked::new(8);
        let mut reading = reader.read(buffer);
        queue.block_on(look_around()).unwrap();
        refuse(&[libc::SYS_io_uring_enter], libc::EPERM);
        for _ in 0..3 {
            let error = queue.block_on(&mut reading).map(|_| ()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        }
        // A call that needs no ring still works; one that does is not lost without a word.
        let write = queue.block_on(writer.write("data"));
        assert!(write.is_ok_and(|(count, _)| count.unwrap() == 4));
        let sync = writer.sync_all();
        let error = queue.block_on(sync).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        drop((reader, writer));
        let undrained = queue.close(Duration::from_secs(60)).unwrap_err();
        assert_eq!(undrained.operations, 2, "{undrained}");
        drop(queue);
        drop(reading);
        assert_eq!(drops.count(), 0, "the kernel may still write there");
        works(&Queue::new().unwrap());
    });
}

/// Q1: a thread ends at once with what its ring does not give back, and frees none of it. (The ring says that there is
/// no memory just now, which is no reason to give up, and the operation cannot be taken back without it.)
#[test]
fn a_thread_ends_though_the_ring_gives_nothing_back() {
    in_a_child("a_thread_ends_though_the_ring_gives_nothing_back", None, || {
        let (buffer, drops) = Marked::new(8);
        let ended = thread::spawn(|| {
            let queue = Queue::current().unwrap();
            if queue.kernel_kind() != KernelKind::Uring {
                each_kernel::skip("this system gives no io_uring");
                return None;
            }
            let (reader, writer) = pipe(&queue);
            let reading = reader.read(buffer);
            queue.block_on(look_around()).unwrap();
            std::mem::forget((reading, reader, writer));
            refuse(&[libc::SYS_io_uring_enter], libc::EAGAIN);
            Some(Instant::now())
        });
        // A queue that is dropped waits for a second.
        if let Some(start) = ended.join().unwrap() {
            assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
        }
        assert_eq!(drops.count(), 0, "the kernel may still write there");
    });
}

/// Q3: what a ring has brought is told of in its order, also where completions have to be taken off before the
/// system takes more submissions (EBUSY: older ones say so when there is no room for any).
#[test]
fn what_a_ring_brought_before_it_was_busy_is_told_of_first() {
    in_a_child("what_a_ring_brought_before_it_was_busy_is_told_of_first", None, || {
        let Some(queue) = queue_on(KernelKind::Uring) else { return };
        refuse_full_queues(libc::EBUSY);
        let order = Rc::new(RefCell::new(Vec::new()));
        let waker = |name| {
            let order = Rc::clone(&order);
            each_kernel::waker(move || order.borrow_mut().push(name))
        };
        let pairs = iter::repeat_with(|| UnixStream::pair().unwrap());
        let [(one, mut to_one), (other, mut to_other), (quiet, mut to_quiet), (leaves, _to_leaves)]: [_; 4] =
            pairs.take(4).collect::<Vec<_>>().try_into().unwrap();
        let mut first = queue.ready(&one, Event::Read);
        assert!(poll_with(&mut first, &waker("first")).is_pending());
        let leaves = queue.register(leaves).unwrap();
        let waiting = leaves.recv(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        to_one.write_all(b"x").unwrap();
        // The ring takes in what has come, as a registration ends.
        drop((waiting, leaves));
        to_other.write_all(b"x").unwrap();
        let mut second = queue.ready(&other, Event::Read);
        assert!(poll_with(&mut second, &waker("second")).is_pending());
        let many: Vec<_> = (0..300).map(|_| queue.ready(&quiet, Event::Read)).collect();
        each_kernel::turn(&queue);
        assert_eq!(*order.borrow(), ["first", "second"]);
        // Not given up: what is to be done by its number is handed over before a handle leaves.
        to_quiet.write_all(b"x").unwrap();
        for wait in [first, second].into_iter().chain(many) {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Read));
        }
        for handle in [&one, &other, &quiet] {
            queue.unregister(handle).unwrap();
        }
        queue.close(Duration::from_secs(5)).unwrap();
    });
}

/// What the system does not take for now, and the ring has no room for, is begun by the looks that follow, also of a
/// queue that has had nothing rare to see to.
#[test]
fn what_a_ring_has_no_room_for_is_begun_later() {
    in_a_child("what_a_ring_has_no_room_for_is_begun_later", None, || {
        let Some(queue) = queue_on(KernelKind::Uring) else { return };
        refuse_full_queues(libc::EAGAIN);
        let (quiet, mut to_quiet) = UnixStream::pair().unwrap();
        queue.block_on(look_around()).unwrap();
        // Twice of what there is room for, and more.
        let many: Vec<_> = (0..600).map(|_| queue.ready(&quiet, Event::Read)).collect();
        to_quiet.write_all(b"x").unwrap();
        for wait in many {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Read));
        }
        queue.unregister(&quiet).unwrap();
        queue.close(Duration::from_secs(5)).unwrap();
    });
}

/// What rings were to be made with, of what is known.
static ASKED_FOR: AtomicU32 = AtomicU32::new(0);

/// What `struct io_uring_params` may ask for on a system that knows these flags.
struct Setup {
    known: u32,
    /// Of these, the last that is of use.
    wanted: u32,
}

/// `IORING_SETUP_*`.
const CQSIZE: u32 = 1 << 3;
const DEFER_TASKRUN: u32 = 1 << 13;
const NO_SQARRAY: u32 = 1 << 16;

impl Setup {
    const OF_5_11: Self = Self { known: 0x7f, wanted: CQSIZE };
    const OF_6_1: Self = Self { known: 0x3fff, wanted: DEFER_TASKRUN };
    const OF_TODAY: Self = Self { known: u32::MAX, wanted: NO_SQARRAY };

    /// Makes the system as old as that, for this thread and those it starts: it knows none of the newer flags of
    /// io_uring_setup(2), which another thread looks at, and of io_uring_enter(2), nor, if it `registers_no_rings`,
    /// how to register one with itself.
    fn impose(self, registers_no_rings: bool) {
        // Where the number, and the second and fourth argument are in `struct seccomp_data`: their lower halves.
        const NUMBER: u32 = 0;
        const WHAT: u32 = 24;
        const FLAGS: u32 = 40;
        // Of Linux 6.16, and later.
        const NEW_FLAGS: u32 = !0x7f;
        const REGISTER_RING_FDS: u32 = 20;
        let invalid = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
        let mut program = vec![
            step(LOAD, 0, 0, NUMBER),
            step(JUMP_IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            step(JUMP_IF_EQUAL, 0, 3, libc::SYS_io_uring_enter as u32),
            step(LOAD, 0, 0, FLAGS),
            step(JUMP_IF_SET, 0, 4, NEW_FLAGS),
            step(RETURN, 0, 0, invalid),
            step(JUMP_IF_EQUAL, 0, 2, libc::SYS_io_uring_register as u32),
            step(LOAD, 0, 0, WHAT),
            step(JUMP_IF_EQUAL, u8::from(registers_no_rings), 0, REGISTER_RING_FDS),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
            step(RETURN, 0, 0, invalid),
        ];
        let (give, take) = std::sync::mpsc::channel();
        // Before the filter, which is not for this one.
        thread::spawn(move || self.answer(&take.recv().unwrap()));
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the program is ours and lives through the calls, which copy it; the descriptor is nobody's yet.
        let asked = unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let (what, how) =
                (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
            let asked = libc::syscall(libc::SYS_seccomp, what, how, &raw const filter);
            assert!(asked >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(asked as i32)
        };
        give.send(asked).unwrap();
    }

    /// Answers whoever asks for a ring, for as long as the process lives.
    fn answer(&self, asked: &OwnedFd) {
        /// `SECCOMP_IOCTL_NOTIF_RECV`, `SECCOMP_IOCTL_NOTIF_SEND`.
        const RECEIVE: u64 = 0xc050_2100;
        const SEND: u64 = 0xc018_2101;
        const GOES_ON: u64 = 1;
        let fd = asked.as_raw_fd();
        loop {
            // `struct seccomp_notif`: who asks; then its process, the call, where it is made, and its arguments.
            let mut question = [0_u64; 10];
            // SAFETY: so long is the structure. The second argument is this process' memory, whose thread waits.
            let flags = unsafe {
                if libc::ioctl(fd, RECEIVE as _, question.as_mut_ptr()) != 0 {
                    return;
                }
                // `flags` of `struct io_uring_params`.
                std::ptr::with_exposed_provenance::<u32>(question[5] as usize).add(2).read()
            };
            // `struct seccomp_notif_resp`: who has asked, the value, and an error before the flags.
            let refused = u64::from((-libc::EINVAL) as u32);
            let is_known = flags & !self.known == 0;
            let how = if is_known { GOES_ON << 32 } else { refused };
            if is_known {
                ASKED_FOR.fetch_or(flags, Ordering::Relaxed);
            }
            let answer = [question[0], 0, how];
            // SAFETY: so long is the structure.
            unsafe { libc::ioctl(fd, SEND as _, answer.as_ptr()) };
        }
    }
}

/// The ring on a system that does not know all that it could use.
fn works_on_an_old_system(setup: Setup, registers_no_rings: bool) {
    if queue_on(KernelKind::Uring).is_none() {
        return;
    }
    let wanted = setup.wanted;
    setup.impose(registers_no_rings);
    let queue = Queue::new().unwrap();
    assert_eq!(queue.kernel_kind(), KernelKind::Uring);
    assert_ne!(ASKED_FOR.load(Ordering::Relaxed) & wanted, 0);
    works(&queue);
}

#[test]
fn a_ring_works_as_on_linux_5_11() {
    in_a_child("a_ring_works_as_on_linux_5_11", None, || {
        works_on_an_old_system(Setup::OF_5_11, true);
    });
}

#[test]
fn a_ring_works_as_on_linux_6_1() {
    in_a_child("a_ring_works_as_on_linux_6_1", None, || {
        works_on_an_old_system(Setup::OF_6_1, false);
    });
}

#[test]
fn a_ring_works_as_on_linux_6_15() {
    in_a_child("a_ring_works_as_on_linux_6_15", None, || {
        works_on_an_old_system(Setup::OF_TODAY, false);
    });
}

/// Q15: a host whose descriptor cannot be registered anew, for want of memory, is told all the time.
#[test]
fn a_host_is_told_though_its_descriptor_cannot_be_registered_anew() {
    in_a_child("a_host_is_told_though_its_descriptor_cannot_be_registered_anew", None, || {
        let Some(queue) = queue_on(KernelKind::Uring) else { return };
        let host = queue.as_fd().as_raw_fd();
        refuse_eventfds(libc::ENOMEM);
        let (ours, mut theirs) = each_kernel::unix_pair(&queue);
        for _ in 0..5 {
            let mut reading = ours.read(vec![0; 8]);
            each_kernel::turn(&queue);
            assert!(poll_with(&mut reading, std::task::Waker::noop()).is_pending());
            theirs.write_all(b"x").unwrap();
            let mut waits = libc::pollfd { fd: host, events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which is ours.
            assert_eq!(unsafe { libc::poll(&raw mut waits, 1, 20_000) }, 1);
            each_kernel::turn(&queue);
            assert!(poll_with(&mut reading, std::task::Waker::noop()).is_ready());
        }
    });
}

/// What is merely quicker is done without.
#[test]
fn a_ring_works_where_nothing_may_be_registered_with_it() {
    in_a_child("a_ring_works_where_nothing_may_be_registered_with_it", None, || {
        if queue_on(KernelKind::Uring).is_none() {
            return;
        }
        refuse(&[libc::SYS_io_uring_register], libc::EPERM);
        let queue = Queue::new().unwrap();
        assert_eq!(queue.kernel_kind(), KernelKind::Uring);
        works(&queue);
    });
}

/// An environment that asks for the ring gets it, or is told why not.
#[test]
fn a_ring_that_was_asked_for_and_is_refused_is_an_error() {
    let name = "a_ring_that_was_asked_for_and_is_refused_is_an_error";
    in_a_child(name, Some("uring"), || {
        match Queue::new() {
            Ok(queue) => assert_eq!(queue.kernel_kind(), KernelKind::Uring),
            Err(error) => each_kernel::skip(&format!("this system gives no io_uring: {error}")),
        }
        refuse(&[libc::SYS_io_uring_setup], libc::EPERM);
        let error = Queue::new().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        let error = Queue::current().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        // The program's word is not the environment's.
        works(&Queue::builder().kernel(KernelKind::Readiness).build().unwrap());
    });
}

#[test]
fn the_environment_says_which_kernel() {
    in_a_child("the_environment_says_which_kernel", Some("readiness"), || {
        let queue = Queue::new().unwrap();
        assert_eq!(queue.kernel_kind(), KernelKind::Readiness);
        works(&queue);
        assert_eq!(Queue::current().unwrap().kernel_kind(), KernelKind::Readiness);
    });
}

#[test]
fn a_word_that_is_no_kernel_is_an_error() {
    in_a_child("a_word_that_is_no_kernel_is_an_error", Some("epol"), || {
        let error = Queue::new().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains("epol") && error.to_string().contains("uring"),
            "{error}"
        );
    });
}

/// Calls that can be told not to block came late to Linux, and to those who imitate it.
#[test]
fn a_system_without_calls_that_do_not_block_is_done_with() {
    in_a_child("a_system_without_calls_that_do_not_block_is_done_with", None, || {
        let queues = [KernelKind::Uring, KernelKind::Readiness].map(queue_on);
        refuse(&[libc::SYS_preadv2, libc::SYS_pwritev2], libc::ENOSYS);
        for queue in queues.into_iter().flatten() {
            works(&queue);
        }
    });
}
