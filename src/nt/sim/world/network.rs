//! The network: one host, which knows itself as 127.0.0.1 and `::1`.
//!
//! What is sent elsewhere is lost, and who connects to elsewhere is not answered.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Networking::WinSock::{
    SOMAXCONN, WSA_ERROR, WSAEFAULT, WSAEINVAL, WSAEISCONN, WSAEMSGSIZE, WSAENOTCONN, WSAENOTSOCK,
};

use super::super::super::Win32Error;
use super::super::plan::{Kind, Plan, Traits};
use super::{Call, Ending, ObjectId, OperationId, Piece, World};
use crate::error::NtStatus;
use crate::op::Event;

/// How long a connect tries that nobody answers: three times, for 3, 6 and 12 seconds
/// (`TcpMaxConnectRetransmissions`).
const UNANSWERED: Duration = Duration::from_secs(21);

/// The most that a datagram holds: 64 KiB less the headers of IP and UDP.
const LONGEST_DATAGRAM: usize = 65_507;

/// The first of the ports that are given out to who asks for none (RFC 6335).
const FIRST_PORT: u16 = 49_152;

/// Who is where: sockets that listen, and those of datagrams.
#[derive(Default)]
pub(super) struct Network {
    bound: BTreeMap<(Kind, SocketAddr), ObjectId>,
    given_out: u16,
}

/// What a socket is in the network.
#[derive(Default)]
pub(super) struct Place {
    state: State,
    address: Option<SocketAddr>,
    /// The other side, for whoever is connected.
    remote: Option<SocketAddr>,
    /// Connections that nobody has accepted, by the object of this side.
    connections: VecDeque<ObjectId>,
    /// Nobody was where a datagram went.
    is_unreachable: bool,
    /// To close it is to reset the connection.
    resets: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// No socket, or one whose other side was given with it.
    #[default]
    Outside,
    Unconnected,
    Listening,
    Connected,
    Datagrams,
}

impl Place {
    pub(super) fn has_connections(&self) -> bool {
        !self.connections.is_empty()
    }

    pub(super) fn told_unreachable(&self) -> bool {
        self.is_unreachable
    }

    pub(super) fn take_unreachable(&mut self) -> bool {
        std::mem::take(&mut self.is_unreachable)
    }

    /// Where a connected socket's datagrams go.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.remote.filter(|_| self.state == State::Datagrams)
    }
}

impl World {
    // -- sockets -----------------------------------------------------------------------------

    /// A stream socket that is neither bound nor connected.
    pub(in super::super) fn open_unconnected(&mut self) -> usize {
        self.open_socket(Kind::Socket, State::Unconnected, None)
    }

    /// A stream socket that listens, and where.
    pub(in super::super) fn open_listener(&mut self) -> (usize, SocketAddr) {
        let address = self.free_address(Kind::Socket);
        (self.open_socket(Kind::Socket, State::Listening, Some(address)), address)
    }

    /// A bound socket for datagrams, and where it is.
    pub(in super::super) fn open_datagrams(&mut self) -> (usize, SocketAddr) {
        let address = self.free_address(Kind::Datagram);
        (self.open_socket(Kind::Datagram, State::Datagrams, Some(address)), address)
    }

    /// The same at an address, unless somebody has it.
    pub(in super::super) fn open_datagrams_at(&mut self, address: SocketAddr) -> Option<usize> {
        let is_free = !self.network.bound.contains_key(&(Kind::Datagram, address));
        is_free.then(|| self.open_socket(Kind::Datagram, State::Datagrams, Some(address)))
    }

    fn open_socket(&mut self, kind: Kind, state: State, address: Option<SocketAddr>) -> usize {
        let socket = self.open(kind, Traits::default(), Vec::new());
        let object = self.object(socket).expect("just opened");
        if let Some(address) = address {
            self.network.bound.insert((kind, address), object);
        }
        self.objects[object].place = Place { state, address, ..Place::default() };
        socket
    }

    /// Where a socket is, and its other side.
    pub(in super::super) fn addresses(
        &self,
        socket: usize,
    ) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let Some(object) = self.object(socket) else { return (None, None) };
        let place = &self.objects[object].place;
        (place.address, place.remote)
    }

    pub(in super::super) fn listens(&self, socket: usize) -> bool {
        let state = self.object(socket).map(|object| self.objects[object].place.state);
        state == Some(State::Listening)
    }

    pub(in super::super) fn reset_when_closed(&mut self, socket: usize) {
        if let Some(object) = self.object(socket) {
            self.objects[object].place.resets = true;
        }
    }

    /// An address that nobody has. Ports are given out one after the other, so that the one that was left
    /// last comes back last.
    fn free_address(&mut self, kind: Kind) -> SocketAddr {
        loop {
            let port = FIRST_PORT + self.network.given_out % (u16::MAX - FIRST_PORT);
            self.network.given_out = self.network.given_out.wrapping_add(1);
            let address = (Ipv4Addr::LOCALHOST, port).into();
            if !self.network.bound.contains_key(&(kind, address)) {
                return address;
            }
        }
    }

    /// The socket of a file object is closed. The connections that wait in a listener go with it, by a
    /// reset.
    pub(super) fn leave_network(&mut self, object: ObjectId) {
        let place = std::mem::take(&mut self.objects[object].place);
        let Place { address, connections, resets, .. } = place;
        if let (true, Some(peer)) = (resets, self.objects[object].peer) {
            self.objects[peer].reset = true;
        }
        if let Some(address) = address {
            let key = (self.objects[object].kind, address);
            if self.network.bound.get(&key) == Some(&object) {
                self.network.bound.remove(&key);
            }
        }
        for connection in connections {
            if let Some(client) = self.objects[connection].peer {
                self.objects[client].hung_up = true;
                self.objects[client].reset = true;
                self.wake(client);
            }
        }
    }

    /// Whether a call may be made on a socket of the network ("Return value" of each).
    pub(super) fn may_start(
        &self,
        object: ObjectId,
        call: Call,
        length: usize,
    ) -> Result<(), WSA_ERROR> {
        let object = &self.objects[object];
        let state = object.place.state;
        match call {
            Call::Read | Call::Write if matches!(state, State::Unconnected | State::Listening) => {
                Err(WSAENOTCONN)
            }
            Call::Write if state == State::Datagrams && object.place.remote.is_none() => {
                Err(WSAENOTCONN)
            }
            Call::Write | Call::SendTo(_)
                if state == State::Datagrams && length > LONGEST_DATAGRAM =>
            {
                Err(WSAEMSGSIZE)
            }
            Call::Accept { .. } if state != State::Listening => Err(WSAEINVAL),
            Call::Connect(_) => match state {
                State::Unconnected => Ok(()),
                State::Connected => Err(WSAEISCONN),
                _ => Err(WSAEINVAL),
            },
            _ => Ok(()),
        }
    }

    /// How a connect goes that nobody answers; nothing where somebody does, if only with a refusal.
    pub(super) fn plan_unanswered(call: Call) -> Option<Plan> {
        let Call::Connect(to) = call else { return None };
        let plan = Plan::pends_for(UNANSWERED).status(NtStatus(win::STATUS_IO_TIMEOUT));
        (!to.ip().is_loopback()).then_some(plan)
    }

    // -- connections -------------------------------------------------------------------------

    /// A connection is made by the listener's system, whether anybody accepts it or not, as long as no more
    /// than its backlog wait (`listen`).
    pub(super) fn conclude_connect(&mut self, id: OperationId, to: SocketAddr) -> Ending {
        let client = self.operations[&id].object;
        let listener = self.network.bound.get(&(Kind::Socket, to)).copied();
        let has_room = |listener: &ObjectId| {
            self.objects[*listener].place.connections.len() < SOMAXCONN as usize
        };
        let Some(listener) = listener.filter(has_room) else {
            return Ending { status: win::STATUS_CONNECTION_REFUSED, bytes: 0 };
        };
        let from = self.free_address(Kind::Socket);
        let server = self.new_object(Kind::Socket, Traits::default(), 0);
        for (this, other, address, remote) in
            [(client, server, from, to), (server, client, to, from)]
        {
            let (address, remote) = (Some(address), Some(remote));
            let state = State::Connected;
            self.objects[this].place = Place { state, address, remote, ..Place::default() };
            self.objects[this].peer = Some(other);
        }
        self.objects[listener].place.connections.push_back(server);
        self.wake(listener);
        Ending { status: win::STATUS_SUCCESS, bytes: 0 }
    }

    /// The socket of the accept becomes this side of the oldest connection, with what has come on it.
    pub(super) fn conclude_accept(&mut self, id: OperationId, socket: usize) -> Option<Ending> {
        let listener = self.operations[&id].object;
        let into = self.object(socket)?;
        let connection = self.objects[listener].place.connections.pop_front()?;
        let waiting = &mut self.objects[connection];
        let place = std::mem::take(&mut waiting.place);
        let incoming = std::mem::take(&mut waiting.incoming);
        let (peer, news) = (waiting.peer, (waiting.hung_up, waiting.reset, waiting.ended));
        let remote = place.remote;
        let accepted = &mut self.objects[into];
        (accepted.place, accepted.incoming, accepted.peer) = (place, incoming, peer);
        (accepted.hung_up, accepted.reset, accepted.ended) = news;
        if let Some(client) = peer {
            self.objects[client].peer = Some(into);
        }
        let operation = self.operations.get_mut(&id).expect("a live operation");
        operation.block.fill_address(remote);
        Some(Ending { status: win::STATUS_SUCCESS, bytes: 0 })
    }

    // -- datagrams ---------------------------------------------------------------------------

    /// `connect` of a socket for datagrams, which ends at once: where they go, and from where they come.
    pub(in super::super) fn connect_datagrams(
        &mut self,
        socket: usize,
        to: SocketAddr,
    ) -> Result<(), Win32Error> {
        let Some(object) = self.object(socket) else { return Err(WSAENOTSOCK as u32) };
        let place = &mut self.objects[object].place;
        if place.state != State::Datagrams {
            return Err(WSAEFAULT as u32);
        }
        place.remote = Some(to);
        Ok(())
    }

    pub(super) fn conclude_send_to(&mut self, id: OperationId, to: SocketAddr) -> Ending {
        let operation = &self.operations[&id];
        let (from, bytes) = (operation.object, operation.block.bytes().to_vec());
        self.send_datagram(from, to, &bytes);
        Ending { status: win::STATUS_SUCCESS, bytes: bytes.len() as u32 }
    }

    /// Who is not there is told of by a later receive (pitfall 13), here as on the wire only by a host that
    /// answers.
    pub(super) fn send_datagram(&mut self, from: ObjectId, to: SocketAddr, bytes: &[u8]) {
        let sender = self.objects[from].place.address;
        match self.network.bound.get(&(Kind::Datagram, to)) {
            Some(&receiver) => {
                let wants = self.objects[receiver].place.remote;
                if wants.is_none_or(|remote| Some(remote) == sender) {
                    self.come(receiver, Piece { bytes: bytes.to_vec(), from: sender });
                }
            }
            None if to.ip().is_loopback() => {
                self.objects[from].place.is_unreachable = true;
                self.wake(from);
            }
            None => {}
        }
    }

    // -- readiness ---------------------------------------------------------------------------

    /// What a socket has come to of what a wait for `event` asks for, as the bits of [`Event`]s: none while
    /// it has to wait (`select`; `nt/windows/readiness.rs`).
    pub(super) fn seen(&self, object: ObjectId, event: Event) -> u8 {
        let object = &self.objects[object];
        let over = |events: &[Event]| events.iter().fold(0, |bits, event| bits | event.bit());
        let mut bits = 0;
        if object.reset {
            bits |= over(&[Event::Read, Event::Write, Event::Error, Event::Hangup]);
        }
        if object.hung_up || object.ended {
            bits |= over(&[Event::Read, Event::Hangup]);
        }
        let waits = object.place.has_connections() || object.place.is_unreachable;
        if event == Event::Read && (waits || !object.incoming.is_empty()) {
            bits |= Event::Read.bit();
        }
        let may_send = !matches!(object.place.state, State::Unconnected | State::Listening);
        if event == Event::Write && may_send && self.room(object) > 0 {
            bits |= Event::Write.bit();
        }
        bits
    }

    /// `None` while there is nothing to tell. What there is, is told as the count of bytes.
    pub(super) fn conclude_poll(&mut self, id: OperationId, event: Event) -> Option<Ending> {
        let bits = self.seen(self.operations[&id].object, event);
        (bits != 0).then_some(Ending { status: win::STATUS_SUCCESS, bytes: bits.into() })
    }
}
