#![cfg(feature = "sim")]
//! How operations end on the simulated Windows, where Wine shows one way or none: at once, with or
//! without a packet, with a remark, with the status word before, with or after the packet.

#[path = "sim/support.rs"]
mod support;

use std::cell::Cell;

use ioqueue::error::NtStatus;
use ioqueue::iocp::{Completion, Wait};
use ioqueue::sim::{End, Faults, Kind, Plan, Sim, StatusWord};
use ioqueue::{Continuation, Overlapped, Persist, Queue, wait, wait_with};
use support::{MILLISECOND, control, open, poll, quiet};
use windows_sys::Win32::Foundation::{
    ERROR_MORE_DATA, STATUS_BUFFER_OVERFLOW, STATUS_CONNECTION_RESET, STATUS_PORT_UNREACHABLE,
};
use windows_sys::Win32::Networking::WinSock::{WSAECONNRESET, WSAEMSGSIZE};

const MORE_DATA: NtStatus = NtStatus(STATUS_BUFFER_OVERFLOW);

fn exact(queue: &Queue, wait: Wait<Vec<u8>>) -> Completion<Vec<u8>> {
    queue.block_on(wait.exact()).unwrap()
}

// W6, scenario 32: on Windows a disk file's reads may end at once, and skip then leaves no packet.
#[test]
fn a_file_read_that_ends_at_once_is_over_and_leaves_no_packet() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("hello")).unwrap();
    for _ in 0..1_000 {
        sim.plan(&file, Plan::at_once());
        let reading = sim.read(&queue, &file, 1, vec![0; 4]);
        assert!(!queue.running());
        let (read, bytes) = queue.block_on(reading).unwrap();
        assert_eq!((read.unwrap(), &bytes[..]), (4, &b"ello"[..]));
    }
    assert_eq!((poll(&queue), queue.foreign_packets()), (0, 0));
    drop((file, queue));
    sim.check();
}

// W6: with `keep_packets` each end leaves one, which is the queue's and wakes nobody twice.
#[test]
fn a_handle_that_keeps_packets_gets_them_for_what_ends_at_once() {
    let (sim, queue) = quiet();
    let file = sim.file("hello");
    queue.persist_with(&file, Persist::keep_packets()).unwrap();
    for _ in 0..100 {
        sim.plan(&file, Plan::at_once());
        let (read, _) = queue.block_on(sim.read(&queue, &file, 0, vec![0; 5])).unwrap();
        assert_eq!(read.unwrap(), 5);
        // Its packet is still queued; the next operation must not take it for its own.
        let reading = sim.read(&queue, &file, 0, vec![0; 3]);
        assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 3);
    }
    poll(&queue);
    assert_eq!(queue.foreign_packets(), 0);
    queue.unregister(&file).unwrap();
    drop((file, queue));
    sim.check();
}

// Pitfall 2: other code has turned skip on for a socket whose provider then queues packets all the
// same. What comes is no longer expected, and harms nothing.
#[test]
fn a_layered_provider_that_ignores_skip_harms_nothing() {
    for skip_elsewhere in [false, true] {
        let (sim, queue) = quiet();
        let socket = open(&sim, Kind::Socket, |traits| traits.layered = true);
        if skip_elsewhere {
            sim.skip_elsewhere(&socket);
        }
        let socket = queue.register(socket).unwrap();
        let mut waits = Vec::new();
        for round in 0..100 {
            sim.plan(&socket, if round % 2 == 0 { Plan::at_once() } else { Plan::pends() });
            waits.push(sim.write(&queue, &socket, 0, vec![0; 8]));
            if round % 2 == 1 {
                sim.complete(&socket, End::success());
            }
            if round % 3 == 0 {
                poll(&queue);
            }
        }
        for wait in waits {
            assert_eq!(queue.block_on(wait).unwrap().0.unwrap(), 8);
        }
        poll(&queue);
        // Without skip every packet was expected.
        assert!(skip_elsewhere || queue.foreign_packets() == 0);
        drop((socket, queue));
        sim.check();
    }
}

// Pitfall 1: a datagram socket's skip mode is left alone, a stream's is not: what ends at once leaves a
// packet, or none.
#[test]
fn a_datagram_socket_is_not_told_to_skip() {
    for kind in [Kind::Datagram, Kind::Socket] {
        let (sim, queue) = quiet();
        let socket = queue.register(open(&sim, kind, |_| ())).unwrap();
        sim.feed(&socket, "hello");
        sim.plan(&socket, Plan::at_once());
        let (of_call, is_queued) = (sim.clone(), Cell::new(false));
        // SAFETY: one call, with what was given, and what it returned.
        let asked = unsafe {
            socket.submit(vec![0; 8], |handle, buffer: *mut Vec<u8>, overlapped| {
                let buffer = &mut *buffer;
                let start = buffer.as_mut_ptr();
                let outcome = of_call.read_file(handle, start, buffer.len(), overlapped);
                is_queued.set(of_call.owes_packet(handle, overlapped));
                outcome
            })
        };
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 5);
        assert_eq!(is_queued.get(), kind == Kind::Datagram);
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(MILLISECOND)).unwrap();
        assert_eq!(queue.foreign_packets(), 0);
        drop((socket, queue));
        sim.check();
    }
}

// Pitfalls 1, 3 and 55, W8, scenario 27: a datagram longer than the buffer, at once and later, with
// a packet and without: one end, its bytes, and the remark.
#[test]
fn a_truncated_datagram_ends_once_whether_a_packet_comes_or_not() {
    for (skip, packet) in [(false, true), (true, false), (true, true)] {
        for at_once in [true, false] {
            let (sim, queue) = quiet();
            let socket = open(&sim, Kind::Datagram, |_| ());
            if skip {
                sim.skip_elsewhere(&socket);
            }
            let socket = queue.register(socket).unwrap();
            sim.feed(&socket, "a long one");
            sim.feed(&socket, "next");
            let plan = if at_once { Plan::at_once() } else { Plan::pends_for(MILLISECOND) };
            sim.plan(&socket, if at_once { plan.packet(packet) } else { plan });
            let completion = exact(&queue, sim.read(&queue, &socket, 0, vec![0; 4]));
            assert_eq!((completion.status, completion.bytes), (MORE_DATA, 4));
            assert!(completion.has_more_data());
            assert_eq!(completion.state, b"a lo");
            let code = completion.result().unwrap_err().raw_os_error().unwrap();
            assert!([WSAEMSGSIZE, ERROR_MORE_DATA as i32].contains(&code), "{code}");
            let (read, bytes) = queue.block_on(sim.read(&queue, &socket, 0, vec![0; 8])).unwrap();
            assert_eq!(&bytes[..read.unwrap() as usize], b"next");
            drop((socket, queue));
            sim.check();
        }
    }
}

// Pitfall 3, W8, scenario 11: a message pipe gives the rest of the message to the next read.
#[test]
fn the_rest_of_a_message_is_read_next_whether_a_packet_came_or_not() {
    for packet in [true, false] {
        let (sim, queue) = quiet();
        let (ours, theirs) = sim.pair(Kind::MessagePipe);
        let ours = queue.register(ours).unwrap();
        sim.feed(&ours, "hello");
        sim.plan(&ours, Plan::at_once().packet(packet));
        let completion = exact(&queue, sim.read(&queue, &ours, 0, vec![0; 2]));
        assert_eq!((completion.status, &completion.state[..]), (MORE_DATA, &b"he"[..]));
        let (read, rest) = queue.block_on(sim.read(&queue, &ours, 0, vec![0; 8])).unwrap();
        assert_eq!(&rest[..read.unwrap() as usize], b"llo");
        drop((ours, theirs, queue));
        sim.check();
    }
}

// Pitfall 13: what came back for an earlier send fails one receive; the next one works.
#[test]
fn a_receive_survives_a_peer_that_is_not_there() {
    let (sim, queue) = quiet();
    let socket = queue.register(open(&sim, Kind::Datagram, |_| ())).unwrap();
    sim.plan(&socket, Plan::pends_for(MILLISECOND).status(NtStatus(STATUS_PORT_UNREACHABLE)));
    let (read, buffer) = queue.block_on(sim.read(&queue, &socket, 0, vec![0; 8])).unwrap();
    assert_eq!(read.unwrap_err().raw_os_error(), Some(WSAECONNRESET));
    let reading = sim.read(&queue, &socket, 0, buffer);
    sim.feed(&socket, "hello");
    assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 5);
    drop((socket, queue));
    sim.check();
}

// Pitfalls 27 and 47: a reset is an error on every kind of end, and an end is an end.
#[test]
fn a_reset_is_an_error_and_a_hang_up_is_the_end() {
    for reset in [false, true] {
        let (sim, queue) = quiet();
        let (ours, theirs) = sim.socket();
        let ours = queue.register(ours).unwrap();
        let reading = sim.read(&queue, &ours, 0, vec![0; 8]);
        sim.hang_up(&ours, reset);
        let completion = exact(&queue, reading);
        if reset {
            assert_eq!(completion.status, NtStatus(STATUS_CONNECTION_RESET));
            let error = completion.read_result().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(WSAECONNRESET));
        } else {
            assert_eq!(completion.read_result().unwrap(), 0);
        }
        drop((ours, theirs, queue));
        sim.check();
    }
}

// Pitfall 55, W3: all three orders, of an operation that is awaited, parked, or not waited for yet.
#[test]
fn the_status_word_may_be_final_before_with_and_after_the_packet() {
    let words = [StatusWord::BeforePacket, StatusWord::WithPacket, StatusWord::OnDequeue];
    for word in words {
        for form in 0..4 {
            let (sim, queue) = quiet();
            let device = queue.register(sim.device()).unwrap();
            let plan = Plan::pends().status_word(word);
            let early = word == StatusWord::BeforePacket;
            sim.plan(&device, if early { plan.packet_after(MILLISECOND) } else { plan });
            let mut overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
            unsafe { overlapped.start(&device, control(&sim)) }.unwrap();
            let ended = || sim.complete(&device, End::data("hello"));
            let (count, buffer) = match form {
                // Waited for before it ends.
                0 => {
                    let waiting = wait(&device, overlapped).unwrap();
                    ended();
                    queue.block_on(waiting).unwrap()
                }
                // And after: the status word is the truth, if it is final.
                1 => {
                    ended();
                    queue.block_on(wait(&device, overlapped).unwrap()).unwrap()
                }
                // After the packet has come.
                2 => {
                    ended();
                    sim.advance(MILLISECOND);
                    poll(&queue);
                    queue.block_on(wait(&device, overlapped).unwrap()).unwrap()
                }
                _ => {
                    let ticket = wait_with(7, &device, overlapped).unwrap();
                    ended();
                    let mut ready = Vec::new();
                    while ready.is_empty() {
                        queue.poll(&mut ready, None).unwrap();
                    }
                    assert!(matches!(ready[..], [Continuation::Key(7)]), "{ready:?}");
                    ticket.take().unwrap()
                }
            };
            assert_eq!(&buffer[..count.unwrap() as usize], b"hello", "{word:?} {form}");
            // The slot is used again, packet or not.
            let again = sim.control(&queue, &device, vec![0; 8]);
            assert_eq!(queue.block_on(again).unwrap().0.unwrap(), 8);
            sim.advance(MILLISECOND);
            poll(&queue);
            assert_eq!(queue.foreign_packets(), 0, "{word:?} {form}");
            drop((device, queue));
            sim.check();
        }
    }
}

// Pitfall 11: an operation that pended may have ended, packet and all, before its call returns.
#[test]
fn an_operation_may_end_before_the_call_that_started_it_returns() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    for word in [StatusWord::WithPacket, StatusWord::OnDequeue] {
        sim.plan(&device, Plan::pends_for(std::time::Duration::ZERO).status_word(word));
        let asked = sim.control(&queue, &device, vec![0; 8]);
        assert_eq!(sim.in_flight(&device), 0);
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
    }
    drop((device, queue));
    sim.check();
}

// Q10, scenario 33: 64 reads in flight on one file, ending in any order, with Windows' files: some at
// once, some later.
#[test]
fn each_of_64_reads_gets_its_own_bytes_in_whatever_order_they_end() {
    let contents: Vec<u8> = (0..64 * 64).map(|at| (at * 7 / 3) as u8).collect();
    for seed in 0..50 {
        let mut faults = Faults::default();
        (faults.fails_at_once, faults.fails_late) = (0.0, 0.0);
        let sim = Sim::with_faults(seed, faults);
        let queue = sim.queue().unwrap();
        let file = queue.register(sim.file(contents.clone())).unwrap();
        let waits: Vec<_> =
            (0..64).map(|part| sim.read(&queue, &file, part * 64, vec![0; 64])).collect();
        for (part, wait) in waits.into_iter().enumerate() {
            let (read, bytes) = queue.block_on(wait).unwrap();
            assert_eq!(read.unwrap(), 64);
            assert_eq!(bytes, &contents[part * 64..][..64]);
        }
        drop((file, queue));
        sim.check();
    }
}

// Scenarios 34 and 35: the end of a file, at once and later, and a disk that is full.
#[test]
fn the_end_of_a_file_and_a_full_disk_say_so_at_once_and_later() {
    for at_once in [true, false] {
        let (sim, queue) = quiet();
        let file = queue.register(sim.file("hello")).unwrap();
        let plan = || if at_once { Plan::at_once() } else { Plan::pends_for(MILLISECOND) };
        sim.plan(&file, plan());
        let completion = exact(&queue, sim.read(&queue, &file, 5, vec![0; 8]));
        assert_eq!(completion.read_result().unwrap(), 0);
        assert!(completion.result().is_err());
        sim.plan(&file, plan());
        let (written, bytes) = queue.block_on(sim.write(&queue, &file, 1 << 44, vec![1])).unwrap();
        assert!(written.is_err());
        assert_eq!(bytes, [1], "the buffer comes back");
        drop((file, queue));
        sim.check();
    }
}
