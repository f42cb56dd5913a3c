//! Quantities with their bounds, made only by parsing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A positive number of seconds, at most a week. A longer wait is a mistake in units more often than a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(Duration);

/// A number that is no [`Seconds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a number of seconds above 0 and up to {}", Seconds::MAX)]
pub struct OutOfBounds;

impl Seconds {
    /// The longest, in seconds: 7 days.
    pub const MAX: u32 = 604_800;

    /// From a number of seconds; fractions down to nanoseconds count.
    ///
    /// # Errors
    /// [`OutOfBounds`] if it is not finite, not positive, above [`Seconds::MAX`] or rounds to nothing.
    pub fn new(seconds: f64) -> Result<Self, OutOfBounds> {
        if !(seconds > 0.0 && seconds <= f64::from(Self::MAX)) {
            return Err(OutOfBounds);
        }
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(Self(duration)),
            _ => Err(OutOfBounds),
        }
    }

    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<f64> for Seconds {
    type Error = OutOfBounds;

    fn try_from(seconds: f64) -> Result<Self, OutOfBounds> {
        Self::new(seconds)
    }
}

impl FromStr for Seconds {
    type Err = OutOfBounds;

    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        Self::new(text.parse().map_err(|_| OutOfBounds)?)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_secs_f64().fmt(f)
    }
}

impl serde::Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(Seconds::new(1.5).map(Seconds::duration), Ok(Duration::from_millis(1500)));
        assert!(Seconds::new(f64::from(Seconds::MAX)).is_ok());
        for bad in [0.0, -0.0, -1.0, 1e-12, 604_800.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(Seconds::new(bad), Err(OutOfBounds), "{bad}");
        }
    }

    #[test]
    fn seconds_are_parsed_from_text() {
        assert_eq!("60".parse::<Seconds>().map(Seconds::duration), Ok(Duration::from_secs(60)));
        for bad in ["", "1s", "inf", "nan", "-1"] {
            assert!(bad.parse::<Seconds>().is_err(), "{bad}");
        }
    }
}
