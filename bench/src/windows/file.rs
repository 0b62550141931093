//! Random reads of a file, one task for each in flight.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::ptr::null_mut;
use std::rc::Rc;

use ioqueue::iocp::Outcome;
use ioqueue::{Queue, Registered};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_TEMPORARY, FILE_FLAG_DELETE_ON_CLOSE, FILE_FLAG_OVERLAPPED, ReadFile, WriteFile,
};

use super::{Measured, measure};

const BLOCK: usize = 4096;
const FILE_SIZE: u64 = 64 << 20;
/// Bytes written at once when the file is made.
const FILL: usize = 1 << 20;

/// A block, and where it was read from, if it was.
struct Block {
    bytes: Vec<u8>,
    offset: Option<u64>,
}

/// Every 8 bytes of the file say where they are.
fn words_at(offset: u64, length: usize) -> Vec<u8> {
    let places = (offset..offset + length as u64).step_by(8);
    places.flat_map(|place| (place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

/// xorshift64, fixed seed: every run reads the same blocks. The top 14 bits pick one of 16384.
struct Offsets(Cell<u64>);

impl Offsets {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x >> 50) * BLOCK as u64
    }
}

struct Reads {
    file: Registered<File>,
    offsets: Offsets,
    to_start: Cell<u32>,
}

/// Reads one block after the other until enough were started.
async fn keep_reading(reads: Rc<Reads>, mut block: Block) -> Block {
    while reads.to_start.get() > 0 {
        reads.to_start.set(reads.to_start.get() - 1);
        let offset = reads.offsets.next();
        block.offset = Some(offset);
        // SAFETY: one call; the bytes are the state's and stay until the operation's end.
        let reading = unsafe {
            reads.file.submit_at(offset, block, |handle, block, overlapped| {
                let start = (*block).bytes.as_mut_ptr();
                let length = BLOCK as u32;
                Outcome::from_bool(ReadFile(handle, start, length, null_mut(), overlapped))
            })
        };
        let (read, back) = reading.await;
        assert_eq!(read.expect("read") as usize, BLOCK, "short read");
        block = back;
    }
    block
}

/// Temporary and deleted on close: nothing is left behind, also after an error, and nothing need be
/// written back to disk while the reads are measured.
fn temporary_file() -> io::Result<File> {
    let name = format!("ioqueue-bench-{}.tmp", std::process::id());
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .share_mode(0)
        .attributes(FILE_ATTRIBUTE_TEMPORARY)
        .custom_flags(FILE_FLAG_OVERLAPPED | FILE_FLAG_DELETE_ON_CLOSE)
        .open(std::env::temp_dir().join(name))
}

async fn fill(file: &Registered<File>) -> io::Result<()> {
    for offset in (0..FILE_SIZE).step_by(FILL) {
        // SAFETY: one call; the words are the state's and stay until the operation's end.
        let writing = unsafe {
            file.submit_at(offset, words_at(offset, FILL), |handle, words, overlapped| {
                let start = (*words).as_ptr();
                let length = FILL as u32;
                Outcome::from_bool(WriteFile(handle, start, length, null_mut(), overlapped))
            })
        };
        assert_eq!(writing.await.0? as usize, FILL, "short write");
    }
    Ok(())
}

pub(crate) fn reads(queue: &Queue, depth: usize, count: u32) -> io::Result<Measured> {
    let file = queue.register(temporary_file()?)?;
    queue.block_on(fill(&file))??;
    let offsets = Offsets(Cell::new(0x2545_F491_4F6C_DD1D));
    let reads = Rc::new(Reads { file, offsets, to_start: Cell::new(0) });
    let block = || Block { bytes: vec![0; BLOCK], offset: None };
    let mut blocks: Vec<Block> = (0..depth).map(|_| block()).collect();
    let measured = measure(count, |count| {
        reads.to_start.set(count);
        let spawn = |block| queue.spawn(keep_reading(Rc::clone(&reads), block));
        let tasks: Vec<_> = blocks.drain(..).map(spawn).collect();
        queue.block_on(async {
            for task in tasks {
                blocks.push(task.await);
            }
        })
    })?;
    for Block { bytes, offset } in &blocks {
        // Where reads end at once, some of the tasks find nothing left to do.
        let Some(offset) = *offset else { continue };
        assert!(*bytes == words_at(offset, BLOCK), "not the block that was asked for");
    }
    Ok(measured)
}
