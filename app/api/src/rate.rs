//! Token buckets per client address, in tables of fixed size.

use crate::{ApiConfig, RateLimit, limits};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Places a client may be in; when all are taken, the one with the fullest bucket is forgotten: it loses nothing.
const WAYS: usize = 8;

/// What a client may do how often.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Requests.
    pub(crate) requests: Option<RateLimiter>,
    /// Requests that change the device.
    pub(crate) changes: Option<RateLimiter>,
    /// Wrong API keys.
    pub(crate) wrong_keys: RateLimiter,
}

impl Limits {
    /// Full buckets for everybody.
    pub(crate) fn new(config: &ApiConfig) -> Self {
        Self {
            requests: config.rate_limit.map(RateLimiter::new),
            changes: config.change_limit.map(RateLimiter::new),
            wrong_keys: RateLimiter::new(limits::WRONG_KEYS),
        }
    }
}

/// The buckets of all clients.
#[derive(Debug)]
pub struct RateLimiter {
    limit: RateLimit,
    hash: RandomState,
    started: Instant,
    table: Mutex<Vec<[Option<Bucket>; WAYS]>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    client: IpAddr,
    tokens: f64,
    /// Seconds since the limiter started.
    at: f64,
}

impl RateLimiter {
    /// An empty table.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            hash: RandomState::new(),
            started: Instant::now(),
            table: Mutex::new(vec![[None; WAYS]; limits::RATE_CLIENTS / WAYS]),
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one again.
    pub fn take(&self, client: IpAddr) -> Result<(), Duration> {
        self.take_at(client, self.started.elapsed().as_secs_f64())
    }

    /// Gives a token back that was taken for something that turned out to cost none.
    pub fn give_back(&self, client: IpAddr) {
        let client = network(client);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.set(client, table.len());
        if let Some(bucket) = table[set].iter_mut().flatten().find(|b| b.client == client) {
            bucket.tokens = (bucket.tokens + 1.0).min(self.limit.burst);
        }
    }

    fn set(&self, client: IpAddr, sets: usize) -> usize {
        let sets = u64::try_from(sets).unwrap_or(1);
        usize::try_from(self.hash.hash_one(client) % sets).unwrap_or(0)
    }

    fn take_at(&self, client: IpAddr, now: f64) -> Result<(), Duration> {
        let client = network(client);
        let RateLimit { per_second, burst } = self.limit;
        // Each critical section leaves the table whole.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.set(client, table.len());
        let filled = |b: &Bucket| (b.tokens + (now - b.at).max(0.0) * per_second).min(burst);
        let set = &mut table[set];
        let place = set.iter().position(|b| b.is_some_and(|b| b.client == client)).unwrap_or_else(|| {
            let fullness = |b: &Option<Bucket>| b.as_ref().map_or(f64::INFINITY, filled);
            (0..WAYS).max_by(|&i, &j| fullness(&set[i]).total_cmp(&fullness(&set[j]))).unwrap_or(0)
        });
        let tokens = match &set[place] {
            Some(b) if b.client == client => filled(b),
            _ => burst,
        };
        let enough = tokens >= 1.0;
        set[place] = Some(Bucket { client, tokens: if enough { tokens - 1.0 } else { tokens }, at: now });
        if enough {
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - tokens) / per_second).unwrap_or(Duration::from_secs(60)))
    }
}

/// One subscriber has one IPv4 address, but at least 2^64 IPv6 addresses.
pub(crate) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_gets_its_burst_and_then_its_rate() {
        let r = RateLimiter::new(RateLimit { per_second: 2.0, burst: 3.0 });
        let a = ip("10.0.0.1");
        assert!((0..3).all(|_| r.take_at(a, 0.0).is_ok()), "the burst");
        assert_eq!(r.take_at(a, 0.0), Err(Duration::from_millis(500)));
        assert_eq!(r.take_at(a, 0.25), Err(Duration::from_millis(250)), "asking costs nothing");
        assert!(r.take_at(a, 0.5).is_ok());
        assert!(r.take_at(a, 0.5).is_err());
        assert!(r.take_at(ip("10.0.0.2"), 0.5).is_ok(), "another client has its own");
        assert!((0..3).all(|_| r.take_at(a, 100.0).is_ok()), "a rest fills the bucket");
        assert!(r.take_at(a, 100.0).is_err(), "and no further");
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_again_and_no_more_than_that() {
        let r = RateLimiter::new(RateLimit { per_second: 0.001, burst: 1.0 });
        let a = ip("10.0.0.1");
        for _ in 0..3 {
            assert!(r.take_at(a, 0.0).is_ok());
            r.give_back(a);
            r.give_back(a);
        }
        assert!(r.take_at(a, 0.0).is_ok());
        assert!(r.take_at(a, 0.0).is_err());
        r.give_back(ip("10.0.0.2"));
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let r = RateLimiter::new(RateLimit { per_second: 1.0, burst: 1.0 });
        assert!(r.take_at(ip("2001:db8::1"), 0.0).is_ok());
        assert!(r.take_at(ip("2001:db8::ffff"), 0.0).is_err());
        assert!(r.take_at(ip("2001:db8:0:1::1"), 0.0).is_ok());
        assert!(r.take_at(ip("::ffff:10.0.0.1"), 0.0).is_ok());
        assert!(r.take_at(ip("10.0.0.1"), 0.0).is_err(), "a mapped address is the IPv4 one");
    }

    #[test]
    fn many_clients_do_not_free_the_busiest() {
        let r = RateLimiter::new(RateLimit { per_second: 0.001, burst: 2.0 });
        let busy = ip("10.9.9.9");
        assert!(r.take_at(busy, 0.0).is_ok() && r.take_at(busy, 0.0).is_ok());
        for n in 0..20_000_u32 {
            let _ = r.take_at(IpAddr::V4(n.into()), 0.0);
        }
        assert!(r.take_at(busy, 0.0).is_err(), "an empty bucket is the last to be forgotten");
    }
}
