//! Wine 10 in the user's cache folder, without root, chroot or mounts.
//!
//! Debian bookworm's own Wine 8 lacks bcryptprimitives.dll, which std needs, and gets completion ports
//! wrong, so the programs come from Debian's next release, with that release's C library beside them.
//! All clones share the folder: `lock` guards it, everything is built beside its place and renamed into
//! it, and a `stamp` is written last, so that whatever was interrupted is built again.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::shell::{Result, output, run};

/// Changes whenever what follows builds something else, so that old copies are built again.
const RECIPE: &str = "ioqueue wine recipe 1";

const RELEASE: &str = "trixie";
const PACKAGES: [&str; 7] =
    ["libc6", "libgcc-s1", "libunwind8", "liblzma5", "libwine", "wine64", "libz-mingw-w64"];

/// A Wine that was there, or was just built, and answers.
pub struct Wine {
    cache: PathBuf,
}

/// A Windows installation of Wine's, with a server of its own.
pub struct Prefix {
    pub folder: PathBuf,
    wine: PathBuf,
}

/// Makes sure that there is a working Wine.
pub fn ensure() -> Result<Wine> {
    let wine = Wine { cache: cache_folder()? };
    if wine.check().is_ok() {
        return Ok(wine);
    }
    let _lock = wine.lock("lock")?;
    // Somebody else may have built it while this process waited.
    if let Err(error) = wine.check() {
        eprintln!("xtask: setting up Wine in {} ({error})", wine.cache.display());
        wine.build()?;
    }
    Ok(wine)
}

/// The Wine that `ensure` checked in the process that started this one.
pub fn already_there() -> Result<Wine> {
    Ok(Wine { cache: cache_folder()? })
}

/// This project's folder in the user's cache.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("ioqueue"))
}

impl Wine {
    fn root(&self) -> PathBuf {
        self.cache.join("wine")
    }

    /// The program that starts Windows programs.
    pub fn program(&self) -> PathBuf {
        self.root().join("ioqueue-wine")
    }

    pub fn version(&self) -> Result<String> {
        let version = output(Command::new(self.program()).arg("--version"))?;
        Ok(version.trim().to_string())
    }

    fn check(&self) -> Result {
        check_stamp(&self.root(), RECIPE)?;
        self.version().map(drop)
    }

    /// Holds the named lock until the file is dropped; says so when it has to wait.
    pub fn lock(&self, name: &str) -> Result<File> {
        fs::create_dir_all(&self.cache)?;
        let file = File::options().create(true).append(true).open(self.cache.join(name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("xtask: waiting for another process that uses Wine ({name}) ...");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(file)
    }

    /// Removes everything, so that all of it is built again.
    pub fn remove(&self) -> Result {
        let _lock = self.lock("lock")?;
        remove(&self.root())?;
        remove(&self.cache.join("prefix"))
    }

    fn build(&self) -> Result {
        let start = Instant::now();
        let (root, new) = (self.root(), self.cache.join("wine.new"));
        remove(&new)?;
        fs::create_dir_all(&new)?;
        unpack(&download(&new)?, &new)?;
        mark_zlib_as_builtin(&new)?;
        link_tables_to_themselves(&new)?;
        use_own_c_library(&new, &root)?;
        write_scripts(&new, &root)?;
        remove(&root)?;
        fs::rename(&new, &root)?;
        let version = self.version()?;
        fs::write(root.join("stamp"), RECIPE)?;
        eprintln!("xtask: {version}: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// The prefix of that name, made if need be.
    pub fn prefix(&self, name: &str) -> Result<Prefix> {
        let prefix = self.existing_prefix(name);
        if prefix.check().is_err() {
            let _lock = self.lock("lock")?;
            if let Err(error) = prefix.check() {
                eprintln!("xtask: making the Wine prefix `{name}` ({error}) ...");
                prefix.build()?;
            }
        }
        Ok(prefix)
    }

    pub fn existing_prefix(&self, name: &str) -> Prefix {
        Prefix { folder: self.cache.join("prefix").join(name), wine: self.root() }
    }
}

impl Prefix {
    fn check(&self) -> Result {
        check_stamp(&self.folder, RECIPE)?;
        for file in ["system.reg", "user.reg", "drive_c/windows/system32/kernel32.dll"] {
            if !self.folder.join(file).exists() {
                return Err(format!("{} lacks {file}", self.folder.display()).into());
            }
        }
        Ok(())
    }

    fn build(&self) -> Result {
        let start = Instant::now();
        let new = Prefix { folder: self.folder.with_extension("new"), wine: self.wine.clone() };
        // What was interrupted or broken may still have programs running.
        for old in [&new, self] {
            old.end_server();
        }
        remove(&new.folder)?;
        fs::create_dir_all(&new.folder)?;
        let made = run(quiet(new.command().args(["wineboot", "-i"])));
        new.end_server();
        made?;
        remove(&self.folder)?;
        fs::rename(&new.folder, &self.folder)?;
        self.works()?;
        fs::write(self.folder.join("stamp"), RECIPE)?;
        eprintln!("xtask: made the Wine prefix: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Runs a Windows program.
    pub fn works(&self) -> Result {
        self.keep_server()?;
        self.start_services()?;
        let said = output(self.command().args(["cmd", "/c", "echo", "works"]))?;
        if said.trim() != "works" {
            return Err(format!("Wine's shell answered {said:?}").into());
        }
        Ok(())
    }

    /// Wine's program in this prefix: add a Windows program and its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.wine.join("ioqueue-wine"));
        self.environment(&mut command);
        command
    }

    fn environment(&self, command: &mut Command) {
        command.env("WINEPREFIX", &self.folder).env("WINEDEBUG", "-all");
        // No menu entries outside of the prefix, no offers to download .NET or a browser engine.
        command.env("WINEDLLOVERRIDES", "winemenubuilder.exe=d;mscoree=;mshtml=");
        // Debian's Wine 10 aborts ("free(): invalid pointer") where TMPDIR is set.
        command.env_remove("TMPDIR");
    }

    fn server(&self, option: &str) -> Command {
        let mut command = Command::new(self.wine.join("usr/lib/wine/wineserver64"));
        self.environment(&mut command);
        quiet(command.arg(option));
        command
    }

    /// Keeps Wine's server for a minute after its last program, which makes a start 20 times faster.
    pub fn keep_server(&self) -> Result {
        let is_new = self.server("-p60").status()?.success();
        if is_new { self.start_services() } else { Ok(()) }
    }

    /// Wine's services inherit the first program's streams, and would keep its caller's pipes open for a
    /// minute, so the first program is one without any.
    fn start_services(&self) -> Result {
        quiet(self.command().args(["cmd", "/c", "exit"])).status()?;
        Ok(())
    }

    /// Ends Wine's server and with it every program in this prefix.
    pub fn end_server(&self) {
        if !self.folder.exists() {
            return;
        }
        // It fails when there is none, which is as good.
        let _ = self.server("-k").status();
        let _ = self.server("-w").status();
    }
}

fn check_stamp(folder: &Path, expected: &str) -> Result {
    match fs::read_to_string(folder.join("stamp")) {
        Ok(stamp) if stamp == expected => Ok(()),
        Ok(_) => Err("another recipe's".into()),
        Err(_) if folder.exists() => Err("half finished".into()),
        Err(_) => Err("not there yet".into()),
    }
}

fn remove(folder: &Path) -> Result {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", folder.display()).into())
        }
        _ => Ok(()),
    }
}

/// A server that stays would otherwise keep the caller's pipes open.
fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Downloads the packages with an apt configuration of our own; the machine's is left alone.
fn download(new: &Path) -> Result<PathBuf> {
    let apt = new.join("apt");
    let debs = apt.join("debs");
    for folder in ["lists/partial", "archives/partial", "debs"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    fs::write(apt.join("status"), "")?;
    fs::write(apt.join("sources.list"), mirror()?.source_line(RELEASE))?;
    let get = |arguments: &[&str]| -> Result {
        let mut command = Command::new("apt-get");
        command.current_dir(&debs).env_remove("LD_LIBRARY_PATH").arg("-qq");
        for (option, value) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", apt.clone()),
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::State::status", apt.join("status")),
            ("Dir::Cache", apt.clone()),
            ("Dir::Cache::archives", apt.join("archives")),
            ("APT::Architecture", "amd64".into()),
            // Otherwise apt drops to a user who can't write here, and warns.
            ("APT::Sandbox::User", "".into()),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        run(command.args(arguments))
    };
    eprintln!("xtask: asking Debian's mirror for {RELEASE}'s packages ...");
    get(&["update"])?;
    eprintln!("xtask: downloading {} (115 MB) ...", PACKAGES.join(" "));
    get(&[&["download"], &PACKAGES[..]].concat())?;
    Ok(debs)
}

fn unpack(debs: &Path, new: &Path) -> Result {
    eprintln!("xtask: unpacking (880 MB) ...");
    for deb in fs::read_dir(debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(new))?;
    }
    remove(&new.join("apt"))
}

/// What libwine's own install step does: Wine takes the DLL for its own only with this mark.
fn mark_zlib_as_builtin(new: &Path) -> Result {
    let mut dll = fs::read(new.join("usr/x86_64-w64-mingw32/lib/zlib1.dll"))?;
    let mark = dll.get_mut(64..96).ok_or("zlib1.dll is too short")?;
    mark.copy_from_slice(b"Wine builtin DLL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    fs::write(new.join("usr/lib/x86_64-linux-gnu/wine/x86_64-windows/zlib1.dll"), dll)?;
    Ok(())
}

/// Debian's wineserver looks for its tables in share/wine/wine, its Wine in share/wine.
#[cfg(unix)]
fn link_tables_to_themselves(new: &Path) -> Result {
    Ok(std::os::unix::fs::symlink(".", new.join("usr/share/wine/wine"))?)
}

#[cfg(not(unix))]
fn link_tables_to_themselves(_: &Path) -> Result {
    Err("Wine is for Linux".into())
}

/// Makes Wine's programs use the C library they were built for, at its final place.
fn use_own_c_library(new: &Path, root: &Path) -> Result {
    for program in ["wine64", "wineserver64"] {
        let mut patch = Command::new("patchelf");
        patch.arg("--set-interpreter").arg(root.join("usr/lib64/ld-linux-x86-64.so.2"));
        patch.arg("--force-rpath").arg("--set-rpath").arg(root.join("usr/lib/x86_64-linux-gnu"));
        run(patch.arg(new.join("usr/lib/wine").join(program)))?;
    }
    Ok(())
}

fn write_scripts(new: &Path, root: &Path) -> Result {
    let bin = root.join("usr/lib/wine");
    let bin = bin.display();
    let server = format!("#!/bin/sh\nexec '{bin}/wineserver64' -p0 \"$@\"\n");
    script(&new.join("usr/lib/wine/wineserver"), &server)?;
    let wine = format!(
        "#!/bin/sh\nunset WINELOADER WINESERVER WINEDLLPATH LD_LIBRARY_PATH\nexec '{bin}/wine64' \"$@\"\n"
    );
    script(&new.join("ioqueue-wine"), &wine)
}

fn script(path: &Path, text: &str) -> Result {
    fs::write(path, text)?;
    run(Command::new("chmod").arg("755").arg(path))
}

/// Where the machine gets its own Debian packages from.
#[derive(Debug, PartialEq)]
struct Mirror {
    address: String,
    signed_by: Option<String>,
}

impl Mirror {
    fn source_line(&self, release: &str) -> String {
        let keys =
            self.signed_by.as_ref().map(|file| format!(" signed-by={file}")).unwrap_or_default();
        format!("deb [target=Packages{keys}] {} {release} main\n", self.address)
    }
}

/// Reads the mirror off apt's own list, so that its address is written down nowhere else.
fn mirror() -> Result<Mirror> {
    let release = fs::read_to_string("/etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or("/etc/os-release names no release: is this Debian?")?;
    for (file, text) in apt_sources() {
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => mirror_in_lines(&text, codename),
            Some("sources") => mirror_in_paragraphs(&text, codename),
            _ => None,
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    Err(format!("apt's sources name no mirror with the suite {codename}").into())
}

fn apt_sources() -> Vec<(PathBuf, String)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let read = |file: PathBuf| fs::read_to_string(&file).ok().map(|text| (file, text));
    files.into_iter().filter_map(read).collect()
}

/// The hosts that apt's sources name.
pub fn hosts_of_mirrors() -> Vec<String> {
    let mut hosts = Vec::new();
    for (_, text) in apt_sources() {
        for address in text.split_whitespace().filter_map(|word| word.split_once("://")) {
            hosts.extend(
                address.1.split('/').next().filter(|host| !host.is_empty()).map(str::to_string),
            );
        }
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The one-line format: `deb [signed-by=FILE ...] ADDRESS SUITE COMPONENT ...`.
fn mirror_in_lines(text: &str, codename: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let &[address, suite, ref components @ ..] = words.as_slice() else { return None };
        let signed_by =
            options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        (suite == codename && components.contains(&"main"))
            .then(|| Mirror { address: address.into(), signed_by: signed_by.map(Into::into) })
    })
}

/// The deb822 format: paragraphs of `Field: values`, here only on one line each.
fn mirror_in_paragraphs(text: &str, codename: &str) -> Option<Mirror> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).find_map(|paragraph| {
        let field = |wanted: &str| {
            paragraph.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        let has =
            |name, word| field(name).is_some_and(|text| text.split_whitespace().any(|w| w == word));
        if !(has("Types", "deb") && has("Suites", codename) && has("Components", "main")) {
            return None;
        }
        let address = field("URIs")?.split_whitespace().next()?.to_string();
        // An empty value means that the keys themselves follow: then apt's own key ring must do.
        let signed_by = field("Signed-By").filter(|value| value.starts_with('/')).map(Into::into);
        Some(Mirror { address, signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let one_line = "# deb file:/old bookworm main\n\
                        deb [arch=amd64 signed-by=/keys.gpg] file:/other other main\n\
                        deb [arch=amd64 signed-by=/keys.gpg] file:/mirror bookworm contrib main\n";
        let found = Mirror { address: "file:/mirror".into(), signed_by: Some("/keys.gpg".into()) };
        assert_eq!(mirror_in_lines(one_line, "bookworm"), Some(found));
        let paragraphs = "Types: deb\nURIs: file:/security\nSuites: bookworm-security\nComponents: main\n\n\
                          Types: deb deb-src\n# a remark\nURIs: file:/mirror\nSuites: bookworm bookworm-updates\n\
                          Components: main\nSigned-By:\n -----BEGIN\n";
        let found = Mirror { address: "file:/mirror".into(), signed_by: None };
        assert_eq!(mirror_in_paragraphs(paragraphs, "bookworm"), Some(found));
        assert_eq!(mirror_in_paragraphs(paragraphs, "sid"), None);
    }
}
