//! `cargo xtask bench`: the queue side by side with the same work done by hand on a completion port.
//!
//! `bench/raw/iocp.c` and the program in `bench/src` make the same calls on the same data. They run in turns,
//! in one Wine of their own, program and server on one processor: where they are left to the scheduler, the
//! same program is up to six times slower from one run to the next. A turn of each is a pair, and what is
//! compared is compared within pairs, so that what slows the machine down for a while slows both.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use crate::cross::{Toolchain, WINDOWS};
use crate::setup;
use crate::shell::{self, Result};
use crate::wine::{self, Prefix, Wine};

/// What is measured, with operations for about half a second a run.
const BENCHES: [(&str, u32); 9] = [
    ("tcp-pingpong-1", 6_000),
    ("tcp-pingpong-1-posted", 3_500),
    ("tcp-pingpong-64", 6_000),
    ("tcp-pingpong-64-posted", 3_500),
    ("pipe-pingpong-64", 8_000),
    ("pipe-pingpong-64-posted", 3_500),
    ("post-dequeue", 20_000),
    ("file-read-4k-1", 20_000),
    ("file-read-4k-32", 25_000),
];

/// Fewer pairs say nothing of how far the figures spread.
const FEWEST_RUNS: usize = 5;
const RUNS: usize = 7;

/// Operations of the shorter of the two runs whose calls are counted.
const COUNTED: u32 = 1000;

/// Linux takes a twentieth of every second from real-time programs: a run that is hit by it looks a tenth slower.
/// Runs that are shorter than a second and pause before the next are never hit.
const PAUSE: Duration = Duration::from_millis(200);

/// How long one run may take, in seconds, so that a packet that never comes does not hang everything.
const LIMIT: &str = "60";

/// What the command line asks for.
struct Options {
    /// Where to write the figures, besides the table on standard output.
    json: Option<PathBuf>,
    runs: usize,
    benches: Vec<(&'static str, u32)>,
}

pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    if !cfg!(target_os = "linux") {
        return Err("it measures under Wine, on Linux".into());
    }
    let programs = Programs::prepare()?;
    let mut figures = Vec::new();
    for &(name, count) in &options.benches {
        figures.push(measure(&programs, name, count, options.runs)?);
    }
    print!("{}", table(&figures));
    if let Some(file) = options.json {
        fs::write(&file, json(&figures)).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { json: None, runs: RUNS, benches: Vec::new() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--json" => options.json = Some(rest.next().ok_or("--json needs a file")?.into()),
            "--runs" => options.runs = rest.next().ok_or("--runs needs a number")?.parse()?,
            name => {
                let bench = BENCHES.into_iter().find(|(bench, _)| *bench == name);
                options.benches.push(bench.ok_or_else(|| {
                    let names = BENCHES.map(|(name, _)| name).join(" ");
                    format!("there is no bench {name}; these there are: {names}")
                })?);
            }
        }
    }
    if options.runs < FEWEST_RUNS {
        return Err(format!("a median needs at least {FEWEST_RUNS} runs").into());
    }
    if options.benches.is_empty() {
        options.benches = BENCHES.to_vec();
    }
    Ok(options)
}

// ---- the programs and where they run ----

struct Programs {
    wine: Wine,
    prefix: Prefix,
    raw: PathBuf,
    queue: PathBuf,
    processor: String,
    /// What comes before programs to run them before everything else, where that is allowed.
    first: &'static [&'static str],
    /// Two at once would measure each other.
    _lock: fs::File,
}

impl Programs {
    /// Builds both programs, and starts a server of their own on the processor they will run on.
    fn prepare() -> Result<Self> {
        setup::packages()?;
        let wine = wine::ensure()?;
        let prefix = wine.prefix("bench")?;
        let lock = wine.lock("bench.lock")?;
        let programs = Self {
            raw: build_raw()?,
            queue: build_queue()?,
            processor: last_processor()?,
            first: real_time(),
            wine,
            prefix,
            _lock: lock,
        };
        programs.start_server()?;
        Ok(programs)
    }

    fn start_server(&self) -> Result {
        // One that is there may run anywhere.
        self.prefix.end_server();
        let server = self.wine.program().with_file_name("usr/lib/wine/wineserver64");
        shell::run(self.pinned(&server).arg("-p60"))?;
        // Wine's services inherit the first program's streams, and would keep its caller's pipes open.
        let program = self.wine.program();
        shell::run(self.pinned(&program).args(["cmd", "/c", "exit"]))
    }

    /// A program of Wine's on the one processor, with nobody's streams.
    fn pinned(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", LIMIT]).args(self.first);
        command.args(["taskset", "--cpu-list", &self.processor]);
        command.arg(program);
        for (name, value) in self.prefix.command().get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs one of the two programs: what it printed, and what Wine told about its calls.
    fn run(&self, program: &Path, name: &str, count: u32, debug: &str) -> Result<(Line, String)> {
        let mut command = self.pinned(&self.wine.program());
        command.arg(program).arg(name).arg(count.to_string()).env("WINEDEBUG", debug);
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        thread::sleep(PAUSE);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let program = program.display();
            let traced = |line: &&str| line.contains(":Call ") || line.contains(":Ret ");
            let said = told.lines().filter(|line| !traced(line)).collect::<Vec<_>>().join("\n");
            return Err(format!("{program} {name} {count}: {}\n{said}", output.status).into());
        }
        Ok((Line(String::from_utf8_lossy(&output.stdout).into_owned()), told))
    }
}

fn build_raw() -> Result<PathBuf> {
    let folder = shell::target_dir().join("cross");
    fs::create_dir_all(&folder)?;
    let program = folder.join("iocp.exe");
    let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-o"]).arg(&program);
    compiler.arg(shell::root().join("bench/raw/iocp.c")).arg("-lws2_32");
    shell::step("the raw loops", &mut compiler)?;
    Ok(program)
}

/// In the profile that `cargo build --release` has for everybody: no link-time optimisation.
fn build_queue() -> Result<PathBuf> {
    let mut cargo = Toolchain::find()?.cargo("build", WINDOWS);
    cargo.args(["--quiet", "--release", "--package", "ioqueue-bench"]);
    shell::step("the queue's program", &mut cargo)?;
    let folder = shell::target_dir().join("cross").join(WINDOWS).join("release");
    Ok(folder.join("ioqueue-bench.exe"))
}

/// Without it, what else the machine does is measured too. Both programs and the server get it.
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

/// What a program prints: one line of JSON, of its own making and so no harder to read than this.
struct Line(String);

impl Line {
    fn field(&self, name: &str) -> Result<&str> {
        let start = format!("\"{name}\":");
        let (_, rest) =
            self.0.split_once(&start).ok_or_else(|| format!("no {name}: {}", self.0))?;
        Ok(rest.trim_start_matches('"').split(['"', ',', '}']).next().unwrap_or_default())
    }

    fn number(&self, name: &str) -> Result<f64> {
        Ok(self.field(name)?.parse()?)
    }
}

// ---- measuring ----

/// One bench's figures.
struct Figures {
    name: &'static str,
    unit: String,
    raw: Program,
    queue: Program,
    /// The queue's rate over the raw loop's, pair by pair.
    ratios: Spread,
}

struct Program {
    rates: Spread,
    /// Allocations an operation.
    allocations: f64,
    /// OS calls an operation, by name.
    calls: BTreeMap<String, f64>,
}

fn measure(programs: &Programs, name: &'static str, count: u32, runs: usize) -> Result<Figures> {
    let (mut raw, mut queue, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut unit = String::new();
    for run in 1..=runs {
        let (first, _) = programs.run(&programs.raw, name, count, "-all")?;
        let (second, _) = programs.run(&programs.queue, name, count, "-all")?;
        let (a, b) = (first.number("rate")?, second.number("rate")?);
        unit = first.field("unit")?.to_string();
        eprintln!("xtask: {name} {run}/{runs}: raw {a:.0}, ioqueue {b:.0} {unit}");
        raw.push(a);
        queue.push(b);
        ratios.push(b / a);
    }
    let raw = counted(programs, &programs.raw, name, Spread::of(raw))?;
    let queue = counted(programs, &programs.queue, name, Spread::of(queue))?;
    Ok(Figures { name, unit, raw, queue, ratios: Spread::of(ratios) })
}

/// Counts calls and allocations: what a run of twice the length does more than another, so that set-up, output
/// and exit fall out.
fn counted(programs: &Programs, program: &Path, name: &str, rates: Spread) -> Result<Program> {
    let count = |count| -> Result<_> {
        let (line, told) = programs.run(program, name, count, "+relay")?;
        // The raw loops do not count; theirs are in the trace.
        let own = line.number("allocations").ok();
        let allocations = own.unwrap_or_else(|| count_calls(&told, is_allocation).values().sum());
        Ok((count_calls(&told, is_os_call), allocations))
    };
    let ((shorter, few), (longer, many)) = (count(COUNTED)?, count(2 * COUNTED)?);
    let operations = f64::from(COUNTED);
    // The warm-up, a tenth more, is in the trace too.
    let calls = longer.into_iter().map(|(name, calls)| {
        let more = calls - shorter.get(&name).copied().unwrap_or(0.0);
        (name, more / (operations * 1.1))
    });
    let calls = calls.filter(|(_, calls)| *calls >= 0.0005).collect();
    Ok(Program { rates, allocations: (many - few) / operations, calls })
}

/// Counts the calls between modules in what Wine's `+relay` told, as in
/// `0188:Call ntdll.NtReadFile(00000044,...) ret=6ffffe95432a`.
fn count_calls(told: &str, wanted: fn(&str) -> bool) -> BTreeMap<String, f64> {
    let mut calls = BTreeMap::new();
    for line in told.lines() {
        let call = line.split_once(":Call ").and_then(|(_, call)| call.split_once('('));
        if let Some((call, _)) = call.filter(|(call, _)| wanted(call)) {
            *calls.entry(call.to_string()).or_insert(0.0) += 1.0;
        }
    }
    calls
}

/// What enters the system: ntdll's Nt calls, whoever made them; and reading the clock, which does on Wine, though
/// not on most machines with Windows, from within ntdll, so that it is seen one call earlier.
fn is_os_call(call: &str) -> bool {
    call.starts_with("ntdll.Nt") || call == "KERNEL32.QueryPerformanceCounter"
}

fn is_allocation(call: &str) -> bool {
    let function = call.split_once('.').map_or(call, |(_, function)| function);
    ["malloc", "calloc", "realloc", "HeapAlloc", "RtlAllocateHeap"].contains(&function)
}

/// How a figure spreads over the runs.
struct Spread {
    median: f64,
    /// The narrowest two runs between which the true median lies in at least 95 of 100 such measurements,
    /// whatever the figures' distribution (of fewer than 6 runs: the outermost two).
    low: f64,
    high: f64,
    runs: usize,
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let runs = figures.len();
        let median = (figures[(runs - 1) / 2] + figures[runs / 2]) / 2.0;
        let cut = outside(runs);
        Self { median, low: figures[cut], high: figures[runs - 1 - cut], runs }
    }
}

/// How many of `count` sorted figures may be left out at each end. All figures above number k miss the median
/// only if at most k of `count` tosses of a coin show heads.
fn outside(count: usize) -> usize {
    let mut ways = 1.0; // of choosing k of count
    let mut tail = 0.0;
    for k in 0..count {
        tail += ways / 2_f64.powi(count as i32);
        if 2.0 * tail > 0.05 {
            return k.saturating_sub(1);
        }
        ways *= (count - k) as f64 / (k + 1) as f64;
    }
    0
}

// ---- telling ----

fn table(all: &[Figures]) -> String {
    let mut text = String::from(
        "\n\
         | bench | unit | raw | ioqueue | ioqueue / raw | interval | allocations | OS calls | raw's |\n\
         |---|---|---:|---:|---:|---|---:|---:|---:|\n",
    );
    for Figures { name, unit, raw, queue, ratios } in all {
        let Spread { median, low, high, .. } = ratios;
        let _ = writeln!(
            text,
            "| {name} | {unit} | {:.0} | {:.0} | {median:.3} | {low:.3} to {high:.3} | {} | {} | {} |",
            raw.rates.median,
            queue.rates.median,
            short(queue.allocations),
            short(queue.calls.values().sum()),
            short(raw.calls.values().sum()),
        );
    }
    text.push_str("\nOS calls an operation, by name:\n");
    for Figures { name, raw, queue, .. } in all {
        let _ = writeln!(text, "- {name}: raw {}; ioqueue {}", by_name(raw), by_name(queue));
    }
    text
}

fn by_name(program: &Program) -> String {
    let name = |call: &str| call.split_once('.').map_or(call, |(_, name)| name).to_string();
    let calls =
        program.calls.iter().map(|(call, often)| format!("{} {}", name(call), short(*often)));
    calls.collect::<Vec<_>>().join(", ")
}

/// Three places behind the point, without zeros that say nothing.
fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// An array with a line a row; `min` and `max` are the rate's interval.
fn json(all: &[Figures]) -> String {
    let row = |figures: &Figures, implementation: &str, program: &Program, ratio: f64| {
        let Figures { name, unit, .. } = figures;
        let Spread { median, low, high, runs } = &program.rates;
        let calls: f64 = program.calls.values().sum();
        format!(
            "{{\"platform\":\"wine\",\"bench\":\"{name}\",\"impl\":\"{implementation}\",\"rate\":{median:.0},\
             \"unit\":\"{unit}\",\"ratio_raw\":{ratio:.4},\"allocs\":{},\"calls\":{},\"min\":{low:.0},\
             \"max\":{high:.0},\"runs\":{runs}}}",
            short(program.allocations),
            short(calls),
        )
    };
    let rows = all.iter().flat_map(|figures| {
        [
            row(figures, "ioqueue", &figures.queue, figures.ratios.median),
            row(figures, "raw", &figures.raw, 1.0),
        ]
    });
    format!("[\n{}\n]\n", rows.collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_enters_the_system_is_counted_as_a_call() {
        let told = "0024:Call KERNEL32.ReadFile(00000044,1) ret=14000236e\n\
                    0024:Call ntdll.NtReadFile(00000044,1) ret=6ffffe95432a\n\
                    0024:Ret  ntdll.NtReadFile() retval=00000103 ret=6ffffe95432a\n\
                    0024:Call KERNEL32.QueryPerformanceCounter(7ffffe2ffdd8) ret=140008ee9\n\
                    0024:Call ntdll.RtlAllocateHeap(1,2,3) ret=1\n\
                    0024:Call ntdll.NtReadFile(00000044,1) ret=6ffffe95432a\n";
        let calls: Vec<_> = count_calls(told, is_os_call).into_iter().collect();
        let expected =
            [("KERNEL32.QueryPerformanceCounter".into(), 1.0), ("ntdll.NtReadFile".into(), 2.0)];
        assert_eq!(calls, expected);
        assert_eq!(count_calls(told, is_allocation).values().sum::<f64>(), 1.0);
    }

    #[test]
    fn an_interval_covers_the_median_95_times_of_100() {
        // 1 - 2 * P(at most k heads of n): 98.4 % for all of 7, 96.1 % without the outermost of 9, 95.1 % of 12
        // without two, 95.9 % of 20 without five.
        for (count, left_out) in [(5, 0), (7, 0), (8, 0), (9, 1), (12, 2), (20, 5)] {
            assert_eq!(outside(count), left_out, "{count}");
        }
        let spread = Spread::of(vec![9.0, 1.0, 5.0, 3.0, 4.0, 6.0, 2.0, 8.0, 7.0]);
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 5.0, 8.0));
    }

    #[test]
    fn fields_are_found_in_a_programs_line() {
        let line = Line(r#"{"bench":"x","rate":12,"unit":"reads/s","allocations":3}"#.into());
        assert_eq!(line.field("unit").unwrap(), "reads/s");
        assert_eq!(line.number("allocations").unwrap(), 3.0);
        assert!(line.number("calls").is_err());
    }
}
