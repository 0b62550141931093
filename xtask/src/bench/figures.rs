//! What the programs print, and how figures spread over the runs.

use crate::shell::Result;

/// What a program prints: one line of JSON, of its own making and so no harder to read than this.
pub struct Line(pub String);

impl Line {
    pub fn field(&self, name: &str) -> Result<&str> {
        let start = format!("\"{name}\":");
        let (_, rest) =
            self.0.split_once(&start).ok_or_else(|| format!("no {name}: {}", self.0))?;
        Ok(rest.trim_start_matches('"').split(['"', ',', '}']).next().unwrap_or_default())
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        Ok(self.field(name)?.parse()?)
    }
}

/// How a figure spreads over the runs.
pub struct Spread {
    pub median: f64,
    /// The narrowest two runs between which the true median lies in at least 95 of 100 such measurements,
    /// whatever the figures' distribution (of fewer than 6 runs: the outermost two).
    pub low: f64,
    pub high: f64,
    pub runs: usize,
}

impl Spread {
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let runs = figures.len();
        let median = (figures[(runs - 1) / 2] + figures[runs / 2]) / 2.0;
        let cut = outside(runs);
        Self { median, low: figures[cut], high: figures[runs - 1 - cut], runs }
    }
}

/// How many of `count` sorted figures may be left out at each end. All figures above number k miss the median
/// only if at most k of `count` tosses of a coin show heads.
fn outside(count: usize) -> usize {
    let mut ways = 1.0; // of choosing k of count
    let mut tail = 0.0;
    for k in 0..count {
        tail += ways / 2_f64.powi(count as i32);
        if 2.0 * tail > 0.05 {
            return k.saturating_sub(1);
        }
        ways *= (count - k) as f64 / (k + 1) as f64;
    }
    0
}

/// Three places behind the point, without zeros that say nothing.
pub fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_covers_the_median_95_times_of_100() {
        // 1 - 2 * P(at most k heads of n): 98.4 % for all of 7, 96.1 % without the outermost of 9, 95.1 % of 12
        // without two, 95.9 % of 20 without five.
        for (count, left_out) in [(5, 0), (7, 0), (8, 0), (9, 1), (12, 2), (20, 5)] {
            assert_eq!(outside(count), left_out, "{count}");
        }
        let spread = Spread::of(vec![9.0, 1.0, 5.0, 3.0, 4.0, 6.0, 2.0, 8.0, 7.0]);
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 5.0, 8.0));
    }

    #[test]
    fn fields_are_found_in_a_programs_line() {
        let line = Line(r#"{"bench":"x","rate":12,"unit":"reads/s","allocations":3}"#.into());
        assert_eq!(line.field("unit").unwrap(), "reads/s");
        assert_eq!(line.number("allocations").unwrap(), 3.0);
        assert!(line.number("calls").is_err());
    }
}
