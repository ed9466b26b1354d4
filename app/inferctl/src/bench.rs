//! `inferctl bench`: how fast a server answers, and what that costs; with `--engines`, which engine of a device is best.

mod engines;
mod http;
mod load;
mod process;

use crate::{
    client::{Client, ClientError},
    fail::Failure,
    input::{Form, Metadata, Request, Sample, percent},
    show,
};
use load::{Load, Tally};
use process::Usage;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often progress is shown and limits are looked at.
const STEP: Duration = Duration::from_millis(50);
/// How often the progress line changes.
const REDRAW: Duration = Duration::from_millis(500);

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Input as clients send it ({"x": ..}, an OIP request, an array); `-` is standard input [default: a made-up one]
    file: Option<PathBuf>,
    /// Connections with one request each in flight; several numbers are run one after the other
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: Vec<u16>,
    /// How long to measure each: 10, 500ms, 2m
    #[arg(short, long, default_value = "10", value_parser = duration)]
    duration: Duration,
    /// Measure this many requests instead
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..=1 << 40), conflicts_with = "duration")]
    requests: Option<u64>,
    /// How long to send before measuring
    #[arg(long, default_value = "1", value_parser = duration)]
    warm_up: Duration,
    /// Threads of this client
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// What a request looks like
    #[arg(long, value_enum, default_value_t = Form::Infer)]
    form: Form,
    /// The model of the OIP forms [default: the first one listed], or of --engines [default: the device's default one]
    #[arg(long)]
    model: Option<String>,
    /// Any server: send this body, as it is (with --path)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "form", "model"])]
    body: Option<PathBuf>,
    /// Any server: path and query of the request
    #[arg(long)]
    path: Option<String>,
    /// Any server: its method [default: POST with a body, GET without]
    #[arg(long)]
    method: Option<String>,
    /// A header to add; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// The server's process, whose CPU time is shown with all its descendants' [default: found by port on this machine]
    #[arg(long)]
    pid: Option<i32>,
    #[command(flatten)]
    engines: engines::Engines,
}

/// What one run came to. Times are in microseconds.
#[derive(Debug, Serialize)]
struct Outcome {
    connections: u16,
    seconds: f64,
    requests: u64,
    ok: u64,
    rps: f64,
    errors: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<String>,
    latency_us: Option<Latency>,
    client_cpu_us_per_request: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

/// Quantiles of the successes.
#[derive(Debug, Serialize, PartialEq)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
    p99_over_p50: f64,
}

/// What the server used while it was measured.
#[derive(Debug, Serialize)]
struct Server {
    pid: i32,
    processes: usize,
    cpu_us_per_request: f64,
    cores: f64,
    rss_mib: f64,
}

/// The whole result.
#[derive(Debug, Serialize)]
struct Report {
    url: String,
    method: String,
    body_bytes: usize,
    warm_up_s: f64,
    threads: u16,
    runs: Vec<Outcome>,
}

impl Bench {
    /// Runs it and prints the result.
    ///
    /// # Errors
    /// [`Failure`] when nothing could be measured, or when a request failed (after the result was printed).
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.engines.wanted() {
            return self.engines.run(client, self.model.as_deref(), json);
        }
        if client.tls().is_some() {
            return Err(Failure::Other(
                "bench measures over plain http: it would time the encryption of its own".into(),
            ));
        }
        let (method, request) = self.request(client)?;
        let address = client.resolve()?;
        // One plain attempt first: a server that is not there deserves a sentence, not a table of errors.
        std::net::TcpStream::connect_timeout(&address, client.timeout().min(Duration::from_secs(5)))
            .map_err(|e| client.explain_io(&e))?;
        let bytes = assemble(client, &method, &request, &self.header);
        let pid = self.server(address)?;

        let mut report = Report {
            url: format!("{}{}", client.base(), request.path),
            method,
            body_bytes: request.body.len(),
            warm_up_s: self.warm_up.as_secs_f64(),
            threads: self.threads,
            runs: Vec::new(),
        };
        if !json {
            show::line(&headline(&report));
            show::line(&table_head(pid.is_some()));
        }
        for connections in &self.concurrency {
            let load = Load {
                address,
                request: bytes.clone().into(),
                connections: usize::from(*connections),
                threads: usize::from(self.threads),
                timeout: client.timeout(),
            };
            let outcome = self.measure(&load, *connections, pid)?;
            if !json {
                show::line(&table_row(&outcome));
            }
            report.runs.push(outcome);
        }
        let failed: u64 = report.runs.iter().flat_map(|run| run.errors.values()).sum();
        if json {
            show::json(&report);
        } else {
            report.runs.iter().filter_map(errors_line).for_each(|line| show::line(&line));
        }
        if failed == 0 { Ok(()) } else { Err(Failure::Said) }
    }

    /// One number of connections.
    fn measure(&self, load: &Load, connections: u16, pid: Option<i32>) -> Result<Outcome, Failure> {
        let mut line = Line::new(connections);
        let running = load.start().map_err(|e| Failure::Other(format!("the load cannot be started: {e}")))?;
        wait(self.warm_up, || {
            line.show("warm-up", Duration::ZERO, Tally::default);
            running.alive()
        });
        let before = (process::own_cpu(), pid.and_then(process::usage));
        let start = running.measure(self.requests);
        let mut progress = (0, Instant::now());
        let limit = self.requests.map_or(self.duration, |_| Duration::MAX);
        wait(limit, || {
            line.show("measuring", start.elapsed(), || running.tally());
            let (ok, sent) = running.counts();
            if ok > progress.0 {
                progress = (ok, Instant::now());
            }
            let complete = self.requests.is_some_and(|n| sent >= n);
            // With a number of requests only, a server that went away would be waited for without end.
            let stuck = self.requests.is_some() && progress.1.elapsed() > 3 * load.timeout;
            running.alive() && !complete && !stuck
        });
        let elapsed = start.elapsed();
        let after = (process::own_cpu(), pid.and_then(process::usage));
        let tally = running.stop().map_err(|e| Failure::Other(format!("the load could not go on: {e}")))?;
        line.clear();
        let elapsed = match (self.requests, tally.last) {
            (Some(_), Some(last)) => last.duration_since(start),
            _ => elapsed,
        };
        Ok(summarise(connections, elapsed, &tally, before, after, pid))
    }

    /// Method and request, from a file, a made-up input or the raw options.
    fn request(&self, client: &Client) -> Result<(String, Request), Failure> {
        if self.body.is_some() || (self.path.is_some() && self.file.is_none()) {
            let body = self.body.as_deref().map(crate::read_input).transpose()?.unwrap_or_default();
            let method =
                self.method.clone().unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.into());
            let path = self.path.clone().unwrap_or_else(|| "/".into());
            let said = self.header.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-type"));
            let headers = if said || body.is_empty() {
                Vec::new()
            } else {
                vec![("Content-Type".into(), "application/json".into())]
            };
            return Ok((method, Request { path, headers, body }));
        }
        let mut request = match (self.form, &self.file) {
            (Form::Infer, None) => Sample::synthetic_window().to_infer(),
            // As it is: a file that is wrong is to be refused by the server, not by us.
            (Form::Infer, Some(file)) => {
                Request { body: crate::read_input(file)?, ..Sample::synthetic_window().to_infer() }
            }
            (form, file) => {
                let model = self.metadata(client)?;
                let sample = match file {
                    Some(file) => crate::read_sample(file)?,
                    None => Sample::synthetic(&model),
                };
                sample.to_oip(&model, form)?
            }
        };
        if let Some(path) = &self.path {
            request.path.clone_from(path);
        }
        Ok((self.method.clone().unwrap_or_else(|| "POST".into()), request))
    }

    fn metadata(&self, client: &Client) -> Result<Metadata, ClientError> {
        match &self.model {
            Some(name) => crate::metadata(client, name),
            None => {
                let name = crate::model_names(client)?.into_iter().next().ok_or_else(|| {
                    ClientError::Refused("no model is served there; name one with --model".into())
                })?;
                client.json(&format!("/v2/models/{}", percent(&name)))
            }
        }
    }

    /// The process to account for: the named one, or the one that listens on a port of this machine.
    fn server(&self, address: std::net::SocketAddr) -> Result<Option<i32>, Failure> {
        match self.pid {
            Some(pid) if process::usage(pid).is_none() => {
                Err(Failure::Other(format!("--pid {pid}: there is no such process")))
            }
            Some(pid) => Ok(Some(pid)),
            None if address.ip().is_loopback() => Ok(process::listener(address.port())),
            None => Ok(None),
        }
    }
}

/// Calls `each` every [`STEP`] for so long, or until it says no.
fn wait(limit: Duration, mut each: impl FnMut() -> bool) {
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() || !each() {
            return;
        }
        std::thread::sleep(left.min(STEP));
    }
}

fn summarise(
    connections: u16,
    elapsed: Duration,
    tally: &Tally,
    before: (Duration, Option<Usage>),
    after: (Duration, Option<Usage>),
    pid: Option<i32>,
) -> Outcome {
    let seconds = elapsed.as_secs_f64();
    let requests = tally.requests();
    let per = |cpu: Duration| ratio(cpu.as_secs_f64() * 1e6, count(requests));
    let server = match (pid, before.1, after.1) {
        (Some(pid), Some(old), Some(new)) => {
            let cpu = new.cpu.saturating_sub(old.cpu);
            Some(Server {
                pid,
                processes: new.processes,
                cpu_us_per_request: per(cpu),
                cores: ratio(cpu.as_secs_f64(), seconds),
                rss_mib: count(new.rss_bytes) / f64::from(1 << 20),
            })
        }
        _ => None,
    };
    Outcome {
        connections,
        seconds,
        requests,
        ok: tally.ok,
        rps: ratio(count(tally.ok), seconds),
        errors: tally.errors.clone(),
        example: tally.example.as_ref().map(|(_, body)| crate::client::reason_of(body.as_bytes())),
        latency_us: Latency::of(tally),
        client_cpu_us_per_request: per(after.0.saturating_sub(before.0)),
        server,
    }
}

impl Latency {
    fn of(tally: &Tally) -> Option<Self> {
        let h = &tally.latency;
        if h.is_empty() {
            return None;
        }
        let us = |nanos: u64| count(nanos) / 1e3;
        let at = |q: f64| us(h.value_at_quantile(q));
        let p50 = at(0.5);
        Some(Self {
            min: us(h.min()),
            mean: h.mean() / 1e3,
            p50,
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: us(h.max()),
            p99_over_p50: ratio(at(0.99), p50),
        })
    }
}

/// Counts stay far below 2^53, where an `f64` is exact.
#[allow(clippy::cast_precision_loss)]
fn count(n: u64) -> f64 {
    n as f64
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// The bytes of one request.
fn assemble(client: &Client, method: &str, request: &Request, extra: &[(String, String)]) -> Vec<u8> {
    let base = client.base();
    let mut head = format!("{method} {}{} HTTP/1.1\r\n", base.prefix, request.path);
    let said = |name: &str| extra.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut add = |name: &str, value: &str| {
        head.push_str(name);
        head.push_str(": ");
        head.push_str(value);
        head.push_str("\r\n");
    };
    if !said("host") {
        add("Host", &base.authority());
    }
    for (name, value) in
        request.headers.iter().filter(|(name, _)| !said(name)).cloned().chain(client.key_header())
    {
        add(&name, &value);
    }
    for (name, value) in extra {
        add(name, value);
    }
    if !request.body.is_empty() || method == "POST" || method == "PUT" {
        add("Content-Length", &request.body.len().to_string());
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// The line that changes while a run goes on; only on a terminal.
struct Line {
    connections: u16,
    next: Option<Instant>,
}

impl Line {
    fn new(connections: u16) -> Self {
        Self { connections, next: std::io::stderr().is_terminal().then(Instant::now) }
    }

    fn show(&mut self, phase: &str, elapsed: Duration, tally: impl Fn() -> Tally) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + REDRAW);
        let tally = tally();
        let latency = Latency::of(&tally).map_or_else(String::new, |l| {
            format!("  p50 {}  p99 {}", show::micros(l.p50), show::micros(l.p99))
        });
        let rps = ratio(count(tally.ok), elapsed.as_secs_f64());
        eprint!(
            "\r\x1b[K{:>6} {phase} {:>5.1} s  {} requests  {rps:.0}/s{latency}  {} errors",
            self.connections,
            elapsed.as_secs_f64(),
            tally.requests(),
            tally.failed()
        );
        let _ = std::io::stderr().flush();
    }

    fn clear(&self) {
        if self.next.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn headline(report: &Report) -> String {
    format!(
        "{} {}  {} bytes  warm-up {} s  {} client thread{}",
        report.method,
        report.url,
        report.body_bytes,
        report.warm_up_s,
        report.threads,
        if report.threads == 1 { "" } else { "s" }
    )
}

fn table_head(server: bool) -> String {
    let head = format!(
        "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>10}",
        "conns", "req/s", "p50", "p90", "p95", "p99", "p99.9", "max", "errors", "client us"
    );
    if server { format!("{head} {:>10} {:>6} {:>8}", "server us", "cores", "RSS MiB") } else { head }
}

fn table_row(run: &Outcome) -> String {
    let dash = || "-".to_owned();
    let quantiles = match &run.latency_us {
        Some(l) => [l.p50, l.p90, l.p95, l.p99, l.p99_9, l.max].map(show::micros),
        None => std::array::from_fn(|_| dash()),
    };
    let quantiles: String = quantiles.iter().map(|q| format!(" {q:>9}")).collect();
    let errors: u64 = run.errors.values().sum();
    let row = format!(
        "{:>6} {:>9.0}{quantiles} {errors:>8} {:>10.1}",
        run.connections, run.rps, run.client_cpu_us_per_request
    );
    match &run.server {
        Some(s) => format!("{row} {:>10.1} {:>6.2} {:>8.1}", s.cpu_us_per_request, s.cores, s.rss_mib),
        None => row,
    }
}

fn errors_line(run: &Outcome) -> Option<String> {
    if run.errors.is_empty() {
        return None;
    }
    let kinds: Vec<String> = run.errors.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    let example =
        run.example.as_ref().map_or_else(String::new, |reason| format!("; the first said: {reason}"));
    Some(format!("{} connections: {}{example}", run.connections, kinds.join(", ")))
}

/// `10`, `0.5`, `500ms`, `10s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err("a time such as 10, 500ms, 10s or 2m is needed".into()),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|n| Duration::try_from_secs_f64(n * scale).ok())
        .filter(|d| *d <= Duration::from_secs(86_400))
        .ok_or_else(|| "a time such as 10, 500ms, 10s or 2m is needed, at most a day".into())
}

/// `NAME: VALUE`.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("NAME: VALUE is needed")?;
    let (name, value) = (name.trim(), value.trim());
    let token = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if !token || value.bytes().any(|b| b < b' ') {
        return Err("NAME: VALUE is needed, without control characters".into());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(latencies_us: impl IntoIterator<Item = u64>, errors: &[(&str, u64)]) -> Tally {
        let mut tally = Tally::default();
        for us in latencies_us {
            tally.latency.record(us * 1000).unwrap();
            tally.ok += 1;
        }
        tally.errors = errors.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect();
        tally
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= b * 0.002
    }

    #[test]
    fn quantiles_are_those_of_the_data_within_two_per_mille() {
        let latency = Latency::of(&tally(1..=10_000, &[])).unwrap();
        let table = [
            (latency.min, 1.0),
            (latency.mean, 5000.5),
            (latency.p50, 5000.0),
            (latency.p90, 9000.0),
            (latency.p95, 9500.0),
            (latency.p99, 9900.0),
            (latency.p99_9, 9990.0),
            (latency.max, 10_000.0),
            (latency.p99_over_p50, 1.98),
        ];
        for (measured, exact) in table {
            assert!(near(measured, exact) || (measured - exact).abs() < 0.6, "{measured} for {exact}");
        }
        assert_eq!(Latency::of(&tally([], &[("timeout", 3)])), None);
    }

    #[test]
    fn rates_count_successes_and_costs_count_every_request() {
        let usage = |cpu_ms| Usage { cpu: Duration::from_millis(cpu_ms), rss_bytes: 8 << 20, processes: 2 };
        let outcome = summarise(
            4,
            Duration::from_secs(2),
            &tally(std::iter::repeat_n(1000, 900), &[("http_503", 90), ("timeout", 10)]),
            (Duration::from_millis(10), Some(usage(1000))),
            (Duration::from_millis(30), Some(usage(2000))),
            Some(7),
        );
        assert_eq!((outcome.requests, outcome.ok), (1000, 900));
        assert!(near(outcome.rps, 450.0));
        assert!(near(outcome.client_cpu_us_per_request, 20.0));
        let server = outcome.server.as_ref().unwrap();
        assert!(
            near(server.cpu_us_per_request, 1000.0) && near(server.cores, 0.5) && near(server.rss_mib, 8.0)
        );
        assert_eq!(errors_line(&outcome).unwrap(), "4 connections: http_503 90, timeout 10");
        assert_eq!(
            table_row(&outcome).split_whitespace().count(),
            table_head(true).split_whitespace().count() - 3
        );
    }

    #[test]
    fn threads_add_up() {
        let mut all = tally(1..=100, &[("closed", 1)]);
        all.add(&tally(101..=200, &[("closed", 2), ("timeout", 1)]));
        assert_eq!((all.ok, all.failed(), all.requests()), (200, 4, 204));
        let p50 = Latency::of(&all).unwrap().p50;
        assert!(near(p50, 100.0), "{p50}");
    }

    #[test]
    fn times_are_read_with_and_without_unit() {
        let table = [("10", 10_000), ("0.5", 500), ("500ms", 500), ("10s", 10_000), ("2m", 120_000)];
        for (text, ms) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "x", "10h", "-1", "1e9", "NaN"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_is_assembled_once_and_headers_of_the_user_win() {
        let client = Client::new("http://[::1]:9000/dev", Some("k".into()), Duration::from_secs(1)).unwrap();
        let request = Request {
            path: "/infer".into(),
            headers: vec![("Content-Type".into(), "application/json".into())],
            body: b"{}".to_vec(),
        };
        let extra = [header("content-type: text/plain").unwrap()];
        let text = String::from_utf8(assemble(&client, "POST", &request, &extra)).unwrap();
        assert_eq!(
            text,
            "POST /dev/infer HTTP/1.1\r\nHost: [::1]:9000\r\nX-API-Key: k\r\ncontent-type: text/plain\r\nContent-Length: 2\r\n\r\n{}"
        );
        for bad in ["no colon", ": x", "a b: c", "a: b\r\nc: d"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }
}
