//! The page for people: `/dashboard`, and `/` for whoever asks for a page.
//!
//! It is one file of the binary that shows what the other routes tell, so it says nothing that they do not, and needs no key
//! itself: the page asks for the key where the device wants one.

use crate::Reply;
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};

pub(crate) const PAGE: &[u8] = include_bytes!("../assets/dashboard.html");

/// As that of the documentation; its icon is an empty one, so that no browser asks for `/favicon.ico`.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn page() -> Reply {
    Reply::new(StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(PAGE))
        .with(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))
        .with(header::VARY, HeaderValue::from_static("Accept"))
}

/// Whether whoever asks for `/` is a browser: it names `text/html`, which programs that want the JSON of `/` do not.
pub(crate) fn is_asked(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let looks = *method == Method::GET || *method == Method::HEAD;
    looks && path == "/" && headers.get_all(header::ACCEPT).iter().any(names_html)
}

fn names_html(accept: &HeaderValue) -> bool {
    accept.to_str().is_ok_and(|accept| {
        accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
            html && !parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_names_a_page_gets_one() {
        for (accept, page) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("TEXT/HTML", true),
            ("application/json, text/html;q=0.2", true),
            ("*/*", false),
            ("application/json", false),
            ("text/html;q=0, */*", false),
            ("text/html5", false),
        ] {
            assert_eq!(names_html(&HeaderValue::from_static(accept)), page, "{accept}");
        }
        let mut headers = HeaderMap::new();
        assert!(!is_asked(&Method::GET, "/", &headers));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/html"));
        assert!(is_asked(&Method::GET, "/", &headers) && is_asked(&Method::HEAD, "/", &headers));
        assert!(!is_asked(&Method::POST, "/", &headers) && !is_asked(&Method::GET, "/status", &headers));
    }

    #[test]
    fn the_page_is_small_and_asks_nobody_else() {
        let page = std::str::from_utf8(PAGE).unwrap_or_default();
        assert!((1..=100 * 1024).contains(&page.len()), "{} bytes", page.len());
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http:") && !outside.contains("https:") && !outside.contains("//cdn"));
        assert!(!page.contains("innerHTML") && !page.contains("eval("));
    }
}
