//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::system::{KINDS, KINDS_HELP, full_name};

pub fn usage() -> String {
    format!(
        "\
usage: relay [--once N] [--linger SECONDS] [--progress] FROM TO

Carries bytes both ways between FROM and TO, each one of:
  tcp:HOST:PORT         connect
  tcp-listen:HOST:PORT  accept connections (port 0: any that is free)
{KINDS_HELP}
  file:PATH             as FROM read to its end, as TO made or emptied, then written
  -                     standard input and output

Each connection that FROM accepts opens TO, many at once. Two listeners are paired up.

  --once N              end after N connections
  --linger SECONDS      where only closing passes an end on: how long the other way may be
                        quiet before that (2)
  --progress            print progress also when standard error is no console
  -h, --help            print this

Ctrl-C ends it: with 0 when no connection was open, otherwise with 130.
"
    )
}

/// What the command line asks for.
pub struct Arguments {
    pub from: Address,
    pub to: Address,
    /// How many connections, if there is an end.
    pub once: Option<u64>,
    pub linger: Duration,
    pub progress: bool,
}

/// One side, as it was written.
pub enum Address {
    Tcp(String),
    TcpListen(String),
    /// A Unix socket or a named pipe, by its full name.
    Local(String),
    LocalListen(String),
    File(PathBuf),
    Standard,
}

/// Why there are no arguments.
pub enum Stop {
    Help,
    Wrong(String),
}

impl Arguments {
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Stop> {
        let (mut once, mut linger, mut progress) = (None, Duration::from_secs(2), false);
        let mut sides = Vec::new();
        let words: Result<Vec<String>, OsString> =
            words.into_iter().map(OsString::into_string).collect();
        let words = words.map_err(|word| Stop::Wrong(format!("{word:?}: not UTF-8")))?;
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-h" | "--help" => return Err(Stop::Help),
                "--progress" => progress = true,
                "--once" => once = Some(count(words.next())?),
                "--linger" => linger = seconds(words.next())?,
                option if option.starts_with("--") => {
                    return Err(Stop::Wrong(format!("there is no option {option}")));
                }
                side => sides.push(Address::parse(side)?),
            }
        }
        let [from, to] = <[Address; 2]>::try_from(sides).map_err(|sides| {
            Stop::Wrong(format!("FROM and TO are needed; there are {} of them", sides.len()))
        })?;
        if let (Address::Standard, Address::Standard) = (&from, &to) {
            return Err(Stop::Wrong("only one side can be -".into()));
        }
        let many = from.listens() && to.repeats();
        if once.is_some_and(|once| once > 1) && !many {
            return Err(Stop::Wrong(
                "--once over 1 needs a FROM that listens, and a TO that is no file and not -"
                    .into(),
            ));
        }
        let once = if many { once } else { Some(1) };
        Ok(Self { from, to, once, linger, progress })
    }
}

fn count(word: Option<String>) -> Result<u64, Stop> {
    let count = word.and_then(|word| word.parse().ok()).filter(|&count| count > 0);
    count.ok_or_else(|| Stop::Wrong("--once needs a number of connections, at least 1".into()))
}

fn seconds(word: Option<String>) -> Result<Duration, Stop> {
    let seconds = word.and_then(|word| word.parse().ok());
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| Stop::Wrong("--linger needs a number of seconds, such as 0.5".into()))
}

impl Address {
    fn parse(word: &str) -> Result<Self, Stop> {
        if word == "-" {
            return Ok(Self::Standard);
        }
        let wrong = |why: &str| Err(Stop::Wrong(format!("{word}: {why}")));
        let Some((kind, rest)) = word.split_once(':') else {
            return wrong("neither - nor KIND:ADDRESS");
        };
        if rest.is_empty() {
            return wrong("there is nothing after the colon");
        }
        Ok(match kind {
            "tcp" | "tcp-listen" => {
                let port = rest.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
                match port {
                    Some((host, Ok(_))) if !host.is_empty() => {}
                    _ => return wrong("not HOST:PORT (every address of this machine: 0.0.0.0)"),
                }
                if kind == "tcp" { Self::Tcp(rest.into()) } else { Self::TcpListen(rest.into()) }
            }
            kind if kind == KINDS[0] => Self::Local(full_name(rest)),
            kind if kind == KINDS[1] => Self::LocalListen(full_name(rest)),
            "file" => Self::File(rest.into()),
            _ => return wrong("the kind is not one of those below"),
        })
    }

    fn listens(&self) -> bool {
        matches!(self, Self::TcpListen(_) | Self::LocalListen(_))
    }

    /// Whether it carries more than one connection.
    fn repeats(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Standard)
    }
}
