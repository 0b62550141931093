//! What threads share a queue by. `model/` puts loom's in the place of these, and tries every order.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
pub(crate) use std::thread::sleep;
