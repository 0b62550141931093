//! `cargo xtask bench windows`: the queue side by side with the same work done by hand on a completion port.
//!
//! `bench/raw/iocp.c` and the program in `bench/src` make the same calls on the same data. They run in turns,
//! in one Wine of their own, program and server on one processor: where they are left to the scheduler, the
//! same program is up to six times slower from one run to the next. A turn of each is a pair, and what is
//! compared is compared within pairs, so that what slows the machine down for a while slows both.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::Wanted;
use super::figures::{Line, Spread, short};
use super::pinned::{PAUSE, Place};
use crate::cross::{Toolchain, WINDOWS};
use crate::setup;
use crate::shell::{self, Result};
use crate::wine::{self, Prefix, Wine};

/// What is measured, with operations for about half a second a run.
pub const BENCHES: [(&str, u32); 9] = [
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

pub const RUNS: usize = 7;

/// Operations of the shorter of the two runs whose calls are counted.
const COUNTED: u32 = 1000;

/// Measures those of the benches that are named, or all: what they came to, a row a line.
pub fn bench(wanted: &Wanted) -> Result<Vec<String>> {
    let programs = Programs::prepare()?;
    let mut figures = Vec::new();
    for (name, count) in wanted.of(&BENCHES) {
        figures.push(measure(&programs, name, count, wanted.runs.unwrap_or(RUNS))?);
    }
    print!("{}", table(&figures));
    Ok(json(&figures))
}

// ---- the programs and where they run ----

struct Programs {
    wine: Wine,
    prefix: Prefix,
    raw: PathBuf,
    queue: PathBuf,
    place: Place,
}

impl Programs {
    /// Builds both programs, and starts a server of their own on the processor they will run on.
    fn prepare() -> Result<Self> {
        setup::packages()?;
        let wine = wine::ensure()?;
        let prefix = wine.prefix("bench")?;
        let programs =
            Self { raw: build_raw()?, queue: build_queue()?, place: Place::find()?, wine, prefix };
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
        let mut command = self.place.first(program);
        for (name, value) in self.prefix.command().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
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

/// A line a row; `min` and `max` are the rate's interval.
fn json(all: &[Figures]) -> Vec<String> {
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
    rows.collect()
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
}
