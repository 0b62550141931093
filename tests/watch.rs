#![cfg(windows)]
//! Directory changes with ReadDirectoryChangesW: a change, too many of them, and a cancel.

mod support;

use std::fs::{self, File};
use std::os::windows::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use ioqueue::error::is_cancelled;
use ioqueue::iocp::{Cancelled, Completion, Outcome, Wait, submit};
use ioqueue::{Queue, Registered};
use support::look_around;
use windows_sys::Win32::Foundation::STATUS_NOTIFY_ENUM_DIR;
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ACTION_ADDED, FILE_ACTION_REMOVED, FILE_ACTION_RENAMED_NEW_NAME,
    FILE_ACTION_RENAMED_OLD_NAME, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OVERLAPPED,
    FILE_LIST_DIRECTORY, FILE_NOTIFY_CHANGE_FILE_NAME, ReadDirectoryChangesW,
};

/// A folder that is deleted when this is dropped.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("ioqueue-watch-{process}-{number}"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn open(&self, queue: &Queue) -> Registered<File> {
        let folder = File::options()
            .access_mode(FILE_LIST_DIRECTORY)
            .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OVERLAPPED)
            .open(&self.0)
            .unwrap();
        queue.register(folder).unwrap()
    }

    fn create(&self, name: &str) {
        fs::write(self.0.join(name), b"").unwrap();
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Changes of names in a folder, into `words` four-byte words: the records must be aligned so.
#[track_caller]
fn changes(folder: &Registered<File>, words: usize) -> Wait<Vec<u32>> {
    unsafe {
        submit(folder, vec![0_u32; words], |handle, state, overlapped| {
            let room = &mut *state;
            let (start, length) = (room.as_mut_ptr().cast(), size_of_val(&room[..]) as u32);
            let what = FILE_NOTIFY_CHANGE_FILE_NAME;
            Outcome::from_bool(ReadDirectoryChangesW(
                handle,
                start,
                length,
                0,
                what,
                null_mut(),
                overlapped,
                None,
            ))
        })
    }
}

fn ended<T: 'static>(queue: &Queue, wait: Wait<T>) -> Completion<T> {
    queue.block_on(wait.exact()).unwrap()
}

/// The FILE_NOTIFY_INFORMATION records: next offset, action, name length, name.
fn records(end: &Completion<Vec<u32>>) -> Vec<(u32, String)> {
    let bytes: Vec<u8> = end.state.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut rest = &bytes[..end.bytes as usize];
    let mut records = Vec::new();
    while rest.len() > 12 {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
        let (next, action, length) = (word(0) as usize, word(4), word(8) as usize);
        let units = rest[12..12 + length].chunks_exact(2);
        let name: Vec<u16> = units.map(|unit| u16::from_ne_bytes([unit[0], unit[1]])).collect();
        records.push((action, String::from_utf16(&name).unwrap()));
        rest = if next == 0 { &[] } else { &rest[next..] };
    }
    records
}

/// Every change, whether it comes in one answer or in several.
fn all_records(
    queue: &Queue,
    folder: &Registered<File>,
    first: Wait<Vec<u32>>,
    count: usize,
) -> Vec<(u32, String)> {
    let mut all = records(&ended(queue, first));
    while all.len() < count {
        all.extend(records(&ended(queue, changes(folder, 1024))));
    }
    all
}

/// W4: what happened, in its order, with nothing lost between two calls.
#[test]
fn changes_of_a_folder_come_with_their_names() {
    let queue = Queue::new().unwrap();
    let folder = TempFolder::new();
    let watched = folder.open(&queue);
    let watching = changes(&watched, 1024);
    assert_eq!(queue.pending().len(), 1);
    folder.create("one");
    fs::rename(folder.0.join("one"), folder.0.join("zwei ü")).unwrap();
    fs::remove_file(folder.0.join("zwei ü")).unwrap();
    let expected = [
        (FILE_ACTION_ADDED, "one"),
        (FILE_ACTION_RENAMED_OLD_NAME, "one"),
        (FILE_ACTION_RENAMED_NEW_NAME, "zwei ü"),
        (FILE_ACTION_REMOVED, "zwei ü"),
    ]
    .map(|(action, name)| (action, name.to_string()));
    assert_eq!(all_records(&queue, &watched, watching, 4), expected);
    assert_eq!(queue.foreign_packets(), 0);
}

/// W8: a success without bytes, whose raw status says what it means.
#[test]
fn more_changes_than_fit_are_said_to_be_lost_and_the_next_come_again() {
    let queue = Queue::new().unwrap();
    let folder = TempFolder::new();
    let watched = folder.open(&queue);
    // Room for one short name.
    let watching = changes(&watched, 5);
    folder.create("a name that does not fit");
    let end = ended(&queue, watching);
    assert_eq!(end.result().unwrap(), 0);
    assert_eq!(end.status.0, STATUS_NOTIFY_ENUM_DIR);
    let watching = changes(&watched, 1024);
    folder.create("next");
    let seen = all_records(&queue, &watched, watching, 1);
    assert!(seen.contains(&(FILE_ACTION_ADDED, "next".into())), "{seen:?}");
}

/// Q13, scenario 42.
#[test]
fn a_cancelled_watch_ends_once_and_another_can_begin() {
    let queue = Queue::new().unwrap();
    let folder = TempFolder::new();
    let watched = folder.open(&queue);
    let Cancelled::Cancelled(end) = queue.block_on(changes(&watched, 64).cancel()).unwrap() else {
        panic!("nothing has changed");
    };
    assert!(is_cancelled(&end.result().unwrap_err()));
    assert_eq!((end.bytes, end.state), (0, vec![0; 64]));
    queue.block_on(look_around()).unwrap();
    assert_eq!(queue.foreign_packets(), 0);
    let watching = changes(&watched, 1024);
    folder.create("after");
    assert_eq!(all_records(&queue, &watched, watching, 1), [(FILE_ACTION_ADDED, "after".into())]);
}

/// Q8: the watch learns that its folder was closed, and the buffer comes back.
#[test]
fn a_folder_closed_under_a_watch_cancels_it() {
    let queue = Queue::new().unwrap();
    let folder = TempFolder::new();
    let watched = folder.open(&queue);
    let watching = changes(&watched, 64);
    drop(watched);
    let end = ended(&queue, watching);
    assert!(is_cancelled(&end.result().unwrap_err()), "{end:?}");
    assert_eq!(end.state.len(), 64);
    assert!(queue.pending().is_empty() && !queue.running());
}
