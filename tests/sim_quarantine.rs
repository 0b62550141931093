#![cfg(feature = "sim")]
//! Random orders over an allocator that keeps what is freed for a while, and looks whether somebody
//! writes there. So a write after a free shows without a sanitizer too. Scenario 41.
//!
//! `IOQUEUE_SIM_SEED`, `IOQUEUE_SIM_RUNS` and `IOQUEUE_SIM_FIRST` are as in `sim_random.rs`.

#[path = "sim/model.rs"]
mod model;
mod quarantine;

use std::env;
use std::sync::PoisonError;

use ioqueue::sim::{self, Faults};
use model::{Rules, draw_steps, play, shrink};
use quarantine::{ALLOCATOR, ALONE};

fn number(variable: &str, usual: u64) -> u64 {
    env::var(variable).map_or(usual, |number| number.parse().expect("a number"))
}

fn sequences(faults: Faults, careful: bool, length: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rules = Rules { faults, careful, plan: None };
    let (first, count) = (number("IOQUEUE_SIM_FIRST", 0), number("IOQUEUE_SIM_RUNS", 4_000));
    sim::explore(first..first.saturating_add(count), |seed| {
        let steps = draw_steps(seed, length);
        let failure = sim::find_failure([seed], |seed| {
            play(seed, &rules, &steps);
            assert_eq!(ALLOCATOR.flush(), 0, "memory was written to after its free");
        });
        if let Some(failure) = failure {
            let (steps, message) = shrink(seed, &rules, steps, failure.message);
            panic!("{message}\nthe steps:\n{steps:#?}");
        }
    });
}

#[test]
fn nothing_is_written_after_its_free_with_the_usual_faults() {
    let mut faults = Faults::default();
    // As in sim_random.rs: such a handle can't be told from one that came back.
    (faults.modes_fail, faults.denies_queries) = (0.0, 0.0);
    sequences(faults, false, 60);
}

#[test]
fn nothing_is_written_after_its_free_with_wild_faults() {
    sequences(Faults::wild(), true, 25);
}
