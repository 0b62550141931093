//! Handles of the simulated Windows, for the portable tests.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ioqueue::sim::{Faults, Sim, SimHandle};
use ioqueue::{Queue, Registered};

use super::{Of, Stream};

thread_local! {
    /// The system that a test runs on.
    static SIM: OnceCell<Sim> = const { OnceCell::new() };
}

/// The system that this test runs on.
pub fn sim() -> Sim {
    SIM.with(|sim| sim.get().expect("the test runs on the simulation").clone())
}

/// Runs `test` on a simulated system.
pub fn run(seed: u64, test: fn(&Queue)) {
    let sim = Sim::with_faults(seed, faults(seed));
    // Peers that block have threads.
    sim.expect_other_threads(Duration::from_secs(10));
    SIM.with(|place| place.set(sim.clone()).expect("a thread for each"));
    let queue = sim.queue().unwrap();
    test(&queue);
    queue.close(Duration::from_secs(5)).unwrap();
    drop(queue);
    sim.check();
}

/// None, or those that change nothing but the way in which ends are told.
fn faults(seed: u64) -> Faults {
    let mut faults = Faults::none();
    faults.room_for_bytes = 65_536;
    if seed > 0 {
        faults.at_once = 0.3;
        faults.status_first = 0.3;
        faults.status_last = 0.3;
        faults.denies_queries = 0.1;
        faults.early = 0.2;
        faults.foreign = 0.05;
    }
    faults
}

/// A pair of each kind of stream.
pub fn raw_ways() -> Vec<(&'static str, Stream, Stream)> {
    let sim = sim();
    let (client, server) = sim.socket();
    let (one, other) = sim.pipe();
    vec![
        ("TCP", Of::Simulation(client), Of::Simulation(server)),
        ("pipe", Of::Simulation(one), Of::Simulation(other)),
    ]
}

/// The end of a stream for calls that block: each waits on a queue of its own.
#[derive(Debug)]
pub struct Peer {
    sim: Sim,
    handle: Option<SimHandle>,
}

impl Peer {
    pub fn new<H>(handle: Of<H>) -> Self {
        let Of::Simulation(handle) = handle else { panic!("a handle of the simulation") };
        Self { sim: sim(), handle: Some(handle) }
    }

    /// Makes a call, and waits.
    fn block_on<R>(&mut self, call: impl AsyncFnOnce(&Registered<SimHandle>) -> R) -> R {
        let queue = self.sim.queue().unwrap();
        let handle = queue.register(self.handle.take().expect("between two calls")).unwrap();
        let answer = queue.block_on(call(&handle)).unwrap();
        self.handle = Some(handle.into_inner());
        answer
    }

    pub fn reset_when_closed(&self) {
        self.sim.reset_when_closed(self.handle.as_ref().expect("between two calls"));
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.handle.as_ref().and_then(SimHandle::local_addr).expect("it is connected")
    }
}

/// One that has connected.
pub fn connected(to: SocketAddr) -> Peer {
    let mut peer = Peer { sim: sim(), handle: Some(sim().unconnected()) };
    peer.block_on(async |socket| socket.connect(to).await).unwrap();
    peer
}

impl Read for Peer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = Vec::with_capacity(into.len());
        let (count, bytes) = self.block_on(async |handle| handle.read(room).await);
        into[..bytes.len()].copy_from_slice(&bytes);
        count
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.to_vec();
        self.block_on(async |handle| handle.write(bytes).await).0
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
