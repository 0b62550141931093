//! The benchmarks of `bench/src/unix` on other runtimes, beside which `cargo xtask bench linux` shows the queue.
//!
//! ```text
//! ioqueue-bench-peers PEER BENCH COUNT
//! ```
//!
//! Every peer is what its own documents would have: one thread, and io_uring where it has it.

#[path = "../../src/allocations.rs"]
mod allocations;
mod bare;
#[path = "../../src/unix/benches.rs"]
mod benches;
mod compio_peer;
mod monoio_peer;
mod smol_peer;
mod tokio_peer;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [peer, bench, count] = &arguments[..] else {
        panic!("usage: ioqueue-bench-peers PEER BENCH COUNT")
    };
    let count: u32 = count.parse().expect("COUNT is a number");
    match peer.as_str() {
        "bare" => benches::run::<bare::Bare<bare::Epoll>>(peer, bench, count),
        "bare-uring" => benches::run::<bare::Bare<bare::Uring>>(peer, bench, count),
        "tokio" => benches::run::<tokio_peer::Tokio>(peer, bench, count),
        "monoio" => benches::run::<monoio_peer::Monoio>(peer, bench, count),
        "compio" => benches::run::<compio_peer::Compio>(peer, bench, count),
        "smol" => benches::run::<smol_peer::Smol>(peer, bench, count),
        other => panic!("there is no peer {other}"),
    }
}
