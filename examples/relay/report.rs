//! What is said on standard error: listeners, failures, progress, totals.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often progress is printed.
const PERIOD: Duration = Duration::from_millis(500);

/// Which way bytes go: from FROM to TO, or back.
#[derive(Clone, Copy)]
pub enum Way {
    Forward,
    Back,
}

pub struct Report {
    started: Instant,
    forward: Cell<u64>,
    back: Cell<u64>,
    open: Cell<u64>,
    done: Cell<u64>,
    failed: Cell<u64>,
    on_console: bool,
    progress: bool,
    /// The console's last line is a progress line, to be written over.
    line_open: Cell<bool>,
}

impl Report {
    pub fn new(progress: bool) -> Self {
        let on_console = std::io::stderr().is_terminal();
        Self {
            started: Instant::now(),
            forward: Cell::new(0),
            back: Cell::new(0),
            open: Cell::new(0),
            done: Cell::new(0),
            failed: Cell::new(0),
            on_console,
            progress: progress || on_console,
            line_open: Cell::new(false),
        }
    }

    pub fn carried(&self, way: Way, bytes: u64) {
        let total = match way {
            Way::Forward => &self.forward,
            Way::Back => &self.back,
        };
        total.set(total.get() + bytes);
    }

    pub fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    pub fn ended(&self, well: bool) {
        self.open.set(self.open.get() - 1);
        let total = if well { &self.done } else { &self.failed };
        total.set(total.get() + 1);
    }

    pub fn open(&self) -> u64 {
        self.open.get()
    }

    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// One line, for the user to keep.
    pub fn say(&self, text: &str) {
        self.print(&format!("relay: {text}"), "\n");
    }

    /// Prints progress until it is dropped.
    pub async fn watch(&self) {
        if !self.progress {
            return;
        }
        let Ok(mut interval) = ioqueue::interval(PERIOD) else { return };
        let (mut before, mut since) = (0, self.started);
        while interval.tick().await.is_ok() {
            let carried = self.forward.get() + self.back.get();
            if carried == before && !self.on_console {
                continue;
            }
            let rate = rate(carried - before, since.elapsed());
            (before, since) = (carried, Instant::now());
            let line = format!("{} open, {}, {rate} now", self.open(), self.totals());
            self.print(&line, if self.on_console { "" } else { "\n" });
        }
    }

    /// The closing line.
    pub fn close(&self) {
        let carried = self.forward.get() + self.back.get();
        let elapsed = self.started.elapsed();
        let cut = match self.open.get() {
            0 => String::new(),
            open => format!("{open} cut, "),
        };
        let (totals, rate) = (self.totals(), rate(carried, elapsed));
        self.say(&format!("{cut}{totals} in {:.1} s, {rate}", elapsed.as_secs_f64()));
    }

    fn totals(&self) -> String {
        let failed = match self.failed.get() {
            0 => String::new(),
            failed => format!(" ({failed} failed)"),
        };
        let connections = self.done.get() + self.failed.get();
        let (forward, back) = (amount(self.forward.get()), amount(self.back.get()));
        format!("{connections} done{failed}, {forward} forward, {back} back")
    }

    /// Nothing can be done about an error here, so nothing is.
    fn print(&self, text: &str, end: &str) {
        let over = if self.line_open.replace(end.is_empty()) { "\r" } else { "" };
        // Long enough to cover what was there.
        let width = if self.on_console { 78 } else { 0 };
        let _ = write!(std::io::stderr().lock(), "{over}{text:width$}{end}");
    }
}

fn rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(0.001);
    format!("{:.1} MiB/s", bytes as f64 / f64::from(1 << 20) / seconds)
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..=9999 => format!("{bytes} B"),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
