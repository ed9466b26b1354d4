//! What a deployment may decide about the endpoint.

use crate::{Access, limits};
use inferd_hosts::EngineHere;
use std::time::Duration;

/// Settings of the endpoint. `Default` is the appliance as it is shipped.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The engines of this image, as far as they are known at the start ([`App::engines`](crate::App::engines) goes on from there).
    pub engines: Vec<EngineHere>,
    /// What the configuration names and is not there, one sentence each.
    pub not_there: Vec<String>,
    /// The model that answers `/infer`; `None`: the first `imu-encoder` by name.
    pub default_model: Option<String>,
    /// Zeros in `motif_scores` when the model has no motif head (`NUM_MOTIFS`).
    pub motifs_without_head: usize,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Bytes of all bodies held at once.
    pub bodies_total: usize,
    /// Connections held at once.
    pub max_connections: usize,
    /// Connections of one client address held at once, loopback excepted.
    pub max_connections_per_client: usize,
    /// Streams of live input of one client address at once, loopback excepted.
    pub max_streams_per_client: usize,
    /// Time for a request's head.
    pub head_time: Duration,
    /// Time for a request's body.
    pub body_time: Duration,
    /// How long a streamed upload may come below [`ApiConfig::upload_rate`].
    pub upload_window: Duration,
    /// Bytes a second that a streamed upload must keep up; 0 asks only for a byte in every [`ApiConfig::upload_window`].
    pub upload_rate: u64,
    /// Time between requests on a kept connection.
    pub idle_time: Duration,
    /// Time for requests in flight at shutdown.
    pub drain_time: Duration,
    /// Cross-origin rules.
    pub cors: Cors,
    /// Who may do what.
    pub access: Access,
    /// Requests per client; `None`: no limit.
    pub rate_limit: Option<RateLimit>,
    /// Requests per client that change the device, loopback excepted; `None`: no limit.
    pub change_limit: Option<RateLimit>,
    /// Deviations from the documented contract that old clients need.
    pub compat: Compat,
    /// Whether `/docs`, `/redoc` and `/openapi.json` are served.
    pub docs: bool,
    /// `GET /` repeats it, as the seed did.
    pub log_level: String,
    /// Hash of the effective configuration, hex; `/healthz` and `hailo_config_ok` show it.
    pub config_hash: String,
    /// Hash the fleet expects, if it said so.
    pub expected_config_hash: Option<String>,
    /// What was strange about the configuration (names nobody knows); `/status` repeats it.
    pub config_warnings: Vec<String>,
}

/// Cross-origin rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may read answers; `*` stands for all, an empty list switches CORS off.
    pub origins: Vec<String>,
}

/// A token bucket per client address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Requests per second that are refilled.
    pub per_second: f64,
    /// Requests that may come at once.
    pub burst: f64,
}

/// Switches for old clients. All off is the documented contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Accept numeric strings and booleans as numbers in an IMU window.
    pub lenient_numbers: bool,
    /// Answer mistakes in `/infer` and `/encode` with 400 instead of FastAPI's 422.
    pub strict_400: bool,
    /// Export Triton's `nv_inference_*` names too (they break the naming rules `promtool check metrics` knows).
    pub triton_metrics: bool,
    /// Export the names of the seed's other services too: `edge_*` of the resource monitor, `inference_*` of requests.
    pub metric_aliases: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            engines: Vec::new(),
            not_there: Vec::new(),
            default_model: None,
            motifs_without_head: limits::MOTIFS,
            body_limit: limits::BODY,
            bodies_total: limits::BODIES_TOTAL,
            max_connections: limits::CONNECTIONS,
            max_connections_per_client: limits::CONNECTIONS_PER_CLIENT,
            max_streams_per_client: limits::STREAMS_PER_CLIENT,
            head_time: limits::HEAD_TIME,
            body_time: limits::BODY_TIME,
            upload_window: limits::UPLOAD_WINDOW,
            upload_rate: limits::UPLOAD_RATE,
            idle_time: limits::IDLE_TIME,
            drain_time: limits::DRAIN_TIME,
            cors: Cors { origins: vec!["*".to_owned()] },
            access: Access::default(),
            rate_limit: None,
            change_limit: Some(limits::CHANGES),
            compat: Compat::default(),
            docs: true,
            log_level: "info".to_owned(),
            config_hash: String::new(),
            expected_config_hash: None,
            config_warnings: Vec::new(),
        }
    }
}
