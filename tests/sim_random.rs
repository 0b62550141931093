#![cfg(feature = "sim")]
//! Random orders of everything a program can do with a queue, against everything the kernel can do,
//! judged by rules that hold in every order. Scenario 41.
//!
//! `IOQUEUE_SIM_SEED=n` runs one seed; `IOQUEUE_SIM_RUNS=n` that many of each kind, from
//! `IOQUEUE_SIM_FIRST=n` on. `cargo xtask soak` does so for as long as one likes.

#[path = "sim/model.rs"]
mod model;

use std::env;
use std::panic::resume_unwind;
use std::thread;

use ioqueue::sim::{self, Faults};
use model::{Rules, Step, draw_steps, play, shrink};

fn runs(usual: u64) -> u64 {
    number("IOQUEUE_SIM_RUNS", usual)
}

fn number(variable: &str, usual: u64) -> u64 {
    match env::var(variable) {
        Ok(number) => {
            number.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {number}"))
        }
        Err(_) => usual,
    }
}

/// Plays one sequence for each seed. A failure is made as short as it gets first.
fn sequences(count: u64, faults: Faults, careful: bool, length: usize) {
    let rules = Rules { faults, careful, plan: None };
    let first = number("IOQUEUE_SIM_FIRST", 0);
    let play_one = |seed| {
        let steps = draw_steps(seed, length);
        if let Some(failure) = sim::find_failure([seed], |seed| play(seed, &rules, &steps)) {
            let (steps, message) = shrink(seed, &rules, steps, failure.message);
            panic!("{message}\nthe steps:\n  {}", list(&steps));
        }
    };
    let one_seed = env::var_os("IOQUEUE_SIM_SEED").is_some();
    let end = first.saturating_add(if one_seed { 1 } else { count });
    // A thread remembers its queues, also those that were forgotten: a new one from time to time.
    for first in (first..end).step_by(1_000) {
        let seeds = first..end.min(first.saturating_add(1_000));
        thread::scope(|scope| scope.spawn(|| sim::explore(seeds, play_one)).join())
            .unwrap_or_else(|panic| resume_unwind(panic));
    }
}

/// A handle that can't be marked, or tells nothing of itself, is closed without being unregistered, and
/// whose value comes back for another such, can't be told from that: a program that does so hangs.
fn marked(mut faults: Faults) -> Faults {
    (faults.modes_fail, faults.denies_queries) = (0.0, 0.0);
    faults
}

fn list(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>().join(",\n  ")
}

#[test]
fn short_orders_with_the_usual_faults() {
    sequences(runs(50_000), marked(Faults::default()), false, 12);
}

#[test]
fn long_orders_with_the_usual_faults() {
    sequences(runs(25_000), marked(Faults::default()), false, 60);
}

#[test]
fn orders_with_wild_faults() {
    sequences(runs(50_000), marked(Faults::wild()), false, 25);
}

#[test]
fn orders_of_a_careful_program_with_wild_faults() {
    sequences(runs(50_000), Faults::wild(), true, 25);
}
