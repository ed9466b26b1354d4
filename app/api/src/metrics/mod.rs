//! The counters of the endpoint, and `/metrics`.
//!
//! Three families of names: the seed's `hailo_*` with its names, labels and buckets, so that existing dashboards work; our own
//! `inferd_*`, with buckets that resolve answers below a millisecond; and `process_*`. An inference request is counted exactly
//! once, with [`Metrics::succeeded`] or [`Metrics::failed`], whatever surface it came in by.
//!
//! Numbers that others own (queues, hosts, the process, temperatures) are read when `/metrics` is asked, never kept twice.

mod alive;
mod exposition;
pub(crate) mod live;
mod monitor;
mod pages;
mod recent;
mod updates;

use crate::{Alive, ApiConfig, Reply, Req, Updates};
use arc_swap::ArcSwap;
use hyper::{Method, StatusCode};
use inferd_hosts::Hosts;
use inferd_watch::monitor::Monitor;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// The seed's buckets of `hailo_inference_duration_seconds`.
const SEED_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets of whole requests: a small model on a small board answers within a fraction of a millisecond.
const REQUEST_BUCKETS: [f64; 22] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5,
    0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];
/// Buckets of the stages of a request, which take microseconds.
const STAGE_BUCKETS: [f64; 14] = [
    0.000_002, 0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01,
    0.1, 1.0,
];

/// Which wording of the endpoint an inference came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    /// `/infer` and its aliases.
    Infer,
    /// `/encode`.
    Encode,
    /// `/v2/.../infer`.
    Oip,
    /// The EMG form of `/infer`, and `/infer/{engine}`.
    Emg,
}

impl Surface {
    const ALL: [Self; 4] = [Self::Infer, Self::Encode, Self::Oip, Self::Emg];

    fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Encode => "encode",
            Self::Oip => "oip",
            Self::Emg => "emg",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Infer => 0,
            Self::Encode => 1,
            Self::Oip => 2,
            Self::Emg => 3,
        }
    }
}

impl EncodeLabelValue for Surface {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.name())
    }
}

/// Where the time of one answered inference went, apart from queue and compute (the hosts count those).
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// From the request's head to its complete body.
    pub receive: Duration,
    /// Body to slot.
    pub parse: Duration,
    /// Slot to reply.
    pub serialize: Duration,
    /// Everything, from the head.
    pub total: Duration,
}

/// A label set with these labels.
macro_rules! labels {
    ($name:ident { $($label:ident: $type:ty),* }) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: $type),* }
    };
}

labels!(Http { method: &'static str, endpoint: &'static str, status_code: u16 });
labels!(HttpTime { method: &'static str, endpoint: &'static str });
labels!(HttpError { endpoint: &'static str, error: &'static str });
labels!(SeedRequest { status: &'static str, model: String });
labels!(Model { model: String });
labels!(SeedError { error_type: &'static str, model: String });
labels!(Request { surface: Surface, model: String, outcome: &'static str });
labels!(RequestTime { surface: Surface, model: String });
labels!(Stage { surface: Surface });
labels!(Check { status: &'static str });

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Counters and histograms of this room.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pages: pages::Pages,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) connections_evicted: Counter,
    pub(crate) slow_heads: Counter,
    pub(crate) tls_handshakes_failed: Counter,
    http_requests: Family<Http, Counter>,
    http_time: Histograms<HttpTime>,
    http_errors: Family<HttpError, Counter>,
    health_checks: Family<Check, Counter>,
    seed_requests: Family<SeedRequest, Counter>,
    seed_time: Histograms<Model>,
    seed_errors: Family<SeedError, Counter>,
    requests: Family<Request, Counter>,
    request_time: Histograms<RequestTime>,
    clipped: Family<Model, Counter>,
    zeros: Family<Model, Counter>,
    stages: [StageTimes; 4],
    /// The counters a successful request touches, found once per model.
    models: RwLock<HashMap<String, Arc<PerModel>>>,
}

#[derive(Debug)]
struct StageTimes {
    receive: Histogram,
    parse: Histogram,
    serialize: Histogram,
}

#[derive(Debug)]
struct PerModel {
    seed_success: Counter,
    seed_time: Histogram,
    success: [Counter; 4],
    time: [Histogram; 4],
    recent: recent::Recent,
}

impl Metrics {
    /// Counters for these models.
    #[must_use]
    pub fn new(
        hosts: &Arc<Hosts>,
        config: &ApiConfig,
        updates: Arc<ArcSwap<Updates>>,
        monitor: Arc<OnceLock<Monitor>>,
        alive: Arc<Alive>,
    ) -> Self {
        let stage: Histograms<Stage> = Family::new_with_constructor(|| Histogram::new(STAGE_BUCKETS));
        let (receive, parse, serialize) = (stage.clone(), new_stage(), new_stage());
        let of = |family: &Histograms<Stage>, surface| family.get_or_create_owned(&Stage { surface });
        let mut m = Self {
            pages: pages::Pages::default(),
            registry: Registry::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            connections_evicted: Counter::default(),
            slow_heads: Counter::default(),
            tls_handshakes_failed: Counter::default(),
            http_requests: Family::default(),
            http_time: Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            http_errors: Family::default(),
            health_checks: Family::default(),
            seed_requests: Family::default(),
            seed_time: Family::new_with_constructor(|| Histogram::new(SEED_BUCKETS)),
            seed_errors: Family::default(),
            requests: Family::default(),
            request_time: Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            clipped: Family::default(),
            zeros: Family::default(),
            stages: Surface::ALL.map(|s| StageTimes {
                receive: of(&receive, s),
                parse: of(&parse, s),
                serialize: of(&serialize, s),
            }),
            models: RwLock::default(),
        };
        let r = &mut m.registry;
        r.register(
            "hailo_inference_requests",
            "Inference requests, each counted once",
            m.seed_requests.clone(),
        );
        r.register_with_unit(
            "hailo_inference_duration",
            "Wall time of answered inference requests",
            Unit::Seconds,
            m.seed_time.clone(),
        );
        if config.compat.metric_aliases {
            // Clones are the same counters.
            r.register("inference_requests", "hailo_inference_requests_total", m.seed_requests.clone());
            let what = "hailo_inference_duration_seconds";
            r.register_with_unit("inference_request_duration", what, Unit::Seconds, m.seed_time.clone());
            r.register_with_unit("inference_duration", what, Unit::Seconds, m.seed_time.clone());
        }
        r.register("hailo_errors", "Inference requests that failed, by cause", m.seed_errors.clone());
        r.register("hailo_health_checks", "Answers of /healthz", m.health_checks.clone());
        r.register("hailo_http_requests", "Requests of any kind", m.http_requests.clone());
        r.register_with_unit(
            "hailo_http_request_duration",
            "Wall time of requests, from their head to the reply",
            Unit::Seconds,
            m.http_time.clone(),
        );
        r.register(
            "inferd_http_errors",
            "Requests that were refused or failed, by cause",
            m.http_errors.clone(),
        );
        r.register("inferd_requests", "Inference requests, each counted once", m.requests.clone());
        r.register_with_unit(
            "inferd_request_duration",
            "Wall time of answered inference requests, from their head to the reply",
            Unit::Seconds,
            m.request_time.clone(),
        );
        for (name, help, family) in [
            ("inferd_receive_duration", "From the head of a request to its complete body", receive),
            ("inferd_parse_duration", "From the body to the slot", parse),
            ("inferd_serialize_duration", "From the slot to the reply", serialize),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, family);
        }
        r.register(
            "inferd_latent_clipped",
            "Answers in which a latent value exceeded the limit of the clients and was clipped",
            m.clipped.clone(),
        );
        r.register(
            "inferd_motif_zeros",
            "Answers whose motif scores are zeros because the model has no motif head",
            m.zeros.clone(),
        );
        r.register("inferd_http_connections", "Connections open now", m.connections.clone());
        r.register(
            "inferd_http_connections_refused",
            "Connections answered 503 because all places were taken",
            m.connections_refused.clone(),
        );
        r.register(
            "inferd_http_connections_evicted",
            "Idle or slow connections closed to make room for another",
            m.connections_evicted.clone(),
        );
        r.register(
            "inferd_http_slow_heads",
            "Connections closed because the head of a request did not come in time",
            m.slow_heads.clone(),
        );
        r.register_collector(Box::new(live::Live::new(hosts.clone(), config, monitor.clone())));
        r.register(
            "inferd_tls_handshakes_failed",
            "TLS handshakes that a client did not get through in its time",
            m.tls_handshakes_failed.clone(),
        );
        r.register_collector(Box::new(updates::Rollout(updates)));
        let aliases = config.compat.metric_aliases;
        r.register_collector(Box::new(monitor::Resources { monitor, aliases }));
        r.register_collector(Box::new(alive::Life(alive)));
        for status in ["healthy", "unhealthy"] {
            let _ = m.health_checks.get_or_create(&Check { status });
        }
        m
    }

    /// Shows these numbers too, read when `/metrics` is asked.
    pub(crate) fn add(&mut self, numbers: Box<dyn Collector>) {
        self.registry.register_collector(numbers);
    }

    /// Counts one inference that was answered. Exactly one of this and [`Self::failed`] per inference request.
    pub fn succeeded(&self, surface: Surface, model: &str, stages: Stages) {
        let (m, i) = (self.model(model), surface.index());
        m.seed_success.inc();
        m.seed_time.observe(stages.total.as_secs_f64());
        m.success[i].inc();
        m.time[i].observe(stages.total.as_secs_f64());
        m.recent.add(stages.total);
        let times = &self.stages[i];
        times.receive.observe(stages.receive.as_secs_f64());
        times.parse.observe(stages.parse.as_secs_f64());
        times.serialize.observe(stages.serialize.as_secs_f64());
    }

    /// What 99 of 100 of the last 1024 answered requests of this model took at most, by any surface, from their head to the reply. `None`
    /// before the first.
    pub(crate) fn p99(&self, model: &str) -> Option<Duration> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(model)?.recent.percentile(99)
    }

    /// Counts one inference that was not, by kind ([`inferd_hosts::InferError::kind`], `validation_error`, ...). `model` is the
    /// name of a served model, or `""` when there is none: labels must stay few.
    pub fn failed(&self, surface: Surface, model: &str, kind: &'static str) {
        let model = model.to_owned();
        self.seed_requests.get_or_create(&SeedRequest { status: "error", model: model.clone() }).inc();
        self.seed_errors.get_or_create(&SeedError { error_type: kind, model: model.clone() }).inc();
        self.requests.get_or_create(&Request { surface, model, outcome: kind }).inc();
    }

    fn model(&self, name: &str) -> Arc<PerModel> {
        // Both critical sections leave the map whole.
        if let Some(m) = self.models.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return m.clone();
        }
        let model = || name.to_owned();
        let request = |surface| Request { surface, model: model(), outcome: "success" };
        let made = Arc::new(PerModel {
            seed_success: self
                .seed_requests
                .get_or_create_owned(&SeedRequest { status: "success", model: model() }),
            seed_time: self.seed_time.get_or_create_owned(&Model { model: model() }),
            success: Surface::ALL.map(|s| self.requests.get_or_create_owned(&request(s))),
            time: Surface::ALL.map(|surface| {
                self.request_time.get_or_create_owned(&RequestTime { surface, model: model() })
            }),
            recent: recent::Recent::default(),
        });
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.entry(model()).or_insert(made).clone()
    }

    pub(crate) fn latent_clipped(&self, model: &str) {
        self.clipped.get_or_create(&Model { model: model.to_owned() }).inc();
    }

    pub(crate) fn motif_zeros(&self, model: &str) {
        self.zeros.get_or_create(&Model { model: model.to_owned() }).inc();
    }

    pub(crate) fn health_check(&self, healthy: bool) {
        let status = if healthy { "healthy" } else { "unhealthy" };
        self.health_checks.get_or_create(&Check { status }).inc();
    }

    /// Counts one request of any kind.
    pub(crate) fn http(
        &self,
        method: &Method,
        endpoint: &'static str,
        status: StatusCode,
        error: Option<&'static str>,
        took: Duration,
    ) {
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            // A client may invent methods; labels must stay few.
            _ => "other",
        };
        self.http_requests.get_or_create(&Http { method, endpoint, status_code: status.as_u16() }).inc();
        self.http_time.get_or_create(&HttpTime { method, endpoint }).observe(took.as_secs_f64());
        if let Some(error) = error {
            self.http_errors.get_or_create(&HttpError { endpoint, error }).inc();
        }
    }

    /// `/metrics` in the format the client asks for.
    pub(crate) async fn exposition(&self, req: &Req) -> Reply {
        let page = self.pages.get(|| {
            let mut page = String::with_capacity(64 << 10);
            prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
            let text = exposition::text(&page);
            Ok::<_, fmt::Error>((page.into(), text.into()))
        });
        let Ok(page) = page.await else {
            let detail = "Failed to generate metrics";
            return Reply::refusal(StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", detail, true);
        };
        let format = exposition::Format::wanted(&req.headers);
        let body = match format {
            exposition::Format::OpenMetrics => page.open_metrics,
            exposition::Format::Text => page.text,
        };
        Reply::new(StatusCode::OK, format.content_type(), body)
    }
}

fn new_stage() -> Histograms<Stage> {
    Family::new_with_constructor(|| Histogram::new(STAGE_BUCKETS))
}
