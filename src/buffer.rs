//! Owned buffers: what an operation reads into or writes from, and gives back with its result.
//!
//! The kernel may use a buffer until the operation has ended, whatever becomes of the future. So it is
//! moved into the operation, and lent ones will not do. A buffer that is part of something else is taken out with
//! `std::mem::take`, and put back with the result.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes that an operation can write from.
///
/// # Safety
/// While the value is neither moved nor changed, [`io_ptr`](Self::io_ptr) gives the same address, from
/// which [`io_len`](Self::io_len) bytes may be read, from this thread and by the system. Bytes behind a
/// pointer also stay where they are when the value is moved.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no buffer that an operation can own",
    note = "the kernel may use it for as long as the operation lasts, so a buffer is moved in and comes back with the \
            result: a `Vec<u8>`, `Box<[u8]>`, `[u8; N]`, `Rc` or `Arc` of bytes, `&'static [u8]`; for a part of one, \
            `buffer.slice(..n)`"
)]
pub unsafe trait IoBuf: 'static {
    /// Where the bytes are. Not null, even if there are none.
    fn io_ptr(&self) -> *const u8;

    /// How many bytes there are.
    fn io_len(&self) -> usize;

    /// A part of the buffer, to write from or to read into. It comes back as a [`Slice`].
    ///
    /// For reading, the part may reach up to the buffer's capacity, and an open end means that.
    ///
    /// # Panics
    /// When the range is backwards, begins after the bytes there are, or ends beyond the capacity.
    fn slice(self, range: impl RangeBounds<usize>) -> Slice<Self>
    where
        Self: Sized,
    {
        Slice::new(self, range)
    }

    /// How many bytes there is room for: what a read may fill.
    fn io_capacity(&self) -> usize {
        self.io_len()
    }
}

/// Bytes that an operation can read into.
///
/// A read fills a buffer from its start up to its capacity, and then says how many bytes it has now: a
/// `Vec`'s length becomes the number that was read. What has a fixed length keeps it.
///
/// # Safety
/// As [`IoBuf`]; and from [`io_mut_ptr`](Self::io_mut_ptr), the same address,
/// [`io_capacity`](IoBuf::io_capacity) bytes may be written.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no buffer that an operation can own and fill",
    note = "the kernel may use it for as long as the operation lasts, so a buffer is moved in and comes back with the \
            result: a `Vec<u8>`, `Box<[u8]>` or `[u8; N]`; for a part of one, `buffer.slice(..n)`"
)]
pub unsafe trait IoBufMut: IoBuf {
    /// Where the bytes are.
    fn io_mut_ptr(&mut self) -> *mut u8;

    /// Says that the first `length` bytes have been filled. A buffer whose length is fixed ignores it.
    ///
    /// # Safety
    /// `length` is at most the capacity, and that many bytes have been written.
    unsafe fn set_io_len(&mut self, length: usize);
}

// SAFETY: the bytes of a Vec stay where they are while it is not changed.
unsafe impl IoBuf for Vec<u8> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn io_len(&self) -> usize {
        self.len()
    }

    fn io_capacity(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: as above; the capacity may be written.
unsafe impl IoBufMut for Vec<u8> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }

    unsafe fn set_io_len(&mut self, length: usize) {
        // SAFETY: passed on.
        unsafe { self.set_len(length) }
    }
}

/// For types that are a fixed number of bytes.
macro_rules! fixed {
    ($([$($generics:tt)*] $of:ty),*) => {$(
        // SAFETY: initialised bytes, which stay where they are while the value is neither moved nor
        // changed.
        unsafe impl $($generics)* IoBuf for $of {
            fn io_ptr(&self) -> *const u8 {
                self.as_ptr().cast()
            }

            fn io_len(&self) -> usize {
                self.len()
            }
        }
    )*};
}
fixed!([] Box<[u8]>, [<const N: usize>] [u8; N], [<const N: usize>] Box<[u8; N]>);
fixed!([] &'static [u8], [<const N: usize>] &'static [u8; N], [] &'static str, [] String, [] Rc<[u8]>, [] Arc<[u8]>);

macro_rules! fixed_mut {
    ($([$($generics:tt)*] $of:ty),*) => {$(
        // SAFETY: as above; the value is owned, so its bytes may be written.
        unsafe impl $($generics)* IoBufMut for $of {
            fn io_mut_ptr(&mut self) -> *mut u8 {
                self.as_mut_ptr().cast()
            }

            unsafe fn set_io_len(&mut self, _: usize) {}
        }
    )*};
}
fixed_mut!([] Box<[u8]>, [<const N: usize>] [u8; N], [<const N: usize>] Box<[u8; N]>);

/// A part of a buffer, made by [`IoBuf::slice`].
#[derive(Clone, Copy)]
pub struct Slice<B> {
    buffer: B,
    start: usize,
    end: usize,
}

impl<B: IoBuf> Slice<B> {
    fn new(buffer: B, range: impl RangeBounds<usize>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before.checked_add(1).expect("a slice that begins there"),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.checked_add(1).expect("a slice that ends there"),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => buffer.io_capacity(),
        };
        assert!(start <= end, "a slice from {start} to {end}");
        assert!(start <= buffer.io_len(), "a slice that begins after the bytes there are");
        assert!(end <= buffer.io_capacity(), "a slice that ends beyond the capacity");
        Self { buffer, start, end }
    }

    /// The part of the buffer as it is now: what was cloned may have less room than what was sliced (a
    /// `Vec`'s clone has), and a buffer can change behind a shared reference.
    fn bounds(&self) -> (usize, usize) {
        let start = self.start.min(self.buffer.io_len());
        (start, self.end.min(self.buffer.io_capacity()).max(start))
    }
}

impl<B> Slice<B> {
    /// The whole buffer.
    pub fn into_inner(self) -> B {
        self.buffer
    }

    /// The whole buffer, lent.
    pub fn get(&self) -> &B {
        &self.buffer
    }
}

impl<B: IoBuf> Deref for Slice<B> {
    type Target = [u8];

    /// The bytes there are in the part.
    fn deref(&self) -> &[u8] {
        // SAFETY: the trait's promise: so many initialised bytes from there, not changed while borrowed.
        unsafe { std::slice::from_raw_parts(self.io_ptr(), self.io_len()) }
    }
}

// SAFETY: a part of what the buffer promises.
unsafe impl<B: IoBuf> IoBuf for Slice<B> {
    fn io_ptr(&self) -> *const u8 {
        // SAFETY: the part begins within the buffer's bytes.
        unsafe { self.buffer.io_ptr().add(self.bounds().0) }
    }

    fn io_len(&self) -> usize {
        let (start, end) = self.bounds();
        // A buffer can change behind a shared reference.
        self.buffer.io_len().min(end).saturating_sub(start)
    }

    fn io_capacity(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }
}

// SAFETY: a part of what the buffer promises. Up to the part's start its bytes were there before.
unsafe impl<B: IoBufMut> IoBufMut for Slice<B> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        let (start, _) = self.bounds();
        // SAFETY: the part begins within the buffer's bytes.
        unsafe { self.buffer.io_mut_ptr().add(start) }
    }

    unsafe fn set_io_len(&mut self, length: usize) {
        let (start, _) = self.bounds();
        // SAFETY: what comes before the part is initialised, as the part begins within the bytes there
        // are; and so many more have been written.
        unsafe { self.buffer.set_io_len(start + length) }
    }
}

impl<B: IoBuf> fmt::Debug for Slice<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice").field("start", &self.start).field("end", &self.end).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The bounds are those of the buffer that was sliced; a clone of a Vec has less room.
    #[test]
    fn a_slice_of_a_clone_reaches_no_further_than_its_buffer() {
        let mut buffer = Vec::with_capacity(1000);
        buffer.extend(*b"abc");
        let slice = buffer.slice(1..);
        let clone = slice.clone();
        assert_eq!((slice.io_len(), slice.io_capacity()), (2, 999));
        assert_eq!(&clone[..], b"bc");
        assert!(clone.io_capacity() < clone.get().capacity());
    }

    // Each answer is true of its bytes, and yet they do not agree.
    #[test]
    fn a_buffer_that_shrinks_under_its_slice_gives_no_more_than_it_has() {
        struct Shrinks(Vec<u8>, std::cell::Cell<u32>);
        // SAFETY: so many bytes are there, or more.
        unsafe impl IoBuf for Shrinks {
            fn io_ptr(&self) -> *const u8 {
                self.0.as_ptr()
            }

            fn io_len(&self) -> usize {
                let asked = self.1.get();
                self.1.set(asked + 1);
                if asked % 3 == 2 && asked > 99 { 0 } else { self.0.len() }
            }
        }
        let slice = Shrinks(vec![1; 16], std::cell::Cell::new(0)).slice(4..16);
        slice.get().1.set(99);
        for _ in 0..8 {
            assert!(slice.io_len() <= 12, "{}", slice.io_len());
        }
    }

    #[test]
    fn bounds_at_the_end_of_all_numbers_do_not_wrap() {
        let last = usize::MAX;
        let backwards = (Bound::Excluded(last), Bound::Unbounded);
        assert!(std::panic::catch_unwind(|| vec![0; 4].slice(0..=last)).is_err());
        assert!(std::panic::catch_unwind(|| vec![0; 4].slice(backwards)).is_err());
    }
}
