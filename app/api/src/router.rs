//! From a request to the handler that answers it.

use crate::body::{self, BodyError, Upload};
use crate::http::{Outgoing, X_REQUEST_ID};
use crate::outgoing::{Asked, preflight};
use crate::serve::Connection;
use crate::{App, Reply, Req, RequestId, Surface, docs, health, infer, oip, status, updates};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::SocketAddr;
use std::time::Instant;

/// What answers a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Route {
    Root,
    Healthz,
    Livez,
    Readyz,
    Health,
    Infer,
    Encode,
    Analysis,
    Test,
    Status,
    Contract,
    Metrics,
    OpenApi,
    Docs,
    Redoc,
    CommitReady,
    Slots,
    Bundle,
    /// A streamed body: its own path through [`answer`].
    Push,
    Events,
    Rollback,
    Trust,
    Pull,
    EndPull,
    /// Everything under `/v2`.
    Oip,
}

impl Route {
    /// Whether it changes the device: who may is decided before a byte of the body is read.
    fn changes(self) -> bool {
        matches!(self, Self::Push | Self::Rollback | Self::Trust | Self::Pull | Self::EndPull)
    }
}

/// How a path may be asked. `GET` includes `HEAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Verb {
    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Get => *method == Method::GET || *method == Method::HEAD,
            Self::Post => *method == Method::POST,
            Self::Put => *method == Method::PUT,
            Self::Delete => *method == Method::DELETE,
        }
    }

    /// As `Allow` names it.
    fn words(self) -> &'static str {
        match self {
            Self::Get => "GET, HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// Every path outside `/v2`.
pub(crate) const ROUTES: &[(&str, Verb, Route)] = &[
    ("/", Verb::Get, Route::Root),
    ("/healthz", Verb::Get, Route::Healthz),
    ("/livez", Verb::Get, Route::Livez),
    ("/readyz", Verb::Get, Route::Readyz),
    ("/health", Verb::Get, Route::Health),
    ("/infer", Verb::Post, Route::Infer),
    ("/infer/infer", Verb::Post, Route::Infer),
    ("/encode", Verb::Post, Route::Encode),
    ("/api/v1/analysis/infer", Verb::Post, Route::Analysis),
    ("/test", Verb::Post, Route::Test),
    ("/status", Verb::Get, Route::Status),
    ("/contract", Verb::Get, Route::Contract),
    ("/metrics", Verb::Get, Route::Metrics),
    ("/openapi.json", Verb::Get, Route::OpenApi),
    ("/docs", Verb::Get, Route::Docs),
    ("/redoc", Verb::Get, Route::Redoc),
    ("/commit-ready", Verb::Get, Route::CommitReady),
    ("/api/v1/slots", Verb::Get, Route::Slots),
    ("/api/v1/bundle", Verb::Get, Route::Bundle),
    ("/api/v1/bundle", Verb::Put, Route::Push),
    ("/api/v1/events", Verb::Get, Route::Events),
    ("/api/v1/rollback", Verb::Post, Route::Rollback),
    ("/api/v1/trust", Verb::Post, Route::Trust),
    ("/api/v1/pull", Verb::Post, Route::Pull),
    ("/api/v1/pull", Verb::Delete, Route::EndPull),
];

/// The paths of the Open Inference Protocol, for metrics: a label must not repeat what a client invents.
pub(crate) const OIP_PATHS: &[&str] = &[
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/stats",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/config",
    "/v2/models/{model}/stats",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
    "/v2/models/{model}/versions/{version}/config",
    "/v2/models/{model}/versions/{version}/stats",
    "/v2/models/{model}/versions/{version}/infer",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
];

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    route: Route,
    /// The path's pattern, for metrics.
    endpoint: &'static str,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// No such path.
    Path,
    /// The path exists without its trailing slash.
    Slash(&'static str),
    /// The path exists for other methods.
    Method(&'static str),
}

fn find(method: &Method, path: &str) -> Result<Target, Lost> {
    if path == "/v2" || path.starts_with("/v2/") {
        return Ok(Target { route: Route::Oip, endpoint: oip_endpoint(path) });
    }
    let mut known = None;
    for &(endpoint, verb, route) in ROUTES {
        if endpoint == path {
            if verb.takes(method) {
                return Ok(Target { route, endpoint });
            }
            known = Some(endpoint);
        }
    }
    Err(match known {
        Some(endpoint) => Lost::Method(endpoint),
        None => {
            let short = path.strip_suffix('/');
            let found = short.and_then(|short| ROUTES.iter().find(|(p, _, _)| *p == short));
            found.map_or(Lost::Path, |(p, _, _)| Lost::Slash(p))
        }
    })
}

/// The pattern a path under `/v2` follows.
fn oip_endpoint(path: &str) -> &'static str {
    let fits = |pattern: &&&str| {
        let mut have = path.trim_end_matches('/').split('/');
        pattern
            .split('/')
            .all(|p| have.next().is_some_and(|h| p == h || (p.starts_with('{') && !h.is_empty())))
            && have.next().is_none()
    };
    OIP_PATHS.iter().find(fits).copied().unwrap_or("/v2/*")
}

/// The inference wording a target speaks, if it is one: its refusals count as failed inferences.
fn surface(target: Target) -> Option<Surface> {
    match target.route {
        Route::Infer | Route::Analysis => Some(Surface::Infer),
        Route::Encode => Some(Surface::Encode),
        Route::Oip if target.endpoint.ends_with("/infer") => Some(Surface::Oip),
        _ => None,
    }
}

/// Answers one request.
pub(crate) async fn answer(
    app: &App,
    request: Request<Incoming>,
    peer: SocketAddr,
    connection: &Connection,
) -> Response<Outgoing> {
    let received = Instant::now();
    let (head, body) = request.into_parts();
    let id = RequestId::from_headers(&head.headers);
    let asked = Asked::of(&head.headers);
    let found = find(&head.method, head.uri.path());
    let endpoint = match found {
        Ok(t) => t.endpoint,
        Err(Lost::Method(endpoint) | Lost::Slash(endpoint)) => endpoint,
        Err(Lost::Path) => "other",
    };
    let unread = !body.is_end_stream();
    let mut req = Req {
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        method: head.method,
        headers: head.headers,
        body: Bytes::new(),
        peer,
        id,
        received,
    };
    let preflight = preflight(app, &req.method, &req.headers);
    let is_preflight = preflight.is_some();
    let early = match (preflight, found) {
        (Some(reply), _) => Err(reply),
        (None, Err(lost)) => Err(lost_reply(lost, &req)),
        (None, Ok(target)) => match limited(app, target, peer) {
            Some(reply) => Err(reply),
            None if target.route.changes() => app.may_change(&req).map(|()| target),
            None => Ok(target),
        },
    };
    let mut reply = match early {
        Err(mut reply) => {
            if unread {
                // The body is not worth waiting for, and what follows it cannot be told from it.
                reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            reply
        }
        Ok(Target { route: Route::Push, .. }) => {
            // It has a pace of its own to keep; no crowd of other connections takes its place.
            connection.body_done();
            let upload = Upload::new(body, &app.config, app.ending.subscribe());
            // Boxed: every other request would carry its size.
            let (mut reply, unread) = Box::pin(updates::push(app, &req, upload)).await;
            if unread {
                reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            reply
        }
        Ok(target) => {
            let read = body::read(body, &app.config, &app.bodies).await;
            connection.body_done();
            match read {
                Ok((bytes, _share)) => {
                    req.body = bytes;
                    dispatch(app, target, &req).await
                }
                Err(e) => {
                    let mut reply = refused_body(app, target, e);
                    reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                    reply
                }
            }
        }
    };
    asked.compress(&mut reply).await;
    if !is_preflight {
        asked.cross_origin(&app.config.cors, &mut reply.headers);
    }
    reply.headers.insert(X_REQUEST_ID, req.id.header_value().clone());
    let took = received.elapsed();
    app.metrics.http(&req.method, endpoint, reply.status, reply.error, took);
    tracing::debug!(
        target: "inferd::access",
        request_id = req.id.as_str(),
        %peer,
        method = %req.method,
        path = %req.path,
        status = reply.status.as_u16(),
        error = reply.error,
        bytes_in = req.body.len(),
        bytes_out = reply.body.len(),
        latency_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    let mut response = Response::new(Outgoing::new(reply.body, reply.stream));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

async fn dispatch(app: &App, target: Target, req: &Req) -> Reply {
    match target.route {
        Route::Infer => infer::infer(app, req, infer::Wording::Infer).await,
        Route::Encode => infer::infer(app, req, infer::Wording::Encode).await,
        Route::Analysis => infer::infer(app, req, infer::Wording::Analysis).await,
        Route::Oip => oip::handle(app, req).await,
        Route::Root => status::root(app),
        Route::Healthz => health::healthz(app),
        Route::Livez => health::livez(app),
        Route::Readyz => health::readyz(app),
        Route::Health => health::health(app),
        Route::Status => status::status(app),
        Route::Contract => status::contract(app),
        Route::Test => status::test(app).await,
        Route::Metrics => app.metrics.exposition(req),
        Route::OpenApi => docs::openapi(app),
        Route::Docs => docs::page(app),
        Route::Redoc => docs::redoc(app),
        Route::CommitReady => updates::commit_ready(app),
        Route::Slots => updates::slots(app),
        Route::Bundle => updates::progress(app, req).await,
        Route::Events => updates::events(app, req),
        Route::Rollback => updates::rollback(app, req).await,
        Route::Trust => updates::trust(app, req).await,
        Route::Pull => updates::pull(app, req).await,
        Route::EndPull => updates::end_pull(app).await,
        Route::Push => Reply::not_found(),
    }
}

fn lost_reply(lost: Lost, req: &Req) -> Reply {
    match lost {
        Lost::Path => Reply::not_found(),
        Lost::Slash(path) => {
            let to = match &req.query {
                Some(q) => format!("{path}?{q}"),
                None => path.to_owned(),
            };
            let to = HeaderValue::from_str(&to).unwrap_or(HeaderValue::from_static("/"));
            Reply::new(StatusCode::TEMPORARY_REDIRECT, "text/plain; charset=utf-8", Bytes::new())
                .with(header::LOCATION, to)
        }
        Lost::Method(path) => {
            let verbs = ROUTES.iter().filter(|(p, _, _)| *p == path).map(|(_, v, _)| v.words());
            let allow = verbs.collect::<Vec<_>>().join(", ");
            let allow = HeaderValue::from_str(&allow).unwrap_or(HeaderValue::from_static("GET, HEAD"));
            Reply::json_bytes(StatusCode::METHOD_NOT_ALLOWED, &b"{\"detail\":\"Method Not Allowed\"}"[..])
                .with(header::ALLOW, allow)
                .with_error("method_not_allowed")
        }
    }
}

/// A refusal in the words of the surface it is for: `/v2` has the reason in `error`, all others in `detail`.
fn refusal(app: &App, target: Target, status: StatusCode, kind: &'static str, detail: &str) -> Reply {
    if let Some(surface) = surface(target) {
        app.metrics.failed(surface, "", kind);
    }
    if target.route == Route::Oip {
        return Reply::json(status, &serde_json::json!({ "error": detail })).with_error(kind);
    }
    let available = app.default_model().is_some_and(|m| m.state() == inferd_hosts::State::Ready);
    Reply::refusal(status, kind, detail, available)
}

fn refused_body(app: &App, target: Target, e: BodyError) -> Reply {
    let (status, kind) = told(e);
    let reply = refusal(app, target, status, kind, &e.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return reply.with_retry_after(std::time::Duration::from_secs(1));
    }
    reply
}

/// How a body that is not read is told.
pub(crate) fn told(e: BodyError) -> (StatusCode, &'static str) {
    match e {
        BodyError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
        BodyError::Slow { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
        BodyError::NoRoom { .. } => (StatusCode::SERVICE_UNAVAILABLE, "bodies_full"),
        BodyError::Broken => (StatusCode::BAD_REQUEST, "broken_body"),
        BodyError::Dripping { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
        BodyError::Ending => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
    }
}

/// The 429 of a client that asks too often. Probes are never limited: a fleet that cannot see a device restarts it.
fn limited(app: &App, target: Target, peer: SocketAddr) -> Option<Reply> {
    let limiter = app.limiter.as_ref()?;
    if matches!(target.route, Route::Healthz | Route::Livez | Route::Readyz | Route::Health | Route::Metrics)
    {
        return None;
    }
    let wait = limiter.take(peer.ip()).err()?;
    let detail = "this client sends more requests than it may";
    Some(refusal(app, target, StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).with_retry_after(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_patterns() {
        for (path, pattern) in [
            ("/v2", "/v2"),
            ("/v2/", "/v2"),
            ("/v2/health/live", "/v2/health/live"),
            ("/v2/models/stats", "/v2/models/stats"),
            ("/v2/models/m", "/v2/models/{model}"),
            ("/v2/models/m/infer", "/v2/models/{model}/infer"),
            ("/v2/models/m/versions/1/infer", "/v2/models/{model}/versions/{version}/infer"),
            ("/v2/models/m/infer/more", "/v2/*"),
            ("/v2/models//infer", "/v2/*"),
            ("/v2/nothing", "/v2/*"),
        ] {
            assert_eq!(oip_endpoint(path), pattern, "{path}");
        }
    }

    /// (path, verb) of everything the router and the protocol's own router answer.
    fn served() -> Vec<(String, String)> {
        let verb = |v: &Verb| match v {
            Verb::Get => "get",
            Verb::Post => "post",
            Verb::Put => "put",
            Verb::Delete => "delete",
        };
        let mut all: Vec<_> = ROUTES.iter().map(|(p, v, _)| ((*p).to_owned(), verb(v).to_owned())).collect();
        for path in OIP_PATHS {
            let post = ["/infer", "/index", "/load", "/unload"].iter().any(|end| path.ends_with(end));
            all.push(((*path).to_owned(), if post { "post" } else { "get" }.to_owned()));
        }
        all.sort();
        all
    }

    #[test]
    fn the_openapi_document_names_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_slice(docs::OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let mut written: Vec<(String, String)> = paths
            .iter()
            .flat_map(|(p, item)| item.as_object().unwrap().keys().map(|verb| (p.clone(), verb.clone())))
            .collect();
        written.sort();
        assert_eq!(written, served());
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_of_the_openapi_document_leads_somewhere() {
        fn check(at: &serde_json::Value, document: &serde_json::Value) {
            match at {
                serde_json::Value::Object(o) => {
                    if let Some(to) = o.get("$ref") {
                        let to = to.as_str().unwrap().trim_start_matches('#');
                        assert!(document.pointer(to).is_some(), "{to}");
                    }
                    o.values().for_each(|v| check(v, document));
                }
                serde_json::Value::Array(a) => a.iter().for_each(|v| check(v, document)),
                _ => {}
            }
        }
        let document = serde_json::from_slice(docs::OPENAPI).unwrap();
        check(&document, &document);
    }

    #[test]
    fn the_page_of_the_documentation_needs_nothing_from_elsewhere() {
        let page = std::str::from_utf8(docs::PAGE).unwrap();
        for from_elsewhere in ["http:", "https:", "src=", "@import", "url(", "//cdn", "<link"] {
            assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
        }
    }

    #[test]
    fn a_trailing_slash_and_a_wrong_method_are_told_apart_from_a_wrong_path() {
        let get = |path| find(&Method::GET, path);
        assert_eq!(get("/infer"), Err(Lost::Method("/infer")));
        assert_eq!(get("/infer/"), Err(Lost::Slash("/infer")));
        assert_eq!(get("/infer//"), Err(Lost::Path));
        assert_eq!(get("/Infer"), Err(Lost::Path));
        assert_eq!(get("/v2x"), Err(Lost::Path));
        assert_eq!(get("/"), Ok(Target { route: Route::Root, endpoint: "/" }));
        assert_eq!(get("//"), Err(Lost::Slash("/")));
        assert!(find(&Method::HEAD, "/healthz").is_ok());
        assert_eq!(find(&Method::POST, "/healthz"), Err(Lost::Method("/healthz")));
    }
}
