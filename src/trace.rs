//! Events for the `tracing` crate, with the feature of that name.
//!
//! A subscriber is user code, so an event stands only where nothing of the queue is borrowed.

/// `event!(level, fields..., "message")`; nothing without the feature.
macro_rules! event {
    ($level:ident, $($what:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "ioqueue", $($what)*);
    };
}

pub(crate) use event;
