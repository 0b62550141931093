//! The steps of a random sequence, what plays them, and the rules they must keep.

#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use ioqueue::error::Closed;
use ioqueue::iocp::{self, Cancel, OVERLAPPED, Outcome, Parked, Timeout, Wait};
use ioqueue::sim::{self, End, Faults, Kind, Plan, Sim, SimHandle, Traits};
use ioqueue::{
    AsAnyHandle, Continuation, Misuse, Overlapped, Persist, Queue, RawHandle, Registered, Task,
};

// ---------------------------------------------------------------------------------------------
// Steps

/// One thing a program does. Indices are taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Open {
        kind: Kind,
    },
    Duplicate {
        handle: usize,
    },
    Persist {
        handle: usize,
        queue: usize,
        keep_packets: bool,
    },
    Register {
        handle: usize,
        queue: usize,
    },
    Unregister {
        handle: usize,
        queue: usize,
    },
    IntoInner {
        handle: usize,
    },
    Close {
        handle: usize,
    },
    Submit {
        handle: usize,
        queue: usize,
        call: Call,
        length: usize,
        form: Form,
    },
    /// Waits for what was started before.
    Watch {
        operation: usize,
        parked: bool,
    },
    /// Polls a future once, or takes a parked operation's outcome if it is there.
    Look {
        operation: usize,
    },
    Cancel {
        operation: usize,
    },
    Drop {
        operation: usize,
    },
    Forget {
        operation: usize,
    },
    Poll {
        queue: usize,
        milliseconds: u64,
    },
    Notify {
        queue: usize,
    },
    /// Gives a wait a time limit.
    Limit {
        operation: usize,
        microseconds: u64,
    },
    /// A task that sleeps.
    Sleep {
        queue: usize,
        microseconds: u64,
    },
    /// The kernel ends the oldest operation on a handle.
    Complete {
        handle: usize,
    },
    /// What the drop of an operation's state will do.
    Mischief {
        operation: usize,
        deed: Deed,
    },
    Feed {
        handle: usize,
        length: usize,
    },
    HangUp {
        handle: usize,
        reset: bool,
    },
    Foreign {
        queue: usize,
    },
    Advance {
        microseconds: u64,
    },
    CloseQueue {
        queue: usize,
        milliseconds: u64,
    },
    DropQueue {
        queue: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Control,
}

/// How a sequence is played.
#[derive(Debug, Clone)]
pub struct Rules {
    pub faults: Faults,
    /// The program unregisters what it closes, and uses nothing that it has closed. Only such a
    /// program duplicates handles here: a duplicate that gets the value of a handle that was closed
    /// while registered can't be told from that, if its original was registered once.
    pub careful: bool,
    /// How every operation goes; drawn where `None`.
    pub plan: Option<Plan>,
}

/// What user code does where the queue runs it (pitfall 21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Poll,
    Close,
    Spawn,
    Look,
}

/// How an operation is started, and who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A future in hand.
    Wait,
    /// A task that awaits it.
    Task,
    /// `start`, to be waited for later.
    Start,
    /// The call made by hand with the address from `as_ptr`.
    ByHand,
    /// The same, of a handle that may not be registered yet.
    ByHandUnregistered,
    /// The address is given out and no call made.
    Exposed,
}

/// SplitMix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self) -> usize {
        self.below(8) as usize
    }

    fn pick<V: Copy>(&mut self, of: &[V]) -> V {
        of[self.below(of.len() as u64) as usize]
    }
}

const KINDS: [Kind; 8] = [
    Kind::File,
    Kind::Device,
    Kind::Device,
    Kind::Pipe,
    Kind::Socket,
    Kind::Datagram,
    Kind::Directory,
    Kind::Event,
];

/// The sequence of a seed: it starts with a handle that is ready for use, most of the time.
pub fn draw_steps(seed: u64, length: usize) -> Vec<Step> {
    let mut draw = Draw(seed ^ 0x5EED);
    let mut steps = Vec::new();
    for _ in 0..1 + draw.below(3) {
        steps.push(Step::Open { kind: draw.pick(&KINDS) });
        let handle = steps.len();
        if draw.below(4) == 0 {
            steps.push(Step::Register { handle, queue: 0 });
        } else {
            steps.push(Step::Persist { handle, queue: 0, keep_packets: draw.below(4) == 0 });
        }
    }
    let length = 2 + draw.below(length as u64) as usize;
    while steps.len() < length {
        steps.push(draw_step(&mut draw));
    }
    steps
}

fn draw_step(draw: &mut Draw) -> Step {
    let (handle, operation) = (draw.index(), draw.index());
    let queue = usize::from(draw.below(6) == 0);
    match draw.below(100) {
        0..4 => Step::Open { kind: draw.pick(&KINDS) },
        4 => Step::Duplicate { handle },
        5..9 => Step::Persist { handle, queue, keep_packets: draw.below(4) == 0 },
        9..12 => Step::Register { handle, queue },
        12..16 => Step::Unregister { handle, queue },
        16 => Step::IntoInner { handle },
        17..21 => Step::Close { handle },
        21..48 => Step::Submit {
            handle,
            queue,
            call: draw.pick(&[Call::Read, Call::Read, Call::Write, Call::Control]),
            length: draw.pick(&[0, 1, 8, 32, 40, 100]),
            form: draw.pick(&[
                Form::Wait,
                Form::Wait,
                Form::Task,
                Form::Start,
                Form::ByHand,
                Form::ByHandUnregistered,
                Form::Exposed,
            ]),
        },
        48..53 => Step::Watch { operation, parked: draw.below(2) == 0 },
        53..62 => Step::Look { operation },
        62..68 => Step::Cancel { operation },
        68..73 => Step::Drop { operation },
        73 => Step::Forget { operation },
        74..84 => Step::Poll { queue, milliseconds: draw.pick(&[0, 0, 0, 1, 5, 50]) },
        84 => Step::Notify { queue },
        85 => {
            let deed = draw.pick(&[Deed::Poll, Deed::Close, Deed::Spawn, Deed::Look]);
            Step::Mischief { operation, deed }
        }
        86..90 => Step::Feed { handle, length: draw.pick(&[1, 10, 60]) },
        90 => Step::HangUp { handle, reset: draw.below(2) == 0 },
        91..94 => Step::Foreign { queue },
        94 => Step::Limit { operation, microseconds: draw.pick(&[0, 10, 5_000]) },
        95 => Step::Sleep { queue, microseconds: draw.pick(&[0, 10, 10_900, 50_000]) },
        96 | 97 => Step::Advance { microseconds: draw.pick(&[1, 1_000, 30_000]) },
        98 => Step::CloseQueue { queue, milliseconds: draw.pick(&[0, 10, 1_000]) },
        _ => Step::DropQueue { queue },
    }
}

/// Leaves out steps for as long as the sequence fails.
pub fn shrink(
    seed: u64,
    rules: &Rules,
    mut steps: Vec<Step>,
    mut message: String,
) -> (Vec<Step>, String) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + size).min(steps.len()));
            let failure = sim::find_failure([seed], |seed| play(seed, rules, &fewer));
            match failure {
                Some(failure) => (steps, message) = (fewer, failure.message),
                None => start += size,
            }
        }
        size = if size == 1 { 0 } else { size / 2 };
    }
    std::panic::set_hook(hook);
    (steps, message)
}

// ---------------------------------------------------------------------------------------------
// What an operation owns

/// An operation's state: a buffer in the queue's own memory and one behind a pointer. It knows when
/// it is dropped too early, or twice.
struct State {
    inline: [u8; 40],
    heap: Vec<u8>,
    length: usize,
    record: Rc<Record>,
    sim: Sim,
    shared: Rc<Shared>,
}

/// The queues, for whoever uses them; and what user code inside them polled.
struct Shared {
    sim: Sim,
    queues: RefCell<[Option<Queue>; 2]>,
    /// Was made once: each is made when it is first used.
    made: [Cell<bool>; 2],
    closed: [Cell<bool>; 2],
    polled: RefCell<Vec<Continuation>>,
}

impl Shared {
    fn make_queue(&self, index: usize) -> Option<Queue> {
        if !self.made[index].replace(true) {
            self.queues.borrow_mut()[index] = Some(self.sim.queue().unwrap());
        }
        self.queue(index)
    }

    fn queue(&self, index: usize) -> Option<Queue> {
        self.queues.borrow()[index].clone()
    }

    fn commit(&self, deed: Deed) {
        for index in [0, 1] {
            let Some(queue) = self.queue(index) else { continue };
            match deed {
                Deed::Poll => {
                    let mut ready = Vec::new();
                    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                    self.polled.borrow_mut().extend(ready);
                }
                Deed::Close => {
                    self.closed[index].set(true);
                    let _ = queue.close(Duration::ZERO);
                }
                Deed::Spawn => queue.spawn(async {}).detach(),
                Deed::Look => drop((queue.pending(), queue.running(), format!("{queue:?}"))),
            }
        }
    }
}

/// What outlives the state.
#[derive(Default)]
struct Record {
    /// The simulation's number for the operation, once it was started.
    number: Cell<Option<u64>>,
    dropped: Cell<u32>,
    ended: Cell<bool>,
    resumed: Cell<u32>,
    mischief: Cell<Option<Deed>>,
}

impl State {
    /// # Safety
    /// `state` is valid.
    unsafe fn buffer(state: *mut Self) -> (*mut u8, usize) {
        unsafe {
            let length = (*state).length;
            if length <= 40 {
                ((&raw mut (*state).inline).cast(), length)
            } else {
                ((*state).heap.as_mut_ptr(), length)
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.record.dropped.set(self.record.dropped.get() + 1);
        if thread::panicking() {
            return;
        }
        assert_eq!(self.record.dropped.get(), 1, "a state was dropped twice");
        let inline = self.sim.owns(self.inline.as_ptr(), 40);
        let heap = self.sim.owns(self.heap.as_ptr(), self.heap.len());
        assert!(!inline && !heap, "a state was dropped while the kernel had it");
        if let Some(deed) = self.record.mischief.take() {
            self.shared.commit(deed);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The player

enum Held {
    Overlapped(Overlapped<State>),
    Wait(Wait<State>, Arc<Woken>),
    Cancel(Cancel<State>, Arc<Woken>),
    Limited(Timeout<State>, Arc<Woken>),
    Parked(Parked<State>),
    Task(Task<()>),
    /// Parked, and its outcome taken.
    Taken,
    Gone,
}

struct Operation {
    record: Rc<Record>,
    handle: usize,
    queue: usize,
    /// Somebody waits, or waited: the queue answers for it.
    waited: bool,
    /// The queue saw the call, so it knows that the operation is in flight.
    seen: bool,
    /// The address was given out and never used, which the queue cannot know.
    never_started: bool,
    /// Started by hand, before its handle was registered.
    unregistered: bool,
    held: Held,
}

enum Slot {
    Plain(SimHandle),
    Owned(Registered<SimHandle>),
    /// The value is left.
    Closed(SimHandle),
}

impl Slot {
    fn any(&self) -> &dyn AsAnyHandle {
        match self {
            Self::Plain(handle) | Self::Closed(handle) => handle,
            Self::Owned(handle) => handle,
        }
    }
}

#[derive(Default)]
struct Woken {
    woken: AtomicUsize,
    asked: AtomicUsize,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

struct Player {
    sim: Sim,
    shared: Rc<Shared>,
    handles: Vec<Slot>,
    operations: Vec<Operation>,
    /// The tasks that sleep, and on which queue.
    sleeps: Vec<(usize, Task<()>)>,
    rules: Rules,
    /// Some handle is a duplicate.
    duplicated: bool,
}

/// Plays a sequence; panics where a rule is broken.
pub fn play(seed: u64, rules: &Rules, steps: &[Step]) {
    let sim = Sim::with_faults(seed, rules.faults.clone());
    let shared = Rc::new(Shared {
        sim: sim.clone(),
        queues: RefCell::default(),
        made: Default::default(),
        closed: Default::default(),
        polled: RefCell::default(),
    });
    let mut player = Player {
        sim,
        shared,
        handles: Vec::new(),
        operations: Vec::new(),
        sleeps: Vec::new(),
        duplicated: false,
        rules: rules.clone(),
    };
    for &step in steps {
        player.step(step);
        player.look_at_rules();
    }
    player.finish();
}

fn contents(at: usize) -> u8 {
    (at * 7 + 3) as u8
}

impl Player {
    fn handle(&self, index: usize) -> Option<usize> {
        let index = index.checked_rem(self.handles.len())?;
        let closed = matches!(self.handles[index], Slot::Closed(_));
        (!closed || !self.rules.careful).then_some(index)
    }

    /// The newest operations are the likeliest.
    fn operation(&self, index: usize) -> Option<usize> {
        (!self.operations.is_empty())
            .then(|| self.operations.len() - 1 - index % self.operations.len())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open { kind } => {
                let handle = if kind == Kind::File {
                    self.sim.file((0..100).map(contents).collect::<Vec<_>>())
                } else {
                    self.sim.open(kind, Traits::default())
                };
                self.handles.push(Slot::Plain(handle));
            }
            Step::Duplicate { handle } => {
                if !self.rules.careful {
                    return;
                }
                let Some(index) = self.handle(handle) else { return };
                let copy = match &self.handles[index] {
                    Slot::Plain(handle) => handle.duplicate(),
                    Slot::Owned(handle) => handle.get().duplicate(),
                    Slot::Closed(_) => return,
                };
                self.handles.push(Slot::Plain(copy));
                self.duplicated = true;
            }
            Step::Persist { handle, queue, keep_packets } => {
                let (Some(index), Some(queue)) =
                    (self.handle(handle), self.shared.make_queue(queue))
                else {
                    return;
                };
                let options =
                    if keep_packets { Persist::keep_packets() } else { Persist::default() };
                // What it answers is judged by the tests of `persist`.
                let _ = queue.persist_with(self.handles[index].any(), options);
            }
            Step::Register { handle, queue } => {
                let (Some(index), Some(queue)) =
                    (self.handle(handle), self.shared.make_queue(queue))
                else {
                    return;
                };
                if !matches!(self.handles[index], Slot::Plain(_)) {
                    return;
                }
                let Slot::Plain(plain) = self.handles.remove(index) else { unreachable!() };
                let slot = match queue.register(plain) {
                    Ok(owned) => Slot::Owned(owned),
                    Err(refused) => Slot::Plain(refused.into_value()),
                };
                self.handles.insert(index, slot);
            }
            Step::Unregister { handle, queue } => {
                let (Some(index), Some(queue)) =
                    (self.handle(handle), self.shared.make_queue(queue))
                else {
                    return;
                };
                let _ = queue.unregister(self.handles[index].any());
            }
            Step::IntoInner { handle } => {
                let Some(index) = self.handle(handle) else { return };
                if matches!(self.handles[index], Slot::Owned(_)) {
                    let Slot::Owned(owned) = self.handles.remove(index) else { unreachable!() };
                    self.handles.insert(index, Slot::Plain(owned.into_inner()));
                }
            }
            Step::Close { handle } => {
                let Some(index) = self.handle(handle) else { return };
                match self.handles.remove(index) {
                    Slot::Plain(mut handle) => {
                        if self.rules.careful {
                            for queue in [0, 1].into_iter().filter_map(|it| self.shared.queue(it)) {
                                let _ = queue.unregister(&handle);
                            }
                        }
                        handle.close();
                        self.handles.insert(index, Slot::Closed(handle));
                    }
                    Slot::Owned(owned) => drop(owned),
                    closed => self.handles.insert(index, closed),
                }
            }
            Step::Submit { handle, queue, call, length, form } => {
                self.submit(handle, queue, call, length, form);
            }
            Step::Watch { operation, parked } => self.watch(operation, parked),
            Step::Look { operation } => self.look(operation),
            Step::Cancel { operation } => self.cancel(operation),
            Step::Drop { operation } => {
                let Some(index) = self.operation(operation) else { return };
                let operation = &mut self.operations[index];
                operation.waited |= operation.seen && !matches!(operation.held, Held::Gone);
                drop(std::mem::replace(&mut operation.held, Held::Gone));
            }
            Step::Forget { operation } => {
                let Some(index) = self.operation(operation) else { return };
                forget(std::mem::replace(&mut self.operations[index].held, Held::Gone));
            }
            Step::Poll { queue, milliseconds } => {
                self.poll(queue, Duration::from_millis(milliseconds));
            }
            Step::Notify { queue } => {
                let Some(queue) = self.shared.make_queue(queue) else { return };
                let _ = queue.notifier().notify();
            }
            Step::Limit { operation, microseconds } => {
                let Some(index) = self.operation(operation) else { return };
                let operation = &mut self.operations[index];
                let held = std::mem::replace(&mut operation.held, Held::Gone);
                operation.held = match held {
                    Held::Wait(wait, woken) => {
                        Held::Limited(wait.timeout(Duration::from_micros(microseconds)), woken)
                    }
                    other => other,
                };
            }
            Step::Sleep { queue, microseconds } => {
                let index = queue;
                let Some(queue) = self.shared.make_queue(index) else { return };
                let time = Duration::from_micros(microseconds);
                let (sim, due) = (self.sim.clone(), self.sim.now() + time);
                let sleep = queue.sleep(time);
                let done = queue.spawn(async move {
                    let slept = sleep.await;
                    assert!(slept.is_err() || sim.now() >= due, "a sleep ended early");
                });
                self.sleeps.push((index, done));
            }
            Step::Complete { handle } => {
                let Some(index) = self.handle(handle) else { return };
                self.sim.complete(self.handles[index].any(), End::success());
            }
            Step::Mischief { operation, deed } => {
                let Some(index) = self.operation(operation) else { return };
                self.operations[index].record.mischief.set(Some(deed));
            }
            Step::Feed { handle, length } => {
                let Some(index) = self.handle(handle) else { return };
                self.sim.feed(self.handles[index].any(), vec![0xFE; length]);
            }
            Step::HangUp { handle, reset } => {
                let Some(index) = self.handle(handle) else { return };
                self.sim.hang_up(self.handles[index].any(), reset);
            }
            Step::Foreign { queue } => {
                let Some(queue) = self.shared.make_queue(queue) else { return };
                self.sim.post_foreign(&queue);
            }
            Step::Advance { microseconds } => self.sim.advance(Duration::from_micros(microseconds)),
            Step::CloseQueue { queue, milliseconds } => {
                self.close_queue(queue, Duration::from_millis(milliseconds));
            }
            Step::DropQueue { queue } => {
                self.close_queue(queue, Duration::from_secs(1));
                self.forget_queue(queue);
            }
        }
    }

    fn submit(&mut self, handle: usize, queue: usize, call: Call, length: usize, form: Form) {
        let (Some(index), Some(on)) = (self.handle(handle), self.shared.make_queue(queue)) else {
            return;
        };
        let record = Rc::new(Record::default());
        let state = State {
            inline: [0xAA; 40],
            heap: if length > 40 { vec![0xAA; length] } else { Vec::new() },
            length,
            record: Rc::clone(&record),
            sim: self.sim.clone(),
            shared: Rc::clone(&self.shared),
        };
        let target = self.handles[index].any();
        if let Some(plan) = &self.rules.plan {
            self.sim.plan(target, plan.clone());
        }
        let sim = self.sim.clone();
        // An address is not used again before its packet has come (W3). A forged packet may have
        // been taken for it, which does no harm; a call on what is not registered, or on a value
        // that a duplicate was given, comes under no key of its own.
        let registered = matches!(form, Form::Wait | Form::Task | Form::Start | Form::ByHand);
        let strict = registered
            && !self.duplicated
            && self.sim.foreign_packets() == 0
            && self.rules.faults.ignores_skip == 0.0;
        let start = {
            let record = Rc::clone(&record);
            move |handle: RawHandle, state: *mut State, overlapped: *mut OVERLAPPED| unsafe {
                let (buffer, length) = State::buffer(state);
                assert!(
                    !strict || !sim.owes_packet(handle, overlapped),
                    "an address was used again before its packet came"
                );
                record.number.set(Some(sim.started()));
                let outcome = match call {
                    Call::Read => sim.read_file(handle, buffer, length, overlapped),
                    Call::Write => sim.write_file(handle, buffer, length, overlapped),
                    Call::Control => sim.device_control(handle, buffer, length, overlapped),
                };
                if !took_place(outcome) {
                    record.number.set(None);
                }
                outcome
            }
        };
        let (mut waited, mut seen) = (false, false);
        let held = match form {
            Form::Wait => {
                let wait = unsafe { on.submit_at(target, 16, state, start) };
                (waited, seen) = (true, true);
                Held::Wait(wait, Arc::default())
            }
            Form::Task => {
                let wait = unsafe { on.submit_at(target, 16, state, start) };
                (waited, seen) = (true, true);
                let (record, sim) = (Rc::clone(&record), self.sim.clone());
                Held::Task(on.spawn(async move {
                    let (result, state) = wait.await;
                    judge(&sim, &record, &result, state);
                }))
            }
            Form::Start => {
                let Ok(overlapped) = Overlapped::on(&on, state) else { return };
                let mut overlapped = overlapped.at(16);
                seen = unsafe { overlapped.start(target, start) }.is_ok();
                Held::Overlapped(overlapped)
            }
            Form::ByHand | Form::ByHandUnregistered | Form::Exposed => {
                let Ok(overlapped) = Overlapped::on(&on, state) else { return };
                let overlapped = overlapped.at(16);
                let address = if form == Form::ByHandUnregistered {
                    overlapped.as_ptr_unregistered(target)
                } else {
                    overlapped.as_ptr(target)
                };
                match address {
                    Ok(address) if form != Form::Exposed => {
                        let raw = target.as_any_handle().raw();
                        let outcome = start(raw, overlapped.state_ptr(), address);
                        if !took_place(outcome) {
                            drop(unsafe { overlapped.into_state() });
                            return;
                        }
                    }
                    // The queue can't know that it is not in flight, so it leaks it in the end.
                    Ok(address) => keep(address.expose_provenance()),
                    Err(_) => {}
                }
                Held::Overlapped(overlapped)
            }
        };
        let never_started = form == Form::Exposed;
        let unregistered = form == Form::ByHandUnregistered;
        let handle = index;
        self.operations.push(Operation {
            record,
            handle,
            queue,
            waited,
            seen,
            never_started,
            unregistered,
            held,
        });
    }

    fn watch(&mut self, operation: usize, parked: bool) {
        let Some(index) = self.operation(operation) else { return };
        let operation = &mut self.operations[index];
        let Some(target) = self.handles.get(operation.handle) else { return };
        // Its handle may be another by now, on which the wait would never end: nobody ever told the
        // queue of the one that it was started on.
        if operation.unregistered && matches!(target, Slot::Closed(_)) {
            return;
        }
        let held = std::mem::replace(&mut operation.held, Held::Gone);
        let Held::Overlapped(overlapped) = held else {
            operation.held = held;
            return;
        };
        operation.held = if parked {
            match iocp::wait_with(index, target.any(), overlapped) {
                Ok(ticket) => Held::Parked(ticket),
                Err(refused) => {
                    let (continuation, overlapped) = refused.into_value();
                    assert!(matches!(continuation, Continuation::Key(key) if key == index));
                    Held::Overlapped(overlapped)
                }
            }
        } else {
            match iocp::wait(target.any(), overlapped) {
                Ok(wait) => Held::Wait(wait, Arc::default()),
                Err(refused) => Held::Overlapped(refused.into_value()),
            }
        };
        operation.waited |= !matches!(operation.held, Held::Overlapped(_));
    }

    fn look(&mut self, operation: usize) {
        let Some(index) = self.operation(operation) else { return };
        // What user code polled inside the queue is resumed before anybody asks whether it was.
        self.resume(self.shared.polled.take());
        let operation = &mut self.operations[index];
        if self.shared.closed[operation.queue].get() {
            // Documented to panic: the state can't be given back, ever.
            let number = operation.record.number.get();
            if operation.never_started || number.is_some_and(|number| self.sim.has(number)) {
                return;
            }
        }
        let record = Rc::clone(&operation.record);
        let held = std::mem::replace(&mut operation.held, Held::Gone);
        operation.held = match held {
            Held::Wait(mut wait, woken) => match poll_once(&mut wait, &woken) {
                Poll::Ready((result, state)) => {
                    judge(&self.sim, &record, &result, state);
                    Held::Gone
                }
                Poll::Pending => Held::Wait(wait, woken),
            },
            Held::Cancel(mut cancel, woken) => match poll_once(&mut cancel, &woken) {
                Poll::Ready(cancelled) => {
                    let completion = cancelled.into_completion();
                    judge(&self.sim, &record, &completion.result(), completion.state);
                    Held::Gone
                }
                Poll::Pending => Held::Cancel(cancel, woken),
            },
            Held::Limited(mut limited, woken) => match poll_once(&mut limited, &woken) {
                Poll::Ready(cancelled) => {
                    let completion = cancelled.into_completion();
                    judge(&self.sim, &record, &completion.result(), completion.state);
                    Held::Gone
                }
                Poll::Pending => Held::Limited(limited, woken),
            },
            Held::Parked(ticket) => {
                let over = ticket.is_over();
                match ticket.take() {
                    Ok((result, state)) => {
                        judge(&self.sim, &record, &result, state);
                        Held::Taken
                    }
                    Err(ticket) => {
                        assert!(!over, "an operation that is over has no outcome");
                        Held::Parked(ticket)
                    }
                }
            }
            other => other,
        };
    }

    fn cancel(&mut self, operation: usize) {
        let Some(index) = self.operation(operation) else { return };
        let operation = &mut self.operations[index];
        let held = std::mem::replace(&mut operation.held, Held::Gone);
        operation.held = match held {
            Held::Wait(wait, woken) => Held::Cancel(wait.cancel(), woken),
            Held::Parked(ticket) => {
                ticket.cancel();
                Held::Parked(ticket)
            }
            other => other,
        };
    }

    fn poll(&mut self, queue: usize, timeout: Duration) {
        let Some(queue) = self.shared.queue(queue) else { return };
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(timeout)).unwrap();
        ready.extend(self.shared.polled.take());
        self.resume(ready);
    }

    fn resume(&self, ready: Vec<Continuation>) {
        for continuation in ready {
            if let Some(key) = continuation.resume() {
                let Operation { record, held, queue, .. } = &self.operations[key];
                record.resumed.set(record.resumed.get() + 1);
                assert_eq!(record.resumed.get(), 1, "operation {key} was handed out twice");
                if let Held::Parked(ticket) = held {
                    let over = ticket.is_over() || self.shared.closed[*queue].get();
                    assert!(over, "operation {key} was handed out before its end");
                }
            }
        }
    }

    /// Lets go of a queue that was closed.
    fn forget_queue(&self, index: usize) {
        let queue = self.shared.queues.borrow_mut()[index].take();
        drop(queue);
    }

    fn close_queue(&mut self, index: usize, within: Duration) {
        let Some(queue) = self.shared.queue(index) else { return };
        let left = match queue.close(within) {
            Ok(()) => 0,
            Err(undrained) => undrained.operations,
        };
        // What ends later was leaked all the same.
        if self.shared.closed[index].replace(true) {
            return;
        }
        let known = self.in_flight(index, |operation| operation.waited || operation.seen);
        let unused = self.operations.iter().filter(|it| it.queue == index && it.never_started);
        let all = self.in_flight(index, |_| true) + unused.count();
        assert!(
            known <= left && left <= all,
            "{left} undrained, but the kernel has {known} to {all}"
        );
    }

    /// Operations of a queue whose memory is the kernel's, as far as `count` says.
    fn in_flight(&self, queue: usize, count: impl Fn(&Operation) -> bool) -> usize {
        let of_queue = self.operations.iter().filter(|operation| operation.queue == queue);
        of_queue
            .filter(|operation| count(operation))
            .filter(|operation| {
                operation.record.number.get().is_some_and(|number| self.sim.has(number))
            })
            .count()
    }

    /// What holds after each step.
    fn look_at_rules(&self) {
        for index in [0, 1] {
            let Some(queue) = self.shared.queue(index) else { continue };
            let in_flight = self.in_flight(index, |operation| operation.waited);
            assert!(
                in_flight == 0 || queue.running(),
                "the kernel has {in_flight} operation(s) and the queue says it waits for none"
            );
            assert!(queue.pending().len() >= in_flight, "pending() misses something");
        }
    }

    /// Polls until nothing is waited for any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let was_running = self.is_running();
            for queue in [0, 1] {
                self.poll(queue, Duration::from_millis(100));
            }
            // Also after the poll: what it dropped may have spawned a task.
            if !was_running && !self.is_running() {
                break;
            }
        }
    }

    fn is_running(&self) -> bool {
        [0, 1].into_iter().filter_map(|index| self.shared.queue(index)).any(|it| it.running())
    }

    /// Runs the queues until nothing is running, where everything ends and no key would be lost.
    fn run(&self) {
        let ends = |operation: &Operation| {
            !operation.never_started
                && !matches!(operation.held, Held::Parked(_) | Held::Taken)
                // It would take tasks away that nobody resumes meanwhile.
                && operation.record.mischief.get() != Some(Deed::Poll)
        };
        let polled = !self.shared.polled.borrow().is_empty();
        if polled || self.rules.faults.never_ends > 0.0 || !self.operations.iter().all(ends) {
            return;
        }
        for index in [0, 1] {
            let Some(queue) = self.shared.queue(index) else { continue };
            // A wait that can't end is a deadlock, which the simulation finds.
            match queue.run() {
                Ok(()) => assert!(self.shared.closed[index].get() || !queue.running()),
                Err(error) => assert!(Closed::is(&error), "{error}"),
            }
        }
    }

    /// Lets everything end, and looks whether all was said that had to be said.
    fn finish(mut self) {
        // What nothing else would end.
        for handle in &self.handles {
            self.sim.hang_up(handle.any(), false);
            while self.rules.plan.is_some() && self.sim.complete(handle.any(), End::success()) {}
        }
        self.run();
        self.settle();
        // What ends only now may be heard of later, or never (of a closed queue).
        let ended: Vec<_> = self
            .operations
            .iter()
            .map(|operation| {
                let number = operation.record.number.get();
                number.map_or(!operation.never_started, |number| !self.sim.has(number))
            })
            .collect();
        self.settle();
        // Twice: a task that has used up its budget is told to come again.
        for index in (0..self.operations.len()).chain(0..self.operations.len()) {
            self.look(index);
        }
        self.settle();
        for (index, operation) in self.operations.iter().enumerate() {
            let has_ended = ended[index];
            let closed = self.shared.closed[operation.queue].get();
            match &operation.held {
                Held::Wait(..) | Held::Cancel(..) | Held::Limited(..) => {
                    assert!(!has_ended, "the wait for operation {index} never ends");
                }
                Held::Parked(_) => assert!(!has_ended, "operation {index} is never handed out"),
                Held::Task(task) => {
                    assert!(!has_ended || task.is_finished() || closed, "task {index} never ends");
                }
                Held::Taken => {
                    let resumed = operation.record.resumed.get();
                    assert!(
                        resumed == 1 || closed,
                        "operation {index} was handed out {resumed} times"
                    );
                }
                Held::Overlapped(_) | Held::Gone => {}
            }
        }
        for (queue, sleep) in &self.sleeps {
            let closed = self.shared.closed[*queue].get();
            assert!(closed || sleep.is_finished(), "a sleep never ends");
        }
        for index in [0, 1] {
            let Some(queue) = self.shared.queue(index) else { continue };
            let left = self.in_flight(index, |_| true);
            let unused = self.operations.iter().filter(|operation| operation.never_started);
            assert!(
                self.shared.closed[index].get()
                    || !queue.running()
                    || left > 0
                    || unused.count() > 0,
                "queue {index} waits for what has ended: {:?}",
                queue.pending()
            );
        }
        self.end()
    }

    fn end(mut self) {
        for index in [0, 1] {
            self.close_queue(index, Duration::from_secs(1));
            self.forget_queue(index);
        }
        self.handles.clear();
        // Tickets keep the memory of their queue.
        let records: Vec<_> =
            self.operations.iter().map(|operation| Rc::clone(&operation.record)).collect();
        self.operations.clear();
        // As do tasks its port, which tells a leak checker what was leaked.
        self.sleeps.clear();
        // The kernel still writes to what was leaked.
        self.sim.advance(Duration::from_secs(3_600));
        self.sim.check_memory();
        for record in records {
            assert!(record.dropped.get() <= 1);
        }
    }
}

fn took_place(outcome: Outcome) -> bool {
    [Outcome::PENDING, Outcome::FINISHED, Outcome::from_error(234), Outcome::from_error(10_040)]
        .contains(&outcome)
}

/// Polls a future. One that was not ready must have woken its task before it is.
fn poll_once<F: Future + Unpin>(future: &mut F, woken: &Arc<Woken>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(woken));
    let polled = Pin::new(future).poll(&mut Context::from_waker(&waker));
    if polled.is_pending() {
        woken.asked.store(1, Ordering::Relaxed);
    } else if woken.asked.load(Ordering::Relaxed) > 0 {
        assert!(woken.woken.load(Ordering::Relaxed) > 0, "an end that woke nobody");
    }
    polled
}

/// An outcome: it is what the kernel said, told once, and the state is the operation's own.
fn judge(sim: &Sim, record: &Rc<Record>, result: &io::Result<u32>, state: State) {
    assert!(Rc::ptr_eq(record, &state.record), "the state of another operation");
    assert!(!record.ended.replace(true), "an outcome was told twice");
    let Some(number) = record.number.get() else {
        assert!(result.is_err(), "an operation that was never started did well");
        return;
    };
    assert!(!sim.has(number), "an outcome was told while the kernel had the operation");
    let (status, bytes) = sim.ending(number).expect("an outcome before the end");
    match result {
        Ok(told) => assert!(status.is_success() && *told == bytes, "{told} is not {bytes}"),
        Err(error) => {
            let misuse = Misuse::of(error);
            assert!(
                matches!(misuse, Some(Misuse::PrematureClose { .. }))
                    || Closed::is(error) && status.is_cancelled()
                    || error.raw_os_error() == Some(status.to_win32() as i32),
                "{error:?} is not {status:?}"
            );
            assert!(!status.is_success(), "{error:?}, but {status:?}");
        }
    }
}

/// Forgets a value where a leak checker still sees it.
fn forget<V>(value: V) {
    keep(Box::into_raw(Box::new(value)).expose_provenance());
}

/// Tells a leak checker of memory that is leaked on purpose.
fn keep(address: usize) {
    static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(address);
}
