//! Programs on one processor, before everything else that runs there.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::shell::{self, Result};

/// Linux takes a twentieth of every second from real-time programs: a run that is hit by it looks a tenth slower.
/// Runs that are shorter than a second and pause before the next are never hit.
pub const PAUSE: Duration = Duration::from_millis(200);

/// How long one run may take, in seconds, so that what never ends does not hang everything.
const LIMIT: &str = "60";

/// Where and how measured programs run.
pub struct Place {
    processor: String,
    /// What comes before programs to run them before everything else, where that is allowed.
    first: &'static [&'static str],
}

impl Place {
    pub fn find() -> Result<Self> {
        Ok(Self { processor: last_processor()?, first: real_time() })
    }

    /// A program on the one processor, for a limited time, before all others.
    pub fn first(&self, program: impl AsRef<OsStr>) -> Command {
        self.command(self.first, program)
    }

    /// A program on the one processor, for a limited time, among others: one whose time does not matter.
    pub fn among_others(&self, program: impl AsRef<OsStr>) -> Command {
        self.command(&[], program)
    }

    fn command(&self, how: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", LIMIT]).args(how);
        command.args(["taskset", "--cpu-list", &self.processor]).arg(program);
        command
    }
}

/// Without it, what else the machine does is measured too. All programs get it, and Wine's server.
fn real_time() -> &'static [&'static str] {
    const FIRST: &[&str] = &["chrt", "--rr", "1"];
    if shell::output(Command::new(FIRST[0]).args(&FIRST[1..]).arg("true")).is_ok() {
        return FIRST;
    }
    eprintln!("xtask: no right to run before other programs: leave the machine alone meanwhile");
    &[]
}

/// The last processor this process may use: the first one tends to have other work.
fn last_processor() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let last = list.and_then(|list| list.trim().rsplit([',', '-']).next());
    Ok(last.ok_or("/proc/self/status names no processors")?.to_string())
}
