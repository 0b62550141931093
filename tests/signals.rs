#![cfg(unix)]
//! Pitfall 42: a signal that comes while a queue waits, or makes a call, is nobody's error.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ioqueue::{KernelKind, Queue};

static CAUGHT: AtomicU32 = AtomicU32::new(0);

extern "C" fn catch(_: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Sends this thread signals, that cut short what it waits in, for as long as `body` takes.
fn among_signals(body: impl FnOnce()) {
    // SAFETY: a handler that only counts; without SA_RESTART, so that calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = catch as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let watched = is_over.clone();
    // SAFETY: takes and gives a number.
    let target = unsafe { libc::pthread_self() };
    let thread = thread::spawn(move || {
        while !watched.load(Ordering::SeqCst) {
            // SAFETY: the thread waits for this one below.
            unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
            thread::yield_now();
        }
    });
    body();
    is_over.store(true, Ordering::SeqCst);
    thread.join().unwrap();
}

fn signals_cut_nothing_short(kind: KernelKind) {
    let queue = match Queue::builder().kernel(kind).build() {
        Ok(queue) => queue,
        Err(error) => return println!("SKIPPED: this system gives no {kind:?}: {error}"),
    };
    let before = CAUGHT.load(Ordering::Relaxed);
    among_signals(|| {
        let start = Instant::now();
        queue.block_on(queue.sleep(Duration::from_millis(100))).unwrap().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100));
        let (here, mut there) = UnixStream::pair().unwrap();
        let here = queue.register(here).unwrap();
        let file = tempfile();
        for round in 0..200_u8 {
            let receiving = here.read(vec![0; 8]);
            there.write_all(&[round]).unwrap();
            let (count, bytes) = queue.block_on(receiving).unwrap();
            assert_eq!((count.unwrap(), bytes[0]), (1, round));
            let written = queue.register(file.try_clone().unwrap()).unwrap();
            let (count, _) = queue.block_on(written.write_at(vec![round; 100], 0)).unwrap();
            assert_eq!(count.unwrap(), 100);
            queue.block_on(written.sync_all()).unwrap().unwrap();
        }
        queue.close(Duration::from_secs(5)).unwrap();
    });
    assert!(CAUGHT.load(Ordering::Relaxed) > before + 100, "there were hardly any signals");
}

/// A file without a name.
fn tempfile() -> std::fs::File {
    let name = format!("ioqueue-signals-{}-{:?}", std::process::id(), thread::current().id());
    let path = std::env::temp_dir().join(name);
    let options = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    std::fs::remove_file(&path).unwrap();
    options.unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn signals_cut_nothing_short_on_a_ring() {
    signals_cut_nothing_short(KernelKind::Uring);
}

#[test]
fn signals_cut_nothing_short_on_readiness() {
    signals_cut_nothing_short(KernelKind::Readiness);
}

/// What is sent to nobody on a socket is an error, and no signal that ends the program (send(2), MSG_NOSIGNAL):
/// Rust's programs ignore it, what a library is part of may not.
#[cfg(target_os = "linux")]
fn a_send_to_nobody_raises_no_signal(kind: KernelKind) {
    static RAISED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn raised(_: libc::c_int) {
        RAISED.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: a handler that only counts.
    let before =
        unsafe { libc::signal(libc::SIGPIPE, raised as extern "C" fn(libc::c_int) as usize) };
    assert_ne!(before, libc::SIG_ERR);
    let queue = match Queue::builder().kernel(kind).build() {
        Ok(queue) => queue,
        Err(error) => return println!("SKIPPED: this system gives no {kind:?}: {error}"),
    };
    let (here, there) = UnixStream::pair().unwrap();
    let here = queue.register(here).unwrap();
    drop(there);
    let refused = [
        queue.block_on(here.write("x")).unwrap().0,
        queue.block_on(here.send("x")).unwrap().0,
        queue.block_on(here.write_vectored(["x", "y"])).unwrap().0,
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
    assert_eq!(RAISED.load(Ordering::Relaxed), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_send_to_nobody_raises_no_signal_on_a_ring() {
    a_send_to_nobody_raises_no_signal(KernelKind::Uring);
}

#[cfg(target_os = "linux")]
#[test]
fn a_send_to_nobody_raises_no_signal_on_readiness() {
    a_send_to_nobody_raises_no_signal(KernelKind::Readiness);
}
