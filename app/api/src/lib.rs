//! The door: HTTP/1.1 on the LAN, plain and over TLS.
//!
//! ```text
//! GET  /                     what this is and where things are; for a browser the same as /dashboard
//! GET  /dashboard            the page for people
//! GET  /healthz /livez /readyz /health
//! POST /infer /infer/infer   an IMU window to latent and motif scores; without `x` the EMG form to a gesture
//! GET  /emg/stream           the samples of a live source as a WebSocket: see `samples.rs`
//! POST /infer/stream         what a live source is recognised as, as server-sent events; GET: as a WebSocket: see `stream.rs`, `socket.rs`; GET /infer/stream/stats
//! *    /api/v1/sources        live sources: see `sources.rs`
//! *    /api/v1/calibrations   calibration for a person: see `calibrations.rs`
//! *    /api/v1/actuators      what moves by them: see `actuators.rs`
//! POST /infer/{engine}       the EMG form, by that engine or not at all
//! POST /encode               the same window to the latent alone
//! POST /api/v1/analysis/infer   the same, mistakes are 400
//! *    /api/v1/analysis/start, stream, motifs, synchrony, stop   sessions of a sensor: see `analysis.rs`
//! POST /test                 golden vectors through the running host
//! POST /benchmark           every engine of a model once: see `benchmarks.rs`, jobs of that under /api/v1/benchmarks
//! GET  /status /contract /metrics /openapi.json /docs /redoc
//! *    /api/v1/...           updates: see `updates.rs`; what is written down: see `records.rs`
//! GET  /commit-ready         may another updater confirm this boot?
//! GET  /api/v1/monitoring/status /api/v1/alerts /api/v1/alerts/events /health/performance /alert_rules.yml   see `monitoring.rs`
//! *    /api/v1/history, reboot, ...   staying alive: see `alive.rs`
//! *    /v2/...               the Open Inference Protocol
//! ```
//!
//! The room owns sockets, limits, routing, the words on the wire and the counters. It promises that a request costs bounded
//! memory and time before it is known to be good, that every mistake of a client is a 4xx whose reason repeats no more of
//! its input than a short name or a number, that overload is a 503 that says when to come back, and that nothing in an answer is made up. It runs
//! no model and starts no process: that is the hosts' room.

#![forbid(unsafe_code)]
// A refusal is a whole reply: made where something is wrong, moved once or twice, never kept.
#![allow(clippy::result_large_err)]

mod access;
mod actuators;
mod alive;
#[cfg(not(fuzzing))]
mod analysis;
#[cfg(fuzzing)]
pub mod analysis;
mod announced;
mod app;
mod benchmarks;
mod body;
mod calibrations;
mod config;
mod cpu;
mod dashboard;
mod device;
mod docs;
mod emg;
mod gate;
mod health;
pub mod http;
mod infer;
pub mod limits;
mod metrics;
mod monitoring;
pub mod oip;
mod outgoing;
mod panel;
mod query;
mod rate;
mod records;
mod router;
mod samples;
mod serve;
mod socket;
mod sources;
mod status;
mod stream;
mod updates;

pub use access::{Access, Key, Role, digest_from_hex};
pub use actuators::{ActuatorConfig, end_actuators, failing_actuator, start_actuators};
pub use alive::{Alive, Keeper, SafeMode};
pub use announced::{Announced, fitness};
pub use app::{App, Listening, Tls, Unbound, Who};
pub use benchmarks::{Benchmarks, Choice, start_benchmarks};
pub use calibrations::{failing_calibration, start_calibrations};
pub use config::{ApiConfig, Compat, Cors, RateLimit};
pub use http::{Reply, Req, RequestId};
pub use infer::{ENGINE, LATENT_CLIPPED, MOTIF_SOURCE};
pub use inferd_tasks::emg::gate::Settings as GateSettings;
pub use metrics::{Metrics, Stages, Surface};
pub use panel::{Answers, Front, Pressed, look};
pub use records::{DirectiveError, Directives, LogControl, LogState, Records, request_in_hand};
pub use serve::{Late, serve};
pub use sources::{SourceConfig, start_sources};
pub use updates::{
    Desk, Ended, Pull, PullError, PullWish, Pulling, Updates, commit_reasons, returned_system, serves,
    system_on_trial,
};
