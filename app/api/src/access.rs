//! Who may do what: roles, the keys that stand for them, and what a route needs.
//!
//! A key is only kept and compared as its SHA-256: the digests of a guess say nothing about the key, so the time of a
//! comparison tells a guesser nothing, and a configuration file need not hold the key itself.

use crate::{Reply, Req};
use hyper::{StatusCode, header};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::IpAddr;

/// What somebody may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May read.
    Viewer,
    /// May infer, load and unload models, run tests.
    Operator,
    /// May replace what the device runs, and end it.
    Admin,
}

impl Role {
    /// As the configuration and messages name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// What a route needs of who asks. Every route has one: a column of `router::ROUTES`, and `oip::needs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing, ever: a fleet that cannot see a device restarts it.
    Nothing,
    /// To read: a viewer, unless reads are open.
    Read,
    /// To have something computed: an operator, unless inference is open.
    Infer,
    /// To change what runs, for now: an operator.
    Operate,
    /// To change the device: an admin.
    Administer,
}

impl Need {
    /// Whether it changes the device, unless it is asked for with a method that only reads: it is never open, is limited by
    /// itself, and leaves a line in the log.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Operate | Self::Administer)
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Nothing | Self::Read => "reads",
            Self::Infer => "runs a model",
            Self::Operate | Self::Administer => "changes the device",
        }
    }
}

/// A key, as its digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    sha256: [u8; 32],
    role: Role,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {})", self.role.word(), self.name())
    }
}

impl Key {
    /// The key that this text of a configuration stands for: `sha256:` and 64 hex digits, or the key itself.
    #[must_use]
    pub fn new(role: Role, text: &str) -> Self {
        let sha256 = text.strip_prefix("sha256:").and_then(digest_from_hex);
        Self { role, sha256: sha256.unwrap_or_else(|| Sha256::digest(text).into()) }
    }

    /// How the log names it: the first 8 hex digits of its SHA-256.
    fn name(&self) -> String {
        self.sha256[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// 32 bytes from 64 hex digits.
#[must_use]
pub fn digest_from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len().is_multiple_of(2) { bytes.try_into().ok() } else { None }
}

/// Who may do what.
#[derive(Clone, Debug)]
pub struct Access {
    /// The keys there are. For a role that no key has, only this machine counts (loopback).
    pub keys: Vec<Key>,
    /// Reading needs no key.
    pub open_reads: bool,
    /// Inference needs no key.
    pub open_inference: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { keys: Vec::new(), open_reads: true, open_inference: true }
    }
}

/// Who asks, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Nobody asked.
    Anybody,
    /// This machine, where no key is configured.
    Local,
    /// Whoever has this key.
    Key(Role, String),
}

impl Who {
    /// The role as the log names it.
    pub(crate) fn role(&self) -> &'static str {
        match self {
            Self::Anybody => "none",
            Self::Local => "local",
            Self::Key(role, _) => role.word(),
        }
    }

    /// The key as the log names it.
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Anybody | Self::Local => "",
            Self::Key(_, name) => name,
        }
    }
}

/// Why somebody may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// A key is needed, and none came.
    NoKey(Role),
    /// What came is no key of this device.
    WrongKey,
    /// The key is of a lower role.
    LowRole {
        /// What it must be.
        needs: Role,
        /// What it is.
        has: Role,
        /// The key as the log names it.
        key: String,
    },
    /// No key of the role is configured, and this is another machine.
    Remote,
    /// No key of the role is configured, and this is a web page of another host.
    Page,
}

impl Denied {
    /// Who was refused, for the log: a key that is of this device has a name, whatever it may.
    pub(crate) fn who(&self) -> Who {
        match self {
            Self::LowRole { has, key, .. } => Who::Key(*has, key.clone()),
            Self::NoKey(_) | Self::WrongKey | Self::Remote | Self::Page => Who::Anybody,
        }
    }

    /// The refusal of something with this need, which may be only to read what is not for everybody.
    pub(crate) fn reply(&self, need: Need, reads: bool) -> Reply {
        let verb = if reads { Need::Read.verb() } else { need.verb() };
        let (status, detail) = match self {
            Self::NoKey(role) => (
                StatusCode::UNAUTHORIZED,
                format!(
                    "this {verb} and needs an API key of the role {}, as X-API-Key or Authorization: Bearer",
                    role.word()
                ),
            ),
            Self::WrongKey => (StatusCode::FORBIDDEN, "the API key is not the right one".to_owned()),
            Self::LowRole { needs, has, .. } => (
                StatusCode::FORBIDDEN,
                format!(
                    "this {verb} and needs the role {}; the API key is of the role {}",
                    needs.word(),
                    has.word()
                ),
            ),
            Self::Remote => (
                StatusCode::FORBIDDEN,
                format!(
                    "this {verb}; no API key is configured for it, so it is allowed from the device itself only"
                ),
            ),
            Self::Page => (
                StatusCode::FORBIDDEN,
                format!(
                    "this {verb} and no API key is configured for it, so web pages of other hosts may not ask for it"
                ),
            ),
        };
        let reply = Reply::refusal(status, "forbidden", &detail, true);
        if status == StatusCode::UNAUTHORIZED {
            return reply.with(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        reply
    }
}

impl Access {
    /// The least role that `need` takes; `None` when anybody may.
    pub(crate) fn role(&self, need: Need) -> Option<Role> {
        match need {
            Need::Nothing => None,
            Need::Read => (!self.open_reads).then_some(Role::Viewer),
            Need::Infer => (!self.open_inference).then_some(Role::Operator),
            Need::Operate => Some(Role::Operator),
            Need::Administer => Some(Role::Admin),
        }
    }

    /// Whether this request may. With a key configured whose role is enough, it must carry such a key, as `X-API-Key` or
    /// `Authorization: Bearer`. Without one it must come from this machine, and not from a web page of another origin that a
    /// browser on this machine happens to show.
    ///
    /// # Errors
    /// [`Denied`], with the reason.
    pub(crate) fn check(&self, need: Need, req: &Req) -> Result<Who, Denied> {
        let Some(needs) = self.role(need) else { return Ok(Who::Anybody) };
        if self.keys.iter().any(|k| k.role >= needs) {
            let given: [u8; 32] = Sha256::digest(given(req).ok_or(Denied::NoKey(needs))?).into();
            let found = self.keys.iter().filter(|k| k.sha256 == given).max_by_key(|k| k.role);
            return match found {
                Some(key) if key.role >= needs => Ok(Who::Key(key.role, key.name())),
                Some(key) => Err(Denied::LowRole { needs, has: key.role, key: key.name() }),
                None => Err(Denied::WrongKey),
            };
        }
        if !req.peer.ip().to_canonical().is_loopback() {
            return Err(Denied::Remote);
        }
        if from_no_page(req) { Ok(Who::Local) } else { Err(Denied::Page) }
    }
}

/// The key a request carries.
fn given(req: &Req) -> Option<&str> {
    let bearer = || {
        let (scheme, token) = req.header(&header::AUTHORIZATION)?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    };
    let socket = || crate::socket::key(&req.headers);
    req.headers.get("x-api-key").and_then(|v| v.to_str().ok()).or_else(bearer).or_else(socket)
}

/// Whether the request comes from a program, or from a page this endpoint served under a local name (an attacker's name may
/// point to this machine too, so a page's host must be an address or `localhost`).
fn from_no_page(req: &Req) -> bool {
    let Some(origin) = req.headers.get(header::ORIGIN) else { return true };
    let Some(host) = req.header(&header::HOST) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let same_origin = origin.to_str().ok().and_then(|o| o.split_once("://")).is_some_and(|(_, o)| o == host);
    same_origin && (address || name == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;
    use hyper::header::{HeaderMap, HeaderName, HeaderValue};
    use std::time::Instant;

    const KEYS: [(Role, &str); 3] = [
        (Role::Viewer, "viewer-battery-staple"),
        (Role::Operator, "operator-battery-staple"),
        (Role::Admin, "correct-horse-battery"),
    ];

    fn access(keys: &[(Role, &str)]) -> Access {
        Access { keys: keys.iter().map(|(r, k)| Key::new(*r, k)).collect(), ..Access::default() }
    }

    fn from(peer: &str, headers: &[(&str, &str)]) -> Req {
        let header = |(n, v): &(&str, &str)| {
            (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap())
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        Req {
            method: hyper::Method::POST,
            path: "/v2/repository/models/m/load".to_owned(),
            query: None,
            id: RequestId::from_headers(&headers),
            headers,
            body: bytes::Bytes::new(),
            peer: std::net::SocketAddr::new(peer.parse().unwrap(), 4000),
            received: Instant::now(),
        }
    }

    fn status(access: &Access, need: Need, req: &Req) -> u16 {
        access.check(need, req).map_or_else(|d| d.reply(need, false).status.as_u16(), |_| 200)
    }

    #[test]
    fn without_a_key_only_this_machine_may_change_it() {
        let open = access(&[]);
        for need in [Need::Operate, Need::Administer] {
            for local in ["127.0.0.1", "::1", "127.8.8.8", "::ffff:127.0.0.1"] {
                assert_eq!(status(&open, need, &from(local, &[])), 200, "{local}");
            }
            for other in ["192.168.1.7", "::ffff:192.168.1.7", "fe80::1", "0.0.0.0"] {
                assert_eq!(status(&open, need, &from(other, &[])), 403, "{other}");
            }
        }
        for need in [Need::Nothing, Need::Read, Need::Infer] {
            assert_eq!(status(&open, need, &from("192.168.1.7", &[])), 200, "{need:?} is open on the LAN");
        }
        let closed = Access { open_reads: false, open_inference: false, ..access(&[]) };
        for need in [Need::Read, Need::Infer] {
            assert_eq!(status(&closed, need, &from("192.168.1.7", &[])), 403, "{need:?}");
            assert_eq!(status(&closed, need, &from("127.0.0.1", &[])), 200, "{need:?}");
        }
        assert_eq!(status(&closed, Need::Nothing, &from("192.168.1.7", &[])), 200);
    }

    #[test]
    fn a_foreign_page_in_a_local_browser_may_not() {
        let open = access(&[]);
        let page = |origin, host| {
            status(&open, Need::Operate, &from("127.0.0.1", &[("origin", origin), ("host", host)]))
        };
        assert_eq!(page("http://localhost:9000", "localhost:9000"), 200);
        assert_eq!(page("http://127.0.0.1:9000", "127.0.0.1:9000"), 200);
        assert_eq!(page("http://[::1]:9000", "[::1]:9000"), 200);
        assert_eq!(page("http://evil.example", "127.0.0.1:9000"), 403);
        assert_eq!(page("http://evil.example:9000", "evil.example:9000"), 403, "a name that was rebound");
        assert_eq!(page("null", "localhost:9000"), 403);
    }

    #[test]
    fn with_a_key_everyone_needs_it() {
        let one = access(&KEYS[2..]);
        let given = |headers: &[(&str, &str)]| status(&one, Need::Administer, &from("127.0.0.1", headers));
        assert_eq!(given(&[]), 401);
        assert_eq!(given(&[("x-api-key", "wrong")]), 403);
        assert_eq!(given(&[("authorization", "Basic correct-horse-battery")]), 401);
        assert_eq!(given(&[("authorization", "Bearer correct-horse-batter")]), 403);
        assert_eq!(given(&[("authorization", "bearer correct-horse-battery")]), 200);
        assert_eq!(given(&[("x-api-key", "correct-horse-battery")]), 200);
        let far = from("192.168.1.7", &[("x-api-key", "correct-horse-battery")]);
        assert_eq!(status(&one, Need::Administer, &far), 200);
    }

    #[test]
    fn each_role_may_do_what_those_below_it_may_and_no_more() {
        let all = Access { open_reads: false, open_inference: false, ..access(&KEYS) };
        let needs = [Need::Read, Need::Infer, Need::Operate, Need::Administer];
        for ((role, key), may) in KEYS.iter().zip([[200, 403, 403, 403], [200, 200, 200, 403], [200; 4]]) {
            let got = needs.map(|need| status(&all, need, &from("10.0.0.9", &[("x-api-key", key)])));
            assert_eq!(got, may, "{}", role.word());
        }
        let low = all.check(Need::Administer, &from("10.0.0.9", &[("x-api-key", KEYS[1].1)])).unwrap_err();
        assert_eq!(low.who(), Who::Key(Role::Operator, Key::new(Role::Operator, KEYS[1].1).name()));
        assert_eq!(Denied::WrongKey.who().role(), "none");
        let text = String::from_utf8(low.reply(Need::Administer, false).body.to_vec()).unwrap();
        assert!(
            text.contains(
                "this changes the device and needs the role admin; the API key is of the role operator"
            ),
            "{text}"
        );
        for need in needs {
            assert_eq!(status(&all, need, &from("127.0.0.1", &[])), 401, "{need:?}");
        }
    }

    #[test]
    fn a_role_that_no_key_has_is_for_this_machine_only() {
        let viewers = Access { open_reads: false, ..access(&KEYS[..1]) };
        assert_eq!(status(&viewers, Need::Read, &from("127.0.0.1", &[])), 401);
        assert_eq!(status(&viewers, Need::Administer, &from("127.0.0.1", &[])), 200);
        let far = from("10.0.0.9", &[("x-api-key", KEYS[0].1)]);
        assert_eq!(status(&viewers, Need::Administer, &far), 403);
    }

    #[test]
    fn a_configuration_may_hold_a_digest_instead_of_the_key() {
        let digest = "sha256:C4BBCB1FBEC99D65BF59D85C8CB62EE2DB963F0FE106F483D9AFA73BD4E39A8A";
        // printf 'correct horse battery staple' | sha256sum
        let hashed = access(&[(Role::Admin, digest)]);
        let with = |key| status(&hashed, Need::Administer, &from("10.0.0.9", &[("x-api-key", key)]));
        assert_eq!(with("correct horse battery staple"), 200);
        assert_eq!(with(digest), 403, "the digest is not the key");
        assert_eq!(digest_from_hex(""), None);
        assert_eq!(digest_from_hex(&"0".repeat(63)), None);
        assert_eq!(digest_from_hex(&"g".repeat(64)), None);
        assert_eq!(digest_from_hex(&"ff".repeat(32)), Some([255; 32]));
    }
}
