//! Bytes as a sequence of steps, for fuzzers. Any bytes will do: what is out of range wraps.

use ioqueue::sim::{Faults, Kind};

use super::model::{self, Call, Deed, Form, Rules, Step};

/// One byte says how the kernel behaves, four are its seed, and each three are a step.
pub struct Schedule {
    rules: Rules,
    seed: u64,
    steps: Vec<Step>,
}

/// Longer sequences find nothing that shorter ones don't.
const LONGEST: usize = 150;

impl Schedule {
    /// `None` where there are no steps.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (&behaviour, rest) = bytes.split_first()?;
        let (seed, steps) = rest.split_first_chunk()?;
        let (mut faults, careful) = match behaviour % 4 {
            0 => (Faults::none(), false),
            1 => (Faults::default(), false),
            2 => (Faults::wild(), false),
            _ => (Faults::wild(), true),
        };
        if !careful {
            // As in sim_random.rs: such a handle can't be told from one that came back.
            (faults.modes_fail, faults.denies_queries) = (0.0, 0.0);
        }
        let steps: Vec<_> = steps.chunks_exact(3).take(LONGEST).map(step).collect();
        let rules = Rules { faults, careful, plan: None };
        let seed = u64::from(u32::from_le_bytes(*seed));
        (!steps.is_empty()).then_some(Self { rules, seed, steps })
    }

    /// Plays it; panics where a rule is broken.
    pub fn play(&self) {
        model::play(self.seed, &self.rules, &self.steps);
    }
}

fn pick<V: Copy>(of: &[V], by: u8) -> V {
    of[usize::from(by) % of.len()]
}

fn step(bytes: &[u8]) -> Step {
    const KINDS: [Kind; 8] = [
        Kind::File,
        Kind::Directory,
        Kind::Pipe,
        Kind::MessagePipe,
        Kind::Socket,
        Kind::Datagram,
        Kind::Device,
        Kind::Event,
    ];
    const CALLS: [Call; 3] = [Call::Read, Call::Write, Call::Control];
    const FORMS: [Form; 6] = [
        Form::Wait,
        Form::Task,
        Form::Start,
        Form::ByHand,
        Form::ByHandUnregistered,
        Form::Exposed,
    ];
    const DEEDS: [Deed; 4] = [Deed::Poll, Deed::Close, Deed::Spawn, Deed::Look];
    let (which, what, how) = (bytes[0], bytes[1], bytes[2]);
    let (handle, operation) = (usize::from(what >> 1), usize::from(what));
    // The second queue is there to be mistaken for the first.
    let queue = usize::from(how >> 5 == 7);
    match which % 32 {
        0 | 1 => Step::Open { kind: pick(&KINDS, what) },
        2 => Step::Duplicate { handle },
        3 | 4 => Step::Persist { handle, queue, keep_packets: what & 1 == 1 },
        5 => Step::Register { handle, queue },
        6 => Step::Unregister { handle, queue },
        7 => Step::IntoInner { handle },
        8 => Step::Close { handle },
        9..=14 => Step::Submit {
            handle,
            queue,
            call: pick(&CALLS, how),
            length: pick(&[8, 0, 40, 100], how / 3),
            form: pick(&FORMS, which),
        },
        15 => Step::Watch { operation, parked: how & 1 == 1 },
        16 | 17 => Step::Look { operation },
        18 => Step::Cancel { operation },
        19 => Step::Drop { operation },
        20 => Step::Forget { operation },
        21 | 22 => Step::Poll { queue, milliseconds: pick(&[0, 1, 5, 50], what) },
        23 => Step::Notify { queue },
        24 => Step::Limit { operation, microseconds: pick(&[0, 10, 5_000], how) },
        25 => Step::Sleep { queue, microseconds: pick(&[0, 10, 10_900, 50_000], what) },
        26 => Step::Complete { handle },
        27 => Step::Mischief { operation, deed: pick(&DEEDS, how) },
        28 => Step::Feed { handle, length: pick(&[1, 10, 60], how) },
        29 => Step::HangUp { handle, reset: what & 1 == 1 },
        30 if what % 4 == 0 => Step::Foreign { queue },
        30 => Step::Advance { microseconds: pick(&[1, 1_000, 30_000], how) },
        _ if what % 4 == 0 => Step::DropQueue { queue },
        _ => Step::CloseQueue { queue, milliseconds: pick(&[0, 10, 1_000], how) },
    }
}
