use super::*;
use std::{net::TcpListener, sync::atomic::AtomicUsize};

/// A server that answers the n-th request of all its connections with `reply(n)`; nothing closes the connection.
fn server(reply: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (reply, count) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (reply, count) = (Arc::clone(&reply), Arc::clone(&count));
            std::thread::spawn(move || serve(stream, &*reply, &count));
        }
    });
    address
}

fn serve(mut stream: TcpStream, reply: &dyn Fn(usize) -> Option<&'static str>, count: &AtomicUsize) {
    let (mut seen, mut buffer) = (Vec::new(), [0_u8; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
        }
        if !seen.ends_with(b"END") {
            continue;
        }
        seen.clear();
        match reply(count.fetch_add(1, Ordering::SeqCst)) {
            Some(text) if stream.write_all(text.as_bytes()).is_err() => return,
            Some(text) if text.contains("Connection: close") => return,
            Some(_) => {}
            None => return,
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";

/// Runs until `requests` came to an end; none is given up.
fn run(address: SocketAddr, connections: usize, threads: usize, requests: u64, body: usize) -> Tally {
    run_within(Duration::from_secs(60), address, connections, threads, requests, body)
}

fn run_within(
    timeout: Duration,
    address: SocketAddr,
    connections: usize,
    threads: usize,
    requests: u64,
    body: usize,
) -> Tally {
    let mut request = b"POST / HTTP/1.1\r\n\r\n".to_vec();
    request.resize(request.len() + body, b'.');
    request.extend_from_slice(b"END");
    let load = Load { address, request: request.into(), connections, threads, timeout };
    let running = load.start().unwrap();
    running.measure(Some(requests));
    while running.tally().requests() < requests && running.alive() {
        std::thread::yield_now();
    }
    running.stop().unwrap()
}

#[test]
fn exactly_the_requests_asked_for_are_counted() {
    for (connections, threads) in [(1, 1), (7, 1), (8, 3)] {
        let tally = run(server(|_| Some(OK)), connections, threads, 500, 100);
        assert_eq!((tally.ok, tally.failed(), tally.latency.len()), (500, 0, 500), "{connections} {threads}");
        assert!(tally.last.is_some());
    }
}

#[test]
fn refusals_are_counted_by_status_with_an_example_and_no_latency() {
    let tally = run(server(|n| Some(if n % 2 == 0 { OK } else { BUSY })), 1, 1, 100, 0);
    assert_eq!((tally.ok, tally.latency.len()), (50, 50));
    assert_eq!(tally.errors, BTreeMap::from([("http_503".to_owned(), 50)]));
    assert_eq!(tally.example, Some(("http_503".into(), "busy".into())));
}

#[test]
fn a_server_that_ends_each_connection_is_still_measured() {
    let tally = run(server(|_| Some(LAST)), 4, 1, 100, 0);
    assert_eq!((tally.ok, tally.failed()), (100, 0));
}

#[test]
fn a_connection_lost_in_a_request_is_an_error_of_that_request() {
    let tally = run(server(|n| if n % 4 == 3 { None } else { Some(OK) }), 1, 1, 40, 0);
    assert_eq!(tally.ok, 30);
    assert_eq!(tally.errors, BTreeMap::from([("closed".to_owned(), 10)]));
}

#[test]
fn a_request_without_answer_ends_with_the_time_limit() {
    let tally = run_within(Duration::from_millis(300), server(|_| Some("")), 2, 1, 2, 0);
    assert_eq!(tally.errors, BTreeMap::from([("timeout".to_owned(), 2)]));
}

#[test]
fn a_body_larger_than_every_socket_buffer_arrives_whole() {
    let tally = run(server(|_| Some(OK)), 2, 1, 4, 16 << 20);
    assert_eq!((tally.ok, tally.failed()), (4, 0), "{:?}", tally.errors);
}

#[test]
fn nobody_listening_is_counted_as_connect() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tally = run(free, 1, 1, 3, 0);
    assert_eq!(tally.ok, 0);
    assert!(tally.errors.keys().all(|kind| kind == "connect"), "{:?}", tally.errors);
}

#[test]
fn what_does_not_speak_http_is_counted_as_such() {
    let tally = run(server(|_| Some("SSH-2.0-nothing\r\n")), 1, 1, 5, 0);
    assert_eq!(tally.errors, BTreeMap::from([("not_http".to_owned(), 5)]));
}
