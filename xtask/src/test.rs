//! `cargo xtask test`: the tests on this system (on Linux the portable ones again, with the poller of other
//! systems, and with all sends handed to the ring), then for Windows under Wine.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::shell::{self, Result};
use crate::{cross, runner, setup};
#[cfg(unix)]
use crate::{serial, wine};

/// How long one test program may take, in seconds.
const LIMIT: u32 = 300;

pub fn test(arguments: &[String]) -> Result<ExitCode> {
    let (mut native, mut wine, mut filters) = (true, !cfg!(windows), Vec::new());
    for argument in arguments {
        match argument.as_str() {
            "--native" => wine = false,
            "--wine" => native = false,
            flag if flag.starts_with('-') => return Err(format!("{flag} is not known here").into()),
            filter => filters.push(filter),
        }
    }
    if !native && !wine {
        return Err("--native and --wine together leave nothing to run".into());
    }
    let mut suites = Vec::new();
    if native {
        suites.push(Suite::run("native", native_tests()?, &filters)?);
        if cfg!(target_os = "linux") {
            for Variant { name, kernel, flags, folder } in VARIANTS {
                let filters = if filters.is_empty() { &[kernel] } else { &filters[..] };
                suites.push(Suite::run(name, portable_tests(flags, folder)?, filters)?);
            }
        }
    }
    match setup::possible() {
        Err(why) if wine && !native => return Err(why),
        Err(why) if wine => suites.push(Suite::skipped("Windows, under Wine", &why.to_string())),
        Ok(()) if wine => suites.push(on_wine(&filters)?),
        _ => {}
    }
    println!();
    suites.iter().for_each(Suite::print);
    if suites.len() > 1 {
        println!("{}", total(&suites));
    }
    Ok(if suites.iter().all(Suite::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn native_tests() -> Result<Command> {
    let mut cargo = shell::native_cargo();
    runner::install(cargo.arg("test"), "cfg(all())", runner::NATIVELY, Some(LIMIT))?;
    cargo.arg("--workspace").args(shell::sim_feature()?);
    Ok(cargo)
}

/// The portable tests of a kernel, in which the library is told to go another way.
struct Variant {
    name: &'static str,
    kernel: &'static str,
    flags: &'static str,
    /// Within the target folder.
    folder: &'static str,
}

const VARIANTS: [Variant; 3] = [
    // How the readiness of other systems is tried here: with the poller that they have.
    Variant {
        name: "readiness, through the crate polling",
        kernel: "readiness",
        flags: "--cfg ioqueue_polling",
        folder: "polling",
    },
    Variant {
        name: "readiness, through polling, one event at a time",
        kernel: "readiness",
        flags: "--cfg ioqueue_polling --cfg ioqueue_polling=\"oneshot\"",
        folder: "polling",
    },
    // What a busy queue does with some of its sends.
    Variant {
        name: "io_uring, every send a submission",
        kernel: "uring",
        flags: "--cfg ioqueue_collect",
        folder: "collect",
    },
];

/// The portable tests so, in a target folder of their own.
fn portable_tests(flags: &str, folder: &str) -> Result<Command> {
    let mut cargo = shell::native_cargo();
    runner::install(cargo.arg("test"), "cfg(all())", runner::NATIVELY, Some(LIMIT))?;
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(others) => format!("{others} {flags}"),
        Err(_) => flags.to_string(),
    };
    cargo.args(["--package", "ioqueue", "--lib", "--test", "portable*"]);
    cargo.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", shell::target_dir().join(folder));
    Ok(cargo)
}

fn on_wine(filters: &[&str]) -> Result<Suite> {
    let mut cargo = cross::prepare("test", Some(LIMIT))?;
    cargo.args(["--package", "ioqueue"]);
    #[cfg(unix)]
    let port = serial_port(&mut cargo);
    let suite = Suite::run("Windows, under Wine", cargo, filters);
    #[cfg(unix)]
    drop(port);
    suite
}

/// Tells the tests of a serial port; without one they skip, and say so.
#[cfg(unix)]
fn serial_port(cargo: &mut Command) -> Option<serial::Port> {
    let made = wine::ensure()
        .and_then(|wine| wine.prefix("tests"))
        .and_then(|prefix| serial::Port::new(&prefix.folder));
    match made {
        Ok(port) => {
            cargo.env("IOQUEUE_TEST_SERIAL", &port.name);
            Some(port)
        }
        Err(why) => {
            eprintln!("xtask: no serial port for the tests: {why}");
            None
        }
    }
}

/// One run of `cargo test`, and what is worth saying of it at the end.
struct Suite {
    name: &'static str,
    /// A test program, and the line it closed with.
    results: Vec<(String, String)>,
    failures: Vec<String>,
    skips: Vec<String>,
    /// Programs that were killed, with the tests that had not ended.
    hung: Vec<String>,
    passed: bool,
    seconds: f64,
}

impl Suite {
    fn skipped(name: &'static str, why: &str) -> Suite {
        let skips = vec![format!("everything: {why}")];
        let (results, failures, hung) = Default::default();
        Suite { name, results, failures, skips, hung, passed: true, seconds: 0.0 }
    }

    fn run(name: &'static str, mut cargo: Command, filters: &[&str]) -> Result<Suite> {
        println!("xtask: tests: {name} ...");
        let start = Instant::now();
        cargo.args(["--no-fail-fast", "--", "--show-output"]).args(filters);
        let (lines, writer) = std::io::pipe()?;
        cargo.stdout(writer.try_clone()?).stderr(writer);
        let mut child = cargo.spawn()?;
        // Its ends of the pipe, which would keep `lines` from ending.
        drop(cargo);
        let lines = read_lines(lines);
        let mut reader = Reader::default();
        // What the tests left running may keep the pipe open: cargo's end is the end.
        let status = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    if reader.understand(&line) {
                        println!("{line}");
                    }
                }
                Err(_) => {
                    if let Some(status) = child.try_wait()? {
                        break status;
                    }
                }
            }
        };
        Ok(Suite {
            name,
            results: reader.results,
            failures: reader.failures,
            skips: reader.skips,
            hung: reader.hung,
            passed: status.success(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn passed(&self) -> bool {
        self.passed
    }

    /// How many tests came to that, as the programs' closing lines say.
    fn count(&self, what: &str) -> u64 {
        self.results.iter().map(|(_, line)| number_before(line, what)).sum()
    }

    fn print(&self) {
        println!("{}:", self.name);
        for (program, result) in &self.results {
            println!("  {program:<32} {result}");
        }
        self.skips.iter().for_each(|skip| println!("  SKIPPED {skip}"));
        self.failures.iter().for_each(|test| println!("  FAILED {test}"));
        self.hung.iter().for_each(|hung| println!("  HUNG {hung}"));
        if self.results.is_empty() && !self.passed {
            println!("  no test ran: cargo's own error stands above");
        }
        println!(
            "  {}: {} passed, {} failed, {} ignored, {} skipped, in {:.0} s",
            if self.passed { "ok" } else { "FAILED" },
            self.count("passed"),
            self.failures.len(),
            self.count("ignored"),
            self.skips.len(),
            self.seconds,
        );
    }
}

/// One line for all of them.
fn total(suites: &[Suite]) -> String {
    let failed: usize = suites.iter().map(|suite| suite.failures.len()).sum();
    let skipped: usize = suites.iter().map(|suite| suite.skips.len()).sum();
    let passed: u64 = suites.iter().map(|suite| suite.count("passed")).sum();
    let bad: Vec<_> = suites.iter().filter(|suite| !suite.passed).map(|suite| suite.name).collect();
    let verdict = match bad.is_empty() {
        true => format!("all {} runs are ok; why what was skipped is said above", suites.len()),
        false => format!("FAILED: {}", bad.join("; ")),
    };
    format!("{verdict}\nall: {passed} passed, {failed} failed, {skipped} skipped")
}

fn read_lines(from: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(std::result::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The 3 in `test result: ok. 3 passed; 0 failed; ...`.
fn number_before(line: &str, what: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let place = words.iter().position(|word| *word == what);
    place.and_then(|place| words[..place].last()?.parse().ok()).unwrap_or(0)
}

/// Understands what cargo and the test programs print.
#[derive(Default)]
struct Reader {
    program: String,
    slow: Vec<String>,
    /// Inside of what passing tests printed, and which test that was.
    passing: Option<String>,
    results: Vec<(String, String)>,
    failures: Vec<String>,
    skips: Vec<String>,
    hung: Vec<String>,
}

impl Reader {
    /// Takes in a line, and says whether it is worth showing: what passing tests print is not.
    fn understand(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Running", "unittests", source, ..] | ["Running", source, ..] => self.start(source),
            ["Doc-tests", of] => self.start(&format!("doc tests of {of}")),
            ["successes:"] => self.passing = Some(String::new()),
            ["failures:"] => self.passing = None,
            ["test", "result:", ..] => {
                self.passing = None;
                self.results.push((self.program.clone(), line.to_string()));
            }
            ["----", .., "stdout", "----"] if self.passing.is_some() => {
                self.passing = Some(words[1..words.len() - 2].join(" "));
            }
            [first, rest @ ..] if matches!(first.to_lowercase().as_str(), "skip:" | "skipped:") => {
                let test = self.passing.as_deref().unwrap_or_default();
                self.skips.push(format!("{} {test}: {}", self.program, rest.join(" ")));
            }
            _ if self.passing.is_some() => {}
            ["test", test, "has", "been", "running", ..] => self.slow.push(test.to_string()),
            ["test", .., "FAILED"] => {
                let test = line.trim_start_matches("test ").trim_end_matches(" ... FAILED");
                self.failures.push(format!("{}: {test}", self.program));
                self.ended(test);
            }
            ["test", test, ..] => self.ended(test),
            ["xtask:", _, "has", "not", "ended", ..] => self.kill(),
            _ => {}
        }
        self.passing.is_none()
    }

    fn start(&mut self, program: &str) {
        self.program = program.to_string();
        self.slow.clear();
        self.passing = None;
    }

    fn ended(&mut self, test: &str) {
        self.slow.retain(|slow| slow != test);
    }

    fn kill(&mut self) {
        let tests =
            if self.slow.is_empty() { "no test named".into() } else { self.slow.join(", ") };
        self.hung.push(format!("{}: {tests}", self.program));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_and_hung_tests_are_understood() {
        let text = "
            Running unittests src/lib.rs (target/debug/deps/ioqueue-1)
            test skipper ... ok
            test a::broken - should panic ... FAILED
            successes:
            ---- skipper stdout ----
            SKIPPED: no such thing on Wine
            test one ... FAILED
            failures:
            ---- a::broken stdout ----
            test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s
            Running tests/pipes.rs (target/debug/deps/pipes-1)
            test one has been running for over 60 seconds
            test two has been running for over 60 seconds
            test one ... ok
            xtask: pipes-1 has not ended within 300 s: killed";
        let mut reader = Reader::default();
        let shown = text.lines().filter(|line| reader.understand(line.trim())).count();
        assert_eq!(shown, text.lines().count() - 4);
        assert_eq!(reader.hung, ["tests/pipes.rs: two"]);
        assert_eq!(reader.skips, ["src/lib.rs skipper: no such thing on Wine"]);
        assert_eq!(reader.failures, ["src/lib.rs: a::broken - should panic"]);
        let (program, result) = &reader.results[0];
        assert_eq!(program, "src/lib.rs");
        assert_eq!((number_before(result, "passed"), number_before(result, "ignored")), (12, 3));
    }
}
