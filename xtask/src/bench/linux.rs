//! `cargo xtask bench linux`: the queue on each of its kernels, beside epoll and io_uring by hand, and beside
//! other runtimes.
//!
//! `bench/raw/epoll.c`, `bench/raw/uring.c`, the program in `bench/src` and the one in `bench/peers` do the same
//! work on the same data, both ends of everything in one thread.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::Wanted;
use super::counts::{COUNTED, Counters};
use super::figures::{Line, Spread, short};
use super::pinned::{PAUSE, Place};
use crate::shell::{self, Result};

/// What is measured, with operations for a tenth of a second to one a run.
pub const BENCHES: [(&str, u32); 8] = [
    ("tcp-pingpong-1", 50_000),
    ("tcp-pingpong-64", 50_000),
    ("unix-pingpong-1", 100_000),
    ("wake", 80_000),
    ("stream-64k", 40_000),
    ("file-read-4k-1", 200_000),
    ("file-read-4k-32", 200_000),
    ("churn", 15_000),
];

const RUNS: usize = 9;

/// Operations of the run that shows whether there will be others.
const TRIED: u32 = 10;

const EPOLL: &str = "raw-epoll";
const URING: &str = "raw-uring";
/// The same with the system calls inlined. They show what returning from a function costs after a call, which a
/// program that calls libc pays: the better by hand is none of them.
const INLINE: [&str; 2] = ["raw-epoll-inline", "raw-uring-inline"];
/// The first two are none: the least that tasks which await can cost, on epoll and on io_uring.
const PEERS: [&str; 6] = ["bare", "bare-uring", "tokio", "monoio", "compio", "smol"];

/// Measures those of the benches that are named, or all: what they came to, a row a line.
pub fn bench(wanted: &Wanted) -> Result<Vec<String>> {
    let folder = shell::target_dir().join("bench");
    fs::create_dir_all(&folder)?;
    let rows = rows(&folder, !wanted.no_peers)?;
    let place = Place::find()?;
    let counters = Counters::find(folder.join("calls"));
    let mut all = Vec::new();
    for (name, count) in wanted.of(&BENCHES) {
        let mut figures = measure(&rows, &place, name, count, wanted.runs.unwrap_or(RUNS))?;
        count_all(&mut figures, &place, &counters);
        all.push(figures);
    }
    all.iter().for_each(|figures| print!("{}", table(figures)));
    Ok(all.iter().flat_map(json).collect())
}

// ---- the programs ----

/// A program in the table.
struct Row {
    name: &'static str,
    program: PathBuf,
    /// What comes before the bench's name.
    argument: Option<&'static str>,
    /// The kernel that the queue is told to take.
    kernel: Option<&'static str>,
    /// Left out where it can't do a bench, as where io_uring is refused.
    optional: bool,
}

impl Row {
    fn new(name: &'static str, program: &Path) -> Self {
        Self { name, program: program.into(), argument: None, kernel: None, optional: false }
    }

    /// Adds the program to a command, up to the number of operations.
    fn start(&self, command: &mut Command, bench: &str) {
        command.arg(&self.program).args(self.argument).arg(bench);
        match self.kernel {
            Some(kernel) => command.env("IOQUEUE_KERNEL", kernel),
            None => command.env_remove("IOQUEUE_KERNEL"),
        };
    }

    fn run(&self, place: &Place, bench: &str, count: u32) -> Result<Line> {
        let mut command = place.first("env");
        self.start(&mut command, bench);
        let output = command.arg(count.to_string()).stdin(Stdio::null()).output()?;
        thread::sleep(PAUSE);
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} {bench} {count}: {}\n{told}", self.name, output.status).into());
        }
        Ok(Line(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

fn rows(folder: &Path, peers: bool) -> Result<Vec<Row>> {
    let mut rows = by_hand(folder, [EPOLL, URING], &[])?;
    if cfg!(target_arch = "x86_64") {
        rows.extend(by_hand(folder, INLINE, &["-DINLINE_CALLS"])?);
    }
    let queue = build_queue()?;
    rows.extend([
        Row::new("ioqueue", &queue),
        Row { kernel: Some("uring"), optional: true, ..Row::new("ioqueue-uring", &queue) },
        Row { kernel: Some("readiness"), ..Row::new("ioqueue-readiness", &queue) },
    ]);
    if peers {
        let program = build_peers(folder)?;
        let row = |peer| Row { argument: Some(peer), optional: true, ..Row::new(peer, &program) };
        rows.extend(PEERS.map(row));
    }
    Ok(rows)
}

fn by_hand(folder: &Path, names: [&'static str; 2], flags: &[&str]) -> Result<Vec<Row>> {
    let [epoll, uring] = names;
    Ok(vec![
        Row::new(epoll, &build_raw(folder, "epoll.c", epoll, flags)?),
        Row { optional: true, ..Row::new(uring, &build_raw(folder, "uring.c", uring, flags)?) },
    ])
}

fn build_raw(folder: &Path, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let program = folder.join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-pthread"]).args(flags).arg("-o").arg(&program);
    compiler.arg(shell::root().join("bench/raw").join(source));
    shell::step(name, &mut compiler)?;
    Ok(program)
}

/// In the profile that `cargo build --release` has for everybody: no link-time optimisation.
fn build_queue() -> Result<PathBuf> {
    let mut cargo = shell::native_cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "ioqueue-bench"]);
    shell::step("the queue's program", &mut cargo)?;
    Ok(shell::target_dir().join("release/ioqueue-bench"))
}

/// In the same profile.
fn build_peers(folder: &Path) -> Result<PathBuf> {
    let target = folder.join("peers");
    let mut cargo = shell::native_cargo();
    cargo.current_dir(shell::root().join("bench/peers"));
    cargo.args(["build", "--quiet", "--release", "--locked", "--target-dir"]).arg(&target);
    shell::step("the peers' program", &mut cargo)
        .map_err(|error| format!("{error}; --no-peers leaves them out"))?;
    Ok(target.join("release/ioqueue-bench-peers"))
}

// ---- measuring ----

/// One bench's figures.
struct Figures<'a> {
    bench: &'static str,
    unit: String,
    programs: Vec<Program<'a>>,
}

struct Program<'a> {
    row: &'a Row,
    rates: Vec<f64>,
    /// Allocations an operation, where the program counts them.
    allocations: Option<f64>,
    /// System calls an operation, by name.
    calls: Option<BTreeMap<String, f64>>,
    /// Instructions an operation, without the kernel's.
    instructions: Option<f64>,
}

impl Program<'_> {
    fn spread(&self) -> Spread {
        Spread::of(self.rates.clone())
    }

    /// System calls an operation. Threads that wait for each other do it otherwise when they are traced, and
    /// nothing is said of them.
    fn calls(&self) -> Option<f64> {
        let calls = self.calls.as_ref().filter(|calls| !calls.contains_key("futex"))?;
        Some(calls.values().sum())
    }

    /// The rate over another's, round by round.
    fn over(&self, other: &Program) -> Spread {
        Spread::of(self.rates.iter().zip(&other.rates).map(|(a, b)| a / b).collect())
    }
}

impl<'a> Figures<'a> {
    fn program(&self, name: &str) -> Option<&Program<'a>> {
        self.programs.iter().find(|program| program.row.name == name)
    }

    /// The better of the two by hand.
    fn better(&self) -> &Program<'a> {
        let by_hand = [EPOLL, URING].into_iter().filter_map(|name| self.program(name));
        let best = by_hand.max_by(|a, b| a.spread().median.total_cmp(&b.spread().median));
        best.expect("epoll is in every table")
    }
}

fn measure<'a>(
    rows: &'a [Row],
    place: &Place,
    bench: &'static str,
    count: u32,
    runs: usize,
) -> Result<Figures<'a>> {
    let (mut programs, mut unit) = (Vec::new(), String::new());
    for row in rows {
        match row.run(place, bench, TRIED) {
            Ok(line) => {
                unit = line.field("unit")?.to_string();
                let (rates, allocations, calls, instructions) = (Vec::new(), None, None, None);
                programs.push(Program { row, rates, allocations, calls, instructions });
            }
            Err(error) if row.optional => eprintln!("xtask: left out: {error}"),
            Err(error) => return Err(error),
        }
    }
    for run in 1..=runs {
        let mut told = format!("xtask: {bench} {run}/{runs}:");
        for Program { row, rates, .. } in &mut programs {
            let rate = row.run(place, bench, count)?.number("rate")?;
            let _ = write!(told, " {} {rate:.0}", row.name);
            rates.push(rate);
        }
        eprintln!("{told} {unit}");
    }
    Ok(Figures { bench, unit, programs })
}

/// Adds what an operation takes besides time.
fn count_all(figures: &mut Figures, place: &Place, counters: &Counters) {
    let bench = figures.bench;
    for program in &mut figures.programs {
        let row = program.row;
        eprintln!("xtask: {bench}: counting for {} ...", row.name);
        let start = |command: &mut Command| row.start(command, bench);
        // Of two threads that are traced each comes to other turns than it would alone, and valgrind does not
        // know that to wait on a ring is to wait.
        if bench != "wake" {
            program.calls = told(counters.calls(place, &start));
            program.instructions = told(counters.instructions(place, &start));
        }
        let allocations = |count| row.run(place, bench, count)?.number("allocations");
        if let (Ok(few), Ok(many)) = (allocations(COUNTED), allocations(2 * COUNTED)) {
            program.allocations = Some((many - few) / f64::from(COUNTED));
        }
    }
}

/// What could not be counted is missing in the table: traced threads may get in each other's way for minutes.
fn told<T>(counted: Result<Option<T>>) -> Option<T> {
    counted.unwrap_or_else(|error| {
        eprintln!("xtask: not counted: {error}");
        None
    })
}

// ---- telling ----

fn table(figures: &Figures) -> String {
    let Figures { bench, unit, programs } = figures;
    let better = figures.better();
    let mut text = format!(
        "\n{bench}; the better by hand is {}\n\n\
         | | {unit} | ns each | / raw-epoll | / raw-uring | / the better | interval | allocations \
         | calls | instructions |\n\
         |---|---:|---:|---:|---:|---:|---|---:|---:|---:|\n",
        better.row.name,
    );
    let ratio = |program: &Program, name: &str| {
        let other = figures.program(name);
        other.map_or("-".into(), |other| format!("{:.3}", program.over(other).median))
    };
    for program in programs {
        let rate = program.spread().median;
        let Spread { median, low, high, .. } = program.over(better);
        let _ = writeln!(
            text,
            "| {} | {rate:.0} | {:.0} | {} | {} | {median:.3} | {low:.3} to {high:.3} | {} | {} | {} |",
            program.row.name,
            1e9 / rate,
            ratio(program, EPOLL),
            ratio(program, URING),
            program.allocations.map_or("-".into(), short),
            program.calls().map_or("-".into(), short),
            program.instructions.map_or("-".into(), |count| format!("{count:.0}")),
        );
    }
    if programs.iter().any(|program| program.calls.is_some()) {
        text.push_str("\nSystem calls an operation, by name:\n");
        for Program { row, calls, .. } in programs {
            let _ = writeln!(text, "- {}: {}", row.name, by_name(calls.iter().flatten()));
        }
    }
    text
}

fn by_name<'a>(calls: impl Iterator<Item = (&'a String, &'a f64)>) -> String {
    calls.map(|(call, often)| format!("{call} {}", short(*often))).collect::<Vec<_>>().join(", ")
}

/// A line a row; `min` and `max` are the rate's interval, `ratio_raw` is to the better by hand.
fn json(figures: &Figures) -> Vec<String> {
    let Figures { bench, unit, programs } = figures;
    let number = |number: Option<f64>| number.map_or("null".into(), short);
    let row = |program: &Program| {
        let Spread { median, low, high, runs } = program.spread();
        let ratio = |name| figures.program(name).map(|other| program.over(other).median);
        format!(
            "{{\"platform\":\"linux\",\"bench\":\"{bench}\",\"impl\":\"{}\",\"rate\":{median:.0},\
             \"unit\":\"{unit}\",\"ratio_raw\":{:.4},\"ratio_epoll\":{},\"ratio_uring\":{},\
             \"allocs\":{},\"calls\":{},\"instructions\":{},\"min\":{low:.0},\"max\":{high:.0},\
             \"runs\":{runs}}}",
            program.row.name,
            program.over(figures.better()).median,
            number(ratio(EPOLL)),
            number(ratio(URING)),
            number(program.allocations),
            number(program.calls()),
            number(program.instructions),
        )
    };
    programs.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program<'a>(row: &'a Row, rates: &[f64]) -> Program<'a> {
        Program { row, rates: rates.into(), allocations: None, calls: None, instructions: None }
    }

    #[test]
    fn programs_are_compared_with_the_better_by_hand_within_rounds() {
        let row = |name| Row::new(name, Path::new("program"));
        let rows = [row(EPOLL), row(URING), row("ioqueue"), row(INLINE[1])];
        // The machine is half as fast in the second round.
        let rates =
            [[100.0, 50.0, 100.0], [120.0, 60.0, 120.0], [60.0, 30.0, 60.0], [150.0, 75.0, 150.0]];
        let programs = rows.iter().zip(&rates).map(|(row, rates)| program(row, rates)).collect();
        let figures = Figures { bench: "wake", unit: "round trips/s".into(), programs };
        assert_eq!(figures.better().row.name, URING);
        let over = figures.program("ioqueue").unwrap().over(figures.better());
        assert_eq!((over.low, over.median, over.high), (0.5, 0.5, 0.5));
        let rows = json(&figures);
        assert!(rows[2].contains("\"ratio_raw\":0.5000,\"ratio_epoll\":0.6,\"ratio_uring\":0.5,"));
        assert!(rows[2].contains("\"calls\":null"), "{}", rows[2]);
        let table = table(&figures);
        assert!(table.contains("| ioqueue | 60 | 16666667 | 0.600 | 0.500 | 0.500 |"));
        assert!(table.contains("| raw-uring-inline | 150 | 6666667 | 1.500 | 1.250 | 1.250 |"));
    }

    #[test]
    fn calls_of_threads_that_wait_for_each_other_are_not_told() {
        let row = Row::new("tokio", Path::new("program"));
        let calls = [("pread64".to_string(), 1.0), ("write".to_string(), 0.5)];
        let mut program = program(&row, &[1.0]);
        program.calls = Some(calls.into());
        assert_eq!(program.calls(), Some(1.5));
        program.calls.as_mut().unwrap().insert("futex".into(), 500.0);
        assert_eq!(program.calls(), None);
    }

    #[test]
    fn without_a_ring_epoll_is_the_better() {
        let rows = [Row::new(EPOLL, Path::new("epoll"))];
        let programs = vec![program(&rows[0], &[10.0; 5])];
        let figures = Figures { bench: "wake", unit: "round trips/s".into(), programs };
        assert_eq!(figures.better().row.name, EPOLL);
        assert!(table(&figures).contains("| raw-epoll | 10 | 100000000 | 1.000 | - | 1.000 |"));
    }
}
