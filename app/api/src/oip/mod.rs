//! The Open Inference Protocol v2, everything under `/v2`, as KServe specifies it and Triton extends it.
//!
//! ```text
//! GET  /v2                                      server metadata
//! GET  /v2/health/live  /v2/health/ready        this process; every model
//! GET  /v2/models                               the names of the models
//! GET  /v2/models/{m}[/versions/{v}]            metadata, with the input contract under `parameters`
//! GET  .../ready  .../config  .../stats         one model
//! GET  /v2/models/stats                         all models
//! POST .../infer                                tensors in, tensors out
//! POST /v2/repository/index                     what is known, and in which state
//! POST /v2/repository/models/{m}/load | unload  from the directory the model came from
//! ```
//!
//! * Framing is decided by `Inference-Header-Content-Length` alone: absent, the body is JSON; 0, the body is the only input
//!   of the model; otherwise JSON of that length, then binary tensors. `Content-Type` is not looked at.
//! * Every fixed-size datatype; `BYTES` only as the answer to `classification`. FP16 and BF16 exist as binary data only, and
//!   NaN or an infinity too: an output that holds one is a 400 when it was asked for as JSON.
//! * An input with limits or normalisation is a measurement: finite, within its limits, in the units of the metadata; the
//!   server normalises. Other inputs are plain tensors.
//! * A model has one version, its manifest's. `priority` is read and changes nothing; `timeout` (microseconds) and
//!   `Inference-Deadline-Ms` both count from when the request's head has come, the shorter one
//!   holds.
//! * Requests may be gzip or deflate; replies of `infer` are, when the client names the coding. Other replies never are:
//!   `tritonclient.http.aio` asks for compression everywhere and undoes it only there.
//! * Shared memory, sequences, tracing, log settings and text generation are refused by name (501 for the endpoint, 400 for
//!   the parameter). A mistake of the client is a 4xx with `{"error": ...}`, never a 5xx.
//!
//! The room never interprets a name as a path and never runs a request that it read only in part.

use crate::access::Need;
use crate::records::carried;
use crate::{App, Reply, Req, updates};
use describe::{IndexEntry, ModelConfig, ModelMetadata, ModelStat, ServerMetadata, Statistics};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use inferd_hosts::{Served, State};
use route::{NoRoute, OfModel, Route};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod compress;
mod describe;
mod doors;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod infer;
mod reply;
mod request;
mod route;
mod tensors;
#[cfg(test)]
mod testing;

pub use doors::Doors;

/// Answers every path under `/v2`. What is compressed has been compressed here: the reply forbids more.
pub async fn handle(app: &App, req: &Req) -> Reply {
    answer(app, req).await.with(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"))
}

/// What a path under `/v2` needs of who asks.
pub(crate) fn needs(path: &str) -> Need {
    // Decoded as it is for its handler: no way of writing a path is open that another way is not.
    match Route::of(path) {
        Ok(Route::Live | Route::Ready) => Need::Nothing,
        Ok(Route::Server | Route::Models | Route::AllStatistics | Route::Index | Route::Unsupported(_)) => {
            Need::Read
        }
        Ok(Route::Model { what: OfModel::Infer, .. }) => Need::Infer,
        Ok(Route::Model { .. }) => Need::Read,
        Ok(Route::Load(_) | Route::Unload(_)) => Need::Operate,
        Err(NoRoute::NotFound | NoRoute::Encoding) => Need::Read,
    }
}

async fn answer(app: &App, req: &Req) -> Reply {
    let route = match Route::of(&req.path) {
        Ok(route) => route,
        Err(NoRoute::NotFound) => {
            return refuse(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing at this path; GET /v2 describes the server",
            );
        }
        Err(NoRoute::Encoding) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "validation_error",
                "the path is not percent-encoded UTF-8",
            );
        }
    };
    if !route.allows(&req.method) {
        let allow = route.allow().unwrap_or_default();
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            &format!("this path answers {allow}"),
        )
        .with(header::ALLOW, HeaderValue::from_static(allow));
    }
    match route {
        Route::Server => ok(&ServerMetadata::THIS),
        Route::Live => ok(&json!({ "live": true })),
        Route::Ready => server_ready(app),
        Route::Models => {
            let names: Vec<String> = app.hosts.list().iter().map(|m| m.manifest().name.to_string()).collect();
            ok(&json!({ "models": names }))
        }
        Route::AllStatistics => {
            let all: Vec<ModelStat> = app.hosts.list().iter().map(|m| statistics(app, m)).collect();
            ok(&Statistics { model_stats: all })
        }
        Route::Model { name, version, what } => match find(app, &name, version.as_deref()) {
            Err(reason) => {
                if what == OfModel::Infer {
                    app.metrics.failed(crate::Surface::Oip, "", "not_found");
                }
                refuse(StatusCode::NOT_FOUND, "not_found", &reason)
            }
            Ok(served) => match what {
                OfModel::Infer => infer::infer(app, req, &served).await,
                OfModel::Metadata => {
                    ok(&ModelMetadata::of(&served.manifest(), &served.engine(), served.agreement()))
                }
                OfModel::Ready => model_ready(&served),
                OfModel::Config => {
                    let workers = served.snapshot().workers.len();
                    ok(&ModelConfig::of(&served.manifest(), &served.engine(), workers))
                }
                OfModel::Statistics => ok(&Statistics { model_stats: vec![statistics(app, &served)] }),
            },
        },
        Route::Index => index(app, req),
        Route::Load(name) => load(app, req, &name).await,
        Route::Unload(name) => unload(app, req, &name).await,
        Route::Unsupported(what) => {
            refuse(StatusCode::NOT_IMPLEMENTED, "unsupported", &format!("this server has no {what}"))
        }
    }
}

fn ok(body: &impl serde::Serialize) -> Reply {
    Reply::json(StatusCode::OK, body)
}

/// A refusal in the protocol's form.
fn refuse(status: StatusCode, kind: &'static str, message: &str) -> Reply {
    Reply::json(status, &json!({ "error": message })).with_error(kind)
}

/// The model, if it is served in this version; else why not.
fn find(app: &App, name: &str, version: Option<&str>) -> Result<Arc<Served>, String> {
    let quoted = error::quote(name);
    let Some(served) = app.hosts.get(name) else {
        return Err(match (app.hosts.last_load_error(name), app.hosts.directory(name)) {
            (Some(reason), _) => format!("the model {quoted} is not loaded: {reason}"),
            (None, Some(_)) => format!("the model {quoted} is not loaded"),
            (None, None) => format!("there is no model {quoted}"),
        });
    };
    match version {
        Some(v) if v != served.manifest().version => {
            let has = &served.manifest().version;
            Err(format!("the model {quoted} is served in version {has}, not in {}", error::quote(v)))
        }
        _ => Ok(served),
    }
}

fn server_ready(app: &App) -> Reply {
    let models = app.hosts.list();
    let waiting: Vec<String> = models
        .iter()
        .map(|m| (m.manifest().name.to_string(), m.state()))
        .filter(|(_, state)| *state != State::Ready)
        .map(|(name, state)| format!("{name}: {}", describe::state_reason(&state)))
        .collect();
    let reason = match (models.is_empty(), waiting.is_empty()) {
        (false, true) => return ok(&json!({ "ready": true })),
        (false, false) => waiting.join("; "),
        (true, _) => match app.hosts.load_errors().into_iter().next() {
            Some((_, reason)) => format!("no model is loaded: {reason}"),
            None => "no model is loaded".to_owned(),
        },
    };
    let body = json!({ "ready": false, "error": reason });
    Reply::json(StatusCode::SERVICE_UNAVAILABLE, &body).with_error("model_unavailable")
}

fn model_ready(served: &Served) -> Reply {
    let name = served.manifest().name.to_string();
    match served.state() {
        State::Ready => ok(&json!({ "name": name, "ready": true })),
        state => {
            let body = json!({ "name": name, "ready": false, "error": describe::state_reason(&state) });
            Reply::json(StatusCode::SERVICE_UNAVAILABLE, &body).with_error("model_unavailable")
        }
    }
}

fn statistics(app: &App, served: &Served) -> ModelStat {
    let manifest = served.manifest();
    let door = app.oip.of(manifest.name.as_str()).read();
    ModelStat::of(&manifest, &served.state(), &served.snapshot(), door)
}

// ---------------------------------------------------------------------------------------------------- the repository

fn index(app: &App, req: &Req) -> Reply {
    let only_ready = match request::index(&req.body) {
        Ok(only_ready) => only_ready,
        Err(e) => return refuse(StatusCode::BAD_REQUEST, "validation_error", &e.to_string()),
    };
    let entries = entries(app);
    let shown: Vec<&IndexEntry> = entries.values().filter(|e| !only_ready || e.state == "READY").collect();
    ok(&shown)
}

/// Every model that is served, was served, or failed to load, by name.
fn entries(app: &App) -> BTreeMap<String, IndexEntry> {
    let mut entries = BTreeMap::new();
    for served in app.hosts.list() {
        let (manifest, state) = (served.manifest(), served.state());
        let name = manifest.name.to_string();
        let entry = IndexEntry {
            name: name.clone(),
            version: Some(manifest.version.clone()),
            state: describe::state_name(&state),
            reason: describe::state_reason(&state),
        };
        entries.insert(name, entry);
    }
    let directories = app.hosts.known();
    let unloaded = |name: String| IndexEntry {
        name,
        version: None,
        state: "UNAVAILABLE",
        reason: "unloaded".to_owned(),
    };
    for (name, _) in &directories {
        entries.entry(name.clone()).or_insert_with(|| unloaded(name.clone()));
    }
    for (of, reason) in app.hosts.load_errors() {
        // A failure before the manifest could be read is known by its directory alone.
        let known = directories
            .iter()
            .find(|(name, origin)| *name == of || origin.directory() == Some(Path::new(&of)));
        let name = known.map_or_else(|| file_name(&of), |(name, _)| name.clone());
        let entry = entries.entry(name.clone()).or_insert_with(|| unloaded(name));
        entry.reason = match entry.state {
            "READY" => format!("the last load failed, the model before it serves on: {reason}"),
            _ => reason,
        };
    }
    entries
}

fn file_name(directory: &str) -> String {
    Path::new(directory)
        .file_name()
        .map_or_else(|| directory.to_owned(), |n| n.to_string_lossy().into_owned())
}

/// The directory a model came from. A name is compared with what is known, and becomes no path.
fn directory(app: &App, name: &str) -> Option<PathBuf> {
    let failed = || app.hosts.load_errors().into_iter().map(|(of, _)| of).find(|of| file_name(of) == name);
    app.hosts.directory(name).or_else(|| failed().map(PathBuf::from))
}

/// A refusal of the shared rules in the protocol's form: the same status and headers, the reason as `error`.
pub(crate) fn in_our_form(mut reply: Reply) -> Reply {
    let detail = serde_json::from_slice::<serde_json::Value>(&reply.body)
        .ok()
        .and_then(|body| body.get("detail")?.as_str().map(str::to_owned));
    if let Some(detail) = detail {
        reply.body = json!({ "error": detail }).to_string().into();
    }
    reply
}

async fn load(app: &App, req: &Req, name: &str) -> Reply {
    let bad = |message: &str| refuse(StatusCode::BAD_REQUEST, "validation_error", message);
    if let Err(e) = request::control(&req.body) {
        return bad(&e.to_string());
    }
    if let Some(reason) = updates::held_by_bundle(app, name) {
        return refuse(StatusCode::CONFLICT, "held_by_bundle", &reason);
    }
    let Some(dir) = directory(app, name) else {
        let message = format!("there is no model {} in the repository", error::quote(name));
        return refuse(StatusCode::NOT_FOUND, "not_found", &message);
    };
    // In a task of its own: a load that began ends, whether the client waits for it or not.
    let hosts = app.hosts.clone();
    match tokio::spawn(carried(async move { hosts.load(&dir).await })).await {
        Ok(Ok(served)) if served.manifest().name.as_str() == name => {
            ok(&json!({ "name": name, "version": served.manifest().version, "state": "READY" }))
        }
        Ok(Ok(served)) => bad(&format!(
            "the directory of the model {name} now holds a model called {}, which was loaded beside it",
            served.manifest().name
        )),
        Ok(Err(e)) => refuse(StatusCode::BAD_REQUEST, "load_failed", &e.to_string()),
        Err(e) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", &format!("the load was lost: {e}"))
        }
    }
}

async fn unload(app: &App, req: &Req, name: &str) -> Reply {
    if let Err(e) = request::control(&req.body) {
        return refuse(StatusCode::BAD_REQUEST, "validation_error", &e.to_string());
    }
    if let Some(reason) = updates::held_by_bundle(app, name) {
        return refuse(StatusCode::CONFLICT, "held_by_bundle", &reason);
    }
    let (hosts, model) = (app.hosts.clone(), name.to_owned());
    match tokio::spawn(carried(async move { hosts.unload(&model).await })).await {
        Ok(Ok(())) => ok(&json!({ "name": name, "state": "UNAVAILABLE" })),
        // The only way to fail is that there is no such model.
        Ok(Err(_)) => refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("there is no model {} to unload", error::quote(name)),
        ),
        Err(e) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unexpected_error",
            &format!("the unload was lost: {e}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApiConfig, RequestId};
    use hyper::{HeaderMap, Method};
    use inferd_hosts::{Hosts, HostsConfig};
    use std::time::Instant;

    /// Asks an endpoint without models.
    async fn ask(
        peer: &str,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> (u16, serde_json::Value, Reply) {
        let app = App::new(Hosts::new(HostsConfig::default()), ApiConfig::default());
        let headers = HeaderMap::new();
        let req = Req {
            method,
            path: path.to_owned(),
            query: None,
            id: RequestId::from_headers(&headers),
            headers,
            body: body.into(),
            peer: peer.parse().unwrap(),
            received: Instant::now(),
        };
        let reply = handle(&app, &req).await;
        (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap(), reply)
    }

    const HERE: &str = "127.0.0.1:4000";

    #[tokio::test]
    async fn without_a_model_the_server_lives_but_is_not_ready() {
        let (status, body, _) = ask(HERE, Method::GET, "/v2/health/live", "").await;
        assert_eq!((status, body), (200, json!({ "live": true })));
        let (status, body, reply) = ask(HERE, Method::GET, "/v2/health/ready", "").await;
        assert_eq!((status, body), (503, json!({ "ready": false, "error": "no model is loaded" })));
        assert_eq!(reply.error, Some("model_unavailable"));
        let (status, body, _) = ask(HERE, Method::POST, "/v2/repository/index", "").await;
        assert_eq!((status, body), (200, json!([])));
        let (status, body, _) = ask(HERE, Method::GET, "/v2/models/stats", "").await;
        assert_eq!((status, body), (200, json!({ "model_stats": [] })));
    }

    #[tokio::test]
    async fn every_refusal_is_in_the_protocols_form_and_marked_for_the_metrics() {
        for (method, path, body, want) in [
            (Method::GET, "/v2/nothing", "", 404),
            (Method::GET, "/v2/models/%", "", 400),
            (Method::GET, "/v2/models/m", "", 404),
            (Method::POST, "/v2/models/m/infer", "{}", 404),
            (Method::GET, "/v2/models/m/infer", "", 405),
            (Method::POST, "/v2/repository/index", "[", 400),
            (Method::POST, "/v2/repository/models/m/load", "", 404),
            (Method::POST, "/v2/repository/models/m/load", "[", 400),
            (Method::POST, "/v2/repository/models/m/unload", "", 404),
            (Method::POST, "/v2/logging", "", 501),
        ] {
            let (status, body, reply) = ask(HERE, method, path, body).await;
            assert_eq!(status, want, "{path}");
            assert!(body["error"].as_str().is_some_and(|e| !e.is_empty()), "{path}: {body}");
            assert!(reply.error.is_some(), "{path}");
        }
    }
}
