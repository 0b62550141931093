//! The relay of the examples, from end to end: the ends and failures that have to pass through it.
//!
//! On Unix each test runs on every kernel.

#[cfg(windows)]
mod support;
#[cfg_attr(unix, path = "relay/unix.rs")]
#[cfg_attr(windows, path = "relay/windows.rs")]
mod system;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ioqueue::Registered;
use system::{KERNELS, LISTEN, LOCAL, REFUSED, local_name, reset_when_closed};

const PATIENCE: Duration = Duration::from_secs(30);

/// The relays that a test has started.
static RUNNING: Mutex<Vec<Arc<Mutex<Child>>>> = Mutex::new(Vec::new());

/// The kernel that they are to work on.
static KERNEL: Mutex<&str> = Mutex::new("");

/// Runs one test at a time, on each kernel, and kills what it leaves behind.
///
/// One at a time, since on Windows a relay inherits the sockets that the standard library's `accept`
/// makes, and another test's connection would not end before it.
fn alone(body: impl FnOnce() + Copy + Send + 'static) {
    struct Killed;
    impl Drop for Killed {
        fn drop(&mut self) {
            for process in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
                // It fails when the relay has ended, which is as good.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for kernel in KERNELS {
        if *kernel == "uring" {
            let asked = ioqueue::Queue::builder().kernel(ioqueue::KernelKind::Uring).build();
            if let Err(error) = asked {
                eprintln!("SKIPPED: this system gives no io_uring: {error}");
                continue;
            }
        }
        println!("on the kernel {kernel}:");
        *KERNEL.lock().unwrap_or_else(PoisonError::into_inner) = kernel;
        let _killed = Killed;
        ends(body);
    }
}

/// Runs `body` on a thread of its own and fails when it has not ended after a while.
fn ends(body: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        body();
        let _ = sender.send(());
    });
    match receiver.recv_timeout(3 * PATIENCE) {
        Err(RecvTimeoutError::Timeout) => panic!("it does not end"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// A running relay.
struct Relay {
    process: Arc<Mutex<Child>>,
    errors: Receiver<String>,
}

impl Relay {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(Self::program());
        Self::with(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()))
    }

    fn program() -> PathBuf {
        let this = std::env::current_exe().unwrap();
        let name = format!("relay{}", std::env::consts::EXE_SUFFIX);
        let program = this.parent().unwrap().with_file_name("examples").join(name);
        assert!(program.exists(), "cargo build --example relay makes {}", program.display());
        program
    }

    fn with(command: &mut Command) -> Self {
        command.env("IOQUEUE_KERNEL", *KERNEL.lock().unwrap());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let errors = std::io::BufReader::new(process.stderr.take().unwrap());
        let process = Arc::new(Mutex::new(process));
        RUNNING.lock().unwrap().push(Arc::clone(&process));
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
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.process.lock().unwrap().try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the relay does not end");
            thread::sleep(Duration::from_millis(2));
        };
        let said: Vec<String> = self.errors.iter().collect();
        (status.code().expect("an exit code"), said.join("\n"))
    }
}

/// A file that is deleted when this is dropped.
struct TempFile {
    path: PathBuf,
}

impl TempFile {
    fn new(contents: &[u8]) -> Self {
        let path = Self::unique_path();
        std::fs::write(&path, contents).unwrap();
        Self { path }
    }

    fn unique_path() -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        std::env::temp_dir().join(format!("ioqueue-relay-{process}-{number}"))
    }

    /// The file as a side of a relay.
    fn side(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
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

/// Two relays with a Unix socket or a named pipe between them, in front of `target`; the address to
/// connect to.
fn chain(target: &str, once: &str) -> (Relay, Relay, String) {
    let name = local_name();
    let (listen, open) = (format!("{LISTEN}:{name}"), format!("{LOCAL}:{name}"));
    let inner = Relay::start(&["--once", once, &listen, &format!("tcp:{target}")]);
    assert_eq!(inner.address(), name);
    let outer = Relay::start(&["--once", once, "tcp-listen:127.0.0.1:0", &open]);
    let address = outer.address();
    (inner, outer, address)
}

/// Bytes that tell where they come from.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|place| seed ^ (place as u8) ^ ((place >> 8) as u8)).collect()
}

// Scenarios 22, 23
#[test]
fn an_end_passes_alone_and_the_answer_comes_back() {
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
        assert!(said.contains(&target) && said.contains(REFUSED), "{said}");

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
            reset_when_closed(&resets);
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
            reset_when_closed(&client);
        }
        let mut client = connect(&address);
        client.write_all(b"still there").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // Not the standard library's accept, which Wine gives no address for what is reset by now.
        let listener = Registered::new(listener).unwrap();
        loop {
            let Ok((socket, _)) = ioqueue::block_on(listener.accept()).unwrap() else { continue };
            let (mut server, mut bytes) = (TcpStream::from(socket), Vec::new());
            if server.read_to_end(&mut bytes).is_ok() && bytes == b"still there" {
                break;
            }
        }
    });
}

#[test]
fn a_file_is_sent_and_received_whole() {
    alone(|| {
        let contents = pattern(3, 1_234_567);
        let (input, output) = (TempFile::new(&contents), TempFile::new(b"what was there before"));
        let mut sender = Relay::start(&[&input.side(), "tcp-listen:127.0.0.1:0"]);
        let address = format!("tcp:{}", sender.address());
        let mut receiver = Relay::start(&[&address, &output.side()]);
        assert_eq!((sender.end().0, receiver.end().0), (0, 0));
        assert!(std::fs::read(&output.path).unwrap() == contents);

        let mut onto_itself = Relay::start(&[&input.side(), &input.side()]);
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
        let mut stdin = relay.process.lock().unwrap().stdin.take().unwrap();
        let stdout = relay.process.lock().unwrap().stdout.take().unwrap();
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
        drop(relay.process.lock().unwrap().stdout.take());
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
            (&["-", &format!("{LOCAL}:")], "nothing after the colon"),
            (&["--once", "0", "-", "tcp:a:1"], "--once needs a number"),
            (&["--once", "2", "-", "tcp:a:1"], "--once over 1 needs a FROM that listens"),
            (&["--linger", "soon", "-", "tcp:a:1"], "--linger needs a number of seconds"),
            (&["--twice", "-", "tcp:a:1"], "there is no option --twice"),
        ] {
            let (code, said) = Relay::start(arguments).end();
            assert_eq!(code, 2, "{arguments:?}: {said}");
            assert!(said.contains(why) && said.contains("usage: relay"), "{arguments:?}: {said}");
        }
    });
}

// Scenario 3
#[test]
fn a_lot_goes_both_ways_at_once() {
    const BLOCKS: usize = 160;
    const BLOCK: usize = 1 << 20;
    /// Sends so many blocks and its end, and compares what comes.
    fn talk(mut stream: TcpStream, ours: u8, theirs: u8) {
        // Each block is a little further on in the pattern.
        let blocks = |seed| {
            let pattern = pattern(seed, BLOCK + BLOCKS);
            (0..BLOCKS).map(move |number| pattern[number..number + BLOCK].to_vec())
        };
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            for block in blocks(ours) {
                let mut rest = &block[..];
                while !rest.is_empty() {
                    // 0 is Wine's answer to a blocking send during which the other side's end comes.
                    let written = writer.write(rest).unwrap();
                    rest = &rest[written..];
                }
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut bytes = vec![0; BLOCK];
        for (number, block) in blocks(theirs).enumerate() {
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == block, "block {number}");
        }
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        writing.join().unwrap();
    }
    alone(|| {
        let (listener, target) = listen();
        let (mut inner, mut outer, address) = chain(&target, "1");
        let client = connect(&address);
        let (server, _) = listener.accept().unwrap();
        let talking = thread::spawn(move || talk(server, 0x5A, 0xA5));
        talk(client, 0xA5, 0x5A);
        talking.join().unwrap();
        for relay in [&mut outer, &mut inner] {
            let (code, said) = relay.end();
            assert_eq!(code, 0, "{said}");
            assert!(said.contains("1 done, 160.0 MiB forward, 160.0 MiB back"), "{said}");
        }
    });
}

#[test]
fn a_file_that_is_not_there_is_named_in_the_error() {
    alone(|| {
        let missing = TempFile::unique_path();
        let (_listener, target) = listen();
        let from = format!("file:{}", missing.display());
        let (code, said) = Relay::start(&[&from, &format!("tcp:{target}")]).end();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(missing.to_str().unwrap()) && said.contains("os error 2"), "{said}");
    });
}

#[test]
fn progress_is_told_when_asked_for() {
    alone(|| {
        let (listener, target) = listen();
        let mut relay = Relay::start(&[
            "--progress",
            "--once",
            "1",
            "tcp-listen:127.0.0.1:0",
            &format!("tcp:{target}"),
        ]);
        let mut client = connect(&relay.address());
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"some").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        let said = relay.line();
        assert!(said.starts_with("1 open, 0 done, 4 B forward, 0 B back, "), "{said}");
        drop((client, server));
        assert_eq!(relay.end().0, 0);
    });
}
