//! `cargo xtask setup`: everything that building for Windows and running the result here needs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cross::Toolchain;
use crate::shell::{Result, output, step};
use crate::wine;

const APT_GET: &str = "/usr/bin/apt-get";

pub fn setup() -> Result {
    if cfg!(windows) {
        println!("This is Windows: everything runs natively, there is nothing to set up.");
        return Ok(());
    }
    packages()?;
    let mut wine = wine::ensure()?;
    if let Err(error) = wine.prefix("tests")?.works() {
        eprintln!("xtask: Wine is there but does not work, so it is set up again ({error})");
        wine.remove()?;
        wine = wine::ensure()?;
        wine.prefix("tests")?.works()?;
    }
    println!("Ready: {} and {}.", Toolchain::find()?.describe()?, wine.version()?);
    Ok(())
}

/// Whether what is missing for Windows can be installed here; the error says what stands against it.
pub fn possible() -> Result {
    // The Wine that is set up here is Debian's for x86-64.
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("Windows programs run on Windows itself, or under Wine on x86-64 Debian".into());
    }
    let missing = missing(&wanted());
    if missing.is_empty() || (Path::new(APT_GET).exists() && is_root()) {
        return Ok(());
    }
    let list = missing.join(" ");
    Err(format!("please install, as root: apt-get install --no-install-recommends {list}").into())
}

/// Installs the Debian packages that are missing.
pub fn packages() -> Result {
    possible()?;
    install(&wanted())
}

fn wanted() -> Vec<&'static str> {
    let mut wanted = vec!["gcc-mingw-w64-x86-64-win32", "patchelf"];
    if !Toolchain::rustup_has_windows() {
        wanted.extend(["rustc-web", "cargo-web", "rust-web-src"]);
    }
    wanted
}

fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    wanted.iter().copied().filter(|name| !installed(name)).collect()
}

/// Installs those of `wanted` that are missing.
pub fn install(wanted: &[&str]) -> Result {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    step("apt-get update", apt_get().args(["-qq", "update"]))?;
    let install = ["-qq", "-y", "--no-install-recommends", "install"];
    let what = format!("apt-get install {}", missing.join(" "));
    step(&what, apt_get().args(install).args(&missing).stdout(Stdio::null()))
}

fn apt_get() -> Command {
    let mut command = Command::new(APT_GET);
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
