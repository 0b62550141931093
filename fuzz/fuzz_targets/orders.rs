//! Orders of steps that a fuzzer makes up, on the simulated Windows, judged by the rules of
//! `tests/sim_random.rs`. `cargo xtask soak --sanitize` runs it for a while; `cargo +nightly fuzz run
//! orders` for as long as one likes.

#![no_main]

#[path = "../../tests/sim/model.rs"]
mod model;
#[path = "../../tests/sim/schedule.rs"]
mod schedule;

use std::thread;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(schedule) = schedule::Schedule::read(bytes) {
        // A thread remembers its queues, also those that were forgotten.
        thread::scope(|scope| scope.spawn(|| schedule.play()).join().expect("it aborts before"));
    }
});
