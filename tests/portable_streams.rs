//! Streams of every kind: what goes in at one end comes out at the other, and how they end.

#[macro_use]
mod each_kernel;

use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
use std::io::{Read, Write};
use std::task::Poll;
use std::thread;

use each_kernel::{
    HalfWay, Stream, Way, finish_by_turns, is_simulated, is_windows, kind_of, look_around, noise,
    poll_once, read_full, rounds, two_ways, ways, ways_in, ways_out, write_full,
};
use ioqueue::{IoBuf, Registered};

/// Writes `round * step` bytes of `pattern`, over and over.
async fn pour(stream: Registered<Stream>, pattern: Vec<u8>, rounds: usize) -> Registered<Stream> {
    let mut pattern = pattern;
    for _ in 0..rounds {
        pattern = write_full(&stream, pattern).await;
    }
    stream
}

/// Reads what [`pour`] writes, in parts as they come, and says how much it was.
async fn drink(stream: Registered<Stream>, pattern: Vec<u8>, room: usize) -> usize {
    let (mut total, mut buffer) = (0, Vec::with_capacity(room));
    loop {
        let (count, part) = stream.read(buffer).await;
        buffer = part;
        let count = count.unwrap();
        if count == 0 {
            return total;
        }
        assert_eq!(buffer.len(), count);
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let from = total % pattern.len();
            let length = rest.len().min(pattern.len() - from);
            assert!(rest[..length] == pattern[from..from + length], "wrong bytes at {total}");
            total += length;
            rest = &rest[length..];
        }
    }
}

on_each_kernel! {
    #[cfg(unix)]
    /// U3: a stream has no places, also where something waits for what comes next (the ring would read that).
    not_simulated("Windows takes no notice of a place in a stream")
    fn a_place_in_a_stream_is_refused_and_takes_nothing(queue) {
        for Way { name, from, to } in ways(queue) {
            let reading = to.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            let limit = std::time::Duration::from_secs(5);
            let placed = queue.timeout(limit, to.read_at(vec![0; 8], 5));
            let refused = queue.block_on(placed).unwrap().expect(name).0;
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ESPIPE), "{name}");
            queue.block_on(write_full(&from, "stream")).unwrap();
            let (count, buffer) = queue.block_on(reading).unwrap();
            assert_eq!((count.unwrap(), &buffer[..]), (6, &b"stream"[..]), "{name}");
        }
    }

    /// Scenario 1: whether the read waits already, or comes after the end.
    fn a_read_after_the_peer_closed_is_the_end(queue) {
        for is_early in [true, false] {
            for Way { name, from, to } in ways(queue) {
                let early = is_early.then(|| to.read(vec![7; 8]));
                queue.block_on(look_around()).unwrap();
                drop(from);
                let (count, buffer) = queue.block_on(early.unwrap_or_else(|| to.read(vec![7; 8]))).unwrap();
                assert_eq!((count.unwrap(), buffer.len()), (0, 0), "{name}");
                // And it stays the end.
                assert_eq!(queue.block_on(to.read(vec![7; 8])).unwrap().0.unwrap(), 0, "{name}");
            }
        }
    }

    /// Scenario 1: what was written before the end comes before it, also when both came before the read.
    fn the_last_bytes_come_before_the_end(queue) {
        for Way { name, from, to } in ways(queue) {
            // The first read has the handle watched from here on.
            let first = to.read(vec![0; 64]);
            queue.block_on(write_full(&from, "first")).unwrap();
            assert_eq!(queue.block_on(first).unwrap().1, b"first", "{name}");
            queue.block_on(write_full(&from, "last")).unwrap();
            drop(from);
            queue.block_on(look_around()).unwrap();
            let (count, buffer) = queue.block_on(to.read(vec![0; 64])).unwrap();
            assert_eq!((count.unwrap(), &buffer[..]), (4, &b"last"[..]), "{name}");
            assert_eq!(queue.block_on(to.read(vec![0; 64])).unwrap().0.unwrap(), 0, "{name}");
        }
    }

    /// As the last, for a host that never waits in the queue: nothing may depend on that. What has come with the
    /// last bytes is there at once.
    fn a_host_that_never_waits_sees_the_end_after_the_last_bytes(queue) {
        for Way { name, from, to } in ways(queue) {
            let first = to.read(vec![0; 64]);
            queue.block_on(write_full(&from, "first")).unwrap();
            queue.block_on(first).unwrap().0.unwrap();
            queue.block_on(write_full(&from, "last")).unwrap();
            drop(from);
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.block_on(to.read(vec![0; 64])).unwrap().0.unwrap(), 4, "{name}");
            let mut end = to.read(vec![0; 64]);
            let (count, _) = match poll_once(&mut end) {
                Poll::Ready(ended) => ended,
                Poll::Pending => {
                    // A pipe's reads may all go through the ring.
                    let is_told = name != "pipe" && !is_windows(queue);
                    assert!(!is_told, "{name}: the end was told of, and is waited for");
                    finish_by_turns(queue, end)
                }
            };
            assert_eq!(count.unwrap(), 0, "{name}");
        }
    }

    /// Scenario 2: an error, sooner or later (what TCP learns takes a moment), and no signal.
    fn a_write_after_the_peer_closed_is_an_error(queue) {
        for Way { name, from, to } in ways(queue) {
            drop(to);
            let error = queue.block_on(async {
                loop {
                    let (count, bytes) = from.write("data").await;
                    assert_eq!(bytes, "data");
                    if let Err(error) = count {
                        return error;
                    }
                    look_around().await;
                }
            });
            let kind = kind_of(queue, &error.unwrap());
            let is_right = matches!(kind, BrokenPipe | ConnectionReset | ConnectionAborted);
            assert!(is_right, "{name}: {kind:?}");
        }
    }

    /// Scenario 2: a write that waits for room learns of it too.
    fn a_write_that_waits_learns_that_the_peer_closed(queue) {
        for Way { name, from, to } in ways(queue) {
            let error = queue.block_on(async {
                let waiting = loop {
                    let mut writing = from.write(vec![1; 1 << 20]);
                    look_around().await;
                    match poll_once(&mut writing) {
                        Poll::Ready((count, _)) => assert!(count.unwrap() > 0),
                        Poll::Pending => break writing,
                    }
                };
                drop(to);
                waiting.await.0.unwrap_err()
            }).unwrap();
            let kind = kind_of(queue, &error);
            let is_right = matches!(kind, BrokenPipe | ConnectionReset | ConnectionAborted);
            assert!(is_right, "{name}: {kind:?}");
        }
    }

    /// Scenario 3: 160 MiB to and fro at once, the readers first.
    fn readers_that_suspend_first_get_all_of_a_big_duplex_stream(queue) {
        const PATTERN: usize = 1_000_003;
        let rounds = rounds(queue, 84); // 80 MiB and some.
        let pattern = noise(PATTERN);
        for Way { name, from, to } in two_ways(queue) {
            let (from, to) = (std::rc::Rc::new(from), std::rc::Rc::new(to));
            let total = queue.block_on(async {
                let reads: Vec<_> = [from.clone(), to.clone()].into_iter().map(|stream| {
                    let pattern = pattern.clone();
                    queue.spawn(async move {
                        let (mut total, mut buffer) = (0, Vec::with_capacity(256 << 10));
                        while total < PATTERN * rounds {
                            let (count, part) = stream.read(buffer).await;
                            buffer = part;
                            let mut rest = &buffer[..count.unwrap()];
                            assert!(!rest.is_empty(), "an early end");
                            while !rest.is_empty() {
                                let at = total % PATTERN;
                                let length = rest.len().min(PATTERN - at);
                                assert!(rest[..length] == pattern[at..at + length], "at {total}");
                                (total, rest) = (total + length, &rest[length..]);
                            }
                        }
                        total
                    })
                }).collect();
                look_around().await;
                let writes: Vec<_> = [from, to].into_iter().map(|stream| {
                    let mut pattern = pattern.clone();
                    queue.spawn(async move {
                        for _ in 0..rounds {
                            pattern = write_full(&*stream, pattern).await;
                        }
                    })
                }).collect();
                for write in writes {
                    write.await;
                }
                let mut total = 0;
                for read in reads {
                    total += read.await;
                }
                total
            }).unwrap();
            assert_eq!(total, 2 * PATTERN * rounds, "{name}");
        }
    }

    /// Scenario 3, for what goes one way: a slow reader, and a writer that has to wait.
    fn all_that_is_written_comes_out_whatever_the_sizes(queue) {
        let pattern = noise(100_003);
        let rounds = rounds(queue, 20);
        for room in [1_000, 4096, 1 << 20] {
            for Way { name, from, to } in ways(queue) {
                let reading = queue.spawn(drink(to, pattern.clone(), room));
                let total = queue.block_on(async {
                    drop(pour(from, pattern.clone(), rounds).await);
                    reading.await
                });
                assert_eq!(total.unwrap(), rounds * pattern.len(), "{name}");
            }
        }
    }

    /// Scenario 4: a write of nothing sends nothing, and a read of nothing takes nothing.
    fn reads_and_writes_of_nothing_end_and_move_nothing(queue) {
        for Way { name, from, to } in ways(queue) {
            assert_eq!(queue.block_on(from.write("")).unwrap().0.unwrap(), 0, "{name}");
            assert_eq!(queue.block_on(from.write(Vec::new())).unwrap().0.unwrap(), 0, "{name}");
            queue.block_on(write_full(&from, "data")).unwrap();
            assert_eq!(queue.block_on(to.read(Vec::new())).unwrap().0.unwrap(), 0, "{name}");
            assert_eq!(queue.block_on(to.read([0; 0])).unwrap().0.unwrap(), 0, "{name}");
            assert_eq!(queue.block_on(read_full(&to, 4)).unwrap(), b"data", "{name}");
        }
    }

    /// Scenario 5: what is read by the queue is written by a thread that blocks.
    fn a_stream_comes_from_a_blocking_end(queue) {
        for HalfWay { name, ours, mut theirs } in ways_in(queue) {
            let thread = thread::spawn(move || {
                let pattern = noise(50_021);
                for part in pattern.chunks(777) {
                    theirs.write_all(part).unwrap();
                }
            });
            let all = queue.block_on(read_full(&ours, 1 << 20)).unwrap();
            assert!(all == noise(50_021), "{name}: {} bytes", all.len());
            thread.join().unwrap();
        }
    }

    /// Scenario 5, the other way round.
    fn a_stream_goes_to_a_blocking_end(queue) {
        for HalfWay { name, ours, mut theirs } in ways_out(queue) {
            let thread = thread::spawn(move || {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).unwrap();
                all
            });
            queue.block_on(write_full(&ours, noise(1_000_003))).unwrap();
            drop(ours);
            assert!(thread.join().unwrap() == noise(1_000_003), "{name}");
        }
    }

    /// Scenario 6: lines, wherever the stream is cut.
    fn lines_are_the_same_wherever_the_stream_is_cut(queue) {
        const TEXT: &[u8] = b"a\nbb\n\nccc\nthe rest";
        for cut in 0..=TEXT.len() {
            for room in [1, 2, 5, 64] {
                for HalfWay { name, ours, mut theirs } in ways_in(queue) {
                    let lines = queue.block_on(async {
                        theirs.write_all(&TEXT[..cut]).unwrap();
                        let (mut all, mut buffer) = (Vec::new(), Vec::with_capacity(room));
                        let mut theirs = Some(theirs);
                        loop {
                            if all.len() >= cut {
                                if let Some(mut theirs) = theirs.take() {
                                    theirs.write_all(&TEXT[cut..]).unwrap();
                                }
                            }
                            let (count, part) = ours.read(buffer).await;
                            if count.unwrap() == 0 {
                                break;
                            }
                            all.extend_from_slice(&part);
                            buffer = part;
                        }
                        all.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()
                    }).unwrap();
                    assert_eq!(lines, TEXT.split(|&byte| byte == b'\n').collect::<Vec<_>>(), "{name}");
                }
            }
        }
    }

    /// A read fills one buffer after the other, and says of each how much of it is filled.
    fn several_buffers_are_filled_and_emptied_in_their_order(queue) {
        for Way { name, from, to } in ways(queue) {
            // What has to wait, then what is there.
            for waits in [true, false] {
                let room = || [Vec::with_capacity(2), Vec::with_capacity(4), Vec::with_capacity(8)];
                let early = waits.then(|| to.read_vectored(room()));
                let sending = from.write_vectored([&b"ab"[..], b"", b"cdefg"]);
                assert_eq!(queue.block_on(sending).unwrap().0.unwrap(), 7, "{name}");
                let reading = early.unwrap_or_else(|| to.read_vectored(room()));
                let (count, parts) = queue.block_on(reading).unwrap();
                assert_eq!(count.unwrap(), 7, "{name}");
                assert_eq!(parts, [&b"ab"[..], b"cdef", b"g"], "{name}");
            }
        }
    }

    /// Q13: parts of a buffer, and what has a fixed length.
    fn only_the_part_that_was_asked_for_is_read_or_written(queue) {
        for Way { name, from, to } in ways(queue) {
            queue.block_on(from.write(Vec::from("0123456789").slice(2..5))).unwrap().0.unwrap();
            let (count, part) = queue.block_on(to.read([b'-'; 8].slice(1..7))).unwrap();
            let bytes = part.into_inner();
            assert_eq!((count.unwrap(), &bytes[..4]), (3, &b"-234"[..]), "{name}");
            assert_eq!(bytes[7], b'-', "{name}");
            // Behind what came a kernel may leave what it likes, and the simulated one does.
            assert!(is_simulated(queue) || &bytes[4..] == b"----", "{name}");
            queue.block_on(from.write(String::from("text"))).unwrap().0.unwrap();
            let (count, vec) = queue.block_on(to.read(Vec::from("ab").slice(2..2))).unwrap();
            assert_eq!((count.unwrap(), &vec.into_inner()[..]), (0, &b"ab"[..]), "{name}");
            let mut vec = Vec::from("ab");
            vec.reserve_exact(8);
            let (count, vec) = queue.block_on(to.read(vec.slice(1..))).unwrap();
            assert_eq!((count.unwrap(), &vec.into_inner()[..]), (4, &b"atext"[..]), "{name}");
        }
    }

    /// What is full waits, and goes on when there is room.
    fn a_full_stream_waits_for_its_reader(queue) {
        for HalfWay { name, ours, mut theirs } in ways_out(queue) {
            let mut written = 0;
            let mut waiting = loop {
                let mut writing = ours.write(vec![3; 1 << 20]);
                queue.block_on(look_around()).unwrap();
                match poll_once(&mut writing) {
                    Poll::Ready((count, _)) => written += count.unwrap(),
                    Poll::Pending => break writing,
                }
            };
            assert!(queue.running());
            let mut sink = vec![0; written];
            theirs.read_exact(&mut sink).unwrap();
            assert!(sink.iter().all(|&byte| byte == 3), "{name}");
            let reading = thread::spawn(move || theirs.read_to_end(&mut Vec::new()).unwrap());
            let count = queue.block_on(&mut waiting).unwrap().0.unwrap();
            assert!(count > 0, "{name}");
            drop(ours);
            assert_eq!(reading.join().unwrap(), count, "{name}");
        }
    }

    /// Q10: a read and a write of one handle are in flight together.
    fn both_directions_are_in_flight_together(queue) {
        for Way { name, from, to } in two_ways(queue) {
            let reads = [from.read(vec![0; 8]), to.read(vec![0; 8])];
            queue.block_on(look_around()).unwrap();
            let writes = [from.write("one"), to.write("other")];
            for (write, length) in writes.into_iter().zip([3, 5]) {
                assert_eq!(queue.block_on(write).unwrap().0.unwrap(), length, "{name}");
            }
            for (read, expected) in reads.into_iter().zip(["other", "one"]) {
                assert_eq!(queue.block_on(read).unwrap().1, expected.as_bytes(), "{name}");
            }
        }
    }
}
