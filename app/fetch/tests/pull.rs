//! Pulling by URL: every way a server, a proxy or a line can behave.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_fetch::{About, FetchError, Limits, Wish};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn wish() -> Wish {
    Wish::default()
}

fn limits() -> Limits {
    Limits::default()
}

/// Impatient: what a test waits for in vain is short.
fn hasty() -> Limits {
    Limits { tries: 2, restarts: 1, silence: Duration::from_millis(200), ..Limits::default() }
}

async fn outcome(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Pulled, Double, Server) {
    let server = Server::new(script).await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &hasty()).await;
    (pulled, device, server)
}

async fn code(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> String {
    let (pulled, device, _server) = outcome(script).await;
    assert!(device.shelf().finished.is_empty(), "nothing may come to its end here");
    pulled.code().to_owned()
}

// === what should go well

#[tokio::test]
async fn a_bundle_is_fetched_once_and_whole() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert!(pulled.report.fetched <= made.total(), "{:?}", pulled.report);
    assert_eq!((pulled.report.reused, pulled.report.missing, pulled.report.ranges), (0, Some(0), true));
    // The beginning, the index, the payload.
    assert_eq!(pulled.report.requests, 3);
    assert!(server.asked().iter().all(|asked| asked.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn only_chunks_that_no_slot_holds_are_fetched() {
    let mut network = noise(1, 4 << 20);
    let old = made(1, network.clone());
    network[1_000_000..1_000_100].fill(0);
    network[3_000_000..3_000_100].fill(0);
    let new = made(2, network);
    let content = new.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"2\"")).await;
    let device = Double::serving(&old);
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert!(device.has(&new));
    let payload: u64 = new.chunks.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
    let needed: u64 = payload - pulled.report.reused;
    assert!(needed > 0 && needed < 1 << 20, "{needed} of {payload}");
    // The first request brings at most 64 KiB, the index is one page, and a gap is at most 64 KiB.
    assert!(pulled.report.fetched <= needed + (64 << 10) * 4, "{:?}", pulled.report);
    assert_eq!(pulled.report.requests, 4);
}

#[tokio::test]
async fn neighbours_with_a_small_gap_come_in_one_request() {
    let new = usual(2);
    let device = Double::default();
    // Every second chunk is here.
    for chunk in new.chunks.iter().step_by(2) {
        device.shelf().local.insert(chunk.digest, new.slice(chunk.range()).to_vec());
    }
    let content = new.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"2\"")).await;
    let one = Limits { gap: 256 << 10, ..limits() };
    let merged = pulled(&device, &server.url("/m.imb"), wish(), &one).await;
    assert!(device.has(&new));
    assert_eq!(merged.report.requests, 3);
    let apart = Double::default();
    apart.shelf().local.clone_from(&device.shelf().local);
    let single = pulled(&apart, &server.url("/m.imb"), wish(), &Limits { gap: 0, ..limits() }).await;
    assert!(apart.has(&new));
    assert_eq!(single.report.requests as usize, 2 + new.chunks.len() / 2);
    assert!(single.report.fetched < merged.report.fetched);
}

#[tokio::test]
async fn a_line_cut_at_every_chunk_costs_not_one_byte_twice() {
    let made = usual(1);
    let content = made.bytes.clone();
    let ends: Vec<u64> = made.chunks.iter().map(|chunk| chunk.range().end).collect();
    let server = Server::new(move |asked| {
        let (first, _) = asked.range().unwrap();
        let end = ends.iter().copied().find(|end| *end > first).unwrap_or(u64::MAX);
        file(asked, &content, "\"1\"").cut(usize::try_from(end - first).unwrap())
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert!(pulled.report.interruptions as usize >= made.chunks.len() - 1, "{:?}", pulled.report);
    assert!(pulled.report.fetched <= made.total(), "{:?}", pulled.report);
}

#[tokio::test]
async fn a_line_cut_inside_every_chunk_resumes_inside_it() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"").cut(10_007)).await;
    let device = Double::default();
    // A chunk of 256 KiB takes 27 of these.
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &Limits { tries: 40, ..limits() }).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert!(pulled.report.interruptions > 90, "{:?}", pulled.report);
    assert!(pulled.report.fetched <= made.total(), "{:?}", pulled.report);
}

#[tokio::test]
async fn connections_that_are_reset_are_made_again() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| {
        let answer = file(asked, &content, "\"1\"");
        if asked.number < 6 { Answer { reset: true, ..answer.cut(20_000) } } else { answer }
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert!(pulled.report.fetched <= made.total(), "{:?}", pulled.report);
}

#[tokio::test]
async fn a_device_that_restarts_after_every_chunk_fetches_the_index_again_and_no_chunk() {
    let made = usual(1);
    let device = Double::default();
    let mut fetched = 0;
    for round in 0..=made.chunks.len() {
        let content = made.bytes.clone();
        let payload = made.index();
        let next = made.chunks.get(round).map_or(u64::MAX, |chunk| chunk.range().end);
        let server = Server::new(move |asked| {
            let (first, _) = asked.range().unwrap();
            let answer = file(asked, &content, "\"1\"");
            match usize::try_from(next.saturating_sub(first)) {
                Ok(room) if first >= payload => answer.cut(room),
                _ => answer,
            }
        })
        .await;
        // One try: the connection that is cut ends this life.
        let pulled = pulled(&device, &server.url("/m.imb"), wish(), &Limits { tries: 1, ..limits() }).await;
        fetched += pulled.report.fetched;
        if pulled.code() == "fetched" {
            break;
        }
        assert_eq!(pulled.code(), "cut");
    }
    assert!(device.has(&made));
    let lives = made.chunks.len() as u64 + 1;
    assert!(fetched <= made.total() + lives * (made.index() + (64 << 10)), "{fetched} of {}", made.total());
    assert_eq!(device.shelf().chunks, made.chunks.len());
}

#[tokio::test]
async fn without_ranges_it_streams_and_skips_what_is_held() {
    let mut network = noise(1, 1 << 20);
    let old = made(1, network.clone());
    network[500_000] ^= 1;
    let new = made(2, network);
    let content = new.bytes.clone();
    let server = Server::new(move |_| Answer::new(200, &content[..])).await;
    let device = Double::serving(&old);
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&new));
    assert_eq!((pulled.report.requests, pulled.report.ranges), (1, false));
    assert!(pulled.report.reused > 500_000 && device.shelf().chunks <= 3);
}

#[tokio::test]
async fn without_ranges_a_cut_begins_anew_and_loses_nothing() {
    let made = usual(1);
    let content = made.bytes.clone();
    // Each time a little further.
    let server =
        Server::new(move |asked| Answer::new(200, &content[..]).cut(400_000 * (asked.number + 1))).await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert_eq!(pulled.report.interruptions, 2);
    assert_eq!(device.shelf().chunks, made.chunks.len());
    assert!(pulled.report.fetched <= 400_000 + 800_000 + made.total());
}

#[tokio::test]
async fn a_server_that_sends_the_whole_file_in_the_middle_is_read_past_what_is_held() {
    let made = usual(1);
    let content = made.bytes.clone();
    // Ranges until the payload; then somebody between takes the header away.
    let server = Server::new(move |asked| match asked.number {
        0 | 1 => file(asked, &content, "\"1\""),
        _ => Answer::new(200, &content[..]).with("etag", "\"1\""),
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert_eq!((pulled.report.restarts, pulled.report.ranges), (0, false));
    assert_eq!(device.shelf().chunks, made.chunks.len());
}

#[tokio::test]
async fn a_body_without_a_length_is_read_to_its_end() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |_| Answer { unsized_body: true, ..Answer::new(200, &content[..]) }).await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
}

#[tokio::test]
async fn shorter_ranges_than_asked_for_are_allowed() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| {
        let (first, last) = asked.range().unwrap();
        let mut short = asked.clone();
        short.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range"));
        short.headers.push(("range".into(), format!("bytes={first}-{}", last.min(first + 49_999))));
        file(&short, &content, "\"1\"")
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert_eq!(pulled.report.interruptions, 0);
}

#[tokio::test]
async fn a_bundle_that_was_held_needs_only_its_index_to_go_on_trial() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let device = Double::default();
    let hold = Wish { hold: true, ..wish() };
    assert_eq!(pulled(&device, &server.url("/m.imb"), hold, &limits()).await.code(), "fetched");
    assert!(device.shelf().finished.is_empty());
    let again = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert!(device.has(&made));
    assert!(again.report.fetched <= made.index() + (64 << 10), "{:?}", again.report);
    assert_eq!(device.shelf().chunks, made.chunks.len());
}

// === redirects

#[tokio::test]
async fn five_redirects_are_followed_and_the_last_address_is_kept() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| match asked.path.strip_prefix("/r") {
        Some("5") => Answer::new(302, "").with("location", "../m.imb"),
        Some(n) => Answer::new(307, "").with("location", format!("/r{}", n.parse::<u32>().unwrap() + 1)),
        None => file(asked, &content, "\"1\""),
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/r1"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
    assert_eq!(server.asked().iter().filter(|asked| asked.path.starts_with("/r")).count(), 5);
}

#[tokio::test]
async fn a_sixth_redirect_is_too_many() {
    let code = code(|asked| Answer::new(302, "").with("location", format!("/{}", asked.number))).await;
    assert_eq!(code, "too-many-redirects");
}

#[tokio::test]
async fn a_redirect_in_a_circle_is_seen() {
    let to = |path: &str| if path == "/a" { "/m.imb" } else { "/a" };
    let (pulled, _, server) =
        outcome(move |asked| Answer::new(301, "").with("location", to(&asked.path))).await;
    assert_eq!(pulled.code(), "redirect-loop");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn redirects_to_elsewhere_are_refused() {
    for (location, expected) in [
        (Some("https://fleet.example/m.imb"), "https-unsupported"),
        (Some("ftp://fleet.example/m.imb"), "bad-redirect"),
        (Some("file:///etc/passwd"), "bad-redirect"),
        (Some("http://user:secret@fleet.example/"), "bad-redirect"),
        (None, "bad-redirect"),
    ] {
        let code = code(move |_| {
            let answer = Answer::new(302, "");
            location.map_or(answer.clone(), |location| answer.with("location", location))
        })
        .await;
        assert_eq!(code, expected, "{location:?}");
    }
}

#[tokio::test]
async fn the_token_is_not_carried_to_another_host() {
    let made = usual(1);
    let content = made.bytes.clone();
    let store = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let there = store.url("/m.imb");
    let fleet = Server::new(move |_| Answer::new(302, "").with("location", there.clone())).await;
    let device = Double::default();
    let token = Wish { token: Some("TargetToken secret".into()), ..wish() };
    assert_eq!(pulled(&device, &fleet.url("/m.imb"), token, &limits()).await.code(), "fetched");
    assert!(fleet.asked().iter().all(|asked| asked.header("authorization") == Some("TargetToken secret")));
    assert!(store.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test]
async fn an_address_behind_a_redirect_may_expire() {
    let made = usual(1);
    let content = made.bytes.clone();
    // Each address that a redirect gave is good for one request.
    let given = Arc::new(AtomicUsize::new(0));
    let used = Mutex::new(std::collections::HashSet::new());
    let server = Server::new(move |asked| {
        if asked.path == "/m.imb" {
            let number = given.fetch_add(1, SeqCst);
            Answer::new(302, "").with("location", format!("/signed/{number}"))
        } else if used.lock().unwrap().insert(asked.path.clone()) {
            file(asked, &content, "\"1\"")
        } else {
            Answer::new(403, "")
        }
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&made));
}

#[tokio::test]
async fn https_and_other_addresses_are_refused_with_a_sentence() {
    for (url, expected) in [
        ("https://fleet.example/m.imb", "https-unsupported"),
        ("ftp://fleet.example/m.imb", "bad-url"),
        ("/m.imb", "bad-url"),
    ] {
        let device = Double::default();
        let pulled = pulled(&device, url, wish(), &hasty()).await;
        assert_eq!(pulled.code(), expected);
        assert!(pulled.result.unwrap_err().to_string().contains("http"));
        assert_eq!(device.shelf().opened, 0);
    }
}

// === content that changes

#[tokio::test]
async fn content_that_changes_between_ranges_is_fetched_anew() {
    let (old, new) = (usual(1), usual(2));
    let (a, b) = (old.bytes.clone(), new.bytes.clone());
    // The third request finds the new bundle, and If-Range tells.
    let server =
        Server::new(
            move |asked| if asked.number < 2 { file(asked, &a, "\"a\"") } else { file(asked, &b, "\"b\"") },
        )
        .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&new) && !device.has(&old));
    assert_eq!(pulled.report.restarts, 1);
    assert!(server.asked()[2].header("if-range") == Some("\"a\""));
}

#[tokio::test]
async fn a_server_that_ignores_if_range_is_caught_by_the_tag_it_sends() {
    let (old, new) = (usual(1), usual(2));
    let (a, b) = (old.bytes.clone(), new.bytes.clone());
    let server = Server::new(move |asked| {
        let mut asked = asked.clone();
        asked.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("if-range"));
        if asked.number < 2 { file(&asked, &a, "\"a\"") } else { file(&asked, &b, "\"b\"") }
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(device.has(&new) && pulled.report.restarts == 1);
}

#[tokio::test]
async fn content_that_changes_every_time_ends_with_a_reason() {
    let made = usual(1);
    let content = made.bytes.clone();
    let code = code(move |asked| file(asked, &content, &format!("\"{}\"", asked.number))).await;
    assert_eq!(code, "content-changed");
}

#[tokio::test]
async fn another_length_is_another_content_even_without_a_tag() {
    let made = usual(1);
    let content = made.bytes.clone();
    let code = code(move |asked| {
        let mut grown = content.to_vec();
        grown.resize(content.len() + asked.number % 2, 0);
        let mut answer = file(asked, &grown, "W/\"weak\"");
        answer.headers.retain(|(name, _)| name != "etag");
        answer
    })
    .await;
    assert_eq!(code, "content-changed");
}

#[tokio::test]
async fn bytes_of_two_bundles_are_never_mixed_though_the_server_hides_it() {
    // Same length, no tag, no date: only the digests can tell.
    let (old, new) = (usual(1), usual(2));
    assert_eq!(old.bytes.len(), new.bytes.len());
    let (a, b, index) = (old.bytes.clone(), new.bytes.clone(), old.index());
    let server = Server::new(move |asked| {
        let content = if asked.range().unwrap().0 < index { &a } else { &b };
        let mut answer = file(asked, content, "");
        answer.headers.retain(|(name, _)| name != "etag");
        answer
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &hasty()).await;
    assert!(matches!(&pulled.result, Err(FetchError::Refused(refused)) if refused.about == About::Bytes));
    assert_eq!(pulled.report.restarts, 1);
    assert!(device.shelf().finished.is_empty());
}

// === servers and proxies that are wrong

#[tokio::test]
async fn a_wrong_content_range_is_refused() {
    let made = usual(1);
    for wrong in [
        "bytes 1-4096/9999999",
        "bytes 0-99999999/999999999",
        "bytes 9223372036854775808-9223372036854775809/9223372036854775810",
        "bytes 0-18446744073709551615/18446744073709551616",
        "bytes */5",
        "items 0-1/2",
        "",
        "bytes 5-1/9",
    ] {
        let content = made.bytes.clone();
        let code = code(move |asked| {
            let mut answer = file(asked, &content, "\"1\"");
            answer.headers.retain(|(name, _)| name != "content-range");
            answer.with("content-range", wrong)
        })
        .await;
        assert_eq!(code, "wrong-range", "{wrong:?}");
    }
    let content = made.bytes.clone();
    let code = code(move |asked| {
        let mut answer = file(asked, &content, "\"1\"");
        answer.headers.retain(|(name, _)| name != "content-range");
        answer
    })
    .await;
    assert_eq!(code, "wrong-range");
}

#[tokio::test]
async fn a_range_with_a_wrong_length_is_refused() {
    let made = usual(1);
    let content = made.bytes.clone();
    let code = code(move |asked| {
        let mut answer = file(asked, &content, "\"1\"");
        answer.body.pop();
        answer
    })
    .await;
    assert_eq!(code, "wrong-range");
}

#[tokio::test]
async fn a_proxy_that_compresses_is_named() {
    let made = usual(1);
    for (ranges, encoding) in [(false, "gzip"), (true, "gzip"), (true, "br"), (false, "deflate, gzip")] {
        let content = made.bytes.clone();
        let (pulled, ..) = outcome(move |asked| {
            let answer = if ranges { file(asked, &content, "\"1\"") } else { Answer::new(200, &content[..]) };
            answer.with("content-encoding", encoding)
        })
        .await;
        assert_eq!(pulled.code(), "content-encoded");
        assert!(pulled.result.unwrap_err().to_string().contains(encoding));
    }
}

/// A whole answer in pieces, without a length or anything else to know a document by.
fn chunked(body: &[u8]) -> Answer {
    let mut raw = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    if !body.is_empty() {
        raw.extend(format!("{:x}\r\n", body.len()).bytes());
        raw.extend_from_slice(body);
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"0\r\n\r\n");
    Answer { raw: Some(raw), ..Answer::default() }
}

/// A server's first answer, cut in the payload: with ranges, with a length only, or with nothing.
fn cut_in_the_payload(asked: &Asked, content: &[u8], kind: usize) -> Answer {
    let half = content.len() / 2;
    match kind {
        0 => {
            let mut answer = file(asked, content, "");
            answer.headers.retain(|(name, _)| name != "etag");
            if asked.number > 0 { answer.cut(20_000) } else { answer }
        }
        1 => Answer::new(200, content).cut(half),
        _ => {
            let mut raw = chunked(content).raw.unwrap();
            raw.truncate(half);
            Answer { raw: Some(raw), ..Answer::default() }
        }
    }
}

#[tokio::test]
async fn a_login_page_in_the_middle_of_a_download_ends_it_after_a_few_requests() {
    for kind in 0..3 {
        for page in ["<html>Please log in</html>", ""] {
            let content = usual(1).bytes.clone();
            let (pulled, device, server) = outcome(move |asked| match asked.number {
                0 | 1 if kind == 0 => cut_in_the_payload(asked, &content, kind),
                0 => cut_in_the_payload(asked, &content, kind),
                _ => chunked(page.as_bytes()),
            })
            .await;
            let expected = if page.is_empty() { "not-a-bundle" } else { "captive-portal" };
            assert_eq!(pulled.code(), expected, "{kind} {page:?}");
            assert!(device.shelf().finished.is_empty());
            assert!(server.asked().len() < 12, "{kind} {page:?}: {}", server.asked().len());
            assert!(!pulled.slept.is_empty(), "it pauses before it asks again");
        }
    }
}

#[tokio::test]
async fn a_download_goes_on_when_the_login_page_is_gone() {
    for kind in 0..3 {
        let made = usual(1);
        let content = made.bytes.clone();
        let server = Server::new(move |asked| match asked.number {
            0 | 1 if kind == 0 => cut_in_the_payload(asked, &content, kind),
            0 => cut_in_the_payload(asked, &content, kind),
            number if number == 1 + usize::from(kind == 0) => chunked(b"Please log in"),
            _ => chunked(&content),
        })
        .await;
        let device = Double::default();
        let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
        assert_eq!(pulled.code(), "fetched", "{kind}: {:?}", pulled.report);
        assert!(device.has(&made));
        assert_eq!(pulled.report.restarts, 1, "{kind}");
    }
}

#[tokio::test]
async fn a_login_page_is_told_from_a_bundle() {
    let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
    let small = code(move |_| Answer::new(200, page).with("content-type", "text/html; charset=utf-8")).await;
    let large = code(move |_| Answer::new(200, page.repeat(1000))).await;
    let typed = code(|_| Answer::new(200, "Please log in").with("content-type", "Text/HTML")).await;
    let redirected = code(move |asked| {
        if asked.path == "/login" {
            Answer::new(200, page)
        } else {
            Answer::new(302, "").with("location", "/login")
        }
    })
    .await;
    assert_eq!([small, large, typed, redirected], ["captive-portal"; 4]);
}

#[tokio::test]
async fn what_is_no_bundle_is_named_so() {
    assert_eq!(code(|_| Answer::new(200, noise(1, 100_000))).await, "not-a-bundle");
    assert_eq!(code(|_| Answer::new(200, "")).await, "not-a-bundle");
    assert_eq!(code(|_| Answer::new(200, "INFERD")).await, "truncated");
}

#[tokio::test]
async fn a_file_that_was_cut_off_or_lengthened_is_refused_before_its_payload() {
    let made = usual(1);
    for ranges in [true, false] {
        for (change, expected) in [(-1i64, "truncated"), (-500_000, "truncated"), (1, "too-long")] {
            let mut content = made.bytes.to_vec();
            let len = usize::try_from(i64::try_from(content.len()).unwrap() + change).unwrap();
            content.resize(len, 0);
            let (pulled, device, _server) =
                outcome(
                    move |asked| {
                        if ranges { file(asked, &content, "\"1\"") } else { Answer::new(200, &content[..]) }
                    },
                )
                .await;
            assert_eq!(pulled.code(), expected);
            assert_eq!(device.shelf().chunks, 0);
        }
    }
}

#[tokio::test]
async fn a_file_of_unknown_length_that_ends_early_is_not_taken() {
    let made = usual(1);
    let content = made.bytes[..made.bytes.len() - 100_000].to_vec();
    let code = code(move |_| Answer { unsized_body: true, ..Answer::new(200, content.clone()) }).await;
    // It cannot be told from a connection that broke.
    assert_eq!(code, "cut");
}

#[tokio::test]
async fn an_answer_that_is_no_http_ends_with_a_reason() {
    for raw in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
        let raw = raw.to_vec();
        assert_eq!(code(move |_| Answer { raw: Some(raw.clone()), ..Answer::default() }).await, "cut");
    }
    // Headers without an end.
    let endless =
        [b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100_000)].concat();
    assert_eq!(code(move |_| Answer { raw: Some(endless.clone()), ..Answer::default() }).await, "cut");
}

#[tokio::test]
async fn statuses_have_their_own_reasons() {
    for (status, expected) in [
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "not-found"),
        (410, "not-found"),
        (204, "server-refused"),
        (400, "server-refused"),
        (429, "server-busy"),
        (500, "server-busy"),
        (503, "server-busy"),
    ] {
        assert_eq!(code(move |_| Answer::new(status, "")).await, expected, "{status}");
    }
}

#[tokio::test]
async fn a_busy_server_is_given_the_time_it_asks_for() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| match asked.number {
        0 => Answer::new(503, "").with("retry-after", "77"),
        1 => Answer::new(429, ""),
        _ => file(asked, &content, "\"1\""),
    })
    .await;
    let device = Double::default();
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "fetched");
    // 77 s as asked; then 4 s with the chance in the middle of its range.
    assert_eq!(pulled.slept, [Duration::from_secs(77), Duration::from_secs(3)]);
}

// === lines that are bad

#[tokio::test]
async fn a_trickle_is_too_slow() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| Answer {
        trickle: Some((1, Duration::from_millis(10))),
        ..file(asked, &content, "\"1\"")
    })
    .await;
    let limits =
        Limits { least_rate: 1 << 20, rate_window: Duration::from_millis(100), tries: 3, ..limits() };
    let pulled = pulled(&Double::default(), &server.url("/m.imb"), wish(), &limits).await;
    assert_eq!(pulled.code(), "too-slow");
    assert!(matches!(pulled.result, Err(FetchError::GaveUp { tries: 3, .. })));
    assert!(pulled.report.fetched < 4096);
}

#[tokio::test]
async fn silence_ends_with_a_reason() {
    assert_eq!(code(|_| Answer { silent: true, ..Answer::default() }).await, "timeout");
    // A head, and then nothing.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nINFERDMB".to_vec();
    let server = Server::new(move |_| Answer {
        trickle: Some((1, Duration::from_secs(3600))),
        ..Answer::new(200, head.clone())
    })
    .await;
    let pulled = pulled(&Double::default(), &server.url("/m.imb"), wish(), &hasty()).await;
    assert_eq!(pulled.code(), "timeout");
}

#[tokio::test]
async fn no_server_and_no_name_have_their_reasons() {
    let port = {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        closed.local_addr().unwrap().port()
    };
    let url = format!("http://127.0.0.1:{port}/m.imb");
    assert_eq!(pulled(&Double::default(), &url, wish(), &hasty()).await.code(), "no-connection");
    let unknown = pulled(&Double::default(), "http://no-such-host.invalid/m.imb", wish(), &hasty()).await;
    assert_eq!(unknown.code(), "name-unknown");
}

#[tokio::test]
async fn the_whole_has_a_limit_of_time() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"").cut(1000)).await;
    // A pause is at least a second by a clock that runs a thousand times too fast.
    let limits = Limits { total_time: Duration::from_millis(500), ..limits() };
    let pulled = pulled(&Double::default(), &server.url("/m.imb"), wish(), &limits).await;
    assert_eq!(pulled.code(), "took-too-long");
}

#[tokio::test]
async fn the_whole_has_a_limit_of_bytes() {
    let made = usual(1);
    let content = made.bytes.clone();
    // Without ranges, cut shortly before the end of the first chunk that is missing, for ever.
    let end = usize::try_from(made.chunks.last().unwrap().offset + 1).unwrap();
    let server = Server::new(move |_| Answer::new(200, &content[..]).cut(end)).await;
    let limits = Limits { tries: 1000, ..limits() };
    let pulled = pulled(&Double::default(), &server.url("/m.imb"), wish(), &limits).await;
    assert_eq!(pulled.code(), "too-many-bytes");
    assert!(pulled.report.fetched <= 4 * made.total() + (2 << 20));
}

#[tokio::test]
async fn tries_are_counted_anew_after_each_piece() {
    let made = usual(1);
    let content = made.bytes.clone();
    // Every second request fails: never twice in a row.
    let server = Server::new(move |asked| {
        if asked.number % 2 == 0 { Answer::new(503, "") } else { file(asked, &content, "\"1\"").cut(300_000) }
    })
    .await;
    let device = Double::default();
    let limits = Limits { tries: 4, ..limits() };
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits).await;
    assert_eq!(pulled.code(), "fetched");
    assert!(pulled.report.interruptions > 4);
}

// === what the device says

#[tokio::test]
async fn a_refusal_by_the_prefix_costs_no_payload() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let device = Double::default();
    device.shelf().refuse_begin = Some(refused("below-floor", About::Bundle));
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "below-floor");
    assert!(!pulled.result.unwrap_err().is_passing());
    assert!(pulled.report.fetched <= 64 << 10);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_busy_device_asks_no_server() {
    let server = Server::new(|_| Answer::new(500, "")).await;
    let device = Double::default();
    device.shelf().refuse_open = Some(refused("busy-trial", About::Device));
    let pulled = pulled(&device, &server.url("/m.imb"), wish(), &limits()).await;
    assert_eq!(pulled.code(), "busy-trial");
    assert!(pulled.result.unwrap_err().is_passing());
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn an_announced_digest_is_checked_when_everything_came() {
    let made = usual(1);
    let content = made.bytes.clone();
    let server = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let wrong = Wish { sha256: Some("0".repeat(64)), ..wish() };
    let device = Double::default();
    assert_eq!(pulled(&device, &server.url("/m.imb"), wrong, &limits()).await.code(), "wrong-digest");
    assert!(device.shelf().finished.is_empty());
    let right = Wish { sha256: Some(made.sha256().to_uppercase()), ..wish() };
    let device = Double::default();
    assert_eq!(pulled(&device, &server.url("/m.imb"), right, &limits()).await.code(), "fetched");
}

#[tokio::test]
async fn every_reason_has_a_sentence() {
    let (pulled, ..) = outcome(|_| Answer::new(503, "")).await;
    let said = pulled.result.unwrap_err().to_string();
    assert!(said.starts_with("given up after 2 tries without progress") && said.contains("503"), "{said}");
}
