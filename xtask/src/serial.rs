//! A serial port for the tests under Wine: a pseudo-terminal that sends back what it gets.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::shell::Result;

/// The port, until this is dropped.
pub struct Port {
    /// As Windows names it: `COM41`.
    pub name: String,
    link: PathBuf,
    terminal: Child,
}

impl Port {
    /// A port of the Wine prefix in `folder`. `script` (of bsdutils, which every Debian has) owns the
    /// terminal; what comes out of it goes back in.
    pub fn new(folder: &Path) -> Result<Port> {
        let mut terminal = Command::new("script")
            .args(["-qefc", "stty raw -echo; tty; exec sleep 3600", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut input = terminal.stdin.take().ok_or("script has no input")?;
        let mut output = BufReader::new(terminal.stdout.take().ok_or("script has no output")?);
        let mut path = String::new();
        output.read_line(&mut path)?;
        // One clone's tests beside another's: the number is this process's.
        let name = format!("COM{}", 10 + std::process::id() % 200);
        let link = folder.join("dosdevices").join(name.to_lowercase());
        let port = Port { name, link, terminal };
        let _ = std::fs::remove_file(&port.link);
        symlink(path.trim(), &port.link)?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = io::Read::read(&mut output, &mut buffer) {
                if input.write_all(&buffer[..count]).and_then(|()| input.flush()).is_err() {
                    break;
                }
            }
        });
        Ok(port)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.link);
        let _ = self.terminal.kill();
        let _ = self.terminal.wait();
    }
}
