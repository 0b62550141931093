//! The project's own commands: `cargo xtask` lists them.

#![forbid(unsafe_code)]

mod cross;
mod lint;
mod runner;
mod setup;
mod shell;
mod test;
mod wine;

use std::process::ExitCode;

use shell::Result;

const HELP: &str = "\
cargo xtask setup                     install what building for Windows and running it under Wine needs
cargo xtask cross <cargo arguments>   run cargo for Windows, its programs under Wine: cross test --test pipes
cargo xtask test [--native|--wine] [filter...]   run the tests here, then for Windows under Wine
cargo xtask lint [--all]              formatting, clippy, docs, licences, other systems' types; --all builds cargo-deny
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    match dispatch(command, rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &str, rest: &[String]) -> Result<ExitCode> {
    match command {
        "help" | "--help" | "-h" => print!("{HELP}"),
        "setup" => setup::setup()?,
        "cross" => return cross::cross(rest),
        "lint" => return lint::lint(rest),
        "test" => return test::test(rest),
        runner::UNDER_WINE | runner::NATIVELY => return runner::run(command, rest),
        _ => return Err(format!("no such command; these there are:\n{HELP}").into()),
    }
    Ok(ExitCode::SUCCESS)
}
