//! What cargo starts built programs with: Wine where they are for Windows, and a time limit.

use std::ffi::OsStr;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::shell::Result;
use crate::wine;

/// The commands of xtask's that cargo is told to use; not for people.
pub const UNDER_WINE: &str = "run-under-wine";
pub const NATIVELY: &str = "run-natively";

/// How long a program may take, in seconds; without it, as long as it likes.
pub const LIMIT: &str = "IOQUEUE_TIME_LIMIT";

/// The exit code of what took too long, as timeout(1) has it.
const TOOK_TOO_LONG: u8 = 124;

/// Makes `cargo` start what it built for the given target (a triple, or a `cfg`) with `command`.
pub fn install(cargo: &mut Command, target: &str, command: &str, limit: Option<u32>) -> Result {
    let runner = [std::env::current_exe()?.display().to_string(), command.to_string()];
    cargo.arg("--config").arg(format!("target.'{target}'.runner={runner:?}"));
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        // Wine's server is one thread: more than a few tests at once only wait for it.
        let threads = thread::available_parallelism()?.get().min(4);
        cargo.env("RUST_TEST_THREADS", threads.to_string());
    }
    if let (Some(limit), None) = (limit, std::env::var_os(LIMIT)) {
        cargo.env(LIMIT, limit.to_string());
    }
    Ok(())
}

/// Runs the program in `arguments`, under Wine or not, and answers with its exit code.
pub fn run(how: &str, arguments: &[String]) -> Result<ExitCode> {
    let (program, rest) = arguments.split_first().ok_or("which program?")?;
    let name = file_name(program);
    // Tests that use up a resource: one at a time, with a Windows of their own.
    let exhausting = name.starts_with("exhaust");
    let mut _lock = None;
    let mut command = if how == UNDER_WINE {
        let wine = wine::already_there()?;
        if exhausting {
            _lock = Some(wine.lock("exhaust.lock")?);
        }
        let prefix = wine.prefix(if exhausting { "exhaust" } else { "tests" })?;
        prefix.keep_server()?;
        let mut command = prefix.command();
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(rest);
    if exhausting {
        command.env("RUST_TEST_THREADS", "1");
    }
    let limit = match std::env::var(LIMIT) {
        Ok(seconds) => Some(Duration::from_secs(seconds.parse()?)),
        Err(_) => None,
    };
    run_within(&mut command, limit, &name)
}

fn file_name(program: &str) -> String {
    Path::new(program).file_name().unwrap_or(OsStr::new(program)).to_string_lossy().into_owned()
}

fn run_within(command: &mut Command, limit: Option<Duration>, name: &str) -> Result<ExitCode> {
    keep_from_terminal(command);
    let mut child = command.spawn()?;
    let copies = [
        copy(child.stdout.take(), std::io::stdout()),
        copy(child.stderr.take(), std::io::stderr()),
    ];
    let Some(status) = wait(&mut child, limit)? else {
        child.kill()?;
        child.wait()?;
        eprintln!(
            "xtask: {name} has not ended within {} s: killed",
            limit.unwrap_or_default().as_secs()
        );
        return Ok(ExitCode::from(TOOK_TOO_LONG));
    };
    // A process that the program left behind may keep the streams open: give the rest a moment, no more.
    let patience = Instant::now() + Duration::from_secs(1);
    while copies.iter().flatten().any(|copy| !copy.is_finished()) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(match status.code() {
        Some(code) => ExitCode::from(if code == 0 { 0 } else { (code & 0xff).max(1) as u8 }),
        None => {
            eprintln!("xtask: {name}: {status}");
            ExitCode::FAILURE
        }
    })
}

/// Waits for `child`, but not for longer than `limit`.
fn wait(child: &mut Child, limit: Option<Duration>) -> Result<Option<std::process::ExitStatus>> {
    let Some(limit) = limit else { return Ok(Some(child.wait()?)) };
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        // A short program is not made to wait for long, and a long one costs little.
        thread::sleep(
            (start.elapsed() / 20).clamp(Duration::from_millis(1), Duration::from_millis(50)),
        );
    }
}

/// On a terminal Wine would draw a Windows console, with the escape sequences that this takes.
fn keep_from_terminal(command: &mut Command) {
    if std::io::stdin().is_terminal() {
        command.stdin(Stdio::null());
    }
    if std::io::stdout().is_terminal() {
        command.stdout(Stdio::piped());
    }
    if std::io::stderr().is_terminal() {
        command.stderr(Stdio::piped());
    }
}

fn copy<R, W>(from: Option<R>, mut to: W) -> Option<JoinHandle<()>>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let mut from = from?;
    Some(thread::spawn(move || {
        let mut buffer = [0; 4096];
        // An error on either side means that nobody listens any more.
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    }))
}
