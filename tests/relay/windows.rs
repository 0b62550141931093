//! What only Windows has: named pipes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use ioqueue::Registered;

use super::support::{self, pipe_name, read, write};
use super::{Relay, alone, connect, listen, pattern, read_to_end};

pub use super::support::{pipe_name as local_name, reset_when_closed};

/// The kernels that a relay can work on.
pub const KERNELS: &[&str] = &["iocp"];

/// What a kind of address is called that is opened, and one that listens.
pub const LOCAL: &str = "pipe";
pub const LISTEN: &str = "pipe-listen";

/// What the error of a refused connect has in its message.
pub const REFUSED: &str = "10061";

#[test]
fn pipe_clients_that_are_gone_before_they_are_served_do_not_end_the_listener() {
    alone(|| {
        let (listener, target) = listen();
        let pipe = pipe_name();
        let relay = Relay::start(&[&format!("pipe-listen:{pipe}"), &format!("tcp:{target}")]);
        relay.address();
        for _ in 0..20 {
            // Where all instances are taken there is nobody to leave.
            drop(support::blocking_pipe_client(&pipe));
        }
        let mut client = client_of(&pipe);
        client.write_all(b"still there").unwrap();
        drop(client);
        loop {
            let (server, _) = listener.accept().unwrap();
            if read_to_end(server) == b"still there" {
                break;
            }
        }
    });
}

/// A client like any other program's: it knows nothing of messages.
fn client_of(pipe: &str) -> File {
    loop {
        match support::blocking_pipe_client(pipe) {
            Ok(client) => return client,
            // Windows' "all pipe instances are busy".
            Err(error) if error.raw_os_error() == Some(231) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

// Scenario 1
#[test]
fn a_pipe_client_reads_an_end_as_zero_bytes_and_may_go_on_writing() {
    alone(|| {
        let (listener, target) = listen();
        let pipe = pipe_name();
        let mut relay = Relay::start(&[
            "--once",
            "1",
            &format!("pipe-listen:{pipe}"),
            &format!("tcp:{target}"),
        ]);
        relay.address();
        let mut client = client_of(&pipe);
        client.write_all(b"first").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"all there is").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&client), b"all there is");
        client.write_all(b", then more").unwrap();
        drop(client);
        assert_eq!(read_to_end(server), b"first, then more");
        assert_eq!(relay.end().0, 0);
    });
}

// Scenario 2
#[test]
fn a_pipe_client_that_goes_without_reading_everything_ends_its_way_well() {
    alone(|| {
        let (listener, target) = listen();
        let pipe = pipe_name();
        let pipe_side = format!("pipe-listen:{pipe}");
        let mut relay = Relay::start(&["--once", "1", &pipe_side, &format!("tcp:{target}")]);
        relay.address();
        let mut client = client_of(&pipe);
        client.write_all(b"enough").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // More than the pipe and the sockets on the way take in.
        let mut writing = server.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writing.write_all(&pattern(9, 32 << 20))?;
            writing.shutdown(Shutdown::Write)
        });
        client.read_exact(&mut [0]).unwrap();
        drop(client);
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"enough");
        writing.join().unwrap().unwrap();
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn on_a_pipe_of_bytes_the_end_is_passed_by_closing_it_when_it_is_quiet() {
    alone(|| {
        let pipe = pipe_name();
        let server = Registered::new(support::pipe_server(&pipe, false)).unwrap();
        let mut relay = Relay::start(&[
            "--once",
            "1",
            "--linger",
            "0.3",
            "tcp-listen:127.0.0.1:0",
            &format!("pipe:{pipe}"),
        ]);
        let mut client = connect(&relay.address());
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        ioqueue::block_on(async {
            support::connect_pipe(&server).await.0.unwrap();
            let (count, bytes) = read(&server, [0; 64]).await;
            assert_eq!(&bytes[..count.unwrap() as usize], b"question");
            write(&server, *b"answer").await.0.unwrap();
            let end = read(&server, [0; 64]).exact().await;
            assert!(end.status.is_end_of_file(), "{end:?}");
        })
        .unwrap();
        assert_eq!(read_to_end(client), b"answer");
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn a_slow_reader_gets_the_whole_answer_though_only_closing_passes_the_end_on() {
    const ANSWER: usize = 16 << 20;
    alone(|| {
        let pipe = pipe_name();
        let server = Registered::new(support::pipe_server(&pipe, false)).unwrap();
        let to = format!("pipe:{pipe}");
        let mut relay =
            Relay::start(&["--linger", "0.1", "--once", "1", "tcp-listen:127.0.0.1:0", &to]);
        let client = connect(&relay.address());
        let answer = pattern(2, ANSWER);
        ioqueue::block_on(async {
            support::connect_pipe(&server).await.0.unwrap();
            let mut writing = write(&server, answer.clone());
            client.shutdown(Shutdown::Write).unwrap();
            // Long enough to be taken for quiet. Nobody reads, so it cannot end well meanwhile.
            let early = ioqueue::timeout(Duration::from_secs(1), &mut writing).await;
            assert_eq!(early.unwrap_err().kind(), ErrorKind::TimedOut);
            let reading = thread::spawn(move || read_to_end(client));
            assert_eq!(writing.await.0.unwrap() as usize, ANSWER);
            drop(server);
            assert!(reading.join().unwrap() == answer);
        })
        .unwrap();
        assert_eq!(relay.end().0, 0);
    });
}

// Scenario 11
#[test]
fn a_message_longer_than_the_relays_buffer_arrives_whole() {
    alone(|| {
        let pipe = pipe_name();
        let server = Registered::new(support::pipe_server(&pipe, true)).unwrap();
        let mut relay =
            Relay::start(&["--once", "1", "tcp-listen:127.0.0.1:0", &format!("pipe:{pipe}")]);
        let client = connect(&relay.address());
        let receiving = thread::spawn(move || read_to_end(client));
        ioqueue::block_on(async {
            support::connect_pipe(&server).await.0.unwrap();
            write(&server, pattern(7, 1_000_001)).await.0.unwrap();
        })
        .unwrap();
        drop(server);
        assert!(receiving.join().unwrap() == pattern(7, 1_000_001));
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn a_pipe_whose_instances_are_taken_is_waited_for() {
    alone(|| {
        let pipe = pipe_name();
        let taken = support::pipe_server(&pipe, false);
        let _client = support::blocking_pipe_client(&pipe).unwrap();
        let mut relay =
            Relay::start(&["--once", "1", "tcp-listen:127.0.0.1:0", &format!("pipe:{pipe}")]);
        let mut client = connect(&relay.address());
        client.write_all(b"patient").unwrap();
        let free = Registered::new(support::pipe_server(&pipe, false)).unwrap();
        ioqueue::block_on(async {
            support::connect_pipe(&free).await.0.unwrap();
            let (count, bytes) = read(&free, [0; 64]).await;
            assert_eq!(&bytes[..count.unwrap() as usize], b"patient");
        })
        .unwrap();
        drop((free, taken));
        assert_eq!(read_to_end(client), b"");
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn two_listeners_are_paired_up() {
    alone(|| {
        let pipe = pipe_name();
        let mut relay = Relay::start(&[
            "--once",
            "3",
            "tcp-listen:127.0.0.1:0",
            &format!("pipe-listen:{pipe}"),
        ]);
        assert_eq!(relay.address(), pipe);
        let address = relay.address();
        // Those of one side may all come first.
        let pipes: Vec<File> = (0..3).map(|_| client_of(&pipe)).collect();
        let streams: Vec<TcpStream> = (0..3).map(|_| connect(&address)).collect();
        for (number, mut stream) in streams.iter().enumerate() {
            stream.write_all(&[number as u8]).unwrap();
        }
        let mut came = Vec::new();
        for mut pipe in pipes {
            let mut byte = [0];
            pipe.read_exact(&mut byte).unwrap();
            came.push(byte[0]);
        }
        came.sort_unstable();
        assert_eq!(came, [0, 1, 2]);
        drop(streams);
        assert_eq!(relay.end().0, 0);
    });
}
