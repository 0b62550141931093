//! What `raw/iocp.c` does by hand, done through the queue: the same calls on the same data.

mod file;
mod nothing;
mod pingpong;
mod post;

use crate::allocations;

pub(crate) fn run(name: &str, count: u32) -> std::io::Result<()> {
    let queue = ioqueue::Queue::new()?;
    let (unit, measured) = match name {
        "tcp-pingpong-1" => ("round trips/s", pingpong::tcp(&queue, 1, false, count)?),
        "tcp-pingpong-64" => ("round trips/s", pingpong::tcp(&queue, 64, false, count)?),
        "pipe-pingpong-64" => ("round trips/s", pingpong::pipe(&queue, 64, false, count)?),
        "tcp-pingpong-1-posted" => ("round trips/s", pingpong::tcp(&queue, 1, true, count)?),
        "tcp-pingpong-64-posted" => ("round trips/s", pingpong::tcp(&queue, 64, true, count)?),
        "pipe-pingpong-64-posted" => ("round trips/s", pingpong::pipe(&queue, 64, true, count)?),
        // Only by hand: no raw loop does the same.
        "submit-nothing" => ("operations/s", nothing::nothing(&queue, count)?),
        "post-dequeue" => ("packets/s", post::post(&queue, count)?),
        "file-read-4k-1" => ("reads/s", file::reads(&queue, 1, count)?),
        "file-read-4k-32" => ("reads/s", file::reads(&queue, 32, count)?),
        other => panic!("there is no bench {other}"),
    };
    let Measured { seconds, allocations } = measured;
    let rate = f64::from(count) / seconds;
    println!(
        "{{\"bench\":\"{name}\",\"impl\":\"ioqueue\",\"count\":{count},\"seconds\":{seconds:.6},\
         \"rate\":{rate:.0},\"unit\":\"{unit}\",\"allocations\":{allocations}}}"
    );
    Ok(())
}

/// What one run took.
struct Measured {
    seconds: f64,
    allocations: u64,
}

/// Runs a tenth of `count` to warm up, then measures `count`.
fn measure(
    count: u32,
    mut run: impl FnMut(u32) -> std::io::Result<()>,
) -> std::io::Result<Measured> {
    run(count / 10)?;
    let before = allocations::count();
    let start = std::time::Instant::now();
    run(count)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Measured { seconds, allocations: allocations::count() - before })
}
