//! A per-thread event queue.
