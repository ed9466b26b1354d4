//! The endpoint over real sockets, with no model behind it: limits, times, connections, and what stands on every reply.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers of an integration test are not seen as such

use inferd_api::{ApiConfig, App, Cors, RateLimit, limits, serve};
use inferd_hosts::{Hosts, HostsConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Far beyond anything these tests wait for.
const LONG: Duration = Duration::from_secs(30);

struct Endpoint {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Endpoint {
    async fn start(config: ApiConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Arc::new(App::new(Hosts::new(HostsConfig::default()), config));
        let (end, told) = oneshot::channel();
        let served = tokio::spawn(serve(app, vec![listener], Vec::new(), mpsc::channel(1).1, async move {
            let _ = told.await;
        }));
        Self { address, end: Some(end), served }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    fn leave(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
    }
}

struct Client(TcpStream);

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|l| l.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name)))?;
        Some(line.split_once(':')?.1.trim())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads one answer to its last byte, and no further.
    async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    async fn answer_to(&mut self, method: &str) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(LONG, self.0.read_u8()).await.expect("an answer comes");
            head.push(byte.expect("the answer is complete"));
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if method != "HEAD" && status != 100 {
            let length = answer.header("content-length").unwrap_or("0").parse().unwrap();
            answer.body.resize(length, 0);
            self.0.read_exact(&mut answer.body).await.unwrap();
        }
        answer
    }

    /// Waits until the server has closed its side; anything it still says fails the test.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(LONG, self.0.read_to_end(&mut rest)).await.expect("it is closed");
        assert!(end.is_ok(), "closed by an end of stream, not by a reset: {end:?}");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let e = Endpoint::start(ApiConfig { body_limit: 1000, ..ApiConfig::default() }).await;
    let mut client = e.connect().await;
    client
        .send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 413, "and no 100 before it");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.text().contains("payload_too_large"), "{}", answer.text());
    client.closed().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_goes_on_sending() {
    let e = Endpoint::start(ApiConfig { body_limit: 1000, ..ApiConfig::default() }).await;
    let mut client = e.connect().await;
    client.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n").await;
    // More than the server's read buffer: closing at once would reset the connection under the answer.
    client.0.write_all(&vec![b' '; 300_000]).await.unwrap();
    assert_eq!(client.answer().await.status, 413);
    client.0.shutdown().await.unwrap();
    client.closed().await;
}

#[tokio::test]
async fn a_chunked_body_is_cut_at_the_limit() {
    let e = Endpoint::start(ApiConfig { body_limit: 1000, ..ApiConfig::default() }).await;
    let mut client = e.connect().await;
    client.send("POST /infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..3 {
        client.send(&format!("190\r\n{}\r\n", "x".repeat(400))).await;
    }
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn a_chunked_body_within_the_limit_is_one_body() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let mut client = e.connect().await;
    client.send("POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.send("1\r\n{\r\n").await;
    client.send("1\r\n}\r\n0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "[]"));
}

#[tokio::test]
async fn a_client_that_asks_to_go_on_is_told_to() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let mut client = e.connect().await;
    client.send("POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 100);
    client.send("{}").await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let e = Endpoint::start(ApiConfig { body_time: Duration::from_millis(50), ..ApiConfig::default() }).await;
    let mut client = e.connect().await;
    client.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 408);
    assert!(answer.text().contains("slow_body"));
    client.0.shutdown().await.unwrap();
    client.closed().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_given_up() {
    let config = ApiConfig { head_time: Duration::from_millis(50), ..ApiConfig::default() };
    let e = Endpoint::start(config).await;
    let mut client = e.connect().await;
    client.send("GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 408);
    assert!(answer.text().contains("slow_head"));
    client.0.shutdown().await.unwrap();
    client.closed().await;
}

#[tokio::test]
async fn a_slow_head_on_a_kept_connection_is_given_up_too() {
    let config = ApiConfig { head_time: Duration::from_millis(50), ..ApiConfig::default() };
    let e = Endpoint::start(config).await;
    let mut client = e.connect().await;
    client.send(&get("/livez", "")).await;
    assert_eq!(client.answer().await.status, 200);
    client.send("GET /li").await;
    assert_eq!(client.answer().await.status, 408);
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let config = ApiConfig { idle_time: Duration::from_millis(50), ..ApiConfig::default() };
    let e = Endpoint::start(config).await;
    let mut fresh = e.connect().await;
    fresh.closed().await;
    let mut used = e.connect().await;
    used.send(&get("/livez", "")).await;
    assert_eq!(used.answer().await.status, 200);
    used.closed().await;
}

#[tokio::test]
async fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let mut client = e.connect().await;
    let two = get("/livez", "X-Request-ID: one\r\n") + &get("/nope", "X-Request-ID: two\r\n");
    client.send(&two).await;
    let (first, second) = (client.answer().await, client.answer().await);
    assert_eq!((first.status, first.header("x-request-id")), (200, Some("one")));
    assert_eq!((second.status, second.header("x-request-id")), (404, Some("two")));
    client.send(&get("/livez", "Connection: close\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    client.closed().await;
}

#[tokio::test]
async fn when_all_places_are_taken_by_working_connections_a_new_one_is_told_so() {
    let e = Endpoint::start(ApiConfig { max_connections: 2, ..ApiConfig::default() }).await;
    let (mut a, mut b) = (e.connect().await, e.connect().await);
    for c in [&mut a, &mut b] {
        c.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n").await;
        assert_eq!(c.answer().await.status, 100, "it is at work");
    }
    let mut third = e.connect().await;
    let answer = third.answer().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    a.send("0123456789").await;
    assert_eq!(a.answer().await.status, 503, "no model, but an answer");
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_a_new_one() {
    let e = Endpoint::start(ApiConfig { max_connections: 1, ..ApiConfig::default() }).await;
    let mut idle = e.connect().await;
    idle.send(&get("/livez", "")).await;
    assert_eq!(idle.answer().await.status, 200);
    // Until the idle one is idle for long enough, newcomers are told to come back; then one of them gets its place.
    loop {
        let mut new = e.connect().await;
        new.send(&get("/livez", "")).await;
        if new.answer().await.status == 200 {
            break;
        }
    }
    idle.closed().await;
}

/// Asks on new connections until one is served, with `meanwhile` before each.
async fn until_served(e: &Endpoint, mut meanwhile: impl AsyncFnMut()) {
    loop {
        meanwhile().await;
        let mut new = e.connect().await;
        new.send(&get("/livez", "")).await;
        if new.answer().await.status == 200 {
            return;
        }
    }
}

async fn evicted(e: &Endpoint) -> bool {
    let mut text = String::new();
    until_served(e, async || text = e.ask(&get("/metrics", "")).await.text().to_owned()).await;
    text.contains("inferd_http_connections_evicted_total 1\n")
}

#[tokio::test]
async fn a_body_that_drips_makes_room_for_a_new_connection() {
    let config = ApiConfig { max_connections: 1, body_time: 10 * LONG, ..ApiConfig::default() };
    let e = Endpoint::start(config).await;
    let mut slow = e.connect().await;
    slow.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").await;
    until_served(&e, async || slow.send(" ").await).await;
    assert!(evicted(&e).await, "its time was not over");
}

#[tokio::test]
async fn a_client_that_sends_on_after_its_refusal_makes_room_for_a_new_connection() {
    let e = Endpoint::start(ApiConfig { max_connections: 1, body_limit: 10, ..ApiConfig::default() }).await;
    let mut refused = e.connect().await;
    refused.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").await;
    assert_eq!(refused.answer().await.status, 413);
    until_served(&e, async || refused.send(" ").await).await;
    assert!(evicted(&e).await, "what it still sends is not worth a place");
}

#[tokio::test]
async fn so_many_are_refused_with_a_word_and_the_rest_without() {
    const MORE: usize = 20;
    loop {
        let e = Endpoint::start(ApiConfig { max_connections: 1, ..ApiConfig::default() }).await;
        let mut busy = e.connect().await;
        let head = "POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        busy.send(head).await;
        assert_eq!(busy.answer().await.status, 100);
        let mut flood = Vec::new();
        for _ in 0..limits::REFUSALS + MORE {
            flood.push(e.connect().await);
        }
        let mut told = 0;
        for client in &mut flood {
            let mut text = String::new();
            tokio::time::timeout(LONG, client.0.read_to_string(&mut text)).await.unwrap().unwrap();
            told += usize::from(text.starts_with("HTTP/1.1 503"));
        }
        if busy.0.write_all(b"x").await.is_ok() && busy.0.read_u8().await.is_ok() {
            assert_eq!(told, limits::REFUSALS);
            return;
        }
        // So slow a machine that the busy one was given up for one of the flood.
    }
}

#[tokio::test]
async fn requests_in_flight_end_before_the_endpoint_does() {
    let mut e = Endpoint::start(ApiConfig::default()).await;
    let (mut busy, mut idle) = (e.connect().await, e.connect().await);
    idle.send(&get("/livez", "")).await;
    assert_eq!(idle.answer().await.status, 200);
    busy.send(
        "POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    assert_eq!(busy.answer().await.status, 100);
    e.leave();
    idle.closed().await;
    assert!(TcpStream::connect(e.address).await.is_err() || e.served.is_finished(), "no new connections");
    busy.send("{}").await;
    let answer = busy.answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    drop(busy);
    tokio::time::timeout(LONG, e.served).await.expect("the endpoint ends").unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_hold_the_endpoint() {
    let config = ApiConfig { drain_time: Duration::from_millis(50), ..ApiConfig::default() };
    let mut e = Endpoint::start(config).await;
    let mut stuck = e.connect().await;
    stuck.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(stuck.answer().await.status, 100);
    e.leave();
    tokio::time::timeout(LONG, e.served).await.expect("the endpoint ends").unwrap();
}

#[tokio::test]
async fn bodies_of_all_requests_together_are_bounded() {
    let config = ApiConfig { bodies_total: 1000, ..ApiConfig::default() };
    let e = Endpoint::start(config).await;
    let mut first = e.connect().await;
    first
        .send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(first.answer().await.status, 100);
    first.send(&"x".repeat(899)).await;
    // The bytes are on their way; the second is refused as soon as they have arrived.
    let refused = loop {
        let answer = e.ask(&post("/v2/repository/index", "", &format!("{{{}}}", " ".repeat(200)))).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    first.send("x").await;
    assert_eq!(first.answer().await.status, 503);
    let after = e.ask(&post("/v2/repository/index", "", &format!("{{{}}}", " ".repeat(200)))).await;
    assert_eq!(after.status, 200, "the room is given back");
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let mut client = e.connect().await;
    for path in ["/", "/livez", "/healthz", "/readyz", "/status", "/openapi.json", "/docs"] {
        client.send(&get(path, "")).await;
        let whole = client.answer().await;
        client.send(&get(path, "").replace("GET", "HEAD")).await;
        let head = client.answer_to("HEAD").await;
        assert_eq!(head.status, whole.status, "{path}");
        assert_eq!(head.header("content-type"), whole.header("content-type"), "{path}");
        assert!(head.header("content-length").is_some_and(|n| n != "0"), "{path}: {}", head.head);
    }
}

#[tokio::test]
async fn wrong_paths_methods_and_slashes_have_their_own_answers() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let lost = e.ask(&get("/nope", "")).await;
    assert_eq!((lost.status, lost.text()), (404, r#"{"detail":"Not Found"}"#));
    let method = e.ask(&get("/infer", "")).await;
    assert_eq!((method.status, method.header("allow")), (405, Some("POST")));
    assert_eq!(method.text(), r#"{"detail":"Method Not Allowed"}"#);
    let method = e.ask(&post("/healthz", "", "")).await;
    assert_eq!((method.status, method.header("allow")), (405, Some("GET, HEAD")));
    let slash = e.ask(&post("/infer/?a=b", "", "{}")).await;
    assert_eq!((slash.status, slash.header("location")), (307, Some("/infer?a=b")));
    for odd in ["BREW / HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS /infer HTTP/1.1\r\nHost: a\r\n\r\n"] {
        assert_eq!(e.ask(odd).await.status, 405);
    }
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_closed() {
    let e = Endpoint::start(ApiConfig::default()).await;
    for (rubbish, status) in [
        ("\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), 400),
        ("GET\r\n\r\n".to_owned(), 400),
        (get("/livez", "no colon here\r\n"), 400),
        (get("/livez", &format!("X-Big: {}\r\n", "x".repeat(100_000))), 431),
        (get("/livez", &format!("X-Big: {}\r\n", "x".repeat(32 << 10))), 431),
        (get("/livez", &"X-Many: x\r\n".repeat(100)), 431),
        ("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n".to_owned(), 400),
        (
            "POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345"
                .to_owned(),
            400,
        ),
    ] {
        let mut client = e.connect().await;
        client.send(&rubbish).await;
        let answer = client.answer().await;
        let told = (answer.status, answer.text());
        assert_eq!(told, (status, ""), "{}", &rubbish[..rubbish.len().min(40)]);
        client.0.shutdown().await.unwrap();
        client.closed().await;
    }
}

#[tokio::test]
async fn a_request_id_is_taken_when_harmless_and_made_when_not() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let id = |h: String| {
        let e = &e;
        async move { e.ask(&get("/livez", &h)).await.header("x-request-id").map(str::to_owned).unwrap() }
    };
    assert_eq!(id("X-Request-ID: abc-1.2:3/4_5\r\n".to_owned()).await, "abc-1.2:3/4_5");
    let own = id(String::new()).await;
    assert!(own.len() == 16 && own.bytes().all(|b| b.is_ascii_hexdigit()));
    for bad in ["a b".to_owned(), "\"quoted\"".to_owned(), "x".repeat(129), "é".to_owned(), String::new()] {
        let made = id(format!("X-Request-ID: {bad}\r\n")).await;
        assert!(made.len() == 16 && made != own, "{bad:?} gave {made}");
    }
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_ask() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let plain = e.ask(&get("/openapi.json", "")).await;
    assert_eq!(plain.header("content-encoding"), None);
    let packed = e.ask(&get("/openapi.json", "Accept-Encoding: gzip\r\n")).await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("vary"), Some("Accept-Encoding"));
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut text).unwrap();
    assert_eq!(text, plain.body);
    let small = e.ask(&get("/livez", "Accept-Encoding: gzip\r\n")).await;
    assert_eq!(small.header("content-encoding"), None, "below 1000 bytes it does not pay");
}

#[tokio::test]
async fn preflight_requests_are_answered_as_the_seed_does() {
    let e = Endpoint::start(ApiConfig::default()).await;
    let ask = |method: &str| {
        format!(
            "OPTIONS /infer HTTP/1.1\r\nHost: a\r\nOrigin: null\r\nAccess-Control-Request-Method: {method}\r\n\
             Access-Control-Request-Headers: content-type, x-api-key\r\n\r\n"
        )
    };
    let ok = e.ask(&ask("POST")).await;
    assert_eq!(
        (ok.status, ok.text(), ok.header("content-type")),
        (200, "OK", Some("text/plain; charset=utf-8"))
    );
    for (name, value) in [
        ("access-control-allow-origin", "null"),
        ("access-control-allow-methods", "GET, POST, HEAD"),
        ("access-control-allow-headers", "content-type, x-api-key"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "Origin"),
    ] {
        assert_eq!(ok.header(name), Some(value), "{name}");
    }
    let no = e.ask(&ask("DELETE")).await;
    assert_eq!((no.status, no.text()), (400, "Disallowed CORS method"));
    let listed =
        ApiConfig { cors: Cors { origins: vec!["http://a.lan".to_owned()] }, ..ApiConfig::default() };
    let e = Endpoint::start(listed).await;
    let no = e.ask(&ask("POST")).await;
    assert_eq!((no.status, no.text()), (400, "Disallowed CORS origin"));
    assert_eq!(no.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn refusals_carry_the_cross_origin_headers_too() {
    let e = Endpoint::start(ApiConfig { body_limit: 10, ..ApiConfig::default() }).await;
    for request in
        [get("/nope", "Origin: http://a\r\n"), post("/infer", "Origin: http://a\r\n", "01234567890")]
    {
        let answer = e.ask(&request).await;
        assert!(answer.status >= 400);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("*"),
            "a page must be able to read the reason"
        );
    }
}

#[tokio::test]
async fn a_client_beyond_its_rate_is_told_when_to_come_back_but_may_always_probe() {
    let limit = RateLimit { per_second: 0.01, burst: 2.0 };
    let e = Endpoint::start(ApiConfig { rate_limit: Some(limit), ..ApiConfig::default() }).await;
    assert_eq!(e.ask(&get("/contract", "")).await.status, 503, "no model");
    assert_eq!(e.ask(&get("/status", "")).await.status, 200);
    let limited = e.ask(&get("/status", "")).await;
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((90..=100).contains(&wait), "{wait}");
    assert_eq!(e.ask(&get("/livez", "")).await.status, 200);
    let oip = e.ask(&get("/v2", "")).await;
    assert_eq!(oip.status, 429);
    assert!(oip.text().starts_with(r#"{"error":"Rate limit exceeded. Try again in "#), "{}", oip.text());
}

#[tokio::test]
async fn without_a_model_every_probe_says_so_and_why() {
    let e =
        Endpoint::start(ApiConfig { default_model: Some("imu".to_owned()), ..ApiConfig::default() }).await;
    for path in ["/healthz", "/readyz", "/health"] {
        let answer = e.ask(&get(path, "")).await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.text().contains("model imu is not loaded"), "{path}: {}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    let answer = e.ask(&post("/infer", "", r#"{"x":[]}"#)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().starts_with(r#"{"detail":"Model not available for inference: imu is not loaded""#));
    assert!(
        answer.text().ends_with(r#""error":"model_unavailable","model_available":false}"#),
        "{}",
        answer.text()
    );
    let status = e.ask(&get("/status", "")).await;
    assert!(status.status == 200 && status.text().contains("model_not_loaded"));
}

#[tokio::test]
async fn the_documentation_can_be_switched_off() {
    let e = Endpoint::start(ApiConfig { docs: false, ..ApiConfig::default() }).await;
    for path in ["/docs", "/redoc", "/openapi.json"] {
        assert_eq!(e.ask(&get(path, "")).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn every_request_is_counted_once_under_a_name_of_ours() {
    let e = Endpoint::start(ApiConfig { body_limit: 10, ..ApiConfig::default() }).await;
    e.ask(&get("/nope/secret-path", "")).await;
    e.ask(&get("/v2/models/secret-path", "")).await;
    e.ask(&post("/infer", "", "{}")).await;
    e.ask(&post("/infer", "", "01234567890")).await;
    e.ask("BREW /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let metrics = e.ask(&get("/metrics", "")).await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = metrics.text();
    for sample in [
        r#"hailo_http_requests_total{method="GET",endpoint="other",status_code="404"} 1"#,
        r#"hailo_http_requests_total{method="GET",endpoint="/v2/models/{model}",status_code="404"} 1"#,
        r#"hailo_http_requests_total{method="POST",endpoint="/infer",status_code="503"} 1"#,
        r#"hailo_http_requests_total{method="POST",endpoint="/infer",status_code="413"} 1"#,
        r#"hailo_http_requests_total{method="other",endpoint="/livez",status_code="405"} 1"#,
        r#"hailo_inference_requests_total{status="error",model=""} 2"#,
        r#"hailo_errors_total{error_type="model_unavailable",model=""} 1"#,
        r#"hailo_errors_total{error_type="payload_too_large",model=""} 1"#,
        r#"inferd_requests_total{surface="infer",model="",outcome="payload_too_large"} 1"#,
    ] {
        assert!(text.contains(sample), "{sample} is missing in\n{text}");
    }
    assert!(!text.contains("secret-path"), "no label repeats what a client invents");
    let openmetrics = e.ask(&get("/metrics", "Accept: application/openmetrics-text\r\n")).await;
    assert!(
        openmetrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text; version=1.0.0")
    );
    assert!(openmetrics.text().ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let e = Endpoint::start(ApiConfig { max_connections: 1, ..ApiConfig::default() }).await;
    let mut gone = e.connect().await;
    gone.send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(gone.answer().await.status, 100);
    drop(gone);
    // The place is free as soon as the server has seen the end of stream.
    while e.ask(&get("/livez", "")).await.status != 200 {}
}
