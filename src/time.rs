//! How long a poll may wait.

use std::time::Duration;

/// The longest finite wait one call can ask for: all ones means for ever.
const LONGEST_MS: u32 = u32::MAX - 1;
const FOR_EVER_MS: u32 = u32::MAX;

/// When a poll has to be back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    Never,
    At(Duration),
}

impl Deadline {
    /// `timeout` from `now`; a sum past the clock's end is as good as never.
    pub(crate) fn after(now: Duration, timeout: Option<Duration>) -> Self {
        timeout.and_then(|timeout| now.checked_add(timeout)).map_or(Self::Never, Self::At)
    }

    pub(crate) fn has_passed(self, now: Duration) -> bool {
        matches!(self, Self::At(at) if at <= now)
    }

    /// The rest of the time in the OS's unit, rounded up (pitfalls 25 and 39): never early, zero
    /// only when the time is up, never "infinite" by accident. A rest too long for one call is cut;
    /// the caller waits again.
    pub(crate) fn rest_ms(self, now: Duration) -> u32 {
        match self {
            Self::Never => FOR_EVER_MS,
            Self::At(at) => {
                let rest = at.saturating_sub(now).as_nanos().div_ceil(1_000_000);
                u32::try_from(rest).map_or(LONGEST_MS, |rest| rest.min(LONGEST_MS))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_round_up_and_never_become_zero_or_infinite() {
        let now = Duration::from_secs(5);
        let rest = |timeout| Deadline::after(now, Some(timeout)).rest_ms(now);
        assert_eq!(rest(Duration::ZERO), 0);
        assert_eq!(rest(Duration::from_nanos(1)), 1);
        assert_eq!(rest(Duration::from_micros(10_900)), 11);
        assert_eq!(rest(Duration::from_millis(10)), 10);
        assert_eq!(rest(Duration::from_millis(u64::from(u32::MAX))), u32::MAX - 1);
        assert_eq!(rest(Duration::from_secs(u64::MAX / 2)), u32::MAX - 1);
        assert_eq!(Deadline::after(now, Some(Duration::MAX)), Deadline::Never);
        assert_eq!(Deadline::Never.rest_ms(now), u32::MAX);
    }

    #[test]
    fn a_deadline_passes_when_its_time_comes_not_before() {
        let deadline = Deadline::after(Duration::ZERO, Some(Duration::from_nanos(2)));
        assert!(!deadline.has_passed(Duration::from_nanos(1)));
        assert!(deadline.has_passed(Duration::from_nanos(2)));
        assert!(!Deadline::Never.has_passed(Duration::MAX));
    }
}
