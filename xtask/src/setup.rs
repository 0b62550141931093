//! `cargo xtask setup`: everything that building for Windows and running the result here needs.

use std::path::Path;
use std::process::Command;

use crate::cross::Toolchain;
use crate::shell::{Result, output, step};
use crate::wine;

pub fn setup() -> Result {
    if cfg!(windows) {
        println!("This is Windows: everything runs natively, there is nothing to set up.");
        return Ok(());
    }
    supported()?;
    packages()?;
    let wine = wine::ensure()?;
    wine.prefix("tests")?;
    println!("Ready: {} and {}.", Toolchain::find()?.describe()?, wine.version()?);
    Ok(())
}

/// Wine's programs here are Debian's for x86-64; elsewhere only the native half runs.
pub fn supported() -> Result {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(
            "Windows programs can be run on Windows itself, or under Wine on x86-64 Debian; \
                    `cargo xtask test --native` runs what this system can"
                .into(),
        );
    }
    Ok(())
}

/// Installs the Debian packages that are missing.
pub fn packages() -> Result {
    let mut wanted = vec!["gcc-mingw-w64-x86-64-win32", "patchelf"];
    if !Toolchain::rustup_has_windows() {
        wanted.extend(["rustc-web", "cargo-web", "rust-web-src"]);
    }
    install(&wanted)
}

/// Installs those of `wanted` that are missing: as root, with apt; otherwise says what to install.
pub fn install(wanted: &[&str]) -> Result {
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!(
            "these Debian packages, or the same by other names, are missing: {list}"
        )
        .into());
    }
    if !is_root() {
        return Err(format!(
            "please install, as root: apt-get install --no-install-recommends {list}"
        )
        .into());
    }
    step("apt-get update", apt_get().args(["-qq", "update"]))?;
    let install = ["-qq", "-y", "--no-install-recommends", "install"];
    step(&format!("apt-get install {list}"), apt_get().args(install).args(&missing))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env_remove("LD_LIBRARY_PATH");
    command
}

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Abbrev}", package]);
    output(&mut query).is_ok_and(|status| status.starts_with("ii"))
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}
