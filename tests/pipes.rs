#![cfg(windows)]
//! Named pipes: ends, sizes, messages, many at once, and cancelling a read.

mod support;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::OwnedHandle;
use std::ptr::null;
use std::rc::Rc;
use std::sync::OnceLock;
use std::thread;

use ioqueue::error::is_cancelled;
use ioqueue::iocp::{Cancelled, Completion, Outcome, Wait, submit};
use ioqueue::{Continuation, Persist, Queue, Registered};
use support::{
    blocking_pipe_client, call_read, connect_pipe, look_around, packets_on_port, pipe_client,
    pipe_name, pipe_pair, pipe_server, pipe_to_blocking_client, read, wide, write,
};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_BROKEN_PIPE, ERROR_MORE_DATA, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX, PIPE_ACCESS_OUTBOUND,
};
use windows_sys::Win32::System::Pipes::{ConnectNamedPipe, CreateNamedPipeW, PIPE_WAIT};

fn byte_pipe(queue: &Queue) -> (Registered<OwnedHandle>, File) {
    pipe_to_blocking_client(queue, false, Persist::default())
}

/// Both ends on `queue`.
fn overlapped_pipe(queue: &Queue, messages: bool) -> (Registered<OwnedHandle>, Registered<File>) {
    let (server, client) = pipe_pair(messages);
    let server = queue.register(server).unwrap();
    queue.block_on(connect_pipe(&server)).unwrap().0.unwrap();
    (server, queue.register(client).unwrap())
}

fn ended<T: 'static>(queue: &Queue, wait: Wait<T>) -> Completion<T> {
    queue.block_on(wait.exact()).unwrap()
}

fn code(result: io::Result<u32>) -> Option<u32> {
    result.unwrap_err().raw_os_error().map(|code| code as u32)
}

/// Scenario 1, W8: whether the read is in flight or comes after, and the data before it is not lost.
#[test]
fn a_read_after_the_peer_closed_is_the_end() {
    let queue = Queue::new().unwrap();
    for is_early in [true, false] {
        let (server, mut client) = byte_pipe(&queue);
        client.write_all(b"last").unwrap();
        let early = is_early.then(|| (read(&server, [0; 16]), read(&server, [0; 16])));
        drop(client);
        let (data, end) = early.unwrap_or_else(|| (read(&server, [0; 16]), read(&server, [0; 16])));
        let (data, end) = (ended(&queue, data), ended(&queue, end));
        assert_eq!((data.read_result().unwrap(), &data.state[..4]), (4, &b"last"[..]));
        assert_eq!(end.read_result().unwrap(), 0);
        assert_eq!(code(end.result()), Some(ERROR_BROKEN_PIPE));
        assert_eq!(end.state.len(), 16);
    }
}

/// Scenario 2, W8: whether the write is in flight or comes after.
#[test]
fn a_write_after_the_peer_closed_is_an_error_and_moves_nothing() {
    let queue = Queue::new().unwrap();
    for is_early in [true, false] {
        let (server, client) = byte_pipe(&queue);
        // More than the pipe holds.
        let early = is_early.then(|| write(&server, vec![7; 1 << 20]));
        drop(client);
        let end = ended(&queue, early.unwrap_or_else(|| write(&server, vec![7; 1 << 20])));
        assert_eq!(end.result().unwrap_err().kind(), io::ErrorKind::BrokenPipe, "{end:?}");
        assert_eq!((end.bytes, end.state.len()), (0, 1 << 20));
    }
}

/// Bytes that repeat only after 65521 (a prime), so that a lost or doubled piece shows.
fn stream(at: usize, length: usize) -> Vec<u8> {
    const PERIOD: usize = 65_521;
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let random = |word: u64| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) as u8;
        (0..PERIOD as u64).map(random).collect::<Vec<u8>>().repeat(18)
    });
    bytes[at % PERIOD..][..length].to_vec()
}

/// Scenario 3: 80 MiB each way at once, and the readers suspend before anything was written.
#[test]
fn readers_that_suspend_first_get_all_of_a_big_duplex_stream() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 80;
    async fn read_all(pipe: Rc<Registered<impl ioqueue::AsAnyHandle>>) {
        let mut buffer = vec![0; PIECE];
        for piece in 0..PIECES {
            let expected = stream(piece * PIECE, PIECE);
            let mut filled = 0;
            while filled < PIECE {
                buffer.resize(PIECE - filled, 0);
                let (count, bytes) = read(&pipe, buffer).await;
                let count = count.unwrap() as usize;
                assert!(count > 0 && bytes[..count] == expected[filled..filled + count]);
                (filled, buffer) = (filled + count, bytes);
            }
        }
    }
    async fn write_all(pipe: Rc<Registered<impl ioqueue::AsAnyHandle>>) {
        for piece in 0..PIECES {
            let (count, _) = write(&pipe, stream(piece * PIECE, PIECE)).await;
            assert_eq!(count.unwrap() as usize, PIECE);
        }
    }
    let queue = Queue::new().unwrap();
    let (server, client) = overlapped_pipe(&queue, false);
    let (server, client) = (Rc::new(server), Rc::new(client));
    let tasks = [
        queue.spawn(read_all(server.clone())),
        queue.spawn(read_all(client.clone())),
        queue.spawn(write_all(server)),
        queue.spawn(write_all(client)),
    ];
    queue.run().unwrap();
    assert!(tasks.iter().all(|task| task.is_finished()));
    for task in tasks {
        queue.block_on(task).unwrap();
    }
    assert_eq!(queue.foreign_packets(), 0);
}

/// Scenario 4.
#[test]
fn reads_and_writes_of_nothing_end_and_move_nothing() {
    let queue = Queue::new().unwrap();
    let (server, client) = overlapped_pipe(&queue, true);
    // A message of no bytes is a message, and not the end.
    assert_eq!(ended(&queue, write(&client, [])).result().unwrap(), 0);
    assert_eq!(ended(&queue, read(&server, [0; 4])).result().unwrap(), 0);
    // A read of nothing takes nothing of a message.
    let reading = read(&server, []);
    assert_eq!(ended(&queue, write(&client, *b"data")).result().unwrap(), 4);
    let nothing = ended(&queue, reading);
    assert!(nothing.bytes == 0 && nothing.has_more_data(), "{nothing:?}");
    let data = ended(&queue, read(&server, [0; 4]));
    assert_eq!((data.result().unwrap(), &data.state[..]), (4, &b"data"[..]));
    // Nor of a stream.
    let (server, mut client) = byte_pipe(&queue);
    client.write_all(b"data").unwrap();
    assert_eq!(ended(&queue, write(&server, [])).result().unwrap(), 0);
    assert_eq!(ended(&queue, read(&server, [])).result().unwrap(), 0);
    let data = ended(&queue, read(&server, [0; 8]));
    assert_eq!((data.result().unwrap(), &data.state[..4]), (4, &b"data"[..]));
}

/// A server's end for blocking calls.
fn blocking_pipe_server(name: &str, access: u32) -> File {
    use std::os::windows::io::FromRawHandle;
    unsafe {
        let (name, size) = (wide(name), 4096);
        let pipe = CreateNamedPipeW(name.as_ptr(), access, PIPE_WAIT, 1, size, size, 0, null());
        assert_ne!(pipe, INVALID_HANDLE_VALUE, "{}", io::Error::last_os_error());
        File::from_raw_handle(pipe)
    }
}

/// Writes `request` and reads as many bytes back, on this side; the other side does the reverse.
async fn ask(pipe: &Registered<impl ioqueue::AsAnyHandle>, request: &[u8]) -> Vec<u8> {
    assert_eq!(write(pipe, request).await.0.unwrap() as usize, request.len());
    support::read_full(request.len(), async |rest| read(pipe, vec![0; rest]).await).await
}

fn answer(pipe: &mut File, length: usize) {
    let mut request = vec![0; length];
    pipe.read_exact(&mut request).unwrap();
    request.reverse();
    pipe.write_all(&request).unwrap();
}

/// Scenario 5: both ways, with either end the blocking one.
#[test]
fn an_overlapped_end_talks_to_a_blocking_end() {
    let queue = Queue::new().unwrap();
    let request = stream(0, 100_000);
    let reversed: Vec<u8> = request.iter().rev().copied().collect();
    let (server, mut client) = byte_pipe(&queue);
    let blocking = thread::spawn(move || answer(&mut client, 100_000));
    assert!(queue.block_on(ask(&server, &request)).unwrap() == reversed);
    blocking.join().unwrap();

    let name = pipe_name();
    let mut server = blocking_pipe_server(&name, PIPE_ACCESS_DUPLEX);
    let client = queue.register(pipe_client(&name).unwrap()).unwrap();
    let blocking = thread::spawn(move || answer(&mut server, 100_000));
    assert!(queue.block_on(ask(&client, &request)).unwrap() == reversed);
    blocking.join().unwrap();
}

/// Scenario 6: lines come out the same wherever the stream is cut, by writes or by small buffers.
#[test]
fn lines_are_the_same_wherever_the_stream_is_cut() {
    const TEXT: &[u8] = b"one\r\n\r\nthree \r not\nyet\r\nrest";
    async fn lines(pipe: &Registered<OwnedHandle>, size: usize) -> Vec<String> {
        let (mut text, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            let end = read(pipe, buffer).exact().await;
            match end.read_result().unwrap() as usize {
                0 => break,
                count => text.extend_from_slice(&end.state[..count]),
            }
            buffer = end.state;
        }
        String::from_utf8(text).unwrap().split("\r\n").map(String::from).collect()
    }
    let queue = Queue::new().unwrap();
    for size in [1, 3, 64] {
        for cut in 0..=TEXT.len() {
            let (server, mut client) = byte_pipe(&queue);
            let server = Rc::new(server);
            let reader = queue.spawn({
                let server = server.clone();
                async move { lines(&server, size).await }
            });
            client.write_all(&TEXT[..cut]).unwrap();
            queue.block_on(look_around()).unwrap();
            client.write_all(&TEXT[cut..]).unwrap();
            drop(client);
            let lines = queue.block_on(reader).unwrap();
            assert_eq!(lines, ["one", "", "three \r not\nyet", "rest"], "{size} {cut}");
        }
    }
}

/// Scenario 7: the other end has a read in flight, whose waiter learns that it is over.
#[test]
fn both_ends_are_closed_from_the_continuation_of_the_connect() {
    let queue = Queue::new().unwrap();
    let name = pipe_name();
    let server = queue.register(pipe_server(&name, false)).unwrap();
    let connecting = connect_pipe(&server);
    let client = queue.register(pipe_client(&name).unwrap()).unwrap();
    let reading = read(&client, [0; 8]);
    let closer = queue.spawn(async move {
        connecting.await.0.unwrap();
        // The client first: its read is cancelled, not ended by the server.
        drop((client, server));
    });
    let reader = queue.spawn(reading);
    queue.run().unwrap();
    assert!(closer.is_finished() && queue.pending().is_empty());
    let (result, buffer) = queue.block_on(reader).unwrap();
    assert!(is_cancelled(&result.unwrap_err()));
    assert_eq!(buffer, [0; 8]);
}

/// Scenarios 8 and 9: 32 instances wait at once, and 8 threads connect 4 clients each.
#[test]
fn every_pending_instance_gets_one_of_the_clients_that_connect_at_once() {
    let queue = Queue::new().unwrap();
    let name = pipe_name();
    let seen = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..32 {
        let server = queue.register(pipe_server(&name, false)).unwrap();
        let connecting = connect_pipe(&server);
        let seen = seen.clone();
        let serve = async move {
            connecting.await.0.unwrap();
            let (count, number) = read(&server, [0]).await;
            assert_eq!(count.unwrap(), 1);
            seen.borrow_mut().push(number[0]);
            assert_eq!(write(&server, number).await.0.unwrap(), 1);
            // The client closes when it has its answer.
            assert_eq!(read(&server, [0]).exact().await.read_result().unwrap(), 0);
        };
        queue.spawn(serve).detach();
    }
    assert_eq!(queue.pending().len(), 32);
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let name = name.clone();
            thread::spawn(move || {
                for number in (0..4).map(|client| thread * 4 + client) {
                    let mut client = blocking_pipe_client(&name).unwrap();
                    client.write_all(&[number]).unwrap();
                    let mut answer = [0];
                    client.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, [number]);
                }
            })
        })
        .collect();
    queue.run().unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    seen.borrow_mut().sort_unstable();
    assert_eq!(*seen.borrow(), (0..32).collect::<Vec<u8>>());
}

/// Scenario 11, pitfalls 3 and 47, W8: known at once or later, with and without packets on success.
#[test]
fn a_message_longer_than_the_buffer_keeps_its_bytes_and_says_so() {
    for options in [Persist::default(), Persist::keep_packets()] {
        let queue = Queue::new().unwrap();
        let (server, mut client) = pipe_to_blocking_client(&queue, true, options);
        for is_late in [true, false] {
            let late = is_late.then(|| read(&server, [0; 8]));
            client.write_all(b"longer than eight").unwrap();
            let part = ended(&queue, late.unwrap_or_else(|| read(&server, [0; 8])));
            assert!(part.has_more_data(), "{part:?}");
            assert_eq!((part.bytes, &part.state[..]), (8, &b"longer t"[..]));
            assert_eq!(code(part.result()), Some(ERROR_MORE_DATA));
            assert_eq!(code(part.read_result()), Some(ERROR_MORE_DATA));
            let rest = ended(&queue, read(&server, [0; 32]));
            assert_eq!((rest.result().unwrap(), &rest.state[..9]), (9, &b"han eight"[..]));
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.foreign_packets(), 0);
            assert!(queue.pending().is_empty() && !queue.running());
        }
    }
}

/// W6, pitfalls 54 and 55: the port itself is asked for what is queued there.
#[test]
fn a_read_that_ends_at_once_leaves_a_packet_only_if_asked_to() {
    for (options, expected) in [(Persist::default(), 0), (Persist::keep_packets(), 1)] {
        let queue = Queue::new().unwrap();
        let (server, mut client) = pipe_to_blocking_client(&queue, false, options);
        queue.block_on(look_around()).unwrap();
        client.write_all(b"here").unwrap();
        let reading = read(&server, [0; 4]);
        assert!(queue.pending().is_empty() && !queue.running());
        assert_eq!(packets_on_port(&queue), expected);
        assert_eq!(ended(&queue, reading).state, b"here");
    }
}

/// W6: the packets that are kept find their operations, and memory comes round again.
#[test]
fn kept_packets_are_the_queues_own() {
    let queue = Queue::new().unwrap();
    let (server, mut client) = pipe_to_blocking_client(&queue, false, Persist::keep_packets());
    for round in 0..1000_u32 {
        client.write_all(&round.to_le_bytes()).unwrap();
        let (count, bytes) = queue.block_on(read(&server, [0; 4])).unwrap();
        assert_eq!((count.unwrap(), &bytes[..]), (4, &round.to_le_bytes()[..]));
    }
    queue.block_on(look_around()).unwrap();
    assert_eq!(queue.foreign_packets(), 0);
    drop(server);
    queue.close(std::time::Duration::ZERO).unwrap();
}

/// Pitfall 8: no packet comes, whatever the modes.
#[test]
fn a_client_that_was_faster_than_the_connect_is_connected() {
    for options in [Persist::default(), Persist::keep_packets()] {
        let queue = Queue::new().unwrap();
        let name = pipe_name();
        let server = queue.register_with(pipe_server(&name, false), options).unwrap();
        let mut client = blocking_pipe_client(&name).unwrap();
        let connecting = connect_pipe(&server);
        assert!(queue.pending().is_empty() && !queue.running());
        assert_eq!(packets_on_port(&queue), 0);
        assert_eq!(queue.block_on(connecting).unwrap().0.unwrap(), 0);
        client.write_all(b"x").unwrap();
        assert_eq!(ended(&queue, read(&server, [0])).state, b"x");
    }
}

/// Pitfall 9: the call's own error, though the queue looks the handle up before and after it.
#[test]
fn a_call_that_fails_at_once_gives_its_own_error_and_the_buffer() {
    let queue = Queue::new().unwrap();
    let name = pipe_name();
    let mut server = blocking_pipe_server(&name, PIPE_ACCESS_OUTBOUND);
    let client = File::options().read(true).custom_flags(FILE_FLAG_OVERLAPPED).open(&name).unwrap();
    let client = queue.register(client).unwrap();
    let failed = ended(&queue, write(&client, *b"no"));
    assert_eq!(code(failed.result()), Some(ERROR_ACCESS_DENIED));
    assert_eq!((failed.bytes, failed.state), (0, b"no".to_vec()));
    assert!(queue.pending().is_empty() && !queue.running());
    // The handle is none the worse.
    server.write_all(b"yes").unwrap();
    assert_eq!(ended(&queue, read(&client, [0; 3])).state, b"yes");
}

/// Pitfall 10, scenario 42: the data had come when the read was cancelled.
#[test]
fn a_cancelled_read_that_has_data_gives_it() {
    let queue = Queue::new().unwrap();
    let (server, mut client) = byte_pipe(&queue);
    let reading = read(&server, [0; 8]);
    assert_eq!(queue.pending().len(), 1);
    client.write_all(b"data").unwrap();
    let Cancelled::Finished(end) = queue.block_on(reading.cancel()).unwrap() else {
        panic!("the data was lost");
    };
    assert_eq!((end.result().unwrap(), &end.state[..4]), (4, &b"data"[..]));
}

/// Scenarios 36 and 42: nothing had come, and nothing is lost.
#[test]
fn a_cancelled_read_without_data_leaves_it_to_the_next() {
    let queue = Queue::new().unwrap();
    let (server, mut client) = byte_pipe(&queue);
    let Cancelled::Cancelled(end) = queue.block_on(read(&server, [0; 8]).cancel()).unwrap() else {
        panic!("nothing can have come");
    };
    assert!(is_cancelled(&end.result().unwrap_err()));
    assert_eq!((end.bytes, end.state), (0, vec![0; 8]));
    client.write_all(b"data").unwrap();
    assert_eq!(&ended(&queue, read(&server, [0; 8])).state[..4], b"data");
}

/// Pitfall 11: the peer writes inside of the call that starts the read.
#[test]
fn an_operation_may_end_before_the_call_that_starts_it_returns() {
    for options in [Persist::default(), Persist::keep_packets()] {
        let queue = Queue::new().unwrap();
        let (server, client) = pipe_to_blocking_client(&queue, false, options);
        for round in 0..100_u32 {
            let reading = unsafe {
                submit(&server, vec![0; 4], |handle, state, overlapped| {
                    let outcome = call_read(handle, state, overlapped);
                    assert_eq!(outcome, Outcome::PENDING);
                    (&client).write_all(&round.to_le_bytes()).unwrap();
                    outcome
                })
            };
            assert_eq!(ended(&queue, reading).state, round.to_le_bytes());
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.foreign_packets(), 0);
        assert!(queue.pending().is_empty());
    }
}

/// Pitfall 9, scenario 7 in the explicit form: a continuation that owns both ends.
#[test]
fn a_parked_closure_may_close_what_it_waited_for() {
    let queue = Queue::new().unwrap();
    let name = pipe_name();
    let server = queue.register(pipe_server(&name, false)).unwrap();
    let mut overlapped = server.overlapped(()).unwrap();
    let started = unsafe {
        overlapped.start(&server, |handle, _, overlapped| {
            Outcome::from_bool(ConnectNamedPipe(handle, overlapped))
        })
    };
    started.unwrap();
    let ends = Rc::new(Cell::new(None));
    let close = Continuation::call({
        let ends = ends.clone();
        move || drop(ends.take())
    });
    let ticket = ioqueue::wait_with(close, &server, overlapped).unwrap();
    let client = queue.register(pipe_client(&name).unwrap()).unwrap();
    ends.set(Some((server, client)));
    queue.run().unwrap();
    assert!(ends.take().is_none() && queue.pending().is_empty());
    assert_eq!(ticket.take().unwrap().0.unwrap(), 0);
}
