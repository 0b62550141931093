//! `cargo xtask demo`: a file goes through two relays, over TCP and a Unix socket or a named pipe, and comes out
//! whole.
//!
//! ```text
//! eight senders -> TCP -> relay A -> Unix socket or named pipe -> relay B -> TCP -> the sink
//! ```
//!
//! Once on each kernel of this system, and once with the relays for Windows under Wine. Senders and sink are
//! native threads in here. Each connection sends its slice after an 8-byte header with the slice's number, then
//! shuts its side down.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::shell::{self, Result, step};
use crate::wine::{self, Prefix};
use crate::{cross, setup};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
const CONNECTIONS: u64 = 8;
const SLICE: u64 = SIZE / CONNECTIONS;
/// The header of a connection that only tries whether the relays are ready.
const PROBE: u64 = u64::MAX;
/// The longest that nothing at all may arrive.
const PATIENCE: Duration = Duration::from_secs(60);

type Hash = [u8; 32];

pub fn demo(arguments: &[String]) -> Result<ExitCode> {
    let (mut native, mut wine) = (true, !cfg!(windows));
    for argument in arguments {
        match argument.as_str() {
            "--native" => wine = false,
            "--wine" => native = false,
            other => return Err(format!("{other} is not known here").into()),
        }
    }
    if !native && !wine {
        return Err("--native and --wine together leave nothing to show".into());
    }
    let folder = shell::target_dir().join("demo");
    fs::create_dir_all(&folder)?;
    let start = Instant::now();
    let input = folder.join("input");
    let input = Input { hash: write_input(&input)?, path: input };
    println!(
        "a file of {} MiB, SHA-256 {} ({:.1} s)",
        SIZE / MIB,
        hex(&input.hash),
        start.elapsed().as_secs_f64()
    );

    if native {
        let program = build(shell::native_cargo().arg("build"), shell::target_dir())?;
        for &kernel in KERNELS {
            println!("\nnatively, on {kernel}:");
            let stage = Stage::new(&folder, &program, Place::Native(kernel));
            match stage.works() {
                Ok(()) => stage.show(&input)?,
                Err(why) => println!("skipped: {why}"),
            }
        }
    }
    match setup::possible() {
        Err(why) if wine && !native => return Err(why),
        Err(why) if wine => println!("\nunder Wine: skipped: {why}"),
        Ok(()) if wine => {
            let mut cargo = cross::prepare("build", None)?;
            let target = cargo.get_envs().find(|(name, _)| *name == "CARGO_TARGET_DIR");
            let target = target.and_then(|(_, value)| value).map(PathBuf::from);
            let target = target.unwrap_or_else(shell::target_dir).join(cross::WINDOWS);
            let program = build(&mut cargo, target)?.with_extension("exe");
            println!("\nfor Windows, under Wine:");
            let prefix = Place::under_wine()?;
            Stage::new(&folder, &program, prefix).show(&input)?;
        }
        _ => {}
    }
    fs::remove_dir_all(&folder)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the relay; answers with where it is then.
fn build(cargo: &mut Command, target: PathBuf) -> Result<PathBuf> {
    step("building the relay", cargo.args(["--release", "--example", "relay"]))?;
    let name = format!("relay{}", std::env::consts::EXE_SUFFIX);
    Ok(target.join("release/examples").join(name))
}

/// What is sent.
struct Input {
    path: PathBuf,
    hash: Hash,
}

/// The kernels of this system, as `IOQUEUE_KERNEL` names them.
const KERNELS: &[&str] = if cfg!(windows) {
    &["iocp"]
} else if cfg!(target_os = "linux") {
    &["uring", "readiness"]
} else {
    &["readiness"]
};

/// Where the relays run.
enum Place {
    /// Here, on this kernel.
    Native(&'static str),
    /// With the prefix's lock, since the demo ends its server.
    Wine { prefix: Prefix, _lock: File },
}

impl Place {
    fn under_wine() -> Result<Place> {
        let wine = wine::ensure()?;
        let lock = wine.lock("demo.lock")?;
        let prefix = wine.prefix("demo")?;
        prefix.keep_server()?;
        Ok(Place::Wine { prefix, _lock: lock })
    }
}

/// The program, where it runs, and where its files are.
struct Stage {
    program: PathBuf,
    place: Place,
    folder: PathBuf,
    output: PathBuf,
}

impl Stage {
    fn new(folder: &Path, program: &Path, place: Place) -> Stage {
        let (folder, output) = (folder.to_path_buf(), folder.join("output"));
        Stage { program: program.to_path_buf(), place, folder, output }
    }

    fn command(&self) -> Command {
        match &self.place {
            Place::Native(kernel) => {
                let mut command = Command::new(&self.program);
                command.env("IOQUEUE_KERNEL", kernel);
                command
            }
            Place::Wine { prefix, .. } => {
                let mut command = prefix.command();
                command.arg(&self.program);
                command
            }
        }
    }

    /// Whether this system gives the relay its kernel.
    fn works(&self) -> Result {
        let empty = self.folder.join("empty");
        File::create(&empty)?;
        let sides = [&empty, &self.output].map(|path| format!("file:{}", path.display()));
        shell::output(self.command().args(sides)).map(drop)
    }

    /// What stands between the relays: to listen at, and to connect to.
    fn middle(&self) -> (String, String) {
        let name = format!("ioqueue-demo-{}", std::process::id());
        if cfg!(windows) || matches!(self.place, Place::Wine { .. }) {
            return (format!("pipe-listen:{name}"), format!("pipe:{name}"));
        }
        let path = std::env::temp_dir().join(name);
        (format!("unix-listen:{}", path.display()), format!("unix:{}", path.display()))
    }

    fn show(&self, input: &Input) -> Result {
        let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let entrance = free_port()?;
        let (listen, connect) = self.middle();
        let b = self.relay("B", &listen, &format!("tcp:{}", sink.local_addr()?))?;
        let a = self.relay("A", &format!("tcp-listen:127.0.0.1:{entrance}"), &connect)?;
        let mut relays = [a, b];
        let passed = pass_through(input, &self.output, sink, entrance, &mut relays);
        if passed.is_err() {
            relays.iter().for_each(Relay::print_log);
        }
        let seconds = passed?;
        for relay in &mut relays {
            let how = relay.end()?;
            println!("relay {} {how}: {}", relay.name, relay.last_line());
        }
        println!(
            "{} MiB over {CONNECTIONS} connections in {seconds:.1} s: {:.0} MiB/s",
            SIZE / MIB,
            (SIZE / MIB) as f64 / seconds
        );
        let received = hash_of(&self.output)?;
        println!("what arrived: SHA-256 {}", hex(&received));
        if input.hash != received {
            return Err(format!("not what was sent: compare {}", self.folder.display()).into());
        }
        println!("the same, byte for byte");
        Ok(())
    }

    fn relay(&self, name: &'static str, from: &str, to: &str) -> Result<Relay> {
        println!("relay {name}: {from} -> {to}");
        let log = self.folder.join(format!("relay-{name}.log"));
        let file = File::create(&log)?;
        let mut command = self.command();
        command.args([from, to]).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Relay { name, log, process: command.spawn()? })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Place::Wine { prefix, .. } = &self.place {
            prefix.end_server();
        }
    }
}

/// A running relay, killed when it is dropped before it was ended.
struct Relay {
    name: &'static str,
    log: PathBuf,
    process: Child,
}

impl Relay {
    fn print_log(&self) {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        eprintln!("what relay {} printed:\n{}", self.name, log.trim_end());
    }

    /// What it said at its end.
    fn last_line(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or_default().trim_start_matches("relay: ").to_string()
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Asks it to end as Ctrl-C does (Wine turns SIGINT into that), then, or on Windows at once, kills it.
    fn end(&mut self) -> Result<&'static str> {
        if cfg!(unix) {
            shell::run(Command::new("kill").arg("-INT").arg(self.process.id().to_string()))?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(5) {
                if self.has_ended()? {
                    return Ok("ended when it was asked to");
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.process.kill()?;
        self.process.wait()?;
        Ok("was killed")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It fails when the relay has ended, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the threads tell the main one.
enum Event {
    /// A probe came out at the sink: the relays are ready.
    Probe,
    /// This slice came out at the sink, all of it.
    Received(u64),
    /// This slice's sender saw its connection end as it should.
    Ended(u64),
}

/// What the threads share: where to put what arrives, how much has, and whom to tell.
#[derive(Clone)]
struct Shared {
    output: PathBuf,
    received: Arc<AtomicU64>,
    events: Sender<std::result::Result<Event, String>>,
}

impl Shared {
    /// Does `work` on a thread of its own, which a failing demo leaves behind: the process ends then.
    fn start(
        &self,
        what: String,
        work: impl FnOnce(&Shared) -> Result<Option<Event>> + Send + 'static,
    ) {
        let shared = self.clone();
        thread::spawn(move || {
            let event = match work(&shared) {
                Ok(None) => return,
                Ok(Some(event)) => Ok(event),
                Err(error) => Err(format!("{what}: {error}")),
            };
            // Nobody listens any more once the demo has failed.
            let _ = shared.events.send(event);
        });
    }
}

/// Sends the file in and writes down what comes out; answers with the seconds it took.
fn pass_through(
    input: &Input,
    output: &Path,
    sink: TcpListener,
    entrance: u16,
    relays: &mut [Relay],
) -> Result<f64> {
    File::create(output)?.set_len(SIZE)?;
    let (events, arrivals) = mpsc::channel();
    let shared = Shared { output: output.to_path_buf(), received: Arc::default(), events };
    shared.start("the sink".into(), move |shared| accept(&sink, shared));
    wait_until_ready(entrance, &arrivals, relays)?;
    println!("the relays are ready, as one connection has shown; {CONNECTIONS} more at once ...");
    let start = Instant::now();
    for slice in 0..CONNECTIONS {
        let input = input.path.clone();
        shared.start(format!("sending slice {slice}"), move |_| send(&input, entrance, slice));
    }
    wait_until_done(&shared.received, &arrivals, relays, start)
}

fn wait_until_ready(
    entrance: u16,
    arrivals: &Receiver<std::result::Result<Event, String>>,
    relays: &mut [Relay],
) -> Result {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        check_alive(relays)?;
        let probe = TcpStream::connect((Ipv4Addr::LOCALHOST, entrance)).and_then(|mut probe| {
            probe.write_all(&PROBE.to_le_bytes())?;
            probe.shutdown(Shutdown::Write)?;
            Ok(probe)
        });
        let Ok(_probe) = probe else {
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if let Ok(event) = arrivals.recv_timeout(Duration::from_secs(1)) {
            event?;
            return Ok(());
        }
    }
    Err(format!("the relays let nothing through within {} s", PATIENCE.as_secs()).into())
}

fn wait_until_done(
    received: &AtomicU64,
    arrivals: &Receiver<std::result::Result<Event, String>>,
    relays: &mut [Relay],
    start: Instant,
) -> Result<f64> {
    let (mut slices, mut ended, mut seconds) = (BTreeSet::new(), BTreeSet::new(), 0.0);
    let (mut seen, mut seen_at, mut printed_at) = (0, Instant::now(), Instant::now());
    while slices.len() as u64 != CONNECTIONS || ended.len() as u64 != CONNECTIONS {
        match arrivals.recv_timeout(Duration::from_millis(200)) {
            Ok(Ok(Event::Probe)) => {}
            Ok(Ok(Event::Received(slice))) => {
                if !slices.insert(slice) {
                    return Err(format!("slice {slice} arrived twice").into());
                }
                (seconds, seen_at) = (start.elapsed().as_secs_f64(), Instant::now());
            }
            Ok(Ok(Event::Ended(slice))) => drop(ended.insert(slice)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => check_alive(relays)?,
        }
        let now = received.load(Ordering::Relaxed);
        if now != seen {
            (seen, seen_at) = (now, Instant::now());
        } else if seen_at.elapsed() > PATIENCE {
            let arrived = format!("{} of {} MiB arrived", now / MIB, SIZE / MIB);
            return Err(format!("{arrived}, then nothing for {} s", PATIENCE.as_secs()).into());
        }
        if printed_at.elapsed() > Duration::from_secs(1) {
            printed_at = Instant::now();
            let rate = (now / MIB) as f64 / start.elapsed().as_secs_f64();
            println!("  {:>3} of {} MiB, {rate:.0} MiB/s", now / MIB, SIZE / MIB);
        }
    }
    Ok(seconds)
}

fn check_alive(relays: &mut [Relay]) -> Result {
    for relay in relays {
        if let Some(status) = relay.process.try_wait()? {
            return Err(format!("relay {} has ended: {status}", relay.name).into());
        }
    }
    Ok(())
}

/// Sends one slice of the file, shuts its side down, and reads to the end of what comes back: nothing.
fn send(input: &Path, entrance: u16, slice: u64) -> Result<Option<Event>> {
    let mut file = File::open(input)?;
    file.seek(SeekFrom::Start(slice * SLICE))?;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, entrance))?;
    stream.write_all(&slice.to_le_bytes())?;
    std::io::copy(&mut file.take(SLICE), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(Some(Event::Ended(slice))),
        _ => Err("something came back".into()),
    }
}

fn accept(sink: &TcpListener, shared: &Shared) -> Result<Option<Event>> {
    loop {
        let (stream, _) = sink.accept()?;
        shared.start("receiving".into(), move |shared| receive(stream, shared));
    }
}

/// Writes what one connection brings to its place in the output.
fn receive(mut stream: TcpStream, shared: &Shared) -> Result<Option<Event>> {
    let mut header = [0; 8];
    match stream.read_exact(&mut header) {
        // A probe that came before the relays were ready.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let slice = u64::from_le_bytes(header);
    if slice == PROBE {
        return Ok(Some(Event::Probe));
    }
    if slice >= CONNECTIONS {
        return Err(format!("a header that nobody sent: {slice:#x}").into());
    }
    let mut output = File::options().write(true).open(&shared.output)?;
    output.seek(SeekFrom::Start(slice * SLICE))?;
    let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer)? as u64 {
            0 if total == SLICE => return Ok(Some(Event::Received(slice))),
            0 => return Err(format!("slice {slice} ended after {total} of {SLICE} bytes").into()),
            more if total + more > SLICE => return Err(format!("slice {slice} is too long").into()),
            more => {
                output.write_all(&buffer[..more as usize])?;
                total += more;
                shared.received.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

/// Writes the file, which looks random but is the same each time, and answers with its hash.
fn write_input(path: &Path) -> Result<Hash> {
    let mut file = File::create(path)?;
    let mut hasher = Sha256::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; MIB as usize];
    for _ in 0..SIZE / MIB {
        for word in block.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        hasher.update(&block);
        file.write_all(&block)?;
    }
    Ok(hasher.finalize().into())
}

fn hash_of(path: &Path) -> Result<Hash> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; MIB as usize];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&block[..length]),
        }
    }
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A port that is free now; nobody else is given it so soon.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
