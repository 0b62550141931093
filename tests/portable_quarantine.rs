#![cfg(target_os = "linux")]
//! What the kernel still has when a queue goes is not freed: closing a ring does not wait for what it writes
//! to, nor does anybody wait for a thread that reads a file. (Pitfalls 43 and 44, scenarios 40 and 41.)

#[macro_use]
mod each_kernel;
mod quarantine;

use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use each_kernel::{TempFile, noise, skip};
use ioqueue::{IoBuf, Queue};
use quarantine::{ALLOCATOR, ALONE};

const PART: usize = 256 << 10;
const PARTS: usize = 16;
const ROUNDS: usize = 10;

/// Where calls past the cache want their bytes.
const BLOCK: usize = 4096;

fn aligned(length: usize) -> ioqueue::Slice<Vec<u8>> {
    let room = vec![0; length + BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    room.slice(start..start + length)
}

/// What a queue's end is like.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It waits for what it can get back.
    Dropped,
    /// It waits for nothing, and its operations go before it or after it.
    Closed { operations_first: bool },
}

const ENDS: [End; 3] =
    [End::Dropped, End::Closed { operations_first: true }, End::Closed { operations_first: false }];

/// Ends a queue with these operations. How many it left to the kernel.
fn end(queue: Queue, how: End, operations: impl Sized) -> usize {
    let close = |queue: &Queue| queue.close(Duration::ZERO).map_or_else(|it| it.operations, |()| 0);
    match how {
        End::Dropped => {
            drop(queue);
            0
        }
        End::Closed { operations_first: true } => {
            drop(operations);
            close(&queue)
        }
        End::Closed { operations_first: false } => {
            let left = close(&queue);
            drop(queue);
            drop(operations);
            left
        }
    }
}

fn another(queue: &Queue) -> Queue {
    Queue::builder().kernel(queue.kernel_kind()).build().unwrap()
}

/// Fails if anything was written to after it was freed; also by what the kernel finishes now.
#[track_caller]
fn nothing_was_written() {
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ALLOCATOR.flush(), 0, "memory was written to after its free");
}

on_each_kernel! {
    not_simulated("sim_quarantine.rs does the same there"):

    fn reads_past_the_cache_may_be_in_flight_when_their_queue_ends(queue) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = TempFile::new(&noise(PART * PARTS));
        let mut left = 0;
        for how in ENDS {
            for round in 0..ROUNDS {
                let file = match temporary.open_uncached() {
                    Ok(file) => file,
                    Err(error) => return skip(&format!("no calls past the cache here: {error}")),
                };
                let other = another(queue);
                let file = other.register(file).unwrap();
                let reads: Vec<_> = (0..PARTS)
                    .map(|part| file.read_at(aligned(PART), (part * PART) as u64))
                    .collect();
                if round % 2 == 0 {
                    // Seen by the kernel, and not waited for.
                    each_kernel::turn(&other);
                }
                left += end(other, how, (reads, file));
            }
        }
        if left == 0 {
            skip("the disk was faster than the end of any queue");
        }
        nothing_was_written();
    }
}

/// The thread's own queue, which waits for nothing at all.
#[test]
fn reads_past_the_cache_may_be_in_flight_when_their_thread_ends() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = TempFile::new(&noise(PART * PARTS));
    for _ in 0..ROUNDS {
        let file = match temporary.open_uncached() {
            Ok(file) => file,
            Err(error) => return skip(&format!("no calls past the cache here: {error}")),
        };
        thread::spawn(move || {
            let queue = Queue::current().unwrap();
            let file = queue.register(file).unwrap();
            let reads: Vec<_> =
                (0..PARTS).map(|part| file.read_at(aligned(PART), (part * PART) as u64)).collect();
            each_kernel::turn(&queue);
            drop(reads);
        })
        .join()
        .unwrap();
    }
    nothing_was_written();
}
