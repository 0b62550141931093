//! What the programs in `raw` do by hand, done through the queue: the same work on the same data, so that
//! they can be compared. `cargo xtask bench` runs them, in turns.
//!
//! ```text
//! ioqueue-bench BENCH COUNT
//! ```
//!
//! Set-up, a warm-up of COUNT/10 and the checks at the end are not measured. Prints one line of JSON.
//! `IOQUEUE_KERNEL` names the kernel, where a system has several.

mod allocations;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::run;
#[cfg(windows)]
use windows::run;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bench, count] = &arguments[..] else { panic!("usage: ioqueue-bench BENCH COUNT") };
    run(bench, count.parse().expect("COUNT is a number"))
}
