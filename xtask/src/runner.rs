//! What cargo starts Windows programs with: Wine, a prefix, and a time limit.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use crate::shell::{Result, exit_code};
use crate::wine;

/// The command of xtask's that cargo is told to use; not for people.
pub const COMMAND: &str = "run-under-wine";

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let (program, rest) = arguments.split_first().ok_or("which program?")?;
    let name = Path::new(program).file_name().unwrap_or(OsStr::new(program));
    let wine = wine::already_there()?;
    // Tests that use up a resource get a server of their own, and only one of them at a time.
    let exhaust = name.to_string_lossy().starts_with("exhaust");
    let _lock = if exhaust { Some(wine.lock("exhaust.lock")?) } else { None };
    let prefix = wine.prefix(if exhaust { "exhaust" } else { "tests" })?;
    prefix.keep_server()?;
    exit_code(prefix.command().arg(program).args(rest))
}
