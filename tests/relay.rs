#![cfg(windows)]
//! The relay of the examples, from end to end: the ends and failures that have to pass through it.

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::windows::io::{AsHandle, AsRawHandle, OwnedHandle};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ioqueue::Registered;
use support::{TempFile, ends, pipe_name, read, write};
use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::Threading::{TerminateProcess, WaitForSingleObject};

const PATIENCE: Duration = Duration::from_secs(30);

/// The relays that a test has started.
static RUNNING: Mutex<Vec<OwnedHandle>> = Mutex::new(Vec::new());

/// Runs one test at a time, and kills what it leaves behind.
///
/// One at a time, since a relay inherits the sockets that the standard library's `accept` makes, and
/// another test's connection would not end before it.
fn alone(body: impl FnOnce() + Send + 'static) {
    struct Killed;
    impl Drop for Killed {
        fn drop(&mut self) {
            for process in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // It fails when the relay has ended, which is as good.
                unsafe { TerminateProcess(process.as_raw_handle(), 1) };
            }
        }
    }
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _killed = Killed;
    ends(body);
}

/// A running relay.
struct Relay {
    process: Child,
    errors: Receiver<String>,
}

impl Relay {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(Self::program());
        Self::with(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()))
    }

    fn program() -> std::path::PathBuf {
        let this = std::env::current_exe().unwrap();
        let program = this.parent().unwrap().with_file_name("examples").join("relay.exe");
        assert!(program.exists(), "cargo build --example relay makes {}", program.display());
        program
    }

    fn with(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        RUNNING.lock().unwrap().push(process.as_handle().try_clone_to_owned().unwrap());
        let errors = std::io::BufReader::new(process.stderr.take().unwrap());
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in std::io::BufRead::lines(errors).map_while(Result::ok) {
                // For whoever reads why a test failed; nobody may be there to hear it otherwise.
                println!("{line}");
                let _ = sender.send(line);
            }
        });
        Self { process, errors: receiver }
    }

    fn line(&self) -> String {
        self.errors.recv_timeout(PATIENCE).expect("the relay says something")
    }

    /// Where it listens, as it says at its start.
    fn address(&self) -> String {
        let line = self.line();
        line.strip_prefix("relay: listening on ").expect(&line).to_owned()
    }

    /// How it ended, and what it still said.
    fn end(&mut self) -> (i32, String) {
        let handle = self.process.as_raw_handle();
        let waited = unsafe { WaitForSingleObject(handle, PATIENCE.as_millis() as u32) };
        assert_eq!(waited, WAIT_OBJECT_0, "the relay does not end");
        let said: Vec<String> = self.errors.iter().collect();
        (self.process.wait().unwrap().code().unwrap(), said.join("\n"))
    }
}

/// What is written here fails instead of waiting for ever.
fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn read_to_end(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Two relays with a named pipe between them, in front of `target`; the address to connect to.
fn chain(target: &str, once: &str) -> (Relay, Relay, String) {
    let pipe = pipe_name();
    let inner =
        Relay::start(&["--once", once, &format!("pipe-listen:{pipe}"), &format!("tcp:{target}")]);
    assert_eq!(inner.address(), pipe);
    let outer = Relay::start(&["--once", once, "tcp-listen:127.0.0.1:0", &format!("pipe:{pipe}")]);
    let address = outer.address();
    (inner, outer, address)
}

/// Bytes that tell where they come from.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|place| seed ^ (place as u8) ^ ((place >> 8) as u8)).collect()
}

// Scenarios 22, 23
#[test]
fn an_end_passes_through_a_pipe_alone_and_the_answer_comes_back() {
    alone(|| {
        let (listener, target) = listen();
        let (mut inner, mut outer, address) = chain(&target, "1");
        let mut client = connect(&address);
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(read_to_end(&server), b"question");
        server.write_all(b"answer, after the end").unwrap();
        drop(server);
        assert_eq!(read_to_end(&client), b"answer, after the end");
        for relay in [&mut outer, &mut inner] {
            let (code, said) = relay.end();
            assert_eq!(code, 0, "{said}");
            assert!(said.contains("1 done, 8 B forward, 21 B back"), "{said}");
        }
    });
}

// Scenarios 8, 9
#[test]
fn many_connections_at_once_keep_their_bytes_apart() {
    const CONNECTIONS: u8 = 12;
    const LENGTH: usize = 700_001;
    alone(|| {
        let (listener, target) = listen();
        let (mut inner, mut outer, address) = chain(&target, "12");
        let echoes = thread::spawn(move || {
            // All of them are open before any is answered.
            let streams: Vec<_> = (0..CONNECTIONS).map(|_| listener.accept().unwrap().0).collect();
            for mut stream in streams {
                thread::spawn(move || {
                    let bytes = read_to_end(&stream);
                    stream.write_all(&bytes).unwrap();
                });
            }
        });
        let clients = (0..CONNECTIONS).map(|seed| {
            let mut client = connect(&address);
            thread::spawn(move || {
                client.write_all(&pattern(seed, LENGTH)).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                assert!(read_to_end(client) == pattern(seed, LENGTH), "connection {seed}");
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.join().unwrap();
        }
        echoes.join().unwrap();
        assert_eq!((outer.end().0, inner.end().0), (0, 0));
    });
}

// Scenario 14
#[test]
fn a_target_that_refuses_ends_that_connection_and_not_the_listener() {
    alone(|| {
        let (listener, target) = listen();
        drop(listener);
        let mut relay =
            Relay::start(&["--once", "2", "tcp-listen:127.0.0.1:0", &format!("tcp:{target}")]);
        let address = relay.address();
        let refused = connect(&address).read(&mut [0]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
        let said = relay.line();
        assert!(said.contains(&target) && said.contains("10061"), "{said}");

        let listener = TcpListener::bind(&target).unwrap();
        let client = connect(&address);
        drop(listener.accept().unwrap());
        assert_eq!(read_to_end(&client), b"");
        drop(client);
        assert_eq!(relay.end().0, 1);
    });
}

fn ping(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"!").unwrap();
    to.read_exact(&mut [0]).unwrap();
}

// Scenario 15
#[test]
fn a_reset_is_passed_on_as_a_reset_either_way() {
    alone(|| {
        let (listener, target) = listen();
        let mut relay =
            Relay::start(&["--once", "2", "tcp-listen:127.0.0.1:0", &format!("tcp:{target}")]);
        let address = relay.address();
        for client_resets in [true, false] {
            let client = connect(&address);
            let (server, _) = listener.accept().unwrap();
            // Wine takes a reset that comes before the first receive for an end.
            ping(&client, &server);
            ping(&server, &client);
            let (resets, mut learns) =
                if client_resets { (client, server) } else { (server, client) };
            support::reset_when_closed(&resets);
            drop(resets);
            let error = learns.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        assert_eq!(relay.end().0, 1);
    });
}

// Pitfall 14, scenario 24
#[test]
fn clients_that_are_gone_before_they_are_served_do_not_end_the_listener() {
    alone(|| {
        let (listener, target) = listen();
        let relay = Relay::start(&["tcp-listen:127.0.0.1:0", &format!("tcp:{target}")]);
        let address = relay.address();
        for _ in 0..20 {
            let client = connect(&address);
            support::reset_when_closed(&client);
        }
        let mut client = connect(&address);
        client.write_all(b"still there").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // Not the standard library's accept, which Wine gives no address for what is reset by now.
        let listener = Registered::new(listener).unwrap();
        loop {
            let accepting = support::accept(&listener, support::tcp_socket());
            let (accepted, (socket, _)) = ioqueue::block_on(accepting).unwrap();
            let (mut server, mut bytes) = (TcpStream::from(socket), Vec::new());
            if accepted.is_ok() && server.read_to_end(&mut bytes).is_ok() && bytes == b"still there"
            {
                break;
            }
        }
    });
}

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

#[test]
fn a_file_is_sent_and_received_whole() {
    alone(|| {
        let contents = pattern(3, 1_234_567);
        let (input, output) = (TempFile::new(&contents), TempFile::new(b"what was there before"));
        let path = |file: &TempFile| format!("file:{}", file.path.display());
        let mut sender = Relay::start(&[&path(&input), "tcp-listen:127.0.0.1:0"]);
        let address = format!("tcp:{}", sender.address());
        let mut receiver = Relay::start(&[&address, &path(&output)]);
        assert_eq!((sender.end().0, receiver.end().0), (0, 0));
        assert!(std::fs::read(&output.path).unwrap() == contents);

        let mut onto_itself = Relay::start(&[&path(&input), &path(&input)]);
        assert_eq!(onto_itself.end().0, 1);
        assert!(std::fs::read(&input.path).unwrap() == contents, "it must not be emptied");
    });
}

#[test]
fn standard_input_and_output_are_a_side() {
    alone(|| {
        let (listener, target) = listen();
        let mut command = Command::new(Relay::program());
        command.args(["-", &format!("tcp:{target}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut relay = Relay::with(&mut command);
        let mut stdin = relay.process.stdin.take().unwrap();
        let stdout = relay.process.stdout.take().unwrap();
        let sending = thread::spawn(move || stdin.write_all(&pattern(5, 500_001)));
        let (mut server, _) = listener.accept().unwrap();
        assert!(read_to_end(&server) == pattern(5, 500_001));
        sending.join().unwrap().unwrap();
        server.write_all(&pattern(6, 300_001)).unwrap();
        drop(server);
        assert!(read_to_end(stdout) == pattern(6, 300_001));
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn what_nobody_reads_keeps_no_connection_open() {
    alone(|| {
        let (listener, target) = listen();
        let mut command = Command::new(Relay::program());
        command.args(["--linger", "0.3", &format!("tcp:{target}"), "-"]);
        let mut relay = Relay::with(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (mut server, _) = listener.accept().unwrap();
        drop(relay.process.stdout.take());
        while server.write_all(b"is anybody there?").is_ok() {}
        assert_eq!(relay.end().0, 0);
    });
}

#[test]
fn wrong_arguments_are_explained() {
    alone(|| {
        for (arguments, why) in [
            (&[][..], "FROM and TO are needed"),
            (&["-"], "FROM and TO are needed"),
            (&["-", "-"], "only one side can be -"),
            (&["-", "tcp:127.0.0.1"], "not HOST:PORT"),
            (&["-", "tcp:127.0.0.1:65536"], "not HOST:PORT"),
            (&["-", "socket:x"], "socket:x: the kind is not one of those below"),
            (&["-", "pipe:"], "nothing after the colon"),
            (&["--once", "0", "-", "pipe:x"], "--once needs a number"),
            (&["--once", "2", "-", "pipe:x"], "--once over 1 needs a FROM that listens"),
            (&["--linger", "soon", "-", "pipe:x"], "--linger needs a number of seconds"),
            (&["--twice", "-", "pipe:x"], "there is no option --twice"),
        ] {
            let (code, said) = Relay::start(arguments).end();
            assert_eq!(code, 2, "{arguments:?}: {said}");
            assert!(said.contains(why) && said.contains("usage: relay"), "{arguments:?}: {said}");
        }
    });
}
