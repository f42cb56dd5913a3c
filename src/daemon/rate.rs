//! Requests a second of one principal: a bucket of tokens each, so that one that floods does not starve the rest.

use super::exec::Principal;
use super::wire::{Code, WireError};
use serde_json::json;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

/// All buckets. A principal that is at rest has none, so there are no more than principals that ask.
pub struct Rates {
    per_second: u32,
    buckets: RefCell<HashMap<Principal, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// Buckets that hold `per_second` requests and are filled again in a second.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, buckets: RefCell::default() }
    }

    /// Takes a request's token.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`, with the limit and when to try again.
    pub fn admit(&self, principal: &Principal, now: Instant) -> Result<(), WireError> {
        let mut buckets = self.buckets.borrow_mut();
        let full = f64::from(self.per_second);
        let bucket = buckets.entry(principal.clone()).or_insert_with(|| Bucket { tokens: full, at: now });
        bucket.fill(full, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait_ms = ((1.0 - bucket.tokens) / full * 1000.0).ceil().max(1.0) as u64;
        Err(WireError::new(Code::TooManyRequests, "more requests a second than one principal may make")
            .with(json!({"max_requests_per_s": self.per_second, "retry_after_ms": wait_ms})))
    }

    /// Forgets whose bucket is full: a new one is no different.
    pub fn tidy(&self, now: Instant) {
        let full = f64::from(self.per_second);
        self.buckets.borrow_mut().retain(|_, bucket| {
            bucket.fill(full, now);
            bucket.tokens < full
        });
    }
}

impl Bucket {
    fn fill(&mut self, full: f64, now: Instant) {
        self.tokens = (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * full).min(full);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_refused_and_a_pause_forgives() {
        let (rates, now) = (Rates::new(10), Instant::now());
        let (one, other): (Principal, Principal) = ("uid:1".into(), "uid:2".into());
        let taken = |who: &Principal, at| (0..100).filter(|_| rates.admit(who, at).is_ok()).count();
        assert_eq!(taken(&one, now), 10);
        assert_eq!(taken(&other, now), 10, "somebody else's flood");
        assert_eq!(taken(&one, now + Duration::from_millis(500)), 5);
        rates.tidy(now + Duration::from_secs(9));
        assert!(rates.buckets.borrow().is_empty());
        assert_eq!(taken(&one, now + Duration::from_secs(9)), 10);
    }
}
