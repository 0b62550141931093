//! The project's own commands: `cargo xtask` lists them.

#![forbid(unsafe_code)]

mod bench;
mod cross;
mod demo;
mod lint;
mod mutants;
mod runner;
#[cfg(unix)]
mod serial;
mod setup;
mod shell;
mod soak;
mod test;
mod wine;

use std::process::ExitCode;

use shell::Result;

const HELP: &str = "\
setup                             install what building for Windows and running it under Wine needs
test [--native|--wine] [FILTER]   run the tests here, then for Windows under Wine
lint [--all]                      formatting, clippy, docs, licences, types of other systems; --all builds cargo-deny
demo [--native|--wine]            send a file through two relays and compare what comes out: on each kernel here, then
                                  for Windows under Wine
bench [linux|windows] [--runs N] [--json FILE] [--no-peers] [BENCH...]
                                  measure the queue beside the same work done by hand: on Linux, where other runtimes
                                  do it too, and under Wine; without a system, on all that can be measured here, which
                                  takes half an hour and more
bench chart FIGURES.json PICTURE.svg
                                  draw what it has measured on Linux
soak [--minutes N] [--seed S] [--sanitize | --threads]   try every order of threads, then random orders on the simulated
                                  Windows; the same under sanitizers; or threads alone, in every order and under one
mutants [--write | NAME...]       break the queue in the ways of mutants/, and show which test notices each
mutants --generated [ARGUMENTS]   the same with what cargo-mutants makes up, in the queue's core
cross CARGO ARGUMENTS             run cargo for Windows, and what it builds under Wine: cross test --test pipes
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
    // What is handed to another program asks that one.
    let hands_on = ["cross", runner::UNDER_WINE, runner::NATIVELY].contains(&command);
    let is_asked = !hands_on && rest.iter().any(|word| word == "--help" || word == "-h");
    match if is_asked { "help" } else { command } {
        "help" | "--help" | "-h" => print!("cargo xtask ...\n{HELP}"),
        "setup" => setup::setup()?,
        "cross" => return cross::cross(rest),
        "lint" => return lint::lint(rest),
        "demo" => return demo::demo(rest),
        "bench" => return bench::bench(rest),
        "mutants" => return mutants::mutants(rest),
        "soak" => return soak::soak(rest),
        "test" => return test::test(rest),
        runner::UNDER_WINE | runner::NATIVELY => return runner::run(command, rest),
        _ => return Err(format!("no such command; these there are:\n{HELP}").into()),
    }
    Ok(ExitCode::SUCCESS)
}
