//! `cargo xtask cross`: cargo for Windows, with Wine to run what it builds.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::shell::{self, Result, output};
use crate::{runner, setup, wine};

pub const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
pub const WINDOWS: &str = "x86_64-pc-windows-gnu";

pub fn cross(arguments: &[String]) -> Result<ExitCode> {
    let Some((subcommand, rest)) = arguments.split_first() else {
        return Err("which cargo command? For example: cargo xtask cross test --test pipes".into());
    };
    let limit = (subcommand == "test").then_some(300);
    shell::exit_code(prepare(subcommand, limit)?.args(rest))
}

/// Installs what is missing and answers with a cargo that builds for Windows and runs under Wine, each
/// program for at most `limit` seconds; on Windows that is simply cargo. Add the subcommand's arguments.
pub fn prepare(subcommand: &str, limit: Option<u32>) -> Result<Command> {
    if cfg!(windows) {
        let mut cargo = shell::native_cargo();
        runner::install(cargo.arg(subcommand), "cfg(all())", runner::NATIVELY, limit)?;
        return Ok(cargo);
    }
    setup::packages()?;
    wine::ensure()?.prefix("tests")?.keep_server()?;
    let toolchain = Toolchain::find()?;
    if matches!(toolchain, Toolchain::Debian) && !shell::root().join("target/cross").exists() {
        println!(
            "xtask: no standard library for Windows here: it is built once for debug and once for \
             release, each in a minute or two ..."
        );
    }
    let mut cargo = toolchain.cargo(subcommand, WINDOWS);
    runner::install(&mut cargo, WINDOWS, runner::UNDER_WINE, limit)?;
    Ok(cargo)
}

/// Where the standard library for Windows comes from.
pub enum Toolchain {
    /// rustup has it, built.
    Rustup,
    /// Debian's compiler, which builds it from Debian's copy of its source.
    Debian,
}

impl Toolchain {
    pub fn find() -> Result<Toolchain> {
        if Toolchain::rustup_has_windows() {
            return Ok(Toolchain::Rustup);
        }
        for file in ["/usr/bin/cargo", "/usr/bin/rustc", "/usr/lib/rustlib/src/rust/library"] {
            if !PathBuf::from(file).exists() {
                return Err(format!("{file} is missing: run `cargo xtask setup`").into());
            }
        }
        Ok(Toolchain::Debian)
    }

    pub fn rustup_has_windows() -> bool {
        output(Command::new("rustup").args(["target", "list", "--installed"]))
            .is_ok_and(|targets| targets.lines().any(|target| target == WINDOWS))
    }

    /// A cargo that builds for `target`, away from the native build's files. Add the subcommand's arguments.
    pub fn cargo(&self, subcommand: &str, target: &str) -> Command {
        let mut cargo = match self {
            Toolchain::Rustup => shell::native_cargo(),
            Toolchain::Debian => debian_cargo(subcommand),
        };
        cargo.arg(subcommand);
        if let Toolchain::Debian = self {
            // An option before the subcommand would not reach clippy.
            cargo.arg("-Zbuild-std=std,panic_unwind,test");
        }
        cargo.env("CARGO_BUILD_TARGET", target);
        cargo.env("CARGO_TARGET_DIR", shell::target_dir().join("cross"));
        cargo
    }

    pub fn describe(&self) -> Result<String> {
        match self {
            Toolchain::Rustup => Ok(format!("rustup's toolchain for {WINDOWS}")),
            Toolchain::Debian => {
                let version = output(Command::new("/usr/bin/rustc").arg("--version"))?;
                Ok(format!("Debian's {}", version.trim()))
            }
        }
    }
}

/// Debian's cargo and compiler, by their full paths since rustup's come first on the PATH.
fn debian_cargo(subcommand: &str) -> Command {
    // Asked for clippy, cargo would take the first one that it finds, and that is rustup's.
    let mut cargo =
        Command::new(if subcommand == "clippy" { DEBIAN_CLIPPY } else { "/usr/bin/cargo" });
    shell::forget_own_package(&mut cargo);
    for name in ["RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "RUSTFLAGS", "RUSTDOCFLAGS"] {
        cargo.env_remove(name);
    }
    cargo
        .env("CARGO", "/usr/bin/cargo")
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTDOC", "/usr/bin/rustdoc");
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.current_dir(shell::root());
    cargo
}
