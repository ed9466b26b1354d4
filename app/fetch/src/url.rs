//! Addresses: `http://HOST[:PORT]/PATH[?QUERY]` and what a `Location` or `href` makes of one.

use crate::error::FetchError;
use hyper::Uri;
use std::fmt;
use std::net::Ipv6Addr;

/// Longest address that is followed, in bytes.
const LONGEST: usize = 4096;

/// A plain HTTP address, known to have a host, without user, password or fragment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// `host`, or `[v6]`.
    host: String,
    port: u16,
    /// Path and query, beginning with `/`.
    path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What somebody wrote as an address, for a sentence: without what may be secret (user, password, query), at most 200 characters.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = text.split_once("//").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let end = rest.find('/').unwrap_or(rest.len());
    let from = rest[..end].rfind('@').map_or(0, |at| at + 1);
    let slashes = if scheme.is_empty() { "" } else { "//" };
    format!("{scheme}{slashes}{}", &rest[from..]).chars().take(200).collect()
}

impl Url {
    /// Reads an absolute address.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let bad = || FetchError::BadUrl(shown(text));
        let text_only = text.split('#').next().unwrap_or_default();
        if text_only.len() > LONGEST || !text_only.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            return Err(bad());
        }
        let uri: Uri = text_only.parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(FetchError::HttpsUnsupported(shown(text_only))),
            _ => return Err(bad()),
        }
        let authority = uri.authority().ok_or_else(bad)?;
        let host = authority.host();
        // Hyper takes brackets anywhere: `http://a[::1]b:80` has the host `a[` for it.
        let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains(['[', ']']),
        };
        if authority.as_str().contains('@') || !is_host {
            return Err(bad());
        }
        let port = match authority.as_str().strip_prefix(host).ok_or_else(bad)? {
            "" | ":" => 80,
            rest => {
                let port = rest.strip_prefix(':').and_then(|port| port.parse().ok());
                port.filter(|&port| port != 0).ok_or_else(bad)?
            }
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { host: host.to_ascii_lowercase(), port, path })
    }

    /// What a reference in an answer from this address means (RFC 3986, 5.2).
    pub fn join(&self, reference: &str) -> Result<Self, FetchError> {
        let reference = reference.trim();
        let scheme = reference.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        });
        if scheme.is_some() {
            return Self::parse(reference);
        }
        if reference.starts_with("//") {
            return Self::parse(&format!("http:{reference}"));
        }
        let reference = reference.split('#').next().unwrap_or_default();
        let base = self.path.split('?').next().unwrap_or("/");
        let (path, query) = match reference.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (reference, None),
        };
        let mut joined = match path {
            "" => base.to_owned(),
            absolute if absolute.starts_with('/') => dots_removed(absolute),
            relative => dots_removed(&format!(
                "{}/{relative}",
                base.rsplit_once('/').map_or("", |(folder, _)| folder)
            )),
        };
        match query {
            Some(query) => {
                joined.push('?');
                joined.push_str(query);
            }
            None if path.is_empty() => joined.clone_from(&self.path),
            None => {}
        }
        Self::parse(&format!("http://{}{joined}", self.authority()))
    }

    /// The same with `more` as further segments of the path, and without a query.
    pub fn below(&self, more: &str) -> Result<Self, FetchError> {
        let path = self.path.split('?').next().unwrap_or("/").trim_end_matches('/');
        Self::parse(&format!("http://{}{path}/{more}", self.authority()))
    }

    /// For a sentence or a log: without the query, which may be secret.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.to_string())
    }

    /// `host:port`, the port left out when it is 80: what a `Host` header says.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The host as a resolver takes it.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// `.` and `..` segments worked out (RFC 3986, 5.2.4).
fn dots_removed(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (i, segment) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        match *segment {
            "." if last => out.push(""),
            "." => {}
            ".." => {
                out.pop();
                if last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    format!("/{}", out.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Url::parse(text).map_or_else(|e| e.code().to_owned(), |url| url.to_string())
    }

    #[test]
    fn an_address_is_http_with_a_host() {
        assert_eq!(said("http://Fleet:80/a?b#c"), "http://fleet/a?b");
        assert_eq!(said("http://10.0.0.1:8080"), "http://10.0.0.1:8080/");
        assert_eq!(said("http://[fe80::1]:81/x"), "http://[fe80::1]:81/x");
        assert_eq!(Url::parse("http://[fe80::1]:81/x").unwrap().host(), "fe80::1");
        assert_eq!(said("https://fleet/a"), "https-unsupported");
        for bad in [
            "",
            "/a",
            "fleet/a",
            "ftp://a/b",
            "http://",
            "http:///a",
            "http://u:p@h/",
            "http://h:80@h:81/",
            "http://h:0/",
            "http://h:99999/",
            "http://a[::1]b:80/",
            "http://[::1]a:80/",
            "http://[a]/",
            "http://h/a b",
            "http://h/\u{e4}",
            "file:///etc/passwd",
        ] {
            assert_eq!(said(bad), "bad-url", "{bad:?}");
        }
        assert_eq!(said(&format!("http://h/{}", "a".repeat(5000))), "bad-url");
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (text, expected) in [
            ("http://user:secret@host/a?token=secret", "http://host/a"),
            ("https://secret@host", "https://host"),
            ("http://host/a@b?x", "http://host/a@b"),
            ("secret@host", "host"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected);
            let said = Url::parse(text).map_or_else(|e| e.to_string(), |url| url.shown());
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn references_are_resolved_as_the_standard_says() {
        let base = Url::parse("http://a:81/b/c/d?q").unwrap();
        let joined = |reference: &str| {
            base.join(reference).map_or_else(|e| e.code().to_owned(), |url| url.to_string())
        };
        // The cases of RFC 3986, 5.4 that keep to HTTP.
        for (reference, expected) in [
            ("g", "http://a:81/b/c/g"),
            ("./g", "http://a:81/b/c/g"),
            ("g/", "http://a:81/b/c/g/"),
            ("/g", "http://a:81/g"),
            ("//g", "http://g/"),
            ("?y", "http://a:81/b/c/d?y"),
            ("g?y", "http://a:81/b/c/g?y"),
            ("#s", "http://a:81/b/c/d?q"),
            ("g#s", "http://a:81/b/c/g"),
            ("", "http://a:81/b/c/d?q"),
            (".", "http://a:81/b/c/"),
            ("..", "http://a:81/b/"),
            ("../g", "http://a:81/b/g"),
            ("../../../g", "http://a:81/g"),
            ("/./g/../h", "http://a:81/h"),
            ("http://other/x", "http://other/x"),
            ("https://other/x", "https-unsupported"),
            ("javascript:alert(1)", "bad-url"),
        ] {
            assert_eq!(joined(reference), expected, "{reference:?}");
        }
        assert_eq!(base.below("feedback").unwrap().to_string(), "http://a:81/b/c/d/feedback");
    }
}
