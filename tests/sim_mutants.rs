#![cfg(feature = "sim")]
//! What `cargo xtask mutants` broke and no other test on the simulated Windows noticed.

#[path = "sim/support.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use ioqueue::iocp::{OVERLAPPED, Outcome, Parked};
use ioqueue::sim::{End, OnCancel, Plan, Sim, SimHandle};
use ioqueue::{
    Continuation, Misuse, Overlapped, Persist, Queue, RawHandle, Registered, Sleep, wait_with,
};
use support::{MILLISECOND, Marker, SECOND, control, poll, quiet};

/// As `control`, and tells the address of the OVERLAPPED.
fn control_at(
    sim: &Sim,
    address: &Rc<Cell<usize>>,
) -> impl Fn(RawHandle, *mut Vec<u8>, *mut OVERLAPPED) -> Outcome + use<> {
    let (found, call) = (Rc::clone(address), control(sim));
    move |handle, buffer, overlapped| {
        found.set(overlapped.addr());
        call(handle, buffer, overlapped)
    }
}

// W7, pitfall 46: an address inside of an operation's memory is not the operation's, also when that has
// ended and its packet is still to come.
#[test]
fn a_packet_for_an_address_inside_of_an_ended_operation_is_foreign() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().packet_after(SECOND));
    let address = Rc::new(Cell::new(0));
    let mut asked = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { asked.start(&device, control_at(&sim, &address)) }.unwrap();
    let parked = wait_with(7_usize, &device, asked).ok().unwrap();
    sim.complete(&device, End::success());
    for offset in [8, 16, 64, 256] {
        for key in [0, 1, 99] {
            sim.post(&queue, key, address.get() + offset, 8);
        }
    }
    assert_eq!(poll(&queue), 0);
    assert_eq!(queue.foreign_packets(), 12);
    assert!(!parked.is_over());
    sim.advance(SECOND);
    assert_eq!(poll(&queue), 1);
    assert_eq!(parked.take().unwrap().0.unwrap(), 8);
    drop((device, queue));
    sim.check();
}

/// At how many addresses 100 operations take place that end at once, one after the other, while what
/// packets they leave come soon.
fn addresses_of_100(sim: &Sim, queue: &Queue, device: SimHandle, options: Persist) -> usize {
    let device = queue.register_with(device, options).unwrap();
    let mut addresses = BTreeSet::new();
    for _ in 0..100 {
        sim.plan(&device, Plan::at_once().packet_after(MILLISECOND));
        let address = Rc::new(Cell::new(0));
        // SAFETY: one call, with what was given, and what it returned.
        let asked = unsafe { device.submit(vec![0; 8], control_at(sim, &address)) };
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        addresses.insert(address.get());
        sim.advance(MILLISECOND);
        poll(queue);
    }
    addresses.len()
}

// W2, pitfall 55: an address that owes a packet is used again once that has come.
#[test]
fn an_address_is_used_again_once_its_packet_has_come() {
    let (sim, queue) = quiet();
    assert_eq!(addresses_of_100(&sim, &queue, sim.device(), Persist::keep_packets()), 1);
    drop(queue);
    sim.check();
}

// W6, pitfall 54: skip is on for ever, also for who asks for packets: none is waited for.
#[test]
fn no_address_waits_for_a_packet_that_somebody_else_has_turned_off() {
    let (sim, queue) = quiet();
    let device = sim.device();
    sim.skip_elsewhere(&device);
    assert_eq!(addresses_of_100(&sim, &queue, device, Persist::keep_packets()), 1);
    drop(queue);
    sim.check();
}

// Pitfalls 29 and 55: an operation whose packet came under another registration's key, that of the handle
// which this one's is a duplicate of, waits for no other.
#[test]
fn an_address_is_used_again_also_when_its_packet_came_under_its_originals_key() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut closed = sim.device();
    queue.persist(&closed).unwrap();
    closed.close();
    let duplicate = device.get().duplicate();
    assert_eq!(duplicate.id(), closed.id());
    let mut addresses = BTreeSet::new();
    for _ in 0..100 {
        sim.plan(&duplicate, Plan::pends());
        let address = Rc::new(Cell::new(0));
        let call = control_at(&sim, &address);
        // SAFETY: one call, with what was given, and what it returned.
        let asked = unsafe { queue.submit_at(&duplicate, 0, vec![0; 8], call) };
        sim.complete(&device, End::success());
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        addresses.insert(address.get());
    }
    assert_eq!(addresses.len(), 1);
    drop((duplicate, device, queue));
    sim.check();
}

// W4, rule 0: `ReadDirectoryChangesW` answers with success to what is merely in flight. Its status word is
// believed, and the memory is the kernel's until the end.
#[test]
fn what_a_call_calls_done_is_in_flight_while_its_status_word_says_so() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends());
    let call = control(&sim);
    // SAFETY: one call, with what was given; what it returned is told as such calls do.
    let asked = unsafe {
        device.submit(vec![0; 8], |handle, buffer, overlapped| {
            assert_eq!(call(handle, buffer, overlapped), Outcome::PENDING);
            Outcome::FINISHED
        })
    };
    let mut asked = pin!(asked);
    assert!(asked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(queue.running());
    sim.complete(&device, End::data("later"));
    let (count, buffer) = queue.block_on(asked).unwrap();
    assert_eq!(&buffer[..count.unwrap() as usize], b"later");
    drop((device, queue));
    sim.check();
}

// W3, Q13: whoever drops a ticket wants its continuation no more, however long the kernel keeps the
// operation. The next one at that address does not find it either.
#[test]
fn a_continuation_goes_with_its_ticket() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(SECOND)));
    let mut asked = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { asked.start(&device, control(&sim)) }.unwrap();
    let marker = Marker::new();
    let copy = marker.clone();
    let resume = Continuation::call(move || unreachable!("{} copies", copy.copies()));
    let parked = wait_with(resume, &device, asked).ok().unwrap();
    assert_eq!(marker.copies(), 1);
    drop(parked);
    assert_eq!((marker.copies(), sim.in_flight(&device)), (0, 1));
    queue.run().unwrap();
    drop((device, queue));
    sim.check();
}

// W7, pitfall 21: a hook may poll the queue, which then finds more foreign packets.
#[test]
fn a_hook_that_polls_is_told_of_what_that_brings() {
    let (sim, queue) = quiet();
    let told = Rc::new(RefCell::new(Vec::new()));
    let (log, of_hook, of_sim) = (Rc::clone(&told), queue.clone(), sim.clone());
    queue.on_foreign_packet(move |packet| {
        log.borrow_mut().push(packet.key);
        if packet.key == 1 {
            of_sim.post(&of_hook, 3, 0, 0);
            poll(&of_hook);
        }
    });
    sim.post(&queue, 1, 0, 0);
    sim.post(&queue, 2, 0, 0);
    poll(&queue);
    assert_eq!(*told.borrow(), [1, 2, 3]);
    // Its closure holds the queue.
    queue.on_foreign_packet(|_| ());
    drop(queue);
    sim.check();
}

thread_local! {
    /// What goes with a [`Meddler`].
    static KEPT: RefCell<Vec<Sleep>> = const { RefCell::new(Vec::new()) };
}

/// A waker whose drop drops timers.
struct Meddler;

impl Wake for Meddler {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Meddler {
    fn drop(&mut self) {
        drop(KEPT.take());
    }
}

// Q12, pitfalls 21 and 48: what a timer would have woken is dropped with nothing borrowed.
#[test]
fn a_dropped_timers_waker_may_drop_other_timers() {
    let (sim, queue) = quiet();
    KEPT.with_borrow_mut(|kept| kept.extend((0..3).map(|_| queue.sleep(SECOND))));
    {
        let mut sleep = pin!(queue.sleep(SECOND));
        let waker = Waker::from(Arc::new(Meddler));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        assert!(!KEPT.with_borrow(Vec::is_empty));
    }
    assert!(KEPT.with_borrow(Vec::is_empty));
    assert!(!queue.running());
    drop(queue);
    sim.check();
}

// Q9, pitfall 34: the value of a handle that was closed under its operations comes back and is persisted:
// they were closed all the same, though the value now means a handle that is registered. On the queue that
// had it, or on another.
#[test]
fn persisting_a_value_that_came_back_tells_those_who_wait_for_its_old_owner() {
    for elsewhere in [false, true] {
        let (sim, queue) = quiet();
        let other = sim.queue().unwrap();
        let mut old = sim.device();
        queue.persist(&old).unwrap();
        sim.plan(&old, Plan::pends());
        let waiting = sim.control(&queue, &old, vec![0; 8]);
        old.close();
        let newer = sim.device();
        assert_eq!(newer.id(), old.id());
        if elsewhere { &other } else { &queue }.persist(&newer).unwrap();
        let error = queue.block_on(waiting).unwrap().0.unwrap_err();
        match Misuse::of(&error) {
            Some(Misuse::PrematureClose { handle, .. }) => assert_eq!(handle, old.id()),
            _ => panic!("{elsewhere}: {error:?}"),
        }
        assert!(!queue.running());
        drop((newer, queue, other));
        sim.check();
    }
}

// Q8: everything in flight is cancelled, also what nobody waits for yet, and what nobody waits for any
// more because its first cancel came to nothing.
#[test]
fn unregistering_cancels_what_nobody_waits_for() {
    let (sim, queue) = quiet();
    let device = sim.device();
    queue.persist(&device).unwrap();
    sim.plan(&device, Plan::pends());
    let mut started = Overlapped::on(&queue, vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { started.start(&device, control(&sim)) }.unwrap();
    queue.unregister(&device).unwrap();
    assert_eq!(sim.in_flight(&device), 0);
    drop((started, device, queue));
    sim.check();
}

/// Starts an operation that fails, and says where it would have taken place.
fn place_of(asked: &mut Overlapped<Vec<u8>>, device: &SimHandle) -> u64 {
    let place = Cell::new(None);
    let call = |_, _, overlapped: *mut OVERLAPPED| {
        // SAFETY: the kernel does not have it.
        let found = unsafe { (*overlapped).Anonymous.Anonymous };
        place.set(Some(u64::from(found.OffsetHigh) << 32 | u64::from(found.Offset)));
        Outcome::from_error(1450)
    };
    // SAFETY: no call is made, and the outcome says so.
    let refused = unsafe { asked.start(device, call) };
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(1450));
    place.get().expect("the closure was called")
}

// W1, pitfalls 22 and 41: each of the 64 bits says where in a file an operation takes place; also when it
// is started again.
#[test]
fn an_operation_takes_place_where_it_was_told_to_also_when_it_is_started_again() {
    let (sim, queue) = quiet();
    let device = sim.device();
    queue.persist(&device).unwrap();
    let all_but_one = (0..64).map(|bit| !(1 << bit));
    for offset in (0..64).map(|bit| 1 << bit).chain(all_but_one).chain([0, u64::MAX]) {
        let mut asked = Overlapped::on(&queue, vec![0; 8]).unwrap().at(offset);
        for _ in 0..2 {
            assert_eq!(place_of(&mut asked, &device), offset);
        }
    }
    drop((device, queue));
    sim.check();
}

/// Parks a closure until an operation ends, which says when it is called.
fn park(sim: &Sim, device: &Registered<SimHandle>, log: &Rc<RefCell<Vec<u32>>>, is: u32) {
    let mut asked = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { asked.start(device, control(sim)) }.unwrap();
    let (log, over) = (Rc::clone(log), Rc::new(Cell::new(None)));
    let ticket = Rc::clone(&over);
    let resume = Continuation::call(move || {
        log.borrow_mut().push(is);
        let parked: Parked<_> = ticket.take().expect("it is called once");
        assert_eq!(parked.take().unwrap().0.unwrap(), 8);
    });
    over.set(Some(wait_with(resume, device, asked).ok().unwrap()));
}

// Q4, W5, pitfall 40, scenario 60
#[test]
fn run_resumes_first_what_became_ready_first() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let log = Rc::new(RefCell::new(Vec::new()));
    for number in 0..8 {
        sim.plan(&device, Plan::pends());
        park(&sim, &device, &log, number);
    }
    while sim.complete(&device, End::success()) {}
    queue.run().unwrap();
    assert_eq!(*log.borrow(), (0..8).collect::<Vec<_>>());
    // Tasks wait in the same line.
    log.borrow_mut().clear();
    for number in 0..8 {
        let log = Rc::clone(&log);
        queue.spawn(async move { log.borrow_mut().push(number) }).detach();
    }
    queue.run().unwrap();
    assert_eq!(*log.borrow(), (0..8).collect::<Vec<_>>());
    drop((device, queue));
    sim.check();
}

// Q4, pitfalls 12 and 40: more than `run` resumes between two looks at the port.
#[test]
fn of_many_that_are_ready_at_once_none_is_forgotten() {
    const MANY: u32 = 5000;
    let (sim, queue) = quiet();
    let log = Rc::new(RefCell::new(Vec::new()));
    for number in 0..MANY {
        let log = Rc::clone(&log);
        queue.spawn(async move { log.borrow_mut().push(number) }).detach();
    }
    queue.run().unwrap();
    assert_eq!(*log.borrow(), (0..MANY).collect::<Vec<_>>());
    drop(queue);
    sim.check();
}

// The same of what had ended when it was parked.
#[test]
fn of_many_that_had_ended_when_they_were_parked_none_is_forgotten() {
    const MANY: u32 = 600;
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let log = Rc::new(RefCell::new(Vec::new()));
    for number in 0..MANY {
        sim.plan(&device, Plan::at_once());
        park(&sim, &device, &log, number);
    }
    queue.run().unwrap();
    assert_eq!(*log.borrow(), (0..MANY).collect::<Vec<_>>());
    drop((device, queue));
    sim.check();
}

/// Does one operation after the other on a handle that is always ready, and has another one's operation
/// end meanwhile, until that one has noticed. Says how many it did after that.
async fn always_ready(sim: Sim, busy: Registered<SimHandle>, quiet: Rc<Quiet>) -> u32 {
    for done in 0..10_000_u32 {
        if quiet.has_noticed.get() {
            return done - 100;
        }
        if done == 100 {
            sim.complete(&quiet.device, End::success());
        }
        sim.plan(&busy, Plan::at_once());
        // SAFETY: one call, with what was given, and what it returned.
        let asked = unsafe { busy.submit(vec![0; 8], control(&sim)) };
        assert_eq!(asked.await.0.unwrap(), 8);
    }
    panic!("the other one starves");
}

/// A task with an operation that ends when it is told to.
struct Quiet {
    device: Registered<SimHandle>,
    has_noticed: Cell<bool>,
}

impl Quiet {
    fn spawn(sim: &Sim, queue: &Queue) -> Rc<Quiet> {
        let device = queue.register(sim.device()).unwrap();
        let quiet = Rc::new(Quiet { device, has_noticed: Cell::new(false) });
        sim.plan(&quiet.device, Plan::pends());
        let asked = sim.control(queue, &quiet.device, vec![0; 8]);
        let of_task = Rc::clone(&quiet);
        let wait = async move {
            assert_eq!(asked.await.0.unwrap(), 8);
            of_task.has_noticed.set(true);
        };
        queue.spawn(wait).detach();
        quiet
    }
}

// W6, pitfall 12, scenario 58: a handle that is always ready lets the others have their turn, whether a
// task uses it or what `block_on` waits for.
#[test]
fn an_always_ready_handle_does_not_starve_a_quiet_one() {
    for in_a_task in [false, true] {
        let (sim, queue) = quiet();
        let quiet = Quiet::spawn(&sim, &queue);
        let busy = queue.register(sim.device()).unwrap();
        let busy = always_ready(sim.clone(), busy, quiet);
        let done = if in_a_task { queue.block_on(queue.spawn(busy)) } else { queue.block_on(busy) }
            .unwrap();
        assert!(done < 1000, "{in_a_task}: {done}");
        drop(queue);
        sim.check();
    }
}
