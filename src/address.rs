//! Addresses of sockets, as the calls take them.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

#[cfg(unix)]
use libc::{AF_INET, AF_INET6, AF_UNIX, sa_family_t as Family, sockaddr_in, sockaddr_in6};
#[cfg(not(unix))]
use windows_sys::Win32::Networking::WinSock::{
    ADDRESS_FAMILY as Family, AF_INET, AF_INET6, AF_UNIX, SOCKADDR_IN as sockaddr_in,
    SOCKADDR_IN6 as sockaddr_in6,
};

/// Room for the address of any socket (`sockaddr_storage`).
const ROOM: usize = 128;

/// Where the family stands: after a length of one byte on the systems that come from BSD.
const FAMILY_AT: usize = std::mem::offset_of!(sockaddr_in, sin_family);

/// Where the name of a Unix socket stands.
const PATH_AT: usize = FAMILY_AT + size_of::<Family>();

/// The address of a socket: of the Internet, or a path.
///
/// Made from a [`SocketAddr`], or from a path with [`unix`](Self::unix).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct SocketAddress {
    pub(crate) bytes: [u8; ROOM],
    pub(crate) length: u32,
}

impl SocketAddress {
    pub(crate) const NONE: Self = Self { bytes: [0; ROOM], length: 0 };
    /// Room for any, for a call to fill in.
    pub(crate) const ANY: Self = Self { bytes: [0; ROOM], length: ROOM as u32 };

    /// The address of a socket in the file system, or (Linux, beginning with a zero byte) an abstract
    /// one.
    ///
    /// # Errors
    /// `InvalidInput` when the path is too long for an address (107 bytes on Linux) or has a zero byte
    /// inside.
    pub fn unix(path: impl AsRef<std::path::Path>) -> io::Result<Self> {
        // sun_path has 108 bytes on Linux and Windows, 104 elsewhere, the final zero included.
        const LONGEST: usize = if cfg!(any(target_os = "linux", windows)) { 107 } else { 103 };
        let path = path.as_ref().as_os_str().as_encoded_bytes();
        let is_abstract = path.first() == Some(&0);
        if path.len() > LONGEST || (!is_abstract && path.contains(&0)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a socket's path has at most {LONGEST} bytes, and no zero inside"),
            ));
        }
        let mut address = Self::NONE;
        address.set_family(AF_UNIX as Family);
        address.bytes[PATH_AT..PATH_AT + path.len()].copy_from_slice(path);
        address.length = (PATH_AT + path.len() + usize::from(!is_abstract)) as u32;
        Ok(address)
    }

    /// As a call has left it somewhere. What is too long is cut.
    #[cfg(windows)]
    pub(crate) fn copied_from(bytes: &[u8]) -> Self {
        let mut address = Self::NONE;
        let length = bytes.len().min(ROOM);
        address.put(0, &bytes[..length]);
        address.length = length as u32;
        address
    }

    /// The address of the same family that stands for any, to bind a socket to before it is connected.
    #[cfg(windows)]
    pub(crate) fn any_of_its_family(&self) -> Self {
        let mut any = Self::NONE;
        any.set_family(self.family() as Family);
        // A path that is empty has its final zero.
        any.length = if self.family() == i32::from(AF_UNIX) { 3 } else { self.length };
        any
    }

    fn set_family(&mut self, family: Family) {
        let bytes = family.to_ne_bytes();
        self.bytes[FAMILY_AT..FAMILY_AT + bytes.len()].copy_from_slice(&bytes);
    }

    pub(crate) fn family(&self) -> i32 {
        let mut bytes = [0; size_of::<Family>()];
        bytes.copy_from_slice(&self.bytes[FAMILY_AT..FAMILY_AT + size_of::<Family>()]);
        i32::from(Family::from_ne_bytes(bytes))
    }

    /// Whether it is one of the file system, or an abstract one.
    #[cfg(unix)]
    pub(crate) fn is_path(&self) -> bool {
        self.family() == AF_UNIX
    }

    /// Whether it is one of this machine's own, which needs no network.
    #[cfg(unix)]
    pub(crate) fn is_loopback(&self) -> bool {
        self.ip().is_some_and(|address| address.ip().is_loopback())
    }

    /// The name of a Unix socket: a path, or behind a zero byte an abstract name. Empty for one without.
    fn name(&self) -> Option<&[u8]> {
        #[allow(clippy::unnecessary_cast)] // An i32 on Unix, a u16 on Windows.
        if self.length == 0 || self.family() != AF_UNIX as i32 {
            return None;
        }
        let end = ROOM.min(self.length as usize);
        let name = self.bytes.get(PATH_AT..end).unwrap_or_default();
        let is_abstract = name.first() == Some(&0);
        let ends = name.iter().position(|&byte| byte == 0 && !is_abstract);
        Some(&name[..ends.unwrap_or(name.len())])
    }

    /// The path it is, if it is one: not of the Internet, nor an abstract name, nor none.
    #[cfg(unix)]
    pub fn path(&self) -> Option<&std::path::Path> {
        use std::os::unix::ffi::OsStrExt;
        let name = self.name().filter(|name| !name.is_empty() && name[0] != 0)?;
        Some(std::path::Path::new(std::ffi::OsStr::from_bytes(name)))
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.bytes[at..at + N]);
        part
    }

    fn put(&mut self, at: usize, part: &[u8]) {
        self.bytes[at..at + part.len()].copy_from_slice(part);
    }

    /// The Internet address it is, if it is one.
    pub fn ip(&self) -> Option<SocketAddr> {
        use std::mem::offset_of;
        #[allow(clippy::unnecessary_cast)] // An i32 on Unix, a u16 on Windows.
        let (inet, inet6) = (AF_INET as i32, AF_INET6 as i32);
        let family = self.family();
        if family == inet && self.length as usize >= size_of::<sockaddr_in>() {
            let port = u16::from_be_bytes(self.part(offset_of!(sockaddr_in, sin_port)));
            let ip = Ipv4Addr::from(self.part::<4>(offset_of!(sockaddr_in, sin_addr)));
            Some(SocketAddrV4::new(ip, port).into())
        } else if family == inet6 && self.length as usize >= size_of::<sockaddr_in6>() {
            let port = u16::from_be_bytes(self.part(offset_of!(sockaddr_in6, sin6_port)));
            let flow = u32::from_ne_bytes(self.part(offset_of!(sockaddr_in6, sin6_flowinfo)));
            let ip = Ipv6Addr::from(self.part::<16>(offset_of!(sockaddr_in6, sin6_addr)));
            let scope = u32::from_ne_bytes(self.part(size_of::<sockaddr_in6>() - 4));
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        } else {
            None
        }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        use std::mem::offset_of;
        let mut made = Self::NONE;
        match address {
            SocketAddr::V4(v4) => {
                made.set_family(AF_INET as Family);
                made.put(offset_of!(sockaddr_in, sin_port), &v4.port().to_be_bytes());
                made.put(offset_of!(sockaddr_in, sin_addr), &v4.ip().octets());
                made.length = size_of::<sockaddr_in>() as u32;
            }
            SocketAddr::V6(v6) => {
                made.set_family(AF_INET6 as Family);
                made.put(offset_of!(sockaddr_in6, sin6_port), &v6.port().to_be_bytes());
                made.put(offset_of!(sockaddr_in6, sin6_flowinfo), &v6.flowinfo().to_ne_bytes());
                made.put(offset_of!(sockaddr_in6, sin6_addr), &v6.ip().octets());
                // The scope is the structure's last member, whatever it is called.
                made.put(size_of::<sockaddr_in6>() - 4, &v6.scope_id().to_ne_bytes());
                made.length = size_of::<sockaddr_in6>() as u32;
            }
        }
        made
    }
}

/// `127.0.0.1:80`, `[::1]:80`, `/run/socket`, `@abstract`, `(unnamed)`.
impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip(), self.name()) {
            (Some(ip), _) => fmt::Display::fmt(&ip, f),
            (None, Some([] | [0])) => f.write_str("(unnamed)"),
            (None, Some([0, name @ ..])) => write!(f, "@{}", name.escape_ascii()),
            (None, Some(path)) => f.write_str(&String::from_utf8_lossy(path)),
            (None, None) => write!(f, "(an address of family {})", self.family()),
        }
    }
}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internet_addresses_come_back_as_they_were() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:443", "[fe80::1%7]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddress::from(address).ip(), Some(address), "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_as_people_write_it() {
        let shown =
            |text: &str| SocketAddress::from(text.parse::<SocketAddr>().unwrap()).to_string();
        assert_eq!(shown("127.0.0.1:80"), "127.0.0.1:80");
        assert_eq!(shown("[::1]:443"), "[::1]:443");
        assert_eq!(SocketAddress::unix("/run/a").unwrap().to_string(), "/run/a");
        assert_eq!(SocketAddress::unix("\0a\0b").unwrap().to_string(), "@a\\x00b");
        assert_eq!(SocketAddress::unix("").unwrap().to_string(), "(unnamed)");
        assert_eq!(SocketAddress::NONE.to_string(), "(an address of family 0)");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_comes_back_as_it_was() {
        let path = |text: &str| SocketAddress::unix(text).unwrap().path().map(ToOwned::to_owned);
        assert_eq!(path("/run/a"), Some("/run/a".into()));
        assert_eq!(path(&"a".repeat(103)), Some("a".repeat(103).into()));
        assert_eq!((path(""), path("\0a")), (None, None));
        assert_eq!(SocketAddress::from(SocketAddr::from(([1, 2, 3, 4], 5))).path(), None);
    }

    #[test]
    fn a_path_is_not_of_the_internet_and_has_its_limits() {
        assert_eq!(SocketAddress::unix("/run/a").unwrap().ip(), None);
        assert!(SocketAddress::unix("a".repeat(103)).is_ok());
        assert!(SocketAddress::unix("a".repeat(109)).is_err());
        assert!(SocketAddress::unix("a\0b").is_err());
    }
}
