//! `cargo xtask mutants`: breaks the queue on purpose, once for each file in `mutants/`, and shows
//! which test notices.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::shell::{self, Result, output};
use crate::soak::{self, Ended, executable, run_into, tests_that};
use crate::wine;

/// Test programs that play for long, or whatever is there; the others come first, which say what is wrong.
const LONG: [&str; 4] = ["sim_corpus", "sim_random", "sim_quarantine", "sim_exhaustive"];

/// What the model of threads has in it: a mutant of these is tried in every order of threads, too.
const MODELLED: [&str; 2] = ["src/notify.rs", "src/kernel/owner.rs"];

/// Where the table goes, below this line.
const DOCUMENT: &str = "docs/TESTED.md";
const SECTION: &str = "## Mutants\n";

/// Where cargo-mutants looks.
const GENERATED: [&str; 8] = [
    "src/operation.rs",
    "src/handle.rs",
    "src/queue.rs",
    "src/queue/closing.rs",
    "src/queue/registering.rs",
    "src/queue/turning.rs",
    "src/kernel/iocp.rs",
    "src/kernel/iocp/packet.rs",
];

/// How long a test program may take on the unchanged queue. On a broken one it is given a multiple of
/// what it took there.
const LIMIT: Duration = Duration::from_secs(600);

/// How much longer than such a multiple it may take. The tests of threads give up on a wake-up after a
/// minute, and say so.
const PATIENCE: Duration = Duration::from_secs(75);

pub fn mutants(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((first, rest)) if first == "--generated" => generated(rest),
        Some((first, [])) if first == "--write" => written(&[], true),
        Some((first, _)) if first.starts_with('-') => {
            Err(format!("{first} is not known here").into())
        }
        _ => written(arguments, false),
    }
}

/// One way of breaking the queue.
struct Mutant {
    name: String,
    patch: PathBuf,
    /// What it does to the queue: the patch's first line.
    what: String,
    /// The files it changes.
    files: Vec<String>,
}

impl Mutant {
    fn read(patch: PathBuf) -> Result<Mutant> {
        let text = fs::read_to_string(&patch)?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let files = text.lines().filter_map(|line| line.strip_prefix("+++ b/"));
        let what = text.lines().next().unwrap_or_default().trim_end_matches('.').to_string();
        Ok(Mutant { name, files: files.map(str::to_string).collect(), what, patch })
    }

    fn is_modelled(&self) -> bool {
        self.files.iter().any(|file| MODELLED.contains(&file.as_str()))
    }

    /// Those in `mutants/` whose name contains one of `names`, or all.
    fn all(names: &[String]) -> Result<Vec<Mutant>> {
        let mut patches = Vec::new();
        for file in fs::read_dir(shell::root().join("mutants"))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "patch") {
                patches.push(path);
            }
        }
        // By their numbers, of which some have three digits.
        patches.sort_by_cached_key(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (name.split('-').next().and_then(|number| number.parse::<u32>().ok()), name)
        });
        let wanted = |mutant: &Mutant| {
            names.is_empty() || names.iter().any(|name| mutant.name.contains(name.as_str()))
        };
        let all: Vec<Mutant> = patches.into_iter().map(Mutant::read).collect::<Result<_>>()?;
        Ok(all.into_iter().filter(wanted).collect())
    }
}

/// What became of one.
enum Fate {
    /// By this test.
    Killed(String),
    Survived,
    /// It is no mutant: it does not apply, or does not compile.
    Broken(String),
}

/// Breaks the queue in the ways whose names contain one of `names`, or in all; `write` puts what came of it
/// into the document.
fn written(names: &[String], write: bool) -> Result<ExitCode> {
    let mutants = Mutant::all(names)?;
    if mutants.is_empty() {
        return Err("there is no such mutant".into());
    }
    let tree = Tree::copy()?;
    println!("mutants: the queue as it is ...");
    let start = Instant::now();
    match tree.test(true)? {
        Fate::Survived => {
            println!("mutants: it passes, in {} s", start.elapsed().as_secs());
        }
        Fate::Killed(test) => return Err(format!("the unchanged queue fails {test}").into()),
        Fate::Broken(why) => return Err(why.into()),
    }
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    for mutant in &mutants {
        let start = Instant::now();
        let fate = match tree.apply(mutant) {
            Ok(()) => tree.test(mutant.is_modelled())?,
            Err(why) => Fate::Broken(why.to_string()),
        };
        tree.restore(mutant)?;
        let (name, seconds) = (&mutant.name, start.elapsed().as_secs());
        let by = match &fate {
            Fate::Killed(test) => {
                println!("mutants: {name}: killed by {test}, in {seconds} s");
                test.clone()
            }
            Fate::Survived => {
                println!("mutants: {name}: SURVIVED, in {seconds} s");
                "nothing".into()
            }
            Fate::Broken(why) => {
                println!("mutants: {name}: BROKEN: {why}");
                "it is broken".into()
            }
        };
        if !matches!(fate, Fate::Killed(_)) {
            left.push(name.as_str());
        }
        rows.push(format!("| {name} | {} | {by} |", mutant.what));
    }
    let table =
        format!("| mutant | what it does | killed by |\n|---|---|---|\n{}\n", rows.join("\n"));
    println!("\n{table}");
    if write {
        let path = shell::root().join(DOCUMENT);
        let text = with_table(&fs::read_to_string(&path)?, &table)?;
        fs::write(path, text)?;
    }
    println!("mutants: {} of {} killed", mutants.len() - left.len(), mutants.len());
    if left.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("mutants: not killed: {}", left.join(", "));
    Ok(ExitCode::FAILURE)
}

/// The document with another table in its section: the first there, which ends with an empty line or the
/// document.
fn with_table(document: &str, table: &str) -> Result<String> {
    let missing = || format!("there is no table below {SECTION:?} in {DOCUMENT}");
    let section = document.find(SECTION).ok_or_else(missing)?;
    let start = section + document[section..].find("\n| ").ok_or_else(missing)? + 1;
    let end = document[start..].find("\n\n").map_or(document.len(), |end| start + end + 1);
    Ok(format!("{}{table}{}", &document[..start], &document[end..]))
}

// ---------------------------------------------------------------------------------------------
// The copy that is broken

/// A copy of the workspace.
struct Tree {
    root: PathBuf,
    /// Where it is built.
    target: PathBuf,
    tests: Vec<String>,
    /// How long each program took on the unchanged queue.
    took: RefCell<HashMap<(String, Option<u64>), Duration>>,
}

impl Tree {
    fn copy() -> Result<Tree> {
        let folder = shell::target_dir().join("mutants");
        let tree = Tree {
            root: folder.join("tree"),
            target: folder.join("target"),
            tests: tests_here()?,
            took: RefCell::default(),
        };
        if tree.root.exists() {
            fs::remove_dir_all(&tree.root)?;
        }
        copy_folder(&shell::root(), &tree.root)?;
        Ok(tree)
    }

    fn apply(&self, mutant: &Mutant) -> Result {
        // Less context than the patch has: the lines around may change.
        let mut git = Command::new("git");
        git.args(["apply", "-C1", "--recount"]).arg(&mutant.patch).current_dir(&self.root);
        // Were the copy inside of a repository, git would take the paths from that one's top.
        git.env("GIT_CEILING_DIRECTORIES", self.root.parent().unwrap_or(&self.root));
        output(&mut git).map_err(|error| format!("it does not apply: {error}"))?;
        Ok(())
    }

    fn restore(&self, mutant: &Mutant) -> Result {
        for file in &mutant.files {
            // Written anew rather than copied, so that cargo sees that it has changed.
            fs::write(self.root.join(file), fs::read(shell::root().join(file))?)?;
        }
        Ok(())
    }

    /// Runs the tests, the quick ones first, until one fails.
    fn test(&self, with_model: bool) -> Result<Fate> {
        let is_long = |test: &&str| LONG.contains(test);
        let tests = self.tests.iter().map(String::as_str);
        // The library's own unit tests are quick.
        let (long, quick): (Vec<_>, Vec<_>) = tests.chain(["ioqueue"]).partition(is_long);
        let fate = self.test_these(&quick, &[None])?;
        if !matches!(fate, Fate::Survived) {
            return Ok(fate);
        }
        if with_model {
            let fate = self.test_model()?;
            if !matches!(fate, Fate::Survived) {
                return Ok(fate);
            }
        }
        // A few random orders find most of what random orders find.
        self.test_these(&long, &[Some(500), None])
    }

    /// Runs these tests, with so many sequences of those that play some.
    fn test_these(&self, tests: &[&str], runs: &[Option<u64>]) -> Result<Fate> {
        let programs = match self.build(tests)? {
            Ok(programs) => programs,
            Err(why) => return Ok(Fate::Broken(why)),
        };
        for runs in runs {
            for name in tests {
                let program = programs.iter().find(|(built, _)| built == name);
                let (_, program) = program.ok_or(format!("{name} was not built"))?;
                if let Some(test) = self.run(name, program, *runs)? {
                    return Ok(Fate::Killed(test));
                }
            }
        }
        Ok(Fate::Survived)
    }

    /// Tries every order of threads.
    fn test_model(&self) -> Result<Fate> {
        let mut cargo = soak::model(&self.root)?;
        let programs = match compiled(&mut cargo)? {
            Ok(programs) => programs,
            Err(why) => return Ok(Fate::Broken(why)),
        };
        for (name, program) in programs {
            if let Some(test) = self.run(&format!("model/{name}"), &program, None)? {
                return Ok(Fate::Killed(test));
            }
        }
        Ok(Fate::Survived)
    }

    /// Builds test programs; `Err` where the code does not compile.
    fn build(&self, tests: &[&str]) -> Result<Compiled> {
        // That one runs an example, which is not built where cargo is told which tests to build.
        if tests.contains(&"relay") {
            let built = compiled(self.cargo("build")?.args(["--example", "relay"]))?;
            if let Err(why) = built {
                return Ok(Err(why));
            }
        }
        let mut cargo = self.cargo("test")?;
        cargo.arg("--no-run");
        for test in tests {
            if *test == "ioqueue" {
                cargo.arg("--lib");
            } else {
                cargo.args(["--test", test]);
            }
        }
        compiled(&mut cargo)
    }

    /// Cargo, to build or test the copy.
    fn cargo(&self, verb: &str) -> Result<Command> {
        let mut cargo = shell::native_cargo();
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // Nobody looks at these with a debugger, and linking is most of the time.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_INCREMENTAL", "true");
        cargo.args([verb, "--message-format=json-render-diagnostics"]);
        cargo.args(["--quiet", "--package", "ioqueue"]).args(shell::sim_feature()?);
        Ok(cargo)
    }

    /// What a program prints when it runs one test at a time.
    fn alone(&self, program: &Path, log: &Path) -> Result<String> {
        let mut command = Command::new(program);
        shell::forget_own_package(&mut command);
        command.current_dir(&self.root).env("RUST_BACKTRACE", "0").arg("--test-threads=1");
        run_into(&mut command, log, LIMIT)?;
        Ok(String::from_utf8_lossy(&fs::read(log)?).into_owned())
    }

    /// The test of a program that fails, if one does.
    fn run(&self, name: &str, program: &Path, runs: Option<u64>) -> Result<Option<String>> {
        let mut command = Command::new(program);
        shell::forget_own_package(&mut command);
        command.current_dir(&self.root).env("RUST_BACKTRACE", "0");
        ["IOQUEUE_SIM_SEED", "IOQUEUE_SIM_FIRST", "IOQUEUE_SIM_RUNS"].iter().for_each(|variable| {
            command.env_remove(variable);
        });
        if let Some(runs) = runs {
            command.env("IOQUEUE_SIM_RUNS", runs.to_string());
        }
        let log = self.target.join("test.log");
        let key = (name.to_string(), runs);
        let limit = self.took.borrow().get(&key).map(|took| PATIENCE + *took * 5);
        let start = Instant::now();
        let ended = run_into(&mut command, &log, limit.unwrap_or(LIMIT))?;
        self.took.borrow_mut().entry(key).or_insert(start.elapsed());
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let what = match ended {
            Ended::Well => return Ok(None),
            Ended::Badly(_) => match failed(&text) {
                Some(test) => return Ok(Some(format!("`{name}` {test}"))),
                None => "crashes",
            },
            Ended::Never(_) => "hangs",
        };
        // Of several tests at once it is not known which it was that ended them all.
        let text = if what == "crashes" { self.alone(program, &log)? } else { text };
        let mut list = Command::new(program);
        let list = output(list.arg("--list"))?;
        Ok(Some(match unfinished(&list, &text) {
            Some(test) => format!("`{name}` {test}, which {what}"),
            None => format!("`{name}`, which {what}"),
        }))
    }
}

/// Test programs by name; `Err` where the code does not compile.
type Compiled = std::result::Result<Vec<(String, PathBuf)>, String>;

/// What cargo built, with messages as JSON.
fn compiled(cargo: &mut Command) -> Result<Compiled> {
    let out = cargo.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
    if out.status.success() {
        let messages = String::from_utf8_lossy(&out.stdout);
        return Ok(Ok(messages.lines().filter_map(executable).collect()));
    }
    let errors = String::from_utf8_lossy(&out.stderr);
    let first = errors.lines().find(|line| line.starts_with("error")).unwrap_or("no error");
    Ok(Err(format!("it does not compile: {first}")))
}

/// The tests that need no Windows but a simulated one.
fn tests_here() -> Result<Vec<String>> {
    tests_that(|text| !text.starts_with("#![cfg(windows)]"))
}

/// The first test that failed, by what its program printed.
fn failed(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
}

/// The first test that did not come to its end, by a program's list of tests and what it printed.
fn unfinished<'a>(list: &'a str, text: &str) -> Option<&'a str> {
    let mut tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let has = |test: &str, end| text.contains(&format!("test {test} ... {end}"));
    tests.find(|test| !["ok", "FAILED", "ignored"].iter().any(|end| has(test, end)))
}

/// Copies what a build needs.
fn copy_folder(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if name == "target" || name == ".git" || path == shell::target_dir() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_folder(&path, &to.join(name))?;
        } else {
            fs::write(to.join(name), fs::read(&path)?)?;
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// cargo-mutants

/// Lets cargo-mutants break what it likes, and reports what survives. `arguments` are passed on to it,
/// such as `--shard 0/8`.
fn generated(arguments: &[String]) -> Result<ExitCode> {
    let program = cargo_mutants()?;
    let out = shell::target_dir().join("mutants").join("generated");
    fs::create_dir_all(&out)?;
    let mut command = Command::new(program);
    shell::forget_own_package(&mut command);
    command.current_dir(shell::root()).arg("mutants").arg("--output").arg(&out);
    command.args(["--package", "ioqueue", "--no-shuffle", "--minimum-test-timeout", "90"]);
    command.args(["--timeout-multiplier", "3"]);
    command.args(GENERATED.iter().flat_map(|file| ["--file", file])).args(arguments);
    command.arg("--").args(shell::sim_feature()?).arg("--lib");
    for test in tests_here()?.iter().filter(|test| *test != "sim_exhaustive") {
        command.args(["--test", test]);
    }
    command.env("IOQUEUE_SIM_RUNS", "300").env("CARGO_PROFILE_DEV_DEBUG", "0");
    let code = shell::exit_code(&mut command)?;
    let missed = fs::read_to_string(out.join("mutants.out").join("missed.txt")).unwrap_or_default();
    println!("mutants: {} survived:\n{missed}", missed.lines().count());
    Ok(code)
}

/// cargo-mutants, built where it is missing.
fn cargo_mutants() -> Result<PathBuf> {
    let tools = wine::cache_folder()?.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let name = format!("cargo-mutants{}", std::env::consts::EXE_SUFFIX);
    let mut programs = std::env::split_paths(&path).chain([tools.join("bin")]);
    if let Some(folder) = programs.find(|folder| folder.join(&name).exists()) {
        return Ok(folder.join(name));
    }
    println!("mutants: building cargo-mutants, which takes minutes, once ...");
    let mut cargo = shell::native_cargo();
    shell::run(cargo.args(["install", "--locked", "--root"]).arg(&tools).arg("cargo-mutants"))?;
    Ok(tools.join("bin").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_that_failed_is_named() {
        let text = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n";
        assert_eq!(failed(text), Some("b"));
        assert_eq!(failed("test a ... ok\n"), None);
        let list = "a: test\nb: test\nc: test\n\n3 tests, 0 benchmarks\n";
        assert_eq!(unfinished(list, text), Some("c"));
        assert_eq!(unfinished(list, "test a ... ok\ntest b ... "), Some("b"));
    }

    #[test]
    fn the_table_is_put_where_the_last_one_was() {
        let document = "| a |\n\n## Mutants\n\nSome.\n\n| old |\n| 1 |\n\nMore.\n\n| b |\n";
        let other = with_table(document, "| new |\n").unwrap();
        assert_eq!(other, "| a |\n\n## Mutants\n\nSome.\n\n| new |\n\nMore.\n\n| b |\n");
        assert!(with_table("| a |\n", "| new |\n").is_err());
    }

    #[test]
    fn every_mutant_says_what_it_does_and_changes_the_library_only() {
        let mutants = Mutant::all(&[]).unwrap();
        assert!(mutants.len() >= 25, "{}", mutants.len());
        for mutant in mutants {
            let Mutant { name, what, files, .. } = mutant;
            assert!(!what.is_empty() && !what.starts_with("---"), "{name}: {what}");
            assert!(!files.is_empty(), "{name}");
            assert!(files.iter().all(|file| file.starts_with("src/")), "{name}: {files:?}");
        }
    }
}
