//! `cargo xtask bench`: the queue side by side with raw loops and other libraries.
//!
//! What is measured lies in `bench/`, outside of the workspace, so that its peers are nobody's dependency.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::shell::Result;

/// What the command line asks for.
struct Options {
    /// Where to write the figures, besides the table on standard output.
    json: Option<PathBuf>,
}

pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    let options = match arguments {
        [] => Options { json: None },
        [json, file] if json == "--json" => Options { json: Some(PathBuf::from(file)) },
        _ => return Err("only --json FILE is known here".into()),
    };
    measure(&options)
}

/// Builds and runs everything that is measured. For Windows: `cross::prepare` and a Wine prefix of its own
/// (`Wine::prefix("bench")`), so that tests which run at the same time share no server with it.
fn measure(options: &Options) -> Result<ExitCode> {
    let _ = &options.json;
    Err("there is nothing to measure yet".into())
}
