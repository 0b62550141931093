//! From the command line to the exit code.

use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use ioqueue::{Queue, Task};

use crate::args::{Arguments, Stop, usage};
use crate::endpoint::{Opener, Side};
use crate::link::{carry, first};
use crate::report::Report;
use crate::stream::Stream;
use crate::system::ctrl_c;

const WRONG_ARGUMENTS: u8 = 2;
const INTERRUPTED: u8 = 130;

/// How long the system may take to give back what was under way when the relay was interrupted.
const DRAIN: Duration = Duration::from_secs(2);

/// How the relay came to its end.
enum End {
    Served,
    Interrupted,
}

pub fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(Stop::Help) => {
            print!("{}", usage());
            return ExitCode::SUCCESS;
        }
        Err(Stop::Wrong(why)) => {
            eprint!("relay: {why}\n\n{}", usage());
            return WRONG_ARGUMENTS.into();
        }
    };
    let report = Rc::new(Report::new(arguments.progress));
    match relay(arguments, &report) {
        Ok(End::Interrupted) if report.open() > 0 => INTERRUPTED.into(),
        Ok(End::Served) if report.failed() > 0 => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            report.say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn relay(arguments: Arguments, report: &Rc<Report>) -> io::Result<End> {
    let queue = Queue::current()?;
    let Arguments { from, to, once, linger, .. } = arguments;
    let once = once.unwrap_or(u64::MAX);
    let to = Side::new(to, false, once, report)?;
    let from = Side::new(from, true, once, report)?;

    let watcher = Rc::clone(report);
    let watching = queue.spawn(async move { watcher.watch().await });
    let served = async { serve(from, to, once, linger, report).await.map(|()| End::Served) };
    let interrupted = async { ctrl_c().await.map(|()| End::Interrupted) };
    let end = queue.block_on(first(served, interrupted))?;

    drop(watching);
    if end.is_ok() {
        report.close();
    }
    if let Err(undrained) = queue.close(DRAIN) {
        report.say(&undrained.to_string());
    }
    end
}

/// Serves so many connections, then waits for their ends. Dropped, it drops them too.
async fn serve(
    mut from: Side,
    mut to: Side,
    connections: u64,
    linger: Duration,
    report: &Rc<Report>,
) -> io::Result<()> {
    let mut links: Vec<Task<()>> = Vec::new();
    for _ in 0..connections {
        let from = match &mut from {
            Side::Listener(listener) => listener.accept().await?,
            Side::Opener(opener) => opener.open().await?,
        };
        let to = match &mut to {
            Side::Listener(listener) => Target::Stream(listener.accept().await?),
            Side::Opener(opener) => Target::Opener(Rc::clone(opener)),
        };
        report.opened();
        let report = Rc::clone(report);
        links.retain(|link| !link.is_finished());
        links.push(ioqueue::spawn(async move {
            let name = from.name.clone();
            let result = link(from, to, linger, &report).await;
            if let Err(error) = &result {
                report.say(&format!("{name}: {error}"));
            }
            report.ended(result.is_ok());
        })?);
    }
    for link in links {
        link.await;
    }
    Ok(())
}

/// The other side of a connection, open or not.
enum Target {
    Opener(Rc<Opener>),
    Stream(Stream),
}

/// One connection, from opening its other side to its end.
async fn link(
    mut from: Stream,
    to: Target,
    linger: Duration,
    report: &Rc<Report>,
) -> io::Result<()> {
    let mut to = match to {
        Target::Stream(stream) => stream,
        Target::Opener(opener) => opener.open().await?,
    };
    carry(&mut from, &mut to, report, linger).await
}
