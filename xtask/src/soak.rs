//! `cargo xtask soak`: every order of threads, and random orders of events for as long as one likes, plainly or
//! under sanitizers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::cross::Toolchain;
use crate::shell::{self, Result};

/// The random-order machines: a test program, and which of its tests play as many sequences as
/// they are told.
const RANDOM: (&str, &str) = ("sim_random", "orders_");
const QUARANTINE: (&str, &str) = ("sim_quarantine", "nothing_is_written");

/// How long a round should take.
const ROUND: Duration = Duration::from_secs(10);

struct Options {
    time: Duration,
    sanitize: bool,
    /// Nothing but what is about threads.
    threads: bool,
    seed: u64,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Options> {
        let (mut minutes, mut sanitize, mut threads, mut seed) = (1.0, false, false, None);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} what?"));
            match argument.as_str() {
                "--minutes" => minutes = value()?.parse::<f64>()?,
                "--seed" => seed = Some(value()?.parse()?),
                "--sanitize" => sanitize = true,
                "--threads" => threads = true,
                other => return Err(format!("{other} is not known here").into()),
            }
        }
        let time = Duration::try_from_secs_f64(minutes * 60.0)?;
        // Another place to start at each time, far from where the tests start.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        Ok(Options { time, sanitize, threads, seed: seed.unwrap_or(now * 1_000_000) })
    }
}

pub fn soak(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    let mut report = Report::default();
    if options.threads {
        report.part("every order of threads", every_order_of_threads);
        report.part("ThreadSanitizer", || under_thread_sanitizer(&options, 1.0));
    } else if options.sanitize {
        report.part("AddressSanitizer", || under_address_sanitizer(&options, 0.5));
        report.part("ThreadSanitizer", || under_thread_sanitizer(&options, 0.2));
        report.part("fuzzing", || fuzz(&options, 0.3));
    } else {
        report.part("every order of threads", every_order_of_threads);
        report.part("random orders", || plainly(&options));
    }
    println!();
    report.lines.iter().for_each(|line| println!("soak: {line}"));
    Ok(if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a part has to say when nothing is wrong.
enum Verdict {
    Good(String),
    Skipped(String),
}

#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: bool,
}

impl Report {
    fn part(&mut self, name: &str, part: impl FnOnce() -> Result<Verdict>) {
        println!("soak: {name} ...");
        self.lines.push(match part() {
            Ok(Verdict::Good(what)) => format!("{name}: ok: {what}"),
            Ok(Verdict::Skipped(why)) => format!("{name}: SKIPPED: {why}"),
            Err(error) => {
                self.failed = true;
                format!("{name}: FAILED: {error}")
            }
        });
        println!("soak: {}", self.lines[self.lines.len() - 1]);
    }
}

// ---------------------------------------------------------------------------------------------
// The parts

fn plainly(options: &Options) -> Result<Verdict> {
    let mut cargo = shell::native_cargo();
    // As fast as it gets, but with the queue's own assertions.
    cargo.arg("test").arg("--release").env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    cargo.env("CARGO_TARGET_DIR", folder("plain")?);
    let programs = Programs::build(cargo, |_| true)?;
    let mut soak = Soak::new(&programs, options.seed, options.time);
    programs.run_all_but(&[RANDOM.0, QUARANTINE.0], &[])?;
    while soak.has_time() {
        soak.round(RANDOM, ROUND)?;
        soak.round(QUARANTINE, ROUND / 4)?;
        programs.run_those("threads_", &[])?;
    }
    Ok(Verdict::Good(soak.summary()))
}

/// How to build the model of threads in the tree at `root`.
pub fn model(root: &Path) -> Result<Command> {
    let mut cargo = shell::native_cargo();
    cargo.current_dir(root.join("model")).env("CARGO_TARGET_DIR", folder("model")?);
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics", "--locked"]);
    Ok(cargo)
}

/// Why the crates of a workspace of its own are not there, for `cargo fetch --locked`. A lock file that does
/// not fit is a mistake.
fn not_to_be_had(what: &str, fetch: &mut Command) -> Result<Option<String>> {
    match shell::output(fetch) {
        Ok(_) => Ok(None),
        Err(error) if error.to_string().contains("--locked") => Err(error),
        Err(error) => Ok(Some(format!("{what} is not to be had: {error}"))),
    }
}

fn every_order_of_threads() -> Result<Verdict> {
    let mut cargo = shell::native_cargo();
    cargo.current_dir(shell::root().join("model")).args(["fetch", "--locked"]);
    if let Some(why) = not_to_be_had("loom", &mut cargo)? {
        return Ok(Verdict::Skipped(why));
    }
    let programs = Programs::built_by(model(&shell::root())?)?;
    let start = Instant::now();
    programs.run_all_but(&[], &[])?;
    Ok(Verdict::Good(format!("each that loom can tell apart, in {} s", start.elapsed().as_secs())))
}

fn under_address_sanitizer(options: &Options, share: f64) -> Result<Verdict> {
    let nightly = match Nightly::find() {
        Ok(nightly) => nightly,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let mut cargo = nightly.cargo();
    cargo.arg("test").args(["--target", &nightly.host]);
    cargo.env("RUSTFLAGS", "-Zsanitizer=address");
    cargo.env("CARGO_TARGET_DIR", folder("address")?);
    // The sanitizer has a quarantine of its own, which ours would hide frees from.
    let programs = Programs::build(cargo, |name| name != QUARANTINE.0)?;
    let options_of_asan = "detect_leaks=1:quarantine_size_mb=256:detect_stack_use_after_return=1";
    let environment = [("ASAN_OPTIONS", options_of_asan)];
    programs.run_all_but(&[RANDOM.0], &environment)?;
    let mut soak = Soak::new(&programs, options.seed, options.time.mul_f64(share));
    soak.environment = &environment;
    while soak.has_time() {
        soak.round(RANDOM, ROUND)?;
    }
    Ok(Verdict::Good(format!("{}; no leak but those meant", soak.summary())))
}

fn under_thread_sanitizer(options: &Options, share: f64) -> Result<Verdict> {
    let nightly = match Nightly::find() {
        Ok(nightly) => nightly,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    // The standard library has to be watched as well: what is synchronised by a mutex of a library
    // that is not looks like a race.
    let mut cargo = if nightly.has_source() {
        let mut cargo = nightly.cargo();
        cargo.args(["test", "-Zbuild-std"]).env("RUSTFLAGS", "-Zsanitizer=thread");
        cargo
    } else if let Some(runtime) = nightly.thread_runtime().filter(|_| debian_has_source()) {
        let runtime = format!("-Wl,--whole-archive,{},--no-whole-archive", runtime.display());
        let mut cargo = Toolchain::Debian.cargo("test", &nightly.host);
        // Debian's compiler has the pass, but no runtime: nightly's will do.
        let flags = format!(
            "-Zsanitizer=thread -Zexternal-clangrt -Zpre-link-arg={runtime} \
             -Clink-arg=-Wl,--export-dynamic"
        );
        cargo.env("RUSTFLAGS", flags);
        cargo
    } else {
        let why = "neither nightly nor Debian's compiler has the standard library's source here";
        return Ok(Verdict::Skipped(why.into()));
    };
    cargo.args(["--target", &nightly.host]).env("CARGO_TARGET_DIR", folder("thread")?);
    let programs = Programs::build(cargo, |name| name.starts_with("threads_"))?;
    let end = Instant::now() + options.time.mul_f64(share);
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < end {
        programs.run_those("threads_", &[("TSAN_OPTIONS", "halt_on_error=1")])?;
        rounds += 1;
    }
    Ok(Verdict::Good(format!("{} programs, {rounds} times each", programs.0.len())))
}

fn fuzz(options: &Options, share: f64) -> Result<Verdict> {
    let nightly = match Nightly::find() {
        Ok(nightly) => nightly,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let (fuzz, folder) = (shell::root().join("fuzz"), folder("fuzz")?);
    let mut cargo = nightly.cargo();
    cargo.current_dir(&fuzz).arg("fetch").arg("--locked");
    if let Some(why) = not_to_be_had("libfuzzer-sys", &mut cargo)? {
        return Ok(Verdict::Skipped(why));
    }
    // What cargo-fuzz builds with. `cargo fuzz run orders` does the same from the root.
    let flags = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                 -Cllvm-args=-sanitizer-coverage-pc-table \
                 -Cllvm-args=-sanitizer-coverage-trace-compares \
                 -Zsanitizer=address -Ccodegen-units=1 -Cdebug-assertions --cfg fuzzing";
    let mut cargo = nightly.cargo();
    cargo.current_dir(&fuzz).args(["build", "--release", "--locked", "--target", &nightly.host]);
    cargo.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", &folder);
    shell::step("building the fuzz target", &mut cargo)?;
    let program = folder.join(&nightly.host).join("release").join("orders");
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus)?;
    let artifacts = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
    let seconds = options.time.mul_f64(share).as_secs().max(5);
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={}", options.seed as u32 | 1))
        .arg(format!("-artifact_prefix={artifacts}"))
        .args(["-max_len=1024", "-timeout=60", "-rss_limit_mb=8192", "-print_final_stats=1"])
        .arg(&corpus)
        .arg(fuzz.join("corpus").join("orders"))
        .env("ASAN_OPTIONS", "detect_leaks=1:quarantine_size_mb=64");
    let log = folder.join("fuzz.log");
    let limit = Duration::from_secs(seconds + 300);
    let ended = run_into(&mut command, &log, limit)?;
    let text = fs::read_to_string(&log)?;
    if !matches!(ended, Ended::Well) {
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        tail.iter().rev().for_each(|line| println!("{line}"));
        let input = text.lines().find_map(|line| line.split("Test unit written to ").nth(1));
        let repeat = match input {
            Some(input) => format!("{} {input} repeats it", program.display()),
            None => format!("all it said is in {}", log.display()),
        };
        return Err(format!("the fuzz target failed ({ended}); {repeat}").into());
    }
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(Verdict::Good(format!("{} schedules in {seconds} s", runs.unwrap_or("?").trim())))
}

// ---------------------------------------------------------------------------------------------
// Toolchains

/// The nightly compiler, which has sanitizers.
struct Nightly {
    /// Through rustup, or the one that runs this.
    through_rustup: bool,
    host: String,
    sysroot: PathBuf,
}

impl Nightly {
    fn find() -> std::result::Result<Nightly, String> {
        let nightly = [true, false].into_iter().find_map(|through_rustup| {
            let mut nightly =
                Nightly { through_rustup, host: String::new(), sysroot: PathBuf::new() };
            let version = shell::output(nightly.tool("rustc").arg("-vV")).ok()?;
            let value = |name| version.lines().find_map(|line| line.strip_prefix(name));
            value("release: ").filter(|release| release.contains("nightly"))?;
            nightly.host = value("host: ")?.to_string();
            let sysroot = nightly.tool("rustc").args(["--print", "sysroot"]).output().ok()?;
            nightly.sysroot = String::from_utf8(sysroot.stdout).ok()?.trim().into();
            Some(nightly)
        });
        let nightly = nightly.ok_or("there is no nightly compiler here")?;
        if !nightly.host.ends_with("-linux-gnu") {
            return Err(format!("sanitizers are tried on Linux only, not on {}", nightly.host));
        }
        Ok(nightly)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = if self.through_rustup {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", name]);
            command
        } else {
            Command::new(name)
        };
        shell::forget_own_package(&mut command);
        // What the cargo that runs this has set for its own compiler.
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
            if self.through_rustup {
                command.env_remove(name);
            }
        }
        command.current_dir(shell::root());
        command
    }

    fn cargo(&self) -> Command {
        self.tool("cargo")
    }

    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/std").is_dir()
    }

    fn thread_runtime(&self) -> Option<PathBuf> {
        let libraries = self.sysroot.join("lib/rustlib").join(&self.host).join("lib");
        let mut files = fs::read_dir(libraries).ok()?.filter_map(|file| Some(file.ok()?.path()));
        files.find(|path| path.to_string_lossy().ends_with("_rt.tsan.a"))
    }
}

fn debian_has_source() -> bool {
    ["/usr/bin/cargo", "/usr/bin/rustc", "/usr/lib/rustlib/src/rust/library/std"]
        .iter()
        .all(|path| Path::new(path).exists())
}

/// The folder for what a part builds and writes.
fn folder(part: &str) -> Result<PathBuf> {
    let folder = shell::target_dir().join("soak").join(part);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

// ---------------------------------------------------------------------------------------------
// Test programs

/// Test programs that were built, by name.
struct Programs(Vec<(String, PathBuf)>);

impl Programs {
    /// Builds the tests on the simulated Windows whose names `wanted` takes.
    fn build(mut cargo: Command, wanted: impl Fn(&str) -> bool) -> Result<Programs> {
        cargo.args([
            "--no-run",
            "--message-format=json-render-diagnostics",
            "--package",
            "ioqueue",
        ]);
        cargo.args(shell::sim_feature()?);
        for name in on_the_simulation()?.iter().filter(|name| wanted(name)) {
            cargo.args(["--test", name]);
        }
        Programs::built_by(cargo)
    }

    /// What `cargo test --no-run`, with messages as JSON, builds.
    fn built_by(mut cargo: Command) -> Result<Programs> {
        cargo.stdin(Stdio::null()).stderr(Stdio::inherit());
        let out = cargo.output()?;
        if !out.status.success() {
            return Err("the tests do not build".into());
        }
        let mut programs: Vec<_> =
            String::from_utf8_lossy(&out.stdout).lines().filter_map(executable).collect();
        programs.sort();
        if programs.is_empty() {
            return Err("cargo built no test program".into());
        }
        Ok(Programs(programs))
    }

    fn get(&self, name: &str) -> Result<&Path> {
        let program = self.0.iter().find(|(found, _)| found == name);
        program.map(|(_, path)| path.as_path()).ok_or(format!("{name} was not built").into())
    }

    fn run_those(&self, prefix: &str, environment: &[(&str, &str)]) -> Result {
        let those = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        those.map(|(name, _)| name).try_for_each(|name| self.run_once(name, environment))
    }

    fn run_all_but(&self, others: &[&str], environment: &[(&str, &str)]) -> Result {
        let those = self.0.iter().filter(|(name, _)| !others.contains(&name.as_str()));
        those.map(|(name, _)| name).try_for_each(|name| self.run_once(name, environment))
    }

    /// Runs all tests of a program, which do not depend on a seed.
    fn run_once(&self, name: &str, environment: &[(&str, &str)]) -> Result {
        let mut command = Command::new(self.get(name)?);
        shell::forget_own_package(&mut command);
        command.envs(environment.iter().copied()).current_dir(shell::root());
        let log = folder("logs")?.join(format!("{name}.log"));
        let ended = run_into(&mut command, &log, Duration::from_secs(600))?;
        if matches!(ended, Ended::Well) {
            return Ok(());
        }
        println!("{}", fs::read_to_string(&log)?);
        let variables = environment.iter().map(|(name, value)| format!("{name}={value} "));
        let repeat = variables.collect::<String>() + &self.get(name)?.display().to_string();
        Err(format!("{name} failed ({ended}); to repeat: {repeat}").into())
    }
}

/// The names of the tests that run on the simulated Windows.
pub fn on_the_simulation() -> Result<Vec<String>> {
    tests_that(|text| text.starts_with("#![cfg(feature = \"sim\")]"))
}

/// The names of the tests whose text is as `wanted` says.
pub fn tests_that(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(shell::root().join("tests"))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && wanted(&fs::read_to_string(&path)?)
        {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The name and the path in one of cargo's messages.
pub fn executable(message: &str) -> Option<(String, PathBuf)> {
    let path = message.split("\"executable\":\"").nth(1)?.split('"').next()?;
    let target = message.split("\"target\":").nth(1)?;
    let name = target.split("\"name\":\"").nth(1)?.split('"').next()?;
    Some((name.to_string(), PathBuf::from(path.replace("\\\\", "\\"))))
}

/// How a program ended.
pub enum Ended {
    Well,
    Badly(std::process::ExitStatus),
    Never(Duration),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Well => f.write_str("well"),
            Ended::Badly(status) => write!(f, "{status}"),
            Ended::Never(limit) => write!(f, "not within {} s: killed", limit.as_secs()),
        }
    }
}

/// Runs `command` for at most `limit`; what it prints goes to the file `log`.
pub fn run_into(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended> {
    let file = File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() { Ended::Well } else { Ended::Badly(status) });
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(Ended::Never(limit));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

// ---------------------------------------------------------------------------------------------
// Rounds

/// Rounds of random orders: each goes on with the seeds after the last one's.
struct Soak<'a> {
    programs: &'a Programs,
    environment: &'a [(&'a str, &'a str)],
    start: Instant,
    time: Duration,
    next_seed: u64,
    sequences: u64,
    played: Duration,
    rounds: u32,
    /// Sequences a second of each test, as measured last.
    rates: Vec<(&'static str, f64)>,
}

impl<'a> Soak<'a> {
    fn new(programs: &'a Programs, seed: u64, time: Duration) -> Soak<'a> {
        println!("soak: the first seed is {seed}");
        Soak {
            programs,
            environment: &[],
            start: Instant::now(),
            time,
            next_seed: seed,
            sequences: 0,
            played: Duration::ZERO,
            rounds: 0,
            rates: Vec::new(),
        }
    }

    /// There is always time for one round.
    fn has_time(&self) -> bool {
        self.rounds == 0 || self.start.elapsed() < self.time
    }

    fn summary(&self) -> String {
        let rate = self.sequences as f64 / self.played.as_secs_f64().max(0.001);
        let seconds = self.start.elapsed().as_secs();
        format!("{} sequences in {seconds} s, {rate:.0} a second", self.sequences)
    }

    /// Plays for about `time`, and as many sequences as that takes.
    fn round(&mut self, (name, filter): (&'static str, &'static str), time: Duration) -> Result {
        let rate = self.rates.iter().find(|(of, _)| *of == name).map_or(50.0, |(_, rate)| *rate);
        let rest = self.time.saturating_sub(self.start.elapsed()).max(Duration::from_secs(1));
        let runs = ((rate * time.min(rest).as_secs_f64()) as u64).clamp(20, 10_000_000);
        let round = Round { soak: self, name, filter, first: self.next_seed, runs };
        let log = folder("logs")?.join(format!("{name}.log"));
        let start = Instant::now();
        let ended = round.play(None, self.next_seed, runs, &log)?;
        let took = start.elapsed();
        if !matches!(ended, Ended::Well) {
            return Err(round.explain(&ended, &log)?.into());
        }
        let tests = fs::read_to_string(&log)?.lines().filter(|line| is_ok(line).is_some()).count();
        if tests == 0 {
            return Err(format!("{name} has no test with {filter} in its name").into());
        }
        self.next_seed = self.next_seed.wrapping_add(runs);
        self.sequences += runs * tests as u64;
        self.played += took;
        self.rounds += 1;
        self.rates.retain(|(of, _)| *of != name);
        self.rates.push((name, runs as f64 / took.as_secs_f64().max(0.001)));
        let (next, time) = (self.next_seed, self.time.as_secs());
        println!("soak: {name}: {}, of {time} s; next seed {next}", self.summary());
        Ok(())
    }
}

/// The test that a line says is ok.
fn is_ok(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... ok")
}

struct Round<'a> {
    soak: &'a Soak<'a>,
    name: &'static str,
    filter: &'static str,
    first: u64,
    runs: u64,
}

impl Round<'_> {
    fn play(&self, test: Option<&str>, first: u64, runs: u64, log: &Path) -> Result<Ended> {
        let mut command = Command::new(self.soak.programs.get(self.name)?);
        shell::forget_own_package(&mut command);
        match test {
            Some(test) => command.args([test, "--exact"]),
            None => command.arg(self.filter),
        };
        command.current_dir(shell::root()).envs(self.soak.environment.iter().copied());
        command.env_remove("IOQUEUE_SIM_SEED");
        command.env("IOQUEUE_SIM_FIRST", first.to_string());
        command.env("IOQUEUE_SIM_RUNS", runs.to_string());
        // A round takes seconds: whatever takes so long never ends.
        run_into(&mut command, log, Duration::from_secs(300))
    }

    /// What failed, with which seed, and how to see it again.
    fn explain(&self, ended: &Ended, log: &Path) -> Result<String> {
        let text = fs::read_to_string(log)?;
        println!("{}", text.trim_end());
        if let Some((test, seed)) = failure(&text) {
            return Ok(self.repeat(test, seed));
        }
        // It crashed, leaked or hung before it could say with which seed: halve the seeds.
        println!("soak: {} ended {ended}: looking for the seed ...", self.name);
        let mut list = Command::new(self.soak.programs.get(self.name)?);
        let list = shell::output(list.args(["--list", self.filter]))?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let log = folder("logs")?.join("narrowing.log");
        for test in tests {
            if !matches!(self.play(Some(test), self.first, self.runs, &log)?, Ended::Well) {
                let seed = self.narrow(test, &log)?;
                println!("{}", fs::read_to_string(&log)?.trim_end());
                return Ok(self.repeat(test, seed));
            }
        }
        let (first, last) = (self.first, self.first.wrapping_add(self.runs - 1));
        Ok(format!(
            "{} ended {ended} somewhere in seeds {first} to {last}, but not again",
            self.name
        ))
    }

    /// The first seed that makes `test` fail; leaves what it printed in `log`.
    fn narrow(&self, test: &str, log: &Path) -> Result<u64> {
        let (mut first, mut runs) = (self.first, self.runs);
        while runs > 1 {
            let half = runs / 2;
            if matches!(self.play(Some(test), first, half, log)?, Ended::Well) {
                first = first.wrapping_add(half);
                runs -= half;
            } else {
                runs = half;
            }
        }
        self.play(Some(test), first, 1, log)?;
        Ok(first)
    }

    fn repeat(&self, test: &str, seed: u64) -> String {
        let name = self.name;
        let mut command =
            format!("IOQUEUE_SIM_SEED={seed} cargo test --features sim --test {name} {test}");
        if let (Ok(program), [(variable, value)]) =
            (self.soak.programs.get(name), self.soak.environment)
        {
            let program = program.display();
            command =
                format!("IOQUEUE_SIM_SEED={seed} {variable}={value} {program} --exact {test}");
        }
        format!("{test} with seed {seed}; to repeat: {command}")
    }
}

/// The first test in what a program printed that says with which seed it failed.
fn failure(text: &str) -> Option<(&str, u64)> {
    let mut test = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----"))
        {
            test = Some(name);
        }
        let seed = line.split("with seed ").nth(1).and_then(|rest| rest.split(' ').next());
        if let (Some(test), Some(Ok(seed))) = (test, seed.map(str::parse)) {
            return Some((test, seed));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_of_a_failed_test_is_found_in_what_it_printed() {
        let text = "
running 2 tests
test orders_with_wild_faults ... FAILED
test short_orders ... ok

failures:

---- orders_with_wild_faults stdout ----

thread 'orders_with_wild_faults' panicked at src/sim.rs:1:1:
with seed 4711 (IOQUEUE_SIM_SEED=4711 repeats it): no
";
        assert_eq!(failure(text), Some(("orders_with_wild_faults", 4711)));
        assert_eq!(failure("with seed 3 (nobody says in which test)"), None);
        assert_eq!(text.lines().filter_map(is_ok).collect::<Vec<_>>(), ["short_orders"]);
    }

    #[test]
    fn the_path_of_a_test_program_is_found_in_cargos_message() {
        let message = r#"{"reason":"compiler-artifact","package_id":"path+file:///x#ioqueue@0.1.0","target":{"kind":["test"],"crate_types":["bin"],"name":"sim_random","src_path":"/x/tests/sim_random.rs"},"profile":{},"executable":"/t/deps/sim_random-1","fresh":true}"#;
        let found = executable(message);
        assert_eq!(found, Some(("sim_random".into(), "/t/deps/sim_random-1".into())));
        assert_eq!(executable(&message.replace("\"/t/deps/sim_random-1\"", "null")), None);
    }
}
