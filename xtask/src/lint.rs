//! `cargo xtask lint`: everything about the source that a machine can judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::cross::{self, Toolchain};
use crate::shell::{self, Result, output, run};
use crate::{setup, wine};

/// Where under `src` unsafe code may stand: files and folders of these names.
const MAY_BE_UNSAFE: [&str; 6] = ["operation", "kernel", "iocp", "nt", "buffer", "op"];

/// How many crates a default build may consist of, and which ones no Windows build may contain.
const WINDOWS_CRATES: usize = 10;
const LINUX_CRATES: usize = 20;
const NOT_ON_WINDOWS: [&str; 3] = ["polling", "rustix", "blocking"];

/// Systems that nobody here can run, but whose code the compiler can check.
const OTHER_TARGETS: [&str; 4] = [
    "x86_64-pc-windows-msvc",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
    "x86_64-unknown-freebsd",
];

/// Hosts of package registries, which differ from machine to machine.
const REGISTRY_HOSTS: &str = "://[a-z.-]*(debian|npm|pypi|crates)[a-z]*[.](org|io|com)";

pub fn lint(arguments: &[String]) -> Result<ExitCode> {
    let all = match arguments {
        [] => false,
        [all] if all == "--all" => true,
        _ => return Err("only --all is known here".into()),
    };
    let mut report = Report::default();
    report.check("formatting", formatting);
    report.check("unsafe code within its walls", unsafe_within_walls);
    report.check("words that must not be committed", forbidden_words);
    report.check("number of dependencies", dependencies);
    report.check("clippy", clippy);
    report.check("documentation", documentation);
    report.check("licences, bans and sources", || cargo_deny(all));
    match setup::possible() {
        Ok(()) => {
            report.check("clippy for Windows", clippy_for_windows);
            report.check("documentation for Windows", documentation_for_windows);
            for target in OTHER_TARGETS {
                report.check(&format!("types for {target}"), || types(target));
            }
        }
        Err(why) => report.skip("Windows and other systems", &why.to_string()),
    }
    Ok(report.end())
}

/// What one check found out, when it did not fail.
enum Verdict {
    Good,
    Skipped(String),
}

#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: bool,
}

impl Report {
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<Verdict>) {
        eprintln!("xtask: {name} ...");
        let start = Instant::now();
        let verdict = match check() {
            Ok(Verdict::Good) => "ok".into(),
            Ok(Verdict::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(error) => {
                self.failed = true;
                eprintln!("xtask: {name}: {error}");
                format!("FAILED: {error}")
            }
        };
        self.lines
            .push(format!("  {name:<38} {:>5.1} s  {verdict}", start.elapsed().as_secs_f64()));
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.lines.push(format!("  {name:<38}          SKIPPED: {why}"));
    }

    fn end(self) -> ExitCode {
        println!("\nlint:");
        self.lines.iter().for_each(|line| println!("{line}"));
        println!("  {}", if self.failed { "FAILED" } else { "ok" });
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn formatting() -> Result<Verdict> {
    run(shell::native_cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Verdict::Good)
}

fn clippy() -> Result<Verdict> {
    let mut cargo = shell::native_cargo();
    cargo.args(["clippy", "--workspace", "--all-targets"]).args(shell::sim_feature()?);
    run(cargo.args(["--", "-D", "warnings"]))?;
    Ok(Verdict::Good)
}

fn documentation() -> Result<Verdict> {
    let mut cargo = shell::native_cargo();
    cargo.args(["doc", "--package", "ioqueue", "--no-deps"]).args(shell::sim_feature()?);
    run(cargo.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Verdict::Good)
}

fn clippy_for_windows() -> Result<Verdict> {
    let toolchain = prepare()?;
    if let Toolchain::Debian = toolchain {
        setup::install(&["rust-web-clippy"])?;
    }
    let mut cargo = toolchain.cargo("clippy", cross::WINDOWS);
    cargo.args(["--package", "ioqueue", "--all-targets", "--", "-D", "warnings"]);
    // It also complains of what is const where thread locals take a call, as on windows-gnu; the native
    // clippy looks at the same code and doesn't.
    run(cargo.args(["-A", "clippy::missing_const_for_thread_local"]))?;
    Ok(Verdict::Good)
}

fn documentation_for_windows() -> Result<Verdict> {
    let mut cargo = prepare()?.cargo("doc", cross::WINDOWS);
    run(cargo.args(["--package", "ioqueue", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Verdict::Good)
}

fn types(target: &str) -> Result<Verdict> {
    // rustup's compiler would need the target's standard library; Debian's builds it from source.
    let Toolchain::Debian = prepare()? else {
        return Ok(Verdict::Skipped("only Debian's toolchain is used for this".into()));
    };
    let mut cargo = Toolchain::Debian.cargo("check", target);
    // Unlike compiler flags this spares the standard library, and another build of it.
    cargo.args(["-Zwarnings", "--config", "build.warnings='deny'"]);
    run(cargo.args(["--package", "ioqueue", "--lib"]))?;
    Ok(Verdict::Good)
}

fn prepare() -> Result<Toolchain> {
    setup::packages()?;
    Toolchain::find()
}

/// Fails where a file outside of the walled rooms says `unsafe` in its code.
fn unsafe_within_walls() -> Result<Verdict> {
    let source = shell::root().join("src");
    let mut found = Vec::new();
    for file in rust_files(&source)? {
        let room =
            file.strip_prefix(&source)?.components().next().ok_or("a file without a name")?;
        let room = Path::new(room.as_os_str()).file_stem().unwrap_or_default();
        if !MAY_BE_UNSAFE.iter().any(|name| room == *name) {
            let text = fs::read_to_string(&file)?;
            let lines = text.lines().enumerate().filter(|(_, line)| is_unsafe(line));
            found.extend(lines.map(|(number, _)| format!("{}:{}", file.display(), number + 1)));
        }
    }
    if found.is_empty() {
        return Ok(Verdict::Good);
    }
    Err(format!("outside of {}: {}", MAY_BE_UNSAFE.join(", "), found.join(", ")).into())
}

/// Whether a line has the word, and not in a comment.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe")
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Registry hosts and this machine's own, in the files and in the commit messages.
fn forbidden_words() -> Result<Verdict> {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(shell::root()).args(arguments);
        // It fails when it finds nothing, which is what is hoped for.
        output(&mut git).unwrap_or_default()
    };
    let documents = [":!Cargo.lock", ":!*.md"];
    let mut found = git(&[&["grep", "-nIE", REGISTRY_HOSTS, "--"], &documents[..]].concat());
    found += &git(&["log", "--extended-regexp", "--grep", REGISTRY_HOSTS, "--format=%h %s"]);
    for word in words_of_this_machine() {
        found += &git(&["grep", "-nIF", "-e", &word, "--", ":!Cargo.lock"]);
        found += &git(&["log", "--fixed-strings", "--grep", &word, "--format=%h %s"]);
    }
    if found.is_empty() { Ok(Verdict::Good) } else { Err(format!("\n{found}").into()) }
}

/// The hosts of its package mirrors, and the path of this clone.
fn words_of_this_machine() -> Vec<String> {
    let mut words = wine::hosts_of_mirrors();
    let root = shell::root();
    if root.components().count() > 3 {
        words.push(root.display().to_string());
    }
    words
}

fn dependencies() -> Result<Verdict> {
    let windows = crates("x86_64-pc-windows-msvc")?;
    let linux = crates("x86_64-unknown-linux-gnu")?;
    let unwanted: Vec<&str> = NOT_ON_WINDOWS
        .into_iter()
        .filter(|name| windows.iter().any(|it| it.split(' ').next() == Some(name)))
        .collect();
    eprintln!("xtask: crates in a build: {} for Windows, {} for Linux", windows.len(), linux.len());
    if windows.len() > WINDOWS_CRATES || linux.len() > LINUX_CRATES {
        let allowed = format!("at most {WINDOWS_CRATES} for Windows and {LINUX_CRATES} for Linux");
        return Err(format!("{allowed} are allowed:\n{}", linux.join("\n")).into());
    }
    if unwanted.is_empty() {
        return Ok(Verdict::Good);
    }
    Err(format!("not wanted for Windows: {}", unwanted.join(", ")).into())
}

/// The crates of a default build for `target`, the library itself included.
fn crates(target: &str) -> Result<Vec<String>> {
    let mut cargo = shell::native_cargo();
    cargo.args(["tree", "--package", "ioqueue", "--edges", "normal", "--prefix", "none"]);
    let tree = output(cargo.args(["--no-dedupe", "--format", "{p}", "--target", target]))?;
    let mut crates: Vec<String> =
        tree.lines().filter(|line| !line.is_empty()).map(str::to_string).collect();
    crates.sort();
    crates.dedup();
    Ok(crates)
}

/// Looks at licences, banned crates and where crates come from. Its advisories are fetched from elsewhere,
/// which a machine with nothing but a registry can't, so they are left out.
fn cargo_deny(install: bool) -> Result<Verdict> {
    let tools = wine::cache_folder()?.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([tools.join("bin")]);
    let name = format!("cargo-deny{}", std::env::consts::EXE_SUFFIX);
    let mut programs = folders.map(|folder| folder.join(&name));
    let program = match programs.find(|program| program.exists()) {
        Some(program) => program,
        None if install => {
            eprintln!("xtask: building cargo-deny, which takes minutes, once ...");
            let mut cargo = shell::native_cargo();
            run(cargo.args(["install", "--locked", "--root"]).arg(&tools).arg("cargo-deny"))?;
            tools.join("bin").join(&name)
        }
        None => {
            return Ok(Verdict::Skipped(
                "no cargo-deny here; `cargo xtask lint --all` builds it".into(),
            ));
        }
    };
    let mut deny = Command::new(program);
    shell::forget_own_package(&mut deny);
    let checks = ["check", "licenses", "bans", "sources"];
    run(deny.current_dir(shell::root()).arg("--workspace").args(checks))?;
    Ok(Verdict::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_seen_in_code_only() {
        assert!(is_unsafe("    unsafe { call() } // why"));
        assert!(is_unsafe("pub unsafe trait Buffer {}"));
        assert!(!is_unsafe("/// unsafe, if not careful"));
        assert!(!is_unsafe("#![forbid(unsafe_code)]"));
    }
}
