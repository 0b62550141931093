//! Registering handles, looking their registrations up, and ending them.

#[cfg(unix)]
use std::os::fd::AsFd;
use std::panic::Location;
use std::rc::{Rc, Weak};

use super::{Inner, QUEUES};
#[cfg(feature = "tracing")]
use crate::handle::HandleId;
use crate::handle::{
    AnyHandle, EntryId, Facts, Persist, PersistError, PersistFailure, RawHandle, Registration,
};
#[cfg(unix)]
use crate::kernel::source::descriptor;
#[cfg(unix)]
use crate::kernel::unix;
use crate::kernel::{BindError, Identity};
use crate::misuse::Misuse;
use crate::operation::State;
use crate::trace::event;

impl Inner {
    pub(crate) fn persist(
        &self,
        handle: AnyHandle<'_>,
        options: Persist,
        owned: bool,
    ) -> Result<EntryId, PersistError> {
        match self.registered_as(handle)? {
            Some(entry) => Ok(entry),
            None => self.bind(handle, options, owned),
        }
    }

    /// The registration that a handle has already, where it is we who know that: Windows refuses to bind
    /// one twice.
    fn registered_as(&self, handle: AnyHandle<'_>) -> Result<Option<EntryId>, PersistError> {
        let refuse = |reason| Err(PersistError::new(handle.id(), reason));
        if self.closed.get() {
            return refuse(PersistFailure::Closed);
        }
        if self.kernel.has_overlapped() {
            return Ok(None);
        }
        if let Some(entry) = self.lent_under(handle) {
            return Ok(Some(entry));
        }
        let has = |queue: &Self| {
            let known = queue.known(handle.raw());
            let is_same =
                |it: &(EntryId, Facts)| self.kernel.identity(it.1.raw, it.1.mark) == Identity::Same;
            known.filter(is_same).map(|(entry, _)| entry)
        };
        if let Some(entry) = has(self) {
            return Ok(Some(entry));
        }
        if self.others(|queue| queue.lent_under(handle).is_some() || has(queue).is_some()) {
            return refuse(PersistFailure::WrongQueue);
        }
        Ok(None)
    }

    /// The registration under which a [`Registered`] of this queue lends the handle.
    fn lent_under(&self, handle: AnyHandle<'_>) -> Option<EntryId> {
        let registration = handle.registration()?;
        let is_ours = std::ptr::eq(&*registration.queue, self);
        let lasts = is_ours && self.registry.borrow().is_attached(registration.entry);
        lasts.then_some(registration.entry)
    }

    /// Registers the handle of what a [`Registered`] is to keep.
    pub(super) fn register(
        self: &Rc<Self>,
        handle: AnyHandle<'_>,
        options: Persist,
        owned: bool,
    ) -> Result<Registration, PersistError> {
        #[cfg(unix)]
        if !owned && !self.kernel.has_overlapped() {
            return self.register_lent(handle, options);
        }
        let entry = self.persist(handle, options, owned)?;
        let registration = Registration::new(self, entry, handle);
        let mut registry = self.registry.borrow_mut();
        // A borrow of what another owns may be forgotten: that is not to keep it registered.
        if !owned && registry.facts(entry).is_some_and(|facts| facts.owners > 0) {
            return Ok(registration.lent());
        }
        // One that was registered before has an owner now, or one more.
        registry.own(entry);
        Ok(registration)
    }

    /// Registers a duplicate of what is only lent. The `Registered` may be forgotten, and the handle be
    /// closed then; what waits makes its calls later, by a number, which must not be another file's by then.
    #[cfg(unix)]
    fn register_lent(
        self: &Rc<Self>,
        handle: AnyHandle<'_>,
        options: Persist,
    ) -> Result<Registration, PersistError> {
        let refuse = |reason| PersistError::new(handle.id(), reason);
        self.registered_as(handle)?;
        // It lasts no longer than what lends it.
        if let Some(entry) = self.lent_under(handle) {
            return Ok(Registration::new(self, entry, handle).lent());
        }
        let duplicate = unix::duplicate(descriptor(handle.raw())).map_err(|errno| {
            refuse(match errno {
                libc::EBADF => PersistFailure::InvalidHandle,
                errno => PersistFailure::Os(errno),
            })
        })?;
        let bound = self.bind(duplicate.as_fd().into(), options, true);
        let entry = bound.map_err(|error| refuse(error.reason()))?;
        self.registry.borrow_mut().own(entry);
        Ok(Registration::new(self, entry, handle).of_duplicate(duplicate))
    }

    fn bind(
        &self,
        handle: AnyHandle<'_>,
        options: Persist,
        owned: bool,
    ) -> Result<EntryId, PersistError> {
        let known = self.registry.borrow().lookup(handle.raw());
        let entry = self.registry.borrow_mut().reserve();
        let bound = self.kernel.bind(handle.raw(), handle.kind(), entry, options, owned);
        match bound {
            Ok(binding) => {
                // Windows would have refused the handle that is known: this is a new one, and the value
                // came back (pitfall 34). To this queue or to another of the thread, which could not
                // tell it from its own later (pitfall 35).
                if let Some(old) = known {
                    self.closed_early(old);
                }
                self.others(|queue| {
                    let old = queue.registry.borrow().lookup(handle.raw());
                    old.is_some_and(|old| {
                        queue.closed_early(old);
                        false
                    })
                });
                let facts = Facts {
                    raw: handle.raw(),
                    skips: binding.skips,
                    mark: binding.mark,
                    owners: 0,
                };
                self.registry.borrow_mut().attach(entry, facts);
                event!(debug, handle = %handle.id(), skips = binding.skips, "registered");
                Ok(entry)
            }
            Err(error) => {
                self.registry.borrow_mut().give_back(entry);
                self.persist_again(handle.raw(), known, error)
                    .map_err(|reason| PersistError::new(handle.id(), reason))
            }
        }
    }

    /// Binding was refused: because the handle is ours already, or for a reason (pitfall 35).
    fn persist_again(
        &self,
        raw: RawHandle,
        known: Option<EntryId>,
        error: BindError,
    ) -> Result<EntryId, PersistFailure> {
        if let Some(entry) = known {
            let facts = self.registry.borrow().facts(entry);
            let same = facts
                .is_some_and(|facts| self.kernel.identity(facts.raw, facts.mark) == Identity::Same);
            match error {
                BindError::AlreadyBound if same => return Ok(entry),
                // Nothing says that it is ours, and nothing that it is not.
                BindError::Os(_) if same => {}
                _ => {
                    self.closed_early(entry);
                }
            }
        }
        Err(match error {
            BindError::Invalid => PersistFailure::InvalidHandle,
            BindError::Synchronous => PersistFailure::NotOverlapped,
            BindError::AlreadyBound if self.has_other_queue(raw) => PersistFailure::WrongQueue,
            BindError::AlreadyBound => PersistFailure::AlreadyBound,
            BindError::Os(code) => PersistFailure::Os(code as i32),
        })
    }

    /// Whether another queue of this thread has the handle.
    fn has_other_queue(&self, raw: RawHandle) -> bool {
        self.others(|queue| queue.registry.borrow().lookup(raw).is_some())
    }

    /// Looks at the other queues of this thread until `look` says true, which must run no user code.
    fn others(&self, mut look: impl FnMut(&Inner) -> bool) -> bool {
        QUEUES
            .try_with(|queues| {
                let queues = queues.borrow();
                if queues.len() < 2 {
                    return false; // As a rule.
                }
                let mut queues = queues.iter().filter_map(Weak::upgrade);
                queues.any(|queue| !std::ptr::eq(&*queue, self) && look(&queue))
            })
            .unwrap_or(false)
    }

    /// The registration under which an operation on `handle` may be started or awaited.
    pub(crate) fn registration(
        &self,
        handle: AnyHandle<'_>,
        caller: &'static Location<'static>,
    ) -> Result<EntryId, Misuse> {
        let id = handle.id();
        if self.closed.get() {
            return Err(Misuse::UnregisteredHandle { handle: id, caller });
        }
        if let Some(registration) = handle.registration() {
            if !std::ptr::eq(&*registration.queue, self) {
                return Err(Misuse::WrongQueue { handle: id, caller });
            }
            if !self.registry.borrow().is_attached(registration.entry) {
                return Err(Misuse::UnregisteredHandle { handle: id, caller });
            }
            return Ok(registration.entry);
        }
        let Some((entry, facts)) = self.known(handle.raw()) else {
            return Err(if self.has_other_queue(handle.raw()) {
                Misuse::WrongQueue { handle: id, caller }
            } else {
                Misuse::UnregisteredHandle { handle: id, caller }
            });
        };
        // A borrowed handle can have been closed, and its value given out again (pitfall 34).
        if self.kernel.identity(facts.raw, facts.mark) == Identity::Gone {
            return Err(if self.closed_early(entry) {
                Misuse::PrematureClose { handle: id, caller }
            } else {
                Misuse::UnregisteredHandle { handle: id, caller }
            });
        }
        Ok(entry)
    }

    pub(super) fn known(&self, raw: RawHandle) -> Option<(EntryId, Facts)> {
        let registry = self.registry.borrow();
        let entry = registry.lookup(raw)?;
        Some((entry, registry.facts(entry)?))
    }

    /// Ends a registration: cancels what is in flight under it, and takes the handle off the port
    /// where the system can.
    pub(crate) fn unregister(&self, entry: EntryId) {
        if !self.registry.borrow().is_attached(entry) {
            return;
        }
        // Cancelling first: should it unwind, the tables still say what is (pitfall 36).
        let operations = self.operations(entry);
        let mut left = false;
        for slot in operations {
            match slot.state() {
                State::InFlight => self.cancel(slot),
                State::Exposed | State::Cancelling | State::Orphaned => {
                    self.request_cancel(slot);
                }
                State::Done | State::Retired | State::Idle | State::Free => continue,
            }
            left |= slot.is_kernels() && self.kernel.has(slot);
        }
        let facts = self.registry.borrow().facts(entry);
        self.end_registration(entry);
        if let Some(facts) = facts {
            self.kernel.unbind(facts.raw, entry, left);
        }
        event!(debug, handle = ?facts.map(|facts| HandleId::new(facts.raw)), left, "unregistered");
    }

    pub(super) fn unregister_handle(
        &self,
        handle: AnyHandle<'_>,
        caller: &'static Location<'static>,
    ) -> Result<(), Misuse> {
        if let Some(registration) = handle.registration() {
            if !std::ptr::eq(&*registration.queue, self) {
                return Err(Misuse::WrongQueue { handle: handle.id(), caller });
            }
            self.unregister(registration.entry);
            return Ok(());
        }
        let Some((entry, facts)) = self.known(handle.raw()) else { return Ok(()) };
        if self.kernel.identity(facts.raw, facts.mark) == Identity::Gone {
            // Nothing to cancel by this value any more.
            return if self.closed_early(entry) {
                Err(Misuse::PrematureClose { handle: handle.id(), caller })
            } else {
                Ok(())
            };
        }
        self.unregister(entry);
        Ok(())
    }

    /// A registered handle turned out to be closed: its waits say so when they end. True where
    /// something waited.
    pub(super) fn closed_early(&self, entry: EntryId) -> bool {
        let operations = self.operations(entry);
        let mut waited = false;
        for slot in operations {
            if matches!(slot.state(), State::InFlight) {
                slot.set_closed_under();
                waited = true;
                // Windows has ended it with its handle, whose value may be another's by now.
                if !self.kernel.has_overlapped() {
                    self.cancel(slot);
                }
            }
        }
        self.end_registration(entry);
        #[cfg(unix)]
        self.kernel.retire(entry);
        waited
    }

    /// Takes an entry, whose operations are all in its list, off the registry and frees what was only kept for its
    /// packets.
    fn end_registration(&self, entry: EntryId) {
        // Before any of its operations' memory is used again.
        self.kernel.forget(entry);
        let operations = self.registry.borrow().operations(entry);
        self.registry.borrow_mut().detach(entry);
        for slot in operations {
            if slot.state() == State::Retired {
                self.release(slot);
            }
        }
    }
}
