#![cfg(windows)]
//! Files: offsets over the full 64 bits, ends, many operations at once, and what ends at once.

mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::ptr::{null, null_mut};

use ioqueue::iocp::{Cancelled, Completion, OVERLAPPED, Outcome, Wait, submit};
use ioqueue::{Persist, Queue, RawHandle, Registered, wait};
use support::{TempFile, call_read, ends, look_around, on_wine, read, read_at, write, write_at};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_HANDLE_EOF, ERROR_LOCK_VIOLATION, ERROR_MORE_DATA,
    ERROR_NOT_ENOUGH_MEMORY,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, FILE_FLAG_SEQUENTIAL_SCAN, LOCKFILE_EXCLUSIVE_LOCK,
    LOCKFILE_FAIL_IMMEDIATELY, LockFileEx,
};
use windows_sys::Win32::System::IO::DeviceIoControl;

fn open(queue: &Queue, file: &TempFile) -> Registered<File> {
    queue.register(file.open()).unwrap()
}

fn ended<T: 'static>(queue: &Queue, wait: Wait<T>) -> Completion<T> {
    queue.block_on(wait.exact()).unwrap()
}

/// `FSCTL_SET_SPARSE`, so that 5 GiB take no room.
fn make_sparse(queue: &Queue, file: &Registered<File>) {
    const FSCTL_SET_SPARSE: u32 = 0x0009_00C4;
    let end = ended(queue, unsafe {
        submit(file, (), |handle, _, overlapped| {
            let (code, none) = (FSCTL_SET_SPARSE, null_mut());
            Outcome::from_bool(DeviceIoControl(
                handle,
                code,
                null(),
                0,
                none,
                0,
                none.cast(),
                overlapped,
            ))
        })
    });
    end.result().unwrap();
}

/// Scenario 30, pitfall 22: at a place whose low half is a place of its own.
#[test]
fn reads_and_writes_take_place_beyond_4_gib() {
    const LOW: u64 = 8192;
    const HIGH: u64 = (1 << 32) + LOW;
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"");
    let file = open(&queue, &temporary);
    make_sparse(&queue, &file);
    file.get().set_len(5 << 30).unwrap();
    for (offset, bytes) in [(HIGH, *b"high"), (LOW, *b"low."), (u64::from(u32::MAX) - 1, *b"seam")]
    {
        assert_eq!(ended(&queue, write_at(&file, offset, bytes)).result().unwrap(), 4);
    }
    for (offset, bytes) in [(HIGH, *b"high"), (LOW, *b"low."), (u64::from(u32::MAX) - 1, *b"seam")]
    {
        let end = ended(&queue, read_at(&file, offset, [0; 4]));
        assert_eq!((end.result().unwrap(), &end.state[..]), (4, &bytes[..]));
    }
    // As another reader sees it.
    let (plain, mut bytes) = (File::open(&temporary.path).unwrap(), [0; 4]);
    plain.seek_read(&mut bytes, HIGH).unwrap();
    assert_eq!(&bytes, b"high");
    assert_eq!(plain.metadata().unwrap().len(), 5 << 30);
}

/// Pitfall 22: `Overlapped::at` as well, and the largest offset there is refers to no place.
#[test]
fn an_overlapped_of_its_own_is_set_to_its_place() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123456789");
    let file = open(&queue, &temporary);
    for (offset, expected) in [(7, Some(&b"789"[..])), (10, None), ((1 << 32) + 7, None)] {
        let mut overlapped = file.overlapped(vec![0; 3]).unwrap().at(offset);
        let result = match unsafe { overlapped.start(&file, call_read) } {
            Ok(()) => {
                let end = ended(&queue, wait(&file, overlapped).unwrap());
                end.result().map(|count| end.state[..count as usize].to_vec())
            }
            Err(error) => Err(error),
        };
        match expected {
            Some(expected) => assert_eq!(result.unwrap(), expected),
            None => {
                let code = result.unwrap_err().raw_os_error();
                assert_eq!(code, Some(ERROR_HANDLE_EOF as i32), "{offset}");
            }
        }
    }
    let end = ended(&queue, read_at(&file, u64::MAX >> 1, [0; 3]));
    assert!(end.result().is_err());
    assert!(queue.pending().is_empty());
}

/// Pitfall 41: a start that failed changes nothing, the place in the file included.
#[test]
fn an_operation_whose_start_failed_can_be_started_again_where_it_was() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123456789");
    let file = open(&queue, &temporary);
    let mut overlapped = file.overlapped(vec![0; 3]).unwrap().at(4);
    // As a call does that has no memory left for a packet.
    let fails = |_, _: *mut Vec<u8>, _| Outcome::from_error(ERROR_NOT_ENOUGH_MEMORY);
    let error = unsafe { overlapped.start(&file, fails) }.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ERROR_NOT_ENOUGH_MEMORY as i32));
    assert_eq!(overlapped.state_mut().unwrap().len(), 3);
    unsafe { overlapped.start(&file, call_read) }.unwrap();
    let end = ended(&queue, wait(&file, overlapped).unwrap());
    assert_eq!((end.result().unwrap(), &end.state[..]), (3, &b"456"[..]));
}

/// Q-rule "every wait ends": a warning with nothing behind it. Some calls answer ERROR_MORE_DATA, or
/// WSAEMSGSIZE to a send, before they ask the kernel anything.
#[test]
fn a_warning_without_an_operation_behind_it_ends_the_wait() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let temporary = TempFile::new(b"0123456789");
        let file = open(&queue, &temporary);
        let refuses = |_: RawHandle, _: *mut Vec<u8>, _: *mut OVERLAPPED| {
            Outcome::from_error(ERROR_MORE_DATA)
        };
        let end = ended(&queue, unsafe { submit(&file, vec![1, 2], refuses) });
        assert_eq!(end.result().unwrap_err().raw_os_error(), Some(ERROR_MORE_DATA as i32));
        assert_eq!((end.bytes, &end.state[..]), (0, &[1, 2][..]));
        assert!(queue.pending().is_empty() && !queue.running());
        assert_eq!(ended(&queue, read(&file, [0; 3])).state, b"012");
    });
}

/// Scenario 32, pitfalls 33 and 55, W2: all of these have ended when they are waited for.
#[test]
fn operations_that_end_at_once_neither_hang_nor_leave_a_foreign_packet() {
    for options in [Persist::default(), Persist::keep_packets()] {
        let queue = Queue::new().unwrap();
        let temporary = TempFile::new(&[7; 4096]);
        let file = queue.register_with(temporary.open(), options).unwrap();
        // More than one task may do before the others get their turn (pitfall 12).
        for _ in 0..300 {
            let end = ended(&queue, read(&file, [0; 64]));
            assert_eq!((end.result().unwrap(), end.state), (64, vec![7; 64]));
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.foreign_packets(), 0);
        assert!(queue.pending().is_empty() && !queue.running());
    }
}

/// Scenario 33, Q10.
#[test]
fn each_of_64_reads_in_flight_on_one_handle_gets_its_own_bytes() {
    const PIECE: usize = 5000;
    let contents: Vec<u8> = (0..64 * PIECE).map(|at| (at / PIECE) as u8).collect();
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(&contents);
    let file = open(&queue, &temporary);
    let reads: Vec<_> =
        (0..64).rev().map(|n| (n, read_at(&file, (n * PIECE) as u64, vec![0; PIECE]))).collect();
    for (number, reading) in reads {
        let end = ended(&queue, reading);
        assert_eq!(end.result().unwrap() as usize, PIECE);
        assert!(end.state.iter().all(|byte| *byte == number as u8));
    }
}

/// Scenario 34, W8.
#[test]
fn a_read_at_the_end_of_the_file_is_the_end() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123456789");
    let file = open(&queue, &temporary);
    let part = ended(&queue, read_at(&file, 8, [0; 4]));
    assert_eq!((part.read_result().unwrap(), &part.state[..2]), (2, &b"89"[..]));
    for offset in [10, 11, 5 << 30] {
        let end = ended(&queue, read_at(&file, offset, [0; 4]));
        assert_eq!(end.read_result().unwrap(), 0);
        assert_eq!(end.result().unwrap_err().raw_os_error(), Some(ERROR_HANDLE_EOF as i32));
        assert_eq!(end.state, [0; 4]);
    }
}

/// Pitfall 31: synchronous or not, the result is the same.
#[test]
fn writes_that_extend_the_file_end_with_their_bytes() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123");
    let file = open(&queue, &temporary);
    let writes: Vec<_> =
        (1..=16_u8).map(|n| write_at(&file, u64::from(n) * 1000, vec![n; 1000])).collect();
    for writing in writes {
        assert_eq!(ended(&queue, writing).result().unwrap(), 1000);
    }
    let contents = std::fs::read(&temporary.path).unwrap();
    assert_eq!((contents.len(), &contents[..5]), (17_000, &b"0123\0"[..]));
    for (number, piece) in contents.chunks(1000).enumerate().skip(1) {
        assert!(piece.iter().all(|byte| *byte == number as u8));
    }
}

/// Pitfall 9, scenario 2's sibling: the call's own error, and the buffer comes back.
#[test]
fn a_write_to_a_file_opened_for_reading_is_refused() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123");
    let file = File::options()
        .read(true)
        .custom_flags(FILE_FLAG_OVERLAPPED | FILE_FLAG_SEQUENTIAL_SCAN)
        .open(&temporary.path)
        .unwrap();
    let file = queue.register(file).unwrap();
    let end = ended(&queue, write(&file, *b"no"));
    assert_eq!(end.result().unwrap_err().raw_os_error(), Some(ERROR_ACCESS_DENIED as i32));
    assert_eq!((end.bytes, &end.state[..]), (0, &b"no"[..]));
    assert_eq!(ended(&queue, read(&file, [0; 4])).state, b"0123");
}

/// Scenario 4 for files: nothing is moved, also at the end.
#[test]
fn reads_and_writes_of_nothing_move_nothing() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123");
    let file = open(&queue, &temporary);
    assert_eq!(ended(&queue, read_at(&file, 2, [])).result().unwrap(), 0);
    assert_eq!(ended(&queue, write_at(&file, 2, [])).result().unwrap(), 0);
    assert_eq!(ended(&queue, write_at(&file, 400, [])).result().unwrap(), 0);
    assert_eq!(std::fs::read(&temporary.path).unwrap(), b"0123");
}

/// Scenarios 36 and 42: on a disk most reads have ended when the cancel comes.
#[test]
fn a_cancelled_read_of_a_file_gives_its_bytes_or_says_that_it_was_cancelled() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(&[9; 1 << 16]);
    let file = open(&queue, &temporary);
    for _ in 0..64 {
        match queue.block_on(read(&file, vec![0; 1 << 16]).cancel()).unwrap() {
            Cancelled::Finished(end) => {
                assert_eq!(end.result().unwrap(), 1 << 16);
                assert!(end.state.iter().all(|byte| *byte == 9));
            }
            Cancelled::Cancelled(end) => assert!(end.status.is_cancelled()),
        }
    }
    queue.block_on(look_around()).unwrap();
    assert_eq!(queue.foreign_packets(), 0);
}

/// Q8: the handle comes back from the queue open, and works as before.
#[test]
fn a_file_that_leaves_the_queue_is_as_good_as_before() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123456789");
    let file = open(&queue, &temporary);
    let reading = read_at(&file, 4, [0; 2]);
    let file = file.into_inner();
    let end = ended(&queue, reading);
    assert!(end.status.is_cancelled() || end.state == b"45");
    assert_eq!(file.metadata().unwrap().len(), 10);
    let mut plain = File::options().append(true).open(&temporary.path).unwrap();
    plain.write_all(b"x").unwrap();
    assert_eq!(plain.stream_position().unwrap(), 11);
}

/// LockFileEx of the first four bytes, for this handle alone, or not at all.
fn lock(file: &Registered<File>) -> Wait<()> {
    unsafe {
        submit(file, (), |handle, _, overlapped| {
            let flags = LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY;
            let locked = LockFileEx(handle, flags, 0, 4, 0, overlapped);
            if locked != 0 && on_wine() {
                // Wine forgets to say so in the status word, and sends no packet.
                return Outcome::FINISHED_SILENTLY;
            }
            Outcome::from_bool(locked)
        })
    }
}

/// W4: a call that moves no bytes, and fails at once where it would have to wait.
#[test]
fn a_locked_part_of_a_file_is_locked_for_others() {
    let queue = Queue::new().unwrap();
    let temporary = TempFile::new(b"0123456789");
    let (file, other) = (open(&queue, &temporary), open(&queue, &temporary));
    assert_eq!(ended(&queue, lock(&file)).result().unwrap(), 0);
    let code = ended(&queue, lock(&other)).result().unwrap_err().raw_os_error();
    assert_eq!(code, Some(ERROR_LOCK_VIOLATION as i32));
    assert_eq!(ended(&queue, read(&file, [0; 4])).state, b"0123");
    assert!(queue.pending().is_empty() && !queue.running());
    drop(file);
    assert_eq!(ended(&queue, lock(&other)).result().unwrap(), 0);
}
