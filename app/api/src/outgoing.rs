//! What every reply gets on its way out: request id, cross-origin headers, compression.

use crate::{App, Cors, Reply, limits};
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use std::io::Write;

/// What the request said that matters for its reply.
#[derive(Debug)]
pub struct Asked {
    origin: Option<HeaderValue>,
    cookie: bool,
    gzip: bool,
}

const METHODS: &str = "GET, POST, HEAD";

impl Asked {
    /// Takes what is needed from a request's headers.
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            origin: headers.get(header::ORIGIN).cloned(),
            cookie: headers.contains_key(header::COOKIE),
            gzip: headers.get_all(header::ACCEPT_ENCODING).iter().any(takes_gzip),
        }
    }

    /// Adds the cross-origin headers of a simple request.
    pub fn cross_origin(&self, cors: &Cors, headers: &mut HeaderMap) {
        let Some(origin) = &self.origin else { return };
        if cors.origins.is_empty() {
            return;
        }
        let all = cors.origins.iter().any(|o| o == "*");
        if all && !self.cookie {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            return;
        }
        // The answer depends on who asks, also where it is refused: a cache must know.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if allowed(cors, origin) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// Compresses the body when that was asked for and pays.
    pub async fn compress(&self, reply: &mut Reply) {
        let len = reply.body.len();
        let finished = reply.headers.contains_key(header::CONTENT_ENCODING)
            || reply
                .headers
                .get(header::CACHE_CONTROL)
                .is_some_and(|v| v.as_bytes().ends_with(b"no-transform"));
        if !self.gzip || len < limits::GZIP_FROM || finished {
            return;
        }
        let body = reply.body.clone();
        let packed = if len > limits::HEAVY {
            tokio::task::spawn_blocking(move || gzip(&body)).await.ok().flatten()
        } else {
            gzip(&body)
        };
        if let Some(packed) = packed {
            reply.body = packed;
            reply.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            reply.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
    }
}

fn gzip(body: &Bytes) -> Option<Bytes> {
    let mut to =
        flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 2), flate2::Compression::fast());
    to.write_all(body).ok()?;
    to.finish().ok().map(Bytes::from)
}

/// Whether one `Accept-Encoding` takes gzip: named (or `*`) with a weight above zero.
fn takes_gzip(value: &HeaderValue) -> bool {
    let Ok(value) = value.to_str() else { return false };
    let weight = |coding: &str| {
        value.split(',').find_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            if !parts.next()?.eq_ignore_ascii_case(coding) {
                return None;
            }
            let q = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
            Some(q.map_or(1.0, |q| q.trim().parse::<f32>().unwrap_or(0.0)))
        })
    };
    weight("gzip").or_else(|| weight("x-gzip")).or_else(|| weight("*")).is_some_and(|q| q > 0.0)
}

/// Whether pages of this origin may read answers.
pub(crate) fn allowed(cors: &Cors, origin: &HeaderValue) -> bool {
    cors.origins.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes())
}

/// The answer to a preflight request, if this is one.
pub fn preflight(app: &App, method: &Method, headers: &HeaderMap) -> Option<Reply> {
    let cors = &app.config.cors;
    if *method != Method::OPTIONS || cors.origins.is_empty() {
        return None;
    }
    let origin = headers.get(header::ORIGIN)?;
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let mut failures = Vec::new();
    let origin_ok = allowed(cors, origin);
    if !origin_ok {
        failures.push("origin");
    }
    if !METHODS.split(", ").any(|m| m.as_bytes() == wanted.as_bytes()) {
        failures.push("method");
    }
    let mut reply = if failures.is_empty() {
        Reply::text(StatusCode::OK, "OK")
    } else {
        let text = format!("Disallowed CORS {}", failures.join(", "));
        Reply::text(StatusCode::BAD_REQUEST, text).with_error("cors")
    };
    let mut set = |name: HeaderName, value: HeaderValue| reply.headers.insert(name, value);
    set(header::VARY, HeaderValue::from_static("Origin"));
    if origin_ok {
        set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    set(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    set(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_where_it_is_welcome() {
        let takes = |v: &str| takes_gzip(&HeaderValue::from_str(v).unwrap());
        for yes in
            ["gzip", "gzip, deflate", "deflate, GZIP;q=0.5", "*", "br;q=1.0, *;q=0.1", "x-gzip", "gzip; q=1"]
        {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "identity", "br", "gzip;q=0", "gzip;q=0, *", "*;q=0", "gzip;q=abc", "notgzip"] {
            assert!(!takes(no), "{no}");
        }
    }

    fn asked(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn simple(cors: &[&str], request: &[(HeaderName, &str)]) -> HeaderMap {
        let cors = Cors { origins: cors.iter().map(|&o| o.to_owned()).collect() };
        let mut headers = HeaderMap::new();
        Asked::of(&asked(request)).cross_origin(&cors, &mut headers);
        headers
    }

    #[test]
    fn any_origin_may_read_unless_a_list_says_who() {
        let page = (header::ORIGIN, "http://a.lan");
        assert!(simple(&["*"], &[]).is_empty(), "no origin, no headers");
        assert!(simple(&[], std::slice::from_ref(&page)).is_empty(), "switched off");
        let open = simple(&["*"], std::slice::from_ref(&page));
        assert_eq!(open[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(open[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert!(!open.contains_key(header::VARY));
        let cookie = simple(&["*"], &[page.clone(), (header::COOKIE, "a=b")]);
        assert_eq!(cookie[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.lan");
        assert_eq!(cookie[header::VARY], "Origin");
        let listed = simple(&["http://b.lan", "http://a.lan"], std::slice::from_ref(&page));
        assert_eq!(listed[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.lan");
        let foreign = simple(&["http://b.lan"], &[page]);
        assert!(!foreign.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(foreign[header::VARY], "Origin");
    }
}
