//! What is started first on a handle ends first, in each direction; and what is given up in between takes
//! nothing with it.

#[macro_use]
mod each_kernel;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use each_kernel::{
    HalfWay, Stream, Way, kind_of, look_around, narrow_tcp_to_host, pipe, pipe_in, read_full,
    rounds, tcp, tcp_to_host, turn, two_ways, ways, ways_in, ways_out, write_full,
};
use ioqueue::error::is_cancelled;

/// Message `number`: each has its own bytes, and a length that no neighbour has.
fn message(number: usize) -> Vec<u8> {
    vec![number as u8; 500 + number * 37 % 1009]
}

on_each_kernel! {
    /// Scenario 16: a hundred writes at once, on a way that is narrow, to a reader that is slow. Of each the
    /// part that it says it wrote arrives, before anything of the next.
    fn writes_that_are_queued_arrive_in_their_order(queue) {
        let (from, to) = narrow_tcp_to_host(queue);
        let writes: Vec<_> = (0..100).map(|number| from.write(message(number))).collect();
        let reading = thread::spawn(move || {
            let (mut to, mut all, mut part) = (to, Vec::new(), [0; 777]);
            loop {
                match to.read(&mut part).unwrap() {
                    0 => return all,
                    count => all.extend_from_slice(&part[..count]),
                }
                thread::yield_now();
            }
        });
        let mut expected = Vec::new();
        for (number, write) in writes.into_iter().enumerate() {
            let (count, bytes) = queue.block_on(write).unwrap();
            let count = count.unwrap();
            assert!(count > 0 && bytes.len() >= count, "write {number}");
            expected.extend_from_slice(&bytes[..count]);
        }
        drop(from);
        assert!(reading.join().unwrap() == expected);
    }

    /// Scenario 16, on every kind of stream, and while nobody awaits the ends in order.
    fn queued_writes_keep_their_order_on_every_stream(queue) {
        for HalfWay { name, ours, mut theirs } in ways_out(queue) {
            let mut writes: Vec<_> = (0..300).map(|number| {
                (number, ours.write(vec![number as u8; 2000 + number]))
            }).collect();
            let reading = thread::spawn(move || {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).unwrap();
                all
            });
            let mut counts = vec![0; 300];
            // The last first: it has ended when all before it have.
            while let Some((number, write)) = writes.pop() {
                counts[number] = queue.block_on(write).unwrap().0.unwrap();
                assert!(writes.is_empty() || queue.pending().is_empty(), "{name}: {number}");
            }
            drop(ours);
            let expected: Vec<_> = counts.iter().enumerate()
                .flat_map(|(number, &count)| std::iter::repeat_n(number as u8, count)).collect();
            assert!(reading.join().unwrap() == expected, "{name}");
        }
    }

    /// The reads of a stream are served in their order, whether they wait or not.
    fn reads_that_are_queued_get_the_bytes_in_their_order(queue) {
        for Way { name, from, to } in ways(queue) {
            let reads: Vec<_> = (0..100).map(|_| to.read(vec![0; 10])).collect();
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.pending().len(), 100, "{name}");
            let bytes: Vec<u8> = (0..1000).map(|number| (number % 251) as u8).collect();
            let writing = queue.spawn({
                let bytes = bytes.clone();
                async move {
                    for part in bytes.chunks(7) {
                        write_full(&from, part.to_vec()).await;
                        if part[0] % 5 == 0 {
                            look_around().await;
                        }
                    }
                    from
                }
            });
            let mut all = Vec::new();
            for read in reads {
                let (count, part) = queue.block_on(read).unwrap();
                assert_eq!(count.unwrap(), part.len());
                all.extend(part);
            }
            // Some got less than they had room for.
            let from = queue.block_on(writing).unwrap();
            drop(from);
            all.extend(queue.block_on(read_full(&to, 2000)).unwrap());
            assert!(all == bytes, "{name}");
        }
    }

    /// A shutdown waits for the writes before it.
    fn a_shutdown_comes_after_the_writes_before_it(queue) {
        for narrowly in [true, false] {
            let make = if narrowly { narrow_tcp_to_host } else { tcp_to_host };
            let (from, mut to) = make(queue);
            let writes: Vec<_> = (0..100).map(|number| from.send(message(number))).collect();
            let shutting = from.shutdown(Shutdown::Write);
            let late = from.send("late");
            let reading = thread::spawn(move || {
                let mut all = Vec::new();
                to.read_to_end(&mut all).unwrap();
                all.len()
            });
            let mut total = 0;
            for write in writes {
                total += queue.block_on(write).unwrap().0.unwrap();
            }
            queue.block_on(shutting).unwrap().unwrap();
            let error = queue.block_on(late).unwrap().0.unwrap_err();
            assert_eq!(kind_of(queue, &error), std::io::ErrorKind::BrokenPipe);
            assert_eq!(reading.join().unwrap(), total);
        }
    }

    /// Of those that wait for their turn some are given up: the others keep theirs.
    fn cancelled_writes_in_the_midst_send_nothing(queue) {
        for HalfWay { name, ours, mut theirs } in ways_out(queue) {
            // The way is full when the others come.
            let filling = ours.write(vec![255; rounds(queue, 8 << 20)]);
            let writes: Vec<_> = (0..100).map(|number| ours.write(message(number))).collect();
            queue.block_on(look_around()).unwrap();
            let (mut kept, mut sent) = (Vec::new(), Vec::new());
            for (number, write) in writes.into_iter().enumerate() {
                match number % 3 {
                    0 => kept.push((number, write)),
                    1 => drop(write),
                    _ => {
                        let (result, bytes) = queue.block_on(write.cancel()).unwrap();
                        match result {
                            // There was room for it, after all.
                            Ok(count) => sent.push((number, count)),
                            Err(error) => {
                                assert!(is_cancelled(&error), "{name}: {error}");
                                sent.push((number, 0));
                            }
                        }
                        assert_eq!(bytes, message(number), "{name}");
                    }
                }
            }
            let reading = thread::spawn(move || {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).unwrap();
                all
            });
            let filled = queue.block_on(filling).unwrap().0.unwrap();
            for (number, write) in kept {
                sent.push((number, queue.block_on(write).unwrap().0.unwrap()));
            }
            drop(ours);
            let all = reading.join().unwrap();
            assert!(all[..filled].iter().all(|&byte| byte == 255), "{name}");
            // Each message is made of its number: they come in their order, with as many bytes as was said.
            let mut rest = &all[filled..];
            for number in 0..100 {
                let count = rest.iter().take_while(|&&byte| byte == number as u8).count();
                rest = &rest[count..];
                match sent.iter().find(|it| it.0 == number) {
                    Some(&(_, said)) => assert_eq!(count, said, "{name}: {number}"),
                    // Nobody was told of it: there was room for it, or not.
                    None => assert!(count <= message(number).len(), "{name}: {number}"),
                }
            }
            assert!(rest.is_empty(), "{name}: {} bytes", rest.len());
        }
    }

    /// As the last, for reads: none takes bytes with it.
    fn cancelled_reads_in_the_midst_take_nothing(queue) {
        for HalfWay { name, ours, mut theirs } in ways_in(queue) {
            let reads: Vec<_> = (0..90).map(|_| ours.read(vec![0; 4])).collect();
            queue.block_on(look_around()).unwrap();
            let mut kept = Vec::new();
            for (number, read) in reads.into_iter().enumerate() {
                match number % 3 {
                    0 => drop(read),
                    1 => kept.push(read),
                    _ => {
                        let (result, _) = queue.block_on(read.cancel()).unwrap();
                        assert!(is_cancelled(&result.unwrap_err()), "{name}");
                    }
                }
            }
            assert_eq!(queue.pending().len(), 30, "{name}");
            // Behind where the last stood, which was cancelled.
            kept.push(ours.read(vec![0; 4]));
            for number in 0..31_u32 {
                theirs.write_all(&number.to_ne_bytes()).unwrap();
                let (count, bytes) = queue.block_on(kept.remove(0)).unwrap();
                assert_eq!((count.unwrap(), &bytes[..]), (4, &number.to_ne_bytes()[..]), "{name}");
            }
            assert!(!queue.running(), "{name}");
        }
    }

    /// The first of those that wait is given up just when it could go on.
    fn the_first_is_cancelled_and_the_next_goes_on(queue) {
        for Way { name, from, to } in ways(queue) {
            for round in 0..50_u8 {
                let (first, second) = (to.read(vec![0; 1]), to.read(vec![0; 1]));
                if round % 2 == 0 {
                    queue.block_on(look_around()).unwrap();
                }
                queue.block_on(write_full(&from, vec![round])).unwrap();
                let (result, bytes) = queue.block_on(first.cancel()).unwrap();
                match result {
                    Ok(count) => {
                        assert_eq!((count, bytes[0]), (1, round), "{name}");
                        queue.block_on(write_full(&from, vec![round])).unwrap();
                    }
                    Err(error) => assert!(is_cancelled(&error), "{name}: {error}"),
                }
                let (count, bytes) = queue.block_on(second).unwrap();
                assert_eq!((count.unwrap(), bytes[0]), (1, round), "{name}");
            }
        }
    }

    /// A queue that looks after those who wait without having tried leaves alone what its kernel has: else
    /// a read would end twice, the second time in memory that is somebody else's.
    fn a_read_that_the_kernel_has_is_left_to_it(queue) {
        let (ours, mut theirs) = tcp_to_host(queue);
        theirs.write_all(b"less than there is room for").unwrap();
        queue.block_on(ours.read(vec![0; 64])).unwrap().0.unwrap();
        let untried = ours.read(vec![0; 64]);
        let (reader, mut writer) = pipe_in(queue);
        let reads: Vec<_> = (0..3).map(|_| reader.read(vec![0; 4])).collect();
        queue.block_on(look_around()).unwrap();
        // So long that it is time to look after the first.
        thread::sleep(Duration::from_millis(100));
        writer.write_all(b"111122223333").unwrap();
        for (read, bytes) in reads.into_iter().zip(["1111", "2222", "3333"]) {
            assert_eq!(queue.block_on(read).unwrap().1, bytes.as_bytes());
        }
        let last = reader.read(vec![0; 4]);
        queue.block_on(look_around()).unwrap();
        writer.write_all(b"4444").unwrap();
        assert_eq!(queue.block_on(last).unwrap().1, b"4444");
        drop(untried);
        queue.run().unwrap();
    }

    /// A time limit on one that waits for its turn.
    fn a_time_limit_in_the_midst_leaves_the_others(queue) {
        let (reader, writer) = pipe(queue);
        let first = reader.read(vec![0; 4]);
        let limited = reader.read(vec![0; 4]).timeout(Duration::from_millis(5));
        let last = reader.read(vec![0; 4]);
        let error = queue.block_on(limited).unwrap().0.unwrap_err();
        assert!(ioqueue::Elapsed::is(&error), "{error}");
        for (read, bytes) in [(first, "1234"), (last, "5678")] {
            queue.block_on(write_full(&writer, bytes)).unwrap();
            assert_eq!(queue.block_on(read).unwrap().1, bytes.as_bytes());
        }
    }

    /// A read and a write of one handle do not wait for each other.
    fn the_two_directions_do_not_wait_for_each_other(queue) {
        for Way { name, from, to } in two_ways(queue) {
            let (from, to): (_, ioqueue::Registered<Stream>) = (from, to);
            let filling = from.write(vec![1; rounds(queue, 32 << 20)]);
            let waiting = from.write("waits");
            let reading = from.read(vec![0; 4]);
            queue.block_on(look_around()).unwrap();
            queue.block_on(write_full(&to, "back")).unwrap();
            assert_eq!(queue.block_on(reading).unwrap().1, b"back", "{name}");
            drop((waiting, filling));
        }
        queue.run().unwrap();
    }

    /// Scenario 60: who ended first is resumed first.
    fn tasks_are_resumed_in_the_order_in_which_their_operations_ended(queue) {
        let resumed = Rc::new(RefCell::new(Vec::new()));
        let (reader, writer) = pipe(queue);
        let tasks: Vec<_> = (0..50).map(|number| {
            let (read, resumed) = (reader.read(vec![0; 1]), resumed.clone());
            queue.spawn(async move {
                assert_eq!(read.await.1, [number]);
                resumed.borrow_mut().push(number);
            })
        }).collect();
        queue.block_on(look_around()).unwrap();
        queue.block_on(write_full(&writer, (0..50).collect::<Vec<u8>>())).unwrap();
        queue.run().unwrap();
        assert_eq!(*resumed.borrow(), (0..50).collect::<Vec<_>>());
        assert!(tasks.iter().all(ioqueue::Task::is_finished));
    }

    /// As the last, with so many that more become ready while some of the first are still to be resumed. None of
    /// those is lost when room is made for the others.
    fn tasks_that_become_ready_behind_many_are_resumed_after_them(queue) {
        let resumed = Rc::new(RefCell::new(Vec::new()));
        let (reader, writer) = tcp(queue);
        let writer = Rc::new(writer);
        let bytes = |of: std::ops::Range<u32>| of.map(|number| number as u8).collect::<Vec<_>>();
        let tasks: Vec<_> = (0..600).map(|number| {
            let (read, resumed, writer) = (reader.read(vec![0; 1]), resumed.clone(), writer.clone());
            queue.spawn(async move {
                assert_eq!(read.await.1, [number as u8]);
                resumed.borrow_mut().push(number);
                if number == 0 {
                    write_full(&writer, bytes(400..600)).await;
                }
            })
        }).collect();
        turn(queue); // Each of them waits.
        queue.block_on(write_full(&writer, bytes(0..400))).unwrap();
        queue.run().unwrap();
        assert_eq!(*resumed.borrow(), (0..600).collect::<Vec<u32>>());
        assert!(tasks.iter().all(ioqueue::Task::is_finished));
    }
}
