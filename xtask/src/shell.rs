//! Running other programs, and saying what takes long.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The workspace's folder. Asked for at run time, because a copied clone brings its old binary along.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().expect("xtask lies in the workspace").to_path_buf()
}

/// The workspace's target folder.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Takes out of `command`'s environment what the cargo that started xtask put there for xtask alone.
pub fn forget_own_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let own = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if own || name == "CARGO_PRIMARY_PACKAGE" || name == "LD_LIBRARY_PATH" {
            command.env_remove(name);
        }
    }
}

/// The cargo that xtask itself was started with, in the workspace.
pub fn native_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_own_package(&mut command);
    command.current_dir(root());
    command
}

/// The arguments that switch on the simulated kernel, where the library has it.
pub fn sim_feature() -> Result<&'static [&'static str]> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let mut lines = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
    let sim = lines
        .by_ref()
        .take_while(|line| !line.starts_with('['))
        .any(|line| line.split('=').next().is_some_and(|name| name.trim() == "sim"));
    Ok(if sim { &["--features", "ioqueue/sim"] } else { &[] })
}

/// Says what starts, runs it to its end, and says how long it took.
pub fn step(what: &str, command: &mut Command) -> Result {
    eprintln!("xtask: {what} ...");
    let start = Instant::now();
    run(command).map_err(|error| format!("{what}: {error}"))?;
    eprintln!("xtask: {what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `command` to its end; anything but success is an error that names the program.
pub fn run(command: &mut Command) -> Result {
    let status = command.status().map_err(|error| could_not_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(failed(command, &status.to_string())) }
}

/// What `command` writes to its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| could_not_start(command, &error))?;
    if !out.status.success() {
        let why = format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
        return Err(failed(command, &why));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs `command` and passes its exit code on.
pub fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().map_err(|error| could_not_start(command, &error))?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code & 0xff)?),
        None => ExitCode::FAILURE,
    })
}

fn could_not_start(command: &Command, error: &std::io::Error) -> Box<dyn Error> {
    format!("{} could not be started: {error}", command.get_program().display()).into()
}

fn failed(command: &Command, why: &str) -> Box<dyn Error> {
    format!("{} failed: {why}", command.get_program().display()).into()
}
