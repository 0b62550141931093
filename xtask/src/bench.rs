//! `cargo xtask bench`: the queue side by side with the same work done by hand, and with its peers.
//!
//! Programs run in turns, on one processor: a turn of each is a round, and what is compared is compared within
//! rounds, so that what slows the machine down for a while slows all of them.

mod chart;
mod counts;
mod figures;
mod linux;
mod pinned;
mod windows;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::shell::Result;
use crate::{setup, wine};

/// Fewer say nothing of how far the figures spread.
const FEWEST_RUNS: usize = 5;

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    /// One of the two, or both.
    system: Option<System>,
    /// Where to write the figures, besides the tables on standard output.
    json: Option<PathBuf>,
    runs: Option<usize>,
    no_peers: bool,
    /// By name; none are all.
    benches: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum System {
    Linux,
    Windows,
}

pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    if let [word, rest @ ..] = arguments
        && word == "chart"
    {
        return draw(rest);
    }
    let wanted = Wanted::parse(arguments)?;
    if !cfg!(target_os = "linux") {
        return Err("it measures Linux, and Windows under Wine, on Linux".into());
    }
    let _lock = lock()?;
    let mut rows = Vec::new();
    if wanted.measures(System::Linux, &linux::BENCHES) {
        rows.extend(linux::bench(&wanted)?);
    }
    if wanted.measures(System::Windows, &windows::BENCHES) {
        match setup::possible() {
            Err(why) if wanted.system.is_none() => eprintln!("xtask: SKIPPED: Windows: {why}"),
            _ => rows.extend(windows::bench(&wanted)?),
        }
    }
    if let Some(file) = wanted.json {
        let text = format!("[\n{}\n]\n", rows.join(",\n"));
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Draws figures that were measured before.
fn draw(arguments: &[String]) -> Result<ExitCode> {
    let [figures, picture] = arguments else {
        return Err(
            "bench chart FIGURES.json PICTURE.svg, with figures that --json has written".into()
        );
    };
    let text = fs::read_to_string(figures).map_err(|error| format!("{figures}: {error}"))?;
    fs::write(picture, chart::chart(&text)?).map_err(|error| format!("{picture}: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Two at once would measure each other.
fn lock() -> Result<fs::File> {
    let folder = wine::cache_folder()?;
    fs::create_dir_all(&folder)?;
    let file = fs::File::options().create(true).append(true).open(folder.join("bench.lock"))?;
    if file.try_lock().is_err() {
        eprintln!("xtask: waiting for another bench to end ...");
        file.lock()?;
    }
    Ok(file)
}

impl Wanted {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut wanted = Self::default();
        let mut rest = arguments.iter().peekable();
        wanted.system = match rest.peek().map(|word| word.as_str()) {
            Some("linux") => Some(System::Linux),
            Some("windows") => Some(System::Windows),
            _ => None,
        };
        if wanted.system.is_some() {
            rest.next();
        }
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--json" => wanted.json = Some(rest.next().ok_or("--json needs a file")?.into()),
                "--runs" => {
                    wanted.runs = Some(rest.next().ok_or("--runs needs a number")?.parse()?)
                }
                "--no-peers" => wanted.no_peers = true,
                name => wanted.benches.push(name.to_string()),
            }
        }
        if wanted.runs.is_some_and(|runs| runs < FEWEST_RUNS) {
            return Err(format!("a median needs at least {FEWEST_RUNS} runs").into());
        }
        for name in &wanted.benches {
            let names = wanted.names();
            if !names.contains(&name.as_str()) {
                let names = names.join(" ");
                return Err(format!("there is no bench {name}; these there are: {names}").into());
            }
        }
        Ok(wanted)
    }

    /// Of all benches that may be named.
    fn names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if self.system != Some(System::Windows) {
            names.extend(linux::BENCHES.map(|(name, _)| name));
        }
        if self.system != Some(System::Linux) {
            names.extend(windows::BENCHES.map(|(name, _)| name));
        }
        names
    }

    /// Those of a system's benches that are to be measured, and with how many operations.
    fn of(&self, benches: &[(&'static str, u32)]) -> Vec<(&'static str, u32)> {
        let named = |bench: &str| self.benches.iter().any(|name| name == bench);
        let all = self.benches.is_empty();
        benches.iter().copied().filter(|(bench, _)| all || named(bench)).collect()
    }

    fn measures(&self, system: System, benches: &[(&'static str, u32)]) -> bool {
        self.system.is_none_or(|only| only == system) && !self.of(benches).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(arguments: &[&str]) -> Result<Wanted> {
        Wanted::parse(&arguments.iter().map(|word| word.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_system_is_named_first_and_its_benches_after_it() {
        let both = wanted(&["tcp-pingpong-64", "--runs", "5"]).unwrap();
        assert!(both.measures(System::Linux, &linux::BENCHES));
        assert!(both.measures(System::Windows, &windows::BENCHES));
        assert_eq!(both.of(&linux::BENCHES).len(), 1);
        // What only one of them has is measured there.
        let churn = wanted(&["churn"]).unwrap();
        assert!(churn.measures(System::Linux, &linux::BENCHES));
        assert!(!churn.measures(System::Windows, &windows::BENCHES));
        assert!(wanted(&["windows", "churn"]).is_err());
        assert!(wanted(&["linux", "post-dequeue"]).is_err());
        let windows = wanted(&["windows", "--json", "linux"]).unwrap();
        assert!(!windows.measures(System::Linux, &linux::BENCHES));
        assert_eq!(windows.of(&windows::BENCHES).len(), windows::BENCHES.len());
        assert!(wanted(&["--runs", "4"]).is_err());
    }
}
