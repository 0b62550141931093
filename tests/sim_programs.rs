#![cfg(feature = "sim")]
//! Programs as users write them, each with a mistake that one order of events shows: exploring finds
//! each, its seed finds it again, and the mended program passes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use ioqueue::iocp::Cancelled;
use ioqueue::sim::{self, Failure, Faults, Sim, SimHandle};
use ioqueue::{Queue, Registered};

const TEXT: &str = "all of the text in it";

/// That a program fails with some seed, always with the same message; and another with none.
#[track_caller]
fn found(wrong: fn(&Sim, &Queue), right: fn(&Sim, &Queue)) -> Failure {
    let test = |program: fn(&Sim, &Queue)| {
        move |seed| {
            let sim = Sim::with_faults(seed, Faults::orders());
            let queue = sim.queue().unwrap();
            program(&sim, &queue);
            queue.close(Duration::ZERO).unwrap();
            sim.check();
        }
    };
    let failure = sim::find_failure(0..200, test(wrong)).expect("the mistake shows");
    for _ in 0..2 {
        assert_eq!(sim::find_failure([failure.seed], test(wrong)).as_ref(), Some(&failure));
    }
    sim::explore(0..200, test(right));
    failure
}

// -- the order of ends --------------------------------------------------------------------------

/// Reads a file in parts, all at once. `in_order`: puts them together as they were asked for.
fn load(sim: &Sim, queue: &Queue, in_order: bool) {
    let file = queue.register(sim.file(TEXT)).unwrap();
    let text = Rc::new(RefCell::new(Vec::new()));
    let mut parts = VecDeque::new();
    for start in (0..TEXT.len() as u64).step_by(4) {
        let reading = sim.read(queue, &file, start, vec![0; 4]);
        let text = Rc::clone(&text);
        parts.push_back(queue.spawn(async move {
            let (count, mut part) = reading.await;
            part.truncate(count.unwrap() as usize);
            if !in_order {
                text.borrow_mut().extend(&part);
            }
            part
        }));
    }
    queue
        .block_on(async {
            for part in parts {
                let part = part.await;
                if in_order {
                    text.borrow_mut().extend(part);
                }
            }
        })
        .unwrap();
    assert_eq!(String::from_utf8(text.take()).unwrap(), TEXT);
}

#[test]
fn what_takes_reads_to_end_in_their_order_is_found() {
    let failure = found(|sim, queue| load(sim, queue, false), |sim, queue| load(sim, queue, true));
    assert!(failure.message.contains("left == right"), "{}", failure.message);
}

// -- a cancel that comes too late ------------------------------------------------------------------

async fn write_all(sim: &Sim, queue: &Queue, pipe: &Registered<SimHandle>, text: &str) {
    let mut rest = text.as_bytes().to_vec();
    while !rest.is_empty() {
        let (written, bytes) = sim.write(queue, pipe, 0, rest).await;
        rest = bytes[written.unwrap() as usize..].to_vec();
    }
}

/// Reads everything, and asks again whenever nothing has come for a while. `careful`: awaits how the
/// read that took too long ended.
fn receive(sim: &Sim, queue: &Queue, careful: bool) {
    const WHILE: Duration = Duration::from_millis(10);
    let (ours, theirs) = sim.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    let (sender, clock) = (sim.clone(), queue.clone());
    let sending = queue.spawn(async move {
        for word in TEXT.split_inclusive(' ') {
            clock.sleep(WHILE + Duration::from_millis(1)).await.unwrap();
            write_all(&sender, &clock, &theirs, word).await;
        }
        // Open until the end.
        theirs
    });
    let mut text = Vec::new();
    queue
        .block_on(async {
            while text.len() < TEXT.len() {
                let reading = sim.read(queue, &ours, 0, vec![0; 16]);
                let (count, bytes) = if careful {
                    match reading.timeout(WHILE).await {
                        Cancelled::Cancelled(_) => continue,
                        Cancelled::Finished(end) => (end.result(), end.state),
                    }
                } else {
                    match queue.timeout(WHILE, reading).await {
                        Ok(end) => end,
                        Err(_) => continue,
                    }
                };
                text.extend(&bytes[..count.unwrap() as usize]);
            }
            drop(sending.await);
        })
        .unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), TEXT);
}

// The data went to a read that nobody waits for any more, so the program waits for ever.
#[test]
fn what_takes_a_dropped_read_to_have_read_nothing_is_found() {
    let failure =
        found(|sim, queue| receive(sim, queue, false), |sim, queue| receive(sim, queue, true));
    // Told between two reads or in the midst of one.
    let goes_on = "for long nothing has ended but by a cancel";
    assert!(failure.message.contains(goes_on), "{}", failure.message);
}

// -- a write that was short --------------------------------------------------------------------------

/// Writes line by line. `whole`: looks at how much of each was written.
fn send(sim: &Sim, queue: &Queue, whole: bool) {
    let (ours, theirs) = sim.socket();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    queue
        .block_on(async {
            for word in TEXT.split_inclusive(' ') {
                if whole {
                    write_all(sim, queue, &ours, word).await;
                } else {
                    sim.write(queue, &ours, 0, word.into()).await.0.unwrap();
                }
            }
            drop(ours);
            let mut text = Vec::new();
            loop {
                let (count, bytes) = sim.read(queue, &theirs, 0, vec![0; 16]).await;
                match count.unwrap() {
                    0 => break,
                    count => text.extend(&bytes[..count as usize]),
                }
            }
            assert_eq!(String::from_utf8(text).unwrap(), TEXT);
        })
        .unwrap();
}

#[test]
fn what_takes_writes_to_be_whole_is_found() {
    let failure = found(|sim, queue| send(sim, queue, false), |sim, queue| send(sim, queue, true));
    assert!(failure.message.contains("left == right"), "{}", failure.message);
}
