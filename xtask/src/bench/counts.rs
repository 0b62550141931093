//! What a program does an operation, counted by other programs: system calls by strace, its own instructions
//! by callgrind. Both as what a run of twice the length does more, so that start and exit fall out.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::pinned::Place;
use crate::shell::{self, Result};

/// Operations of the shorter of two runs.
pub const COUNTED: u32 = 2000;
/// The warm-up, a tenth more, is counted too.
const DONE: f64 = COUNTED as f64 * 1.1;

/// The programs that count, where they are.
pub struct Counters {
    strace: bool,
    callgrind: bool,
    scratch: PathBuf,
}

/// A program and the arguments before the number of operations.
pub type Start<'a> = &'a dyn Fn(&mut Command);

impl Counters {
    /// Says which are missing.
    pub fn find(scratch: PathBuf) -> Self {
        let has = |program: &str, what: &str| {
            let there = shell::output(Command::new(program).arg("--version")).is_ok();
            if !there {
                eprintln!("xtask: SKIPPED: {what}: there is no {program} here");
            }
            there
        };
        Self {
            strace: has("strace", "system calls an operation"),
            callgrind: has("valgrind", "instructions an operation"),
            scratch,
        }
    }

    /// System calls an operation, by name; `None` where they can't be counted.
    pub fn calls(&self, place: &Place, start: Start) -> Result<Option<BTreeMap<String, f64>>> {
        if !self.strace {
            return Ok(None);
        }
        let count = |operations| -> Result<_> {
            let mut strace = place.among_others("strace");
            strace.args(["-c", "-f", "-q", "-o"]).arg(&self.scratch);
            output(&mut strace, start, operations)?;
            Ok(calls_of(&fs::read_to_string(&self.scratch)?))
        };
        let (few, many) = (count(COUNTED)?, count(2 * COUNTED)?);
        let calls = many.into_iter().map(|(name, calls)| {
            let more = calls - few.get(&name).copied().unwrap_or(0.0);
            (name, more / DONE)
        });
        Ok(Some(calls.filter(|(_, calls)| *calls >= 0.0005).collect()))
    }

    /// Instructions of its own an operation; `None` where they can't be counted.
    pub fn instructions(&self, place: &Place, start: Start) -> Result<Option<f64>> {
        if !self.callgrind {
            return Ok(None);
        }
        let count = |operations| -> Result<f64> {
            let mut valgrind = place.among_others("valgrind");
            valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
            // A thread for each file that is read, in one of the peers: 512 at most.
            valgrind.arg("--max-threads=1024");
            let told = output(&mut valgrind, start, operations)?;
            instructions_of(&told).ok_or_else(|| format!("no count of callgrind's: {told}").into())
        };
        Ok(Some((count(2 * COUNTED)? - count(COUNTED)?) / DONE))
    }
}

/// What it tells on standard error.
fn output(command: &mut Command, start: Start, operations: u32) -> Result<String> {
    start(command);
    let output = command.arg(operations.to_string()).stdin(Stdio::null()).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{told}", output.status).into());
    }
    Ok(told)
}

/// Counts in the table of `strace -c`, as in ` 68.50    0.001   2   400   3 recvfrom`: the errors before the
/// name are missing where there are none.
fn calls_of(table: &str) -> BTreeMap<String, f64> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (share, calls, name) = (fields.first()?, fields.get(3)?, fields.last()?);
        share.parse::<f64>().ok()?;
        (fields.len() > 4 && *name != "total").then_some(())?;
        Some((name.to_string(), calls.parse().ok()?))
    };
    table.lines().filter_map(row).collect()
}

fn instructions_of(told: &str) -> Option<f64> {
    let (_, rest) = told.split_once("Collected : ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_in_a_table_of_strace() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     70.00    0.370000          16     22304       294 recvfrom\n \
                     30.00    0.180000           8     22311           sendto\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.550000          12     44615       294 total\n";
        let calls: Vec<_> = calls_of(table).into_iter().collect();
        assert_eq!(calls, [("recvfrom".into(), 22304.0), ("sendto".into(), 22311.0)]);
    }

    #[test]
    fn instructions_are_found_in_what_callgrind_tells() {
        let told =
            "==7== Events    : Ir\n==7== Collected : 190321\n==7== \n==7== I   refs: 190,321\n";
        assert_eq!(instructions_of(told), Some(190321.0));
        assert_eq!(instructions_of("==7== killed"), None);
    }
}
