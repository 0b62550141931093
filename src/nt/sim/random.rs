//! Draws that a seed repeats.

use std::time::Duration;

/// SplitMix64: small, good enough, and the same on every system.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// True with probability `rate`. A rate of 0 draws nothing, so that a fault which is off does
    /// not change what else a seed draws.
    pub(super) fn chance(&mut self, rate: f64) -> bool {
        rate > 0.0 && ((self.next() >> 11) as f64) < rate * (1_u64 << 53) as f64
    }

    pub(super) fn pick<'a, V>(&mut self, of: &'a [V]) -> &'a V {
        &of[self.below(of.len())]
    }

    /// Up to `longest`, and now and then nothing at all.
    pub(super) fn delay(&mut self, longest: Duration) -> Duration {
        if longest.is_zero() || self.chance(0.25) {
            return Duration::ZERO;
        }
        longest.mul_f64((self.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
