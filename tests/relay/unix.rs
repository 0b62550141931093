//! What only Unix has: Unix sockets, signals.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::{PATIENCE, Relay, TempFile, alone, connect, listen, pattern, read_to_end};

/// The kernels that a relay can work on.
pub const KERNELS: &[&str] =
    if cfg!(target_os = "linux") { &["uring", "readiness"] } else { &["readiness"] };

/// What a kind of address is called that is opened, and one that listens.
pub const LOCAL: &str = "unix";
pub const LISTEN: &str = "unix-listen";

/// What the error of a refused connect has in its message.
pub const REFUSED: &str = "refused";

/// The path of a socket that is not there yet.
pub fn local_name() -> String {
    TempFile::unique_path().to_str().unwrap().into()
}

/// Makes the socket's close a reset.
pub fn reset_when_closed(socket: &TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is read during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const now).cast(),
            size_of_val(&now) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
}

fn connect_local(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

// Scenario 14
#[test]
fn what_is_not_there_is_named_in_the_error() {
    alone(|| {
        let nothing = local_name();
        let (listener, target) = listen();
        for (from, why) in [("file", "No such file"), ("unix", "No such file")] {
            let from = format!("{from}:{nothing}");
            let (code, said) = Relay::start(&[&from, &format!("tcp:{target}")]).end();
            assert_eq!(code, 1, "{said}");
            assert!(said.contains(&nothing) && said.contains(why), "{said}");
        }
        // Nobody listens at what is left of a listener.
        drop(UnixListener::bind(&nothing).unwrap());
        drop(listener);
        for (to, name) in [("tcp", &target), ("unix", &nothing)] {
            let to = format!("{to}:{name}");
            let input = TempFile::new(b"nobody wants it");
            let (code, said) = Relay::start(&[&input.side(), &to]).end();
            assert_eq!(code, 1, "{said}");
            assert!(said.contains(name.as_str()) && said.contains("refused"), "{said}");
        }
        let (code, said) = Relay::start(&[&format!("unix-listen:{nothing}"), "-"]).end();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&nothing) && said.contains("in use"), "{said}");
        fs::remove_file(nothing).unwrap();
    });
}

#[test]
fn a_listeners_file_goes_with_it() {
    alone(|| {
        let (listener, target) = listen();
        let path = local_name();
        let from = format!("unix-listen:{path}");
        let mut relay = Relay::start(&["--once", "1", &from, &format!("tcp:{target}")]);
        assert_eq!(relay.address(), path);
        let client = connect_local(&path);
        drop(listener.accept().unwrap());
        assert_eq!(read_to_end(&client), b"");
        drop(client);
        assert_eq!(relay.end().0, 0);
        assert!(!fs::exists(&path).unwrap());
    });
}

// Scenario 2
#[test]
fn a_client_that_goes_without_reading_everything_ends_its_way_well() {
    alone(|| {
        let (listener, target) = listen();
        let path = local_name();
        let from = format!("unix-listen:{path}");
        let to = format!("tcp:{target}");
        let mut relay = Relay::start(&["--linger", "0.2", "--once", "1", &from, &to]);
        relay.address();
        let mut client = connect_local(&path);
        client.write_all(b"enough").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut writing = server.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writing.write_all(&pattern(9, 32 << 20))?;
            writing.shutdown(Shutdown::Write)
        });
        client.read_exact(&mut [0]).unwrap();
        drop(client);
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"enough");
        writing.join().unwrap().unwrap();
        let (code, said) = relay.end();
        assert_eq!(code, 0, "{said}");
    });
}

#[test]
fn what_has_no_length_is_read_and_written_as_a_file() {
    alone(|| {
        let mut relay = Relay::start(&["file:/dev/null", "file:/dev/null"]);
        let (code, said) = relay.end();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("another relay uses this file"), "{said}");

        let input = TempFile::new(b"for nobody");
        let (code, said) = Relay::start(&[&input.side(), "file:/dev/null"]).end();
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("10 B forward"), "{said}");
    });
}

/// Ends a relay as Ctrl-C does, or a service's manager.
fn interrupt(relay: &Relay, signal: i32) {
    let process = relay.process.lock().unwrap().id();
    // SAFETY: takes numbers; the process has not been waited for.
    assert_eq!(unsafe { libc::kill(process as libc::pid_t, signal) }, 0);
}

#[test]
fn ctrl_c_cuts_what_is_open_so_that_it_does_not_look_like_an_end() {
    alone(|| {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let (listener, target) = listen();
            let mut relay = Relay::start(&["tcp-listen:127.0.0.1:0", &format!("tcp:{target}")]);
            let mut client = connect(&relay.address());
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"!").unwrap();
            server.read_exact(&mut [0]).unwrap();
            interrupt(&relay, signal);
            for stream in [&mut client, &mut server] {
                let error = stream.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            }
            let (code, said) = relay.end();
            assert_eq!(code, 130, "{said}");
            assert!(said.contains("1 cut, 0 done, 1 B forward"), "{said}");
        }
    });
}

#[test]
fn ctrl_c_with_nothing_open_is_no_failure() {
    alone(|| {
        let (listener, target) = listen();
        drop(listener);
        let path = local_name();
        let from = format!("unix-listen:{path}");
        let mut relay = Relay::start(&[&from, &format!("tcp:{target}")]);
        relay.address();
        // When this connection has failed, the relay listens to signals, too.
        assert_eq!(read_to_end(connect_local(&path)), b"");
        assert!(relay.line().contains("refused"));
        interrupt(&relay, libc::SIGINT);
        let (code, said) = relay.end();
        assert_eq!(code, 0, "{said}");
        assert!(!fs::exists(&path).unwrap());
    });
}
