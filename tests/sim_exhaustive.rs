#![cfg(feature = "sim")]
//! Every order of up to four steps on two operations, of every kind of cancel, with the status word
//! before, with and after the packet: 390,000 sequences, each judged by the rules of the random orders.

#[path = "sim/model.rs"]
mod model;

use std::time::Duration;

use ioqueue::sim::{self, Faults, Kind, OnCancel, Plan, StatusWord};
use model::{Call, Form, Rules, Step, play};

/// Operation 1 is the older one.
const STEPS: [Step; 12] = [
    Step::Complete { handle: 0 },
    Step::Poll { queue: 0, milliseconds: 0 },
    Step::Advance { microseconds: 2_000 },
    Step::Look { operation: 0 },
    Step::Look { operation: 1 },
    Step::Cancel { operation: 0 },
    Step::Cancel { operation: 1 },
    Step::Drop { operation: 0 },
    Step::Drop { operation: 1 },
    Step::Unregister { handle: 0, queue: 0 },
    Step::Close { handle: 0 },
    Step::CloseQueue { queue: 0, milliseconds: 0 },
];

const LATE: Duration = Duration::from_millis(1);

const CANCELS: [OnCancel; 5] = [
    OnCancel::Aborts,
    OnCancel::AbortsAfter(LATE),
    OnCancel::AbortsHalfway,
    OnCancel::Finishes,
    OnCancel::NotFound,
];

/// All sequences of up to four steps after `start`.
fn every_order(start: &[Step]) {
    let words = [StatusWord::BeforePacket, StatusWord::WithPacket, StatusWord::OnDequeue];
    for word in words {
        for cancel in CANCELS {
            let plan = Plan::pends().status_word(word).on_cancel(cancel);
            let plan = if word == words[0] { plan.packet_after(LATE) } else { plan };
            let rules = Rules { faults: Faults::none(), careful: false, plan: Some(plan) };
            let first = start.len();
            let mut steps = start.to_vec();
            let mut order = Vec::new();
            loop {
                steps.truncate(first);
                steps.extend(order.iter().map(|&index: &usize| STEPS[index]));
                if !says_nothing_new(&steps[first..]) {
                    let failure = sim::find_failure([0], |seed| play(seed, &rules, &steps));
                    if let Some(failure) = failure {
                        panic!("{word:?}, {cancel:?}, {steps:#?}: {}", failure.message);
                    }
                }
                if !next(&mut order) {
                    break;
                }
            }
        }
    }
}

/// Whether a step does nothing, so that the order is one of the shorter ones.
fn says_nothing_new(steps: &[Step]) -> bool {
    (0..steps.len()).any(|at| {
        let (step, before) = (steps[at], &steps[..at]);
        match step {
            // Once is all there is to them.
            Step::Cancel { operation } | Step::Look { operation } | Step::Drop { operation } => {
                before.contains(&Step::Drop { operation })
                    || before.last() == Some(&step)
                    || matches!(step, Step::Cancel { .. }) && before.contains(&step)
            }
            Step::Unregister { .. } | Step::Close { .. } | Step::CloseQueue { .. } => {
                before.contains(&step)
            }
            Step::Complete { .. } => before.iter().filter(|&it| it == &step).count() == 2,
            _ => before.last() == Some(&step),
        }
    })
}

/// Counts, least digit last, from no digits to four.
fn next(order: &mut Vec<usize>) -> bool {
    for digit in order.iter_mut().rev() {
        *digit += 1;
        if *digit < STEPS.len() {
            return true;
        }
        *digit = 0;
    }
    order.push(0);
    order.len() <= 4
}

fn start(forms: [Form; 2]) -> Vec<Step> {
    let submit = |form| Step::Submit { handle: 0, queue: 0, call: Call::Control, length: 8, form };
    vec![
        Step::Open { kind: Kind::Device },
        Step::Persist { handle: 0, queue: 0, keep_packets: false },
        submit(forms[0]),
        submit(forms[1]),
    ]
}

#[test]
fn of_a_future_and_a_parked_key() {
    let mut steps = start([Form::Wait, Form::Start]);
    steps.push(Step::Watch { operation: 0, parked: true });
    every_order(&steps);
}

#[test]
fn of_a_task_and_of_what_was_started_and_not_waited_for() {
    every_order(&start([Form::Task, Form::Start]));
}
