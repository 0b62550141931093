//! What is in a simulated file.

use std::collections::BTreeMap;

const PAGE: usize = 4096;

/// The longest file: 16 TiB less 64 KiB ("NTFS overview", clusters of 4 KiB).
const LONGEST: u64 = (1 << 44) - (1 << 16);

/// The bytes of a file, of which only those that were written take room: a sparse file.
#[derive(Default)]
pub(super) struct Contents {
    length: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

/// There is no room on the disk.
pub(super) struct Full;

impl Contents {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut contents = Self::default();
        let Ok(()) = contents.write(0, bytes) else { unreachable!("memory is less than a disk") };
        contents
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Up to `count` bytes from `at`. What was never written is zeros.
    pub(super) fn read(&self, at: u64, count: usize) -> Vec<u8> {
        let rest = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; rest.min(count)];
        pieces(at, bytes.len(), |page, within, range| {
            if let Some(page) = self.pages.get(&page) {
                let length = range.len();
                bytes[range].copy_from_slice(&page[within..within + length]);
            }
        });
        bytes
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Full> {
        let end = at.checked_add(bytes.len() as u64).filter(|&end| end <= LONGEST).ok_or(Full)?;
        pieces(at, bytes.len(), |page, within, range| {
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + range.len()].copy_from_slice(&bytes[range]);
        });
        // Writing nothing beyond the end does not make a file longer.
        if !bytes.is_empty() {
            self.length = self.length.max(end);
        }
        Ok(())
    }
}

/// Cuts `count` bytes from `at` into pages: the page, where in it, and which of the bytes.
fn pieces(at: u64, count: usize, mut piece: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < count {
        let place = at + done as u64;
        let within = (place % PAGE as u64) as usize;
        let length = (PAGE - within).min(count - done);
        piece(place / PAGE as u64, within, done..done + length);
        done += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_wherever_the_pages_are_cut() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * PAGE).collect();
        for at in [0, 1, PAGE as u64 - 1, (5 << 30) - 7] {
            let mut contents = Contents::new(b"start");
            assert!(contents.write(at, &bytes).is_ok());
            assert_eq!(contents.read(at, bytes.len() + 1), bytes, "at {at}");
            assert_eq!(contents.length(), (at + bytes.len() as u64).max(5));
            assert_eq!(contents.read(at + 100, 50), bytes[100..150]);
            assert!(contents.pages.len() <= 5);
        }
    }

    #[test]
    fn a_hole_is_zeros_and_a_disk_has_an_end() {
        let mut contents = Contents::new(b"start");
        assert!(contents.write(LONGEST, b"").is_ok() && contents.length() == 5);
        assert!(contents.write(LONGEST, b"x").is_err() && contents.write(u64::MAX, b"xx").is_err());
        assert!(contents.write(LONGEST - 1, b"x").is_ok());
        assert_eq!(contents.read(4, 3), b"t\0\0");
        assert_eq!(contents.read(LONGEST - 2, 9), b"\0x");
        assert!(contents.read(LONGEST, 9).is_empty() && contents.read(u64::MAX, 9).is_empty());
    }
}
