//! Carries bytes between two of: TCP, Unix sockets or Windows' named pipes, files, the standard streams.
//!
//! ```text
//! relay tcp-listen:127.0.0.1:2375 unix:/run/docker.sock       a Unix socket, reached over TCP
//! relay tcp-listen:127.0.0.1:2375 pipe:docker_engine          on Windows: a pipe, reached over TCP
//! relay pipe-listen:build tcp:10.0.0.5:7000                   TCP, reached through a pipe
//! relay - tcp:127.0.0.1:80                                    by hand
//! relay file:disk.img tcp:10.0.0.5:7000                       a file, sent
//! ```
//!
//! Sockets and files are the queue's portable operations, the same code on every system. Unix sockets and
//! Ctrl-C are in `unix.rs`; pipes, which have ends of their own kind, in `pipe.rs` and `windows.rs`.
//!
//! # How an end travels
//!
//! Each way of a connection has its end. When one ends, the end is passed on and the other way goes
//! on; the connection is over when both have ended. On a socket the end is `shutdown(write)`. Windows'
//! named pipes have none, but a pipe of *messages* can carry an empty one, and that is the end here:
//! readers take it as such without knowing (`ReadFile` answers 0 bytes), and it is what the Docker
//! engine and everything else on go-winio does. So `pipe-listen` makes pipes of messages, and a
//! relay that opens one uses it the same way.
//!
//! On a pipe of *bytes*, made by some other program, and on standard output only closing passes an end
//! on, and that ends both ways. It is closed when nothing has come from the other way for `--linger`
//! seconds. A slower answer is lost; a program that sends its answer only after the end never gets to.
//!
//! A failure (a reset, mostly) ends both ways. On TCP it is passed on as a reset, so that nobody takes
//! a part for the whole. The others have no such thing: they just end.
//!
//! # What else it does not do
//!
//! Names are looked up once, at the start. Nothing has a time limit: a connection that is quiet, and
//! not ended on either side, stays. A message protocol's limits are not kept. What a reader that is no TCP
//! peer left unread when it went is lost, as on any pipe.
//!
//! # Exit codes
//!
//! 0 when all went well; 1 when a connection failed, or nothing could be started; 2 for wrong
//! arguments; 130 when Ctrl-C cut connections (0 when none was open).

#![warn(clippy::undocumented_unsafe_blocks)]

#[forbid(unsafe_code)]
mod args;
#[forbid(unsafe_code)]
mod endpoint;
#[forbid(unsafe_code)]
mod link;
#[cfg(windows)]
#[forbid(unsafe_code)]
mod pipe;
#[forbid(unsafe_code)]
mod report;
#[forbid(unsafe_code)]
mod serve;
#[forbid(unsafe_code)]
mod stream;
#[forbid(unsafe_code)]
mod threads;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

fn main() -> std::process::ExitCode {
    serve::main()
}
