#![cfg_attr(not(unix), allow(unused_imports))]
//! Files: at places and one after the other, in memory and not, at their ends and beyond.

#[macro_use]
mod each_kernel;

use std::fs::File;
use std::io::{self, Read};
#[cfg(unix)]
use std::os::fd::AsRawFd;
#[cfg(target_os = "linux")]
use std::task::Poll;

use each_kernel::{
    Disk, TempFile, assert_came_back, file, kind_of, noise, poll_once, read_full, rounds, skip,
    write_full,
};
use ioqueue::{IoBuf, Registered, error};

const BLOCK: usize = 4096;

/// A buffer that begins where calls past the cache want it, with room for `length` bytes.
fn aligned(length: usize) -> ioqueue::Slice<Vec<u8>> {
    let mut room = vec![0; length + BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    room.fill(0xEE);
    room.slice(start..start + length)
}

on_each_kernel! {
    /// H1.
    fn what_is_written_at_a_place_is_read_there(queue) {
        let file = file(queue, b"0123456789");
        queue.block_on(async {
            let (count, bytes) = file.write_at("abc", 4).await;
            assert_eq!((count.unwrap(), bytes), (3, "abc"));
            let (count, bytes) = file.read_at(vec![0; 4], 2).await;
            assert_eq!((count.unwrap(), &bytes[..]), (4, &b"23ab"[..]));
            let (count, part) = file.read_at(bytes.slice(1..), 9).await;
            assert_eq!((count.unwrap(), &part.into_inner()[..]), (1, &b"29"[..]));
            file.sync_all().await.unwrap();
            file.sync_data().await.unwrap();
        }).unwrap();
        assert!(!queue.running());
    }

    /// What is no file has nothing to be put on a disk, and says so at once.
    /// As many operations as it takes, each behind the last.
    fn all_is_read_and_written_at_a_place(queue) {
        let contents = noise(100_000);
        let file = file(queue, b"0123456789");
        queue.block_on(async {
            let (written, bytes) = file.write_all_at(contents.clone(), 5).await;
            written.unwrap();
            assert!(bytes == contents);
            let (read, bytes) = file.read_exact_at(vec![0; 100_000], 5).await;
            read.unwrap();
            assert!(bytes == contents);
            // The end comes first: what was there is in the buffer, once.
            let (read, bytes) = file.read_exact_at([7; 8], 100_001).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(bytes[..4], contents[99_996..]);
            // Neither moves where the file stands.
            let (count, bytes) = file.read(vec![0; 5]).await;
            assert_eq!((count.unwrap(), &bytes[..]), (5, &b"01234"[..]));
            let refused = file.write_all_at("beyond", u64::MAX).await.0;
            assert_eq!(kind_of(queue, &refused.unwrap_err()), io::ErrorKind::InvalidInput);
            file.write_all_at("", u64::MAX).await.0.unwrap();
        }).unwrap();
    }

    fn what_is_no_file_cannot_be_synced(queue) {
        for way in each_kernel::ways(queue) {
            for sync in [way.from.sync_all(), way.to.sync_data()] {
                let error = queue.block_on(sync).unwrap().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}: {error}", way.name);
            }
        }
        assert!(!queue.running());
    }

    /// Scenario 30, pitfall 22: the offset is the whole 64 bits.
    fn reads_and_writes_take_place_beyond_4_gib(queue) {
        let file = file(queue, b"start");
        queue.block_on(async {
            for place in [1 << 31, 1 << 32, (5 << 30) + 3] {
                assert_eq!(file.write_at("far away", place).await.0.unwrap(), 8);
                let (count, bytes) = file.read_at(vec![0; 16], place).await;
                assert_eq!((count.unwrap(), &bytes[..8]), (8, &b"far away"[..]));
            }
            assert_eq!(file.read_at(vec![0; 5], 0).await.1, b"start");
            // What was never written is nothing.
            assert_eq!(file.read_at(vec![7; 8], 3 << 30).await.1, [0; 8]);
        }).unwrap();
    }

    /// Section 6: an offset that no file has is an error, and nothing is read elsewhere.
    fn an_offset_over_2_to_the_63_is_refused(queue) {
        let file = file(queue, b"start");
        for place in [1 << 63, u64::MAX, u64::MAX - 4] {
            let (count, bytes) = queue.block_on(file.read_at(vec![7; 4], place)).unwrap();
            assert!(count.is_err(), "{place:#x}");
            assert_came_back(queue, &bytes, &[7; 4]);
            let (count, bytes) = queue.block_on(file.write_at("data", place)).unwrap();
            assert!(count.is_err() && bytes == "data", "{place:#x}");
        }
        assert_eq!(queue.block_on(file.read_at(vec![0; 16], 0)).unwrap().1, b"start");
    }

    #[cfg(unix)]
    /// Scenario 31: a length over 4 GiB is cut, never wrapped.
    not_simulated("it would look at each of 4 GiB")
    fn a_length_over_4_gib_is_cut(queue) {
        // 4 GiB and four bytes: wrapped, it would be four.
        const LENGTH: usize = (4 << 30) + 4;
        let file = file(queue, b"contents");
        let room = vec![0; LENGTH]; // Which the system gives page by page.
        let (count, room) = queue.block_on(file.read_at(room, 0)).unwrap();
        assert_eq!((count.unwrap(), &room[..]), (8, &b"contents"[..]));
        let (count, room) = queue.block_on(file.read(room)).unwrap();
        assert_eq!((count.unwrap(), &room[..]), (8, &b"contents"[..]));
        let null = File::options().write(true).open("/dev/null").unwrap();
        let null = queue.register(null).unwrap();
        let (count, room) = queue.block_on(null.write(vec![0; LENGTH])).unwrap();
        let count = count.unwrap();
        assert!(count > 1 << 30 && count <= LENGTH, "{count}");
        assert_eq!(room.len(), LENGTH);
    }

    /// Scenario 32: what ends at once.
    fn operations_that_end_at_once_do_not_hang(queue) {
        let file = file(queue, &noise(1 << 16));
        for round in 0..1000 {
            let place = round * 64;
            let (count, _) = queue.block_on(file.read_at(vec![0; 64], place)).unwrap();
            assert_eq!(count.unwrap(), 64);
            let (count, _) = queue.block_on(file.write_at(vec![0; 64], place)).unwrap();
            assert_eq!(count.unwrap(), 64);
        }
        assert!(!queue.running() && queue.pending().is_empty());
    }

    /// Scenario 33, Q10: in memory or not, and past the cache.
    fn each_of_64_reads_in_flight_on_one_handle_gets_its_own_bytes(queue) {
        let contents = noise(64 * BLOCK);
        let disk = Disk::new(queue, &contents);
        disk.forget_contents();
        let files = [Some(disk.open(queue)), disk.open_uncached(queue)];
        for file in files.into_iter().flatten() {
            let contents = disk.contents();
            let reads: Vec<_> = (0..64).rev()
                .map(|block| (block, file.read_at(aligned(BLOCK), (block * BLOCK) as u64)))
                .collect();
            for (block, read) in reads {
                let (count, bytes) = queue.block_on(read).unwrap();
                assert_eq!(count.unwrap(), BLOCK);
                assert!(bytes[..] == contents[block * BLOCK..][..BLOCK], "block {block}");
            }
            // The same, written backwards.
            let writes: Vec<_> = (0..64).map(|block| {
                let mut bytes = aligned(BLOCK).into_inner();
                let start = bytes.as_ptr().align_offset(BLOCK);
                bytes[start..start + BLOCK].copy_from_slice(&contents[(63 - block) * BLOCK..][..BLOCK]);
                file.write_at(bytes.slice(start..start + BLOCK), (block * BLOCK) as u64)
            }).collect();
            for write in writes {
                assert_eq!(queue.block_on(write).unwrap().0.unwrap(), BLOCK);
            }
            queue.block_on(file.sync_all()).unwrap().unwrap();
            let now = disk.contents();
            for block in 0..64 {
                let expected = &contents[(63 - block) * BLOCK..][..BLOCK];
                assert!(&now[block * BLOCK..][..BLOCK] == expected, "block {block}");
            }
        }
        assert!(!queue.running());
    }

    /// Scenario 34: at the end, and beyond it; in memory or not.
    fn a_read_at_the_end_of_the_file_is_the_end(queue) {
        let file = file(queue, b"0123456789");
        queue.block_on(async {
            for (place, expected) in [(8, &b"89"[..]), (10, b""), (11, b""), (1 << 40, b"")] {
                let (count, bytes) = file.read_at(vec![0; 16], place).await;
                assert_eq!((count.unwrap(), &bytes[..]), (expected.len(), expected), "{place}");
            }
            // The end is where it is now.
            file.write_at("more", 10).await.0.unwrap();
            assert_eq!(file.read_at(vec![0; 16], 10).await.1, b"more");
        }).unwrap();
    }

    /// H1: one read after the other, in the order they were started, from where the last one ended.
    fn a_file_is_read_and_written_from_its_start_to_its_end(queue) {
        let contents = noise(100_003);
        let disk = Disk::new(queue, b"");
        let (writing, reading) = (disk.open(queue), disk.open(queue));
        queue.block_on(async {
            let writes: Vec<_> = contents.chunks(1009).map(|part| {
                (part.len(), writing.write(part.to_vec()))
            }).collect();
            for (length, write) in writes {
                assert_eq!(write.await.0.unwrap(), length);
            }
            assert!(disk.contents() == contents);
            let reads: Vec<_> = (0..101).map(|_| reading.read(vec![0; 997])).collect();
            let mut all = Vec::new();
            for read in reads {
                let (count, bytes) = read.await;
                assert_eq!(bytes.len(), count.unwrap());
                all.extend(bytes);
            }
            assert!(all == contents, "{} bytes", all.len());
            // Where a read at a place took place changes nothing.
            assert_eq!(reading.read_at(vec![0; 5], 7).await.1, contents[7..12]);
            assert_eq!(reading.read(vec![0; 5]).await.0.unwrap(), 0);
            write_full(&writing, "more").await;
            assert_eq!(read_full(&reading, 64).await, b"more");
        }).unwrap();
    }

    /// The same where it has to wait for the disk.
    fn a_file_that_is_not_in_memory_is_read_from_its_start_to_its_end(queue) {
        let contents = noise(3_000_003);
        let disk = Disk::new(queue, &contents);
        disk.forget_contents();
        let file = disk.open(queue);
        let reads: Vec<_> = (0..100).map(|_| file.read(vec![0; 65_536])).collect();
        let mut all = Vec::new();
        for read in reads {
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(bytes.len(), count.unwrap());
            all.extend(bytes);
        }
        assert!(all == contents, "{} bytes", all.len());
    }

    fn several_buffers_are_read_and_written(queue) {
        let disk = Disk::new(queue, b"");
        let (file, again) = (disk.open(queue), disk.open(queue));
        queue.block_on(async {
            let (count, _) = file.write_vectored([&b"ab"[..], b"", b"cdefg"]).await;
            assert_eq!(count.unwrap(), 7);
            let room = [Vec::with_capacity(2), Vec::with_capacity(4), Vec::with_capacity(8)];
            let (count, parts) = again.read_vectored(room).await;
            assert_eq!(count.unwrap(), 7);
            assert_eq!(parts, [&b"ab"[..], b"cdef", b"g"]);
            assert_eq!(again.read_vectored(parts).await.0.unwrap(), 0);
        }).unwrap();
    }

    /// Every write goes to the end, in their order.
    not_simulated("its files are opened for everything")
    fn what_is_appended_comes_last(queue) {
        let temporary = TempFile::new(b"start ");
        let file = queue.register(temporary.open_to_append()).unwrap();
        let writes: Vec<_> = (0..100).map(|number| file.write(format!("{number:02} "))).collect();
        for write in writes {
            assert_eq!(queue.block_on(write).unwrap().0.unwrap(), 3);
        }
        let expected: String = (0..100).map(|number| format!("{number:02} ")).collect();
        assert_eq!(std::fs::read_to_string(&temporary.path).unwrap(), format!("start {expected}"));
    }

    #[cfg(unix)]
    not_simulated("its files are opened for everything")
    fn what_a_file_was_not_opened_for_is_an_error(queue) {
        let temporary = TempFile::new(b"contents");
        let read_only = queue.register(File::open(&temporary.path).unwrap()).unwrap();
        let write_only = queue.register(temporary.open_to_append()).unwrap();
        queue.block_on(async {
            assert!(read_only.write_at("x", 0).await.0.is_err());
            assert!(read_only.write("x").await.0.is_err());
            assert!(write_only.read_at(vec![0; 4], 0).await.0.is_err());
            assert!(write_only.read(vec![0; 4]).await.0.is_err());
            // No socket either.
            assert!(read_only.recv(vec![0; 4]).await.0.is_err());
            assert!(read_only.send("x").await.0.is_err());
            assert!(read_only.accept().await.is_err());
            assert!(read_only.shutdown(std::net::Shutdown::Both).await.is_err());
        }).unwrap();
        assert_eq!(std::fs::read(&temporary.path).unwrap(), b"contents");
        let folder = queue.register(File::open(std::env::temp_dir()).unwrap()).unwrap();
        let error = queue.block_on(folder.read_at(vec![0; 64], 0)).unwrap().0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        let error = queue.block_on(folder.read(vec![0; 64])).unwrap().0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        // A pipe has no places.
        let (reader, writer) = each_kernel::pipe(queue);
        let error = queue.block_on(reader.read_at(vec![0; 4], 0)).unwrap().0.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESPIPE));
        let error = queue.block_on(writer.write_at("x", 0)).unwrap().0.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESPIPE));
    }

    /// Scenario 4.
    fn reads_and_writes_of_nothing_move_nothing(queue) {
        let file = file(queue, b"contents");
        queue.block_on(async {
            assert_eq!(file.read_at(Vec::new(), 0).await.0.unwrap(), 0);
            assert_eq!(file.read(Vec::new()).await.0.unwrap(), 0);
            assert_eq!(file.write_at("", 3).await.0.unwrap(), 0);
            assert_eq!(file.write("").await.0.unwrap(), 0);
            assert_eq!(read_full(&file, 64).await, b"contents");
        }).unwrap();
    }

    /// Scenario 36: a read that is given up, whatever of it is done by then, gives its bytes or says so.
    fn a_cancelled_read_gives_its_bytes_or_says_that_it_was_cancelled(queue) {
        let contents = noise(1 << 20);
        let disk = Disk::new(queue, &contents);
        for round in 0..rounds(queue, 20) {
            disk.forget_contents();
            let file = disk.open(queue);
            let reads: Vec<_> = (0..16).map(|part| {
                (part, file.read_at(vec![7; 65_536], part as u64 * 65_536))
            }).collect();
            let sequential: Vec<_> = (0..4).map(|_| file.read(vec![7; 65_536])).collect();
            if round % 2 == 0 {
                each_kernel::turn(queue);
            }
            for (part, read) in reads {
                let (count, bytes) = queue.block_on(read.cancel()).unwrap();
                match count {
                    Ok(count) => {
                        let start = part as usize * 65_536;
                        assert!(bytes[..] == contents[start..start + count], "part {part}");
                    }
                    Err(error) => assert!(error::is_cancelled(&error), "{error}"),
                }
            }
            // What was before a cancelled one took its part; what comes after goes on behind it.
            let mut place = 0;
            for (number, read) in sequential.into_iter().enumerate() {
                let (count, bytes) = match number {
                    1 => queue.block_on(read.cancel()).unwrap(),
                    _ => queue.block_on(read).unwrap(),
                };
                match count {
                    Ok(count) => {
                        assert!(bytes[..] == contents[place..place + count], "read {number}");
                        place += count;
                    }
                    Err(error) => assert!(number == 1 && error::is_cancelled(&error), "{error}"),
                }
            }
        }
        assert!(!queue.running());
    }

    #[cfg(unix)]
    /// Scenario 35: a file that may not grow, as on a disk that is full.
    not_simulated("sim_ends.rs has a full disk")
    fn a_full_disk_is_an_error(queue) {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            return skip("this system has no /dev/full");
        };
        let full = queue.register(full).unwrap();
        let (count, bytes) = queue.block_on(full.write(vec![1; 64])).unwrap();
        assert_eq!(count.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(bytes, [1; 64]);
    }
}

/// A small file system in memory, seen by this thread alone.
#[cfg(target_os = "linux")]
fn small_disk(bytes: usize) -> io::Result<std::path::PathBuf> {
    use std::ffi::CString;
    let folder = std::env::temp_dir().join(format!(
        "ioqueue-disk-{}-{}",
        std::process::id(),
        each_kernel::unique()
    ));
    std::fs::create_dir(&folder)?;
    let target = CString::new(folder.to_str().unwrap()).unwrap();
    let options = CString::new(format!("size={bytes}")).unwrap();
    // SAFETY: names of ours. The mounts are this thread's from here on: nothing is seen outside.
    unsafe {
        let (none, tmpfs, root) = (c"none".as_ptr(), c"tmpfs".as_ptr(), c"/".as_ptr());
        let null = std::ptr::null();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(none, root, null, private, null.cast()) != 0
            || libc::mount(none, target.as_ptr(), tmpfs, 0, options.as_ptr().cast()) != 0
        {
            let error = io::Error::last_os_error();
            let _ = std::fs::remove_dir(&folder);
            return Err(error);
        }
    }
    Ok(folder)
}

#[cfg(target_os = "linux")]
on_each_kernel! {
    not_simulated("these are handles of Unix"):

    /// What is in memory is read at once, also where the file system has every write wait.
    fn a_file_that_is_written_is_still_read_at_once(queue) {
        let file = file(queue, b"contents");
        let is_at_once = || {
            let mut reading = file.read_at([0; 8], 0);
            let is_at_once = poll_once(&mut reading).is_ready();
            drop(reading);
            queue.run().unwrap();
            is_at_once
        };
        if !is_at_once() {
            return skip("no file is read at once here");
        }
        queue.block_on(file.write_at("CONTENTS", 0)).unwrap().0.unwrap();
        queue.block_on(file.sync_all()).unwrap().unwrap();
        assert!(is_at_once());
    }

    /// That one read had to wait for the disk says nothing of the next.
    #[cfg(target_os = "linux")]
    fn after_a_read_from_the_disk_what_is_in_memory_is_read_at_once(queue) {
        let temporary = TempFile::new(&noise(256 * BLOCK));
        each_kernel::forget_contents(&temporary.open());
        let file = queue.register(temporary.open()).unwrap();
        let mut first = file.read(vec![0; BLOCK]);
        if poll_once(&mut first).is_ready() {
            return skip("the file stays in memory");
        }
        assert_eq!(queue.block_on(first).unwrap().0.unwrap(), BLOCK);
        let contents = std::fs::read(&temporary.path).unwrap();
        let mut second = file.read(vec![0; BLOCK]);
        let Poll::Ready((count, bytes)) = poll_once(&mut second) else { panic!("it waits") };
        assert_eq!(count.unwrap(), BLOCK);
        assert!(bytes == contents[BLOCK..2 * BLOCK]);
    }

    /// Past the cache every call waits for the disk, also one that is told not to (`RWF_NOWAIT`): so none is
    /// made on the queue's thread.
    fn a_call_past_the_cache_does_not_block_its_queue(queue) {
        let contents = noise(64 * BLOCK);
        let temporary = TempFile::new(&contents);
        let file = match temporary.open_uncached() {
            Ok(file) => queue.register(file).unwrap(),
            Err(error) => return skip(&format!("no calls past the cache here: {error}")),
        };
        let mut reads: Vec<_> = (0..64).map(|block| file.read_at(aligned(BLOCK), (block * BLOCK) as u64)).collect();
        assert!(reads.iter_mut().all(|read| poll_once(read).is_pending()));
        assert_eq!(queue.pending().len(), 64);
        for (block, read) in reads.into_iter().enumerate() {
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(count.unwrap(), BLOCK);
            assert!(bytes[..] == contents[block * BLOCK..][..BLOCK], "block {block}");
        }
        let mut write = file.write_at(aligned(BLOCK), 0);
        assert!(poll_once(&mut write).is_pending());
        assert_eq!(queue.block_on(write).unwrap().0.unwrap(), BLOCK);
    }

    /// Scenario 35: what has room is written, and what has not is said.
    fn a_disk_that_becomes_full_takes_what_it_has_room_for(queue) {
        const ROOM: usize = 64 << 10;
        let folder = match small_disk(ROOM) {
            Ok(folder) => folder,
            Err(error) => return skip(&format!("no file system may be mounted: {error}")),
        };
        let path = folder.join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let file = queue.register(file).unwrap();
        let (mut written, error) = queue.block_on(async {
            let mut written = 0;
            loop {
                match file.write(noise(10_000)).await.0 {
                    Ok(count) => {
                        assert!(count > 0 && count <= 10_000);
                        written += count;
                        assert!(written <= ROOM, "{written} bytes");
                    }
                    Err(error) => return (written, error),
                }
            }
        }).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // The position moved with each: it is all there.
        assert_eq!(file.get().metadata().unwrap().len(), written as u64);
        assert!(written >= ROOM - 10_000, "{written}");
        let (count, _) = queue.block_on(file.write_at(vec![1; 10_000], ROOM as u64)).unwrap();
        assert_eq!(count.unwrap_err().kind(), io::ErrorKind::StorageFull);
        // There is room again, and the file goes on.
        file.get().set_len(0).unwrap();
        let (count, _) = queue.block_on(file.write_at(vec![1; 10_000], 0)).unwrap();
        written = count.unwrap();
        assert_eq!(written, 10_000);
        // As many operations as it takes: the one behind what fitted says why it is not all.
        let (done, bytes) = queue.block_on(file.write_all_at(noise(2 * ROOM), 0)).unwrap();
        assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
        let fitted = std::fs::read(&path).unwrap();
        assert!(fitted.len() > ROOM / 2 && fitted == bytes[..fitted.len()]);
        drop(file);
        // SAFETY: a name of ours.
        let name = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
        unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::remove_dir(folder);
    }

    /// The position is the file's: a blocking read of a duplicate goes on where the queue's ended.
    fn more_buffers_than_a_call_takes_are_refused(queue) {
        let file: Registered<each_kernel::OnDisk> = file(queue, b"0123456789");
        let buffers = || std::array::from_fn::<_, 1025, _>(|_| vec![0; 1]);
        let (read, _) = queue.block_on(file.read_vectored(buffers())).unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (written, _) = queue.block_on(file.write_vectored(buffers())).unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(queue.block_on(read_full(&file, 4)).unwrap(), b"0123");
    }

    fn the_position_is_the_files(queue) {
        let file: Registered<each_kernel::OnDisk> = file(queue, b"0123456789");
        assert_eq!(queue.block_on(read_full(&file, 4)).unwrap(), b"0123");
        let mut duplicate = file.get().try_clone().unwrap();
        let mut rest = String::new();
        duplicate.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "456789");
        assert!(duplicate.as_raw_fd() >= 0);
    }
}

/// Q13: a call of a file's that no thread has begun is taken back, and its buffer was not touched.
#[cfg(target_os = "linux")]
#[test]
fn what_waits_for_a_thread_is_taken_back() {
    each_kernel::run(ioqueue::KernelKind::Readiness, |queue| {
        const MANY: usize = 256;
        let temporary = TempFile::new(&noise(MANY * BLOCK));
        let file = match temporary.open_uncached() {
            Ok(file) => queue.register(file).unwrap(),
            Err(error) => return skip(&format!("no calls past the cache here: {error}")),
        };
        let take_back_the_last = || {
            let mut reads: Vec<_> = (0..MANY)
                .map(|block| file.read_at(aligned(BLOCK), (block * BLOCK) as u64))
                .collect();
            let last = reads.pop().unwrap().cancel();
            drop(reads);
            let (result, bytes) = queue.block_on(last).unwrap();
            queue.run().unwrap();
            result.is_err_and(|error| {
                assert!(error::is_cancelled(&error), "{error}");
                assert_eq!(bytes[..], [0xEE; BLOCK]);
                true
            })
        };
        // There are many more calls than threads. But whoever holds this one up may let them do them all.
        assert!((0..20).any(|_| take_back_the_last()), "none of twenty was taken back");
    });
}
