//! What all handlers share.

use crate::body::Held;
use crate::rate::RateLimiter;
use crate::{ApiConfig, Metrics, Reply, Req, Updates, limits};
use arc_swap::ArcSwap;
use hyper::{StatusCode, header};
use inferd_hosts::{Hosts, Served};
use inferd_model::{Manifest, Motif, Task};
use inferd_tasks::imu::{ImuPlan, PlanError};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::{Semaphore, watch};

/// The endpoint's shared state.
pub struct App {
    /// The models.
    pub hosts: Arc<Hosts>,
    /// The settings.
    pub config: ApiConfig,
    /// The counters.
    pub metrics: Metrics,
    /// When the endpoint was made.
    pub started: Instant,
    /// Updates over the air, where they are configured.
    pub updates: Arc<ArcSwap<Updates>>,
    /// What the Open Inference Protocol counts for its statistics.
    pub(crate) oip: crate::oip::Doors,
    pub(crate) bodies: Held,
    pub(crate) limiter: Option<RateLimiter>,
    /// True from the moment the endpoint is told to end: what would go on for long ends then.
    pub(crate) ending: watch::Sender<bool>,
    /// Places of those who listen to events.
    pub(crate) listeners: Arc<Semaphore>,
    /// One `/test` at a time.
    pub(crate) testing: tokio::sync::Mutex<()>,
    /// How windows of each loaded model are read; few, and dropped with the last request of a
    /// model that was replaced.
    plans: ArcSwap<Vec<(Weak<Manifest>, Arc<ImuPlan>)>>,
}

impl App {
    /// The endpoint over these models.
    #[must_use]
    pub fn new(hosts: Arc<Hosts>, config: ApiConfig) -> Self {
        let updates = Arc::new(ArcSwap::from_pointee(Updates::Off));
        Self {
            metrics: Metrics::new(&hosts, &config, updates.clone()),
            limiter: config.rate_limit.map(RateLimiter::new),
            hosts,
            config,
            started: Instant::now(),
            updates,
            oip: crate::oip::Doors::default(),
            bodies: Held::default(),
            ending: watch::Sender::new(false),
            listeners: Arc::new(Semaphore::new(limits::LISTENERS)),
            testing: tokio::sync::Mutex::default(),
            plans: ArcSwap::default(),
        }
    }

    /// The model that health is about and that answers `/infer`: the configured one, else the first IMU encoder by name,
    /// else, on a device that has none, the first model by name (once the search for models is over).
    #[must_use]
    pub fn default_model(&self) -> Option<Arc<Served>> {
        if let Some(name) = &self.config.default_model {
            return self.hosts.get(name);
        }
        let models = self.hosts.list();
        let encoder = models.iter().find(|m| m.manifest().task == Task::ImuEncoder);
        encoder.or_else(|| models.first().filter(|_| !self.hosts.loading())).cloned()
    }

    /// What this model is and how its windows are read.
    pub(crate) fn imu_plan(&self, model: &Served) -> Result<(Arc<Manifest>, Arc<ImuPlan>), PlanError> {
        loop {
            let manifest = model.manifest();
            // Without a plan it was replaced between the two lines, which is over sooner than it can happen again.
            if let Some(plan) = self.imu_plan_of(model, &manifest)? {
                return Ok((manifest, plan));
            }
        }
    }

    /// How windows are read that this manifest describes, now or until a moment ago that of the model. Made on its first
    /// request and kept for as long as the manifest is. `None`: the model was replaced, and the weights with it.
    pub(crate) fn imu_plan_of(
        &self,
        model: &Served,
        manifest: &Arc<Manifest>,
    ) -> Result<Option<Arc<ImuPlan>>, PlanError> {
        let known = self.plans.load();
        if let Some((_, plan)) = known.iter().find(|(m, _)| std::ptr::eq(m.as_ptr(), Arc::as_ptr(manifest))) {
            return Ok(Some(plan.clone()));
        }
        let weights = model.motif_weights();
        let linear =
            matches!(manifest.imu.as_ref().and_then(|i| i.motif.as_ref()), Some(Motif::Linear { .. }));
        if linear && !Arc::ptr_eq(&model.manifest(), manifest) {
            return Ok(None);
        }
        let plan = Arc::new(ImuPlan::new(manifest, weights.as_deref(), self.config.motifs_without_head)?);
        self.plans.rcu(|plans| {
            let mut kept: Vec<_> = plans.iter().filter(|(m, _)| m.strong_count() > 0).cloned().collect();
            kept.push((Arc::downgrade(manifest), plan.clone()));
            kept
        });
        Ok(Some(plan))
    }

    /// Whether this request may change the device (load or unload a model).
    ///
    /// With an API key configured, it must carry it as `X-API-Key` or `Authorization: Bearer`. Without one it must come from
    /// this machine, and not from a web page of another origin that a browser on this machine happens to show.
    ///
    /// # Errors
    /// The 401 or 403 reply, with the reason.
    pub fn may_change(&self, req: &Req) -> Result<(), Reply> {
        let refuse = |status, detail| Err(Reply::refusal(status, "forbidden", detail, true));
        if let Some(key) = &self.config.api_key {
            let bearer = || {
                let value = req.header(&header::AUTHORIZATION)?;
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            };
            return match req.headers.get("x-api-key").and_then(|v| v.to_str().ok()).or_else(bearer) {
                Some(given) if same(given, key) => Ok(()),
                Some(_) => refuse(StatusCode::FORBIDDEN, "the API key is not the right one"),
                None => refuse(
                    StatusCode::UNAUTHORIZED,
                    "this changes the device and needs an API key, as X-API-Key or Authorization: Bearer",
                )
                .map_err(|r: Reply| {
                    r.with(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"))
                }),
            };
        }
        if !req.peer.ip().to_canonical().is_loopback() {
            return refuse(
                StatusCode::FORBIDDEN,
                "this changes the device; no API key is configured, so it is allowed from the device itself only",
            );
        }
        if !from_no_page(req) {
            return refuse(
                StatusCode::FORBIDDEN,
                "this changes the device and no API key is configured, so web pages of other hosts may not ask for it",
            );
        }
        Ok(())
    }
}

/// Compares without telling by time how much was right: the digests of a guess say nothing about the key.
fn same(given: &str, key: &str) -> bool {
    Sha256::digest(given) == Sha256::digest(key)
}

/// Whether the request comes from a program, or from a page this endpoint served under a local name (an attacker's name may
/// point to this machine too, so a page's host must be an address or `localhost`).
fn from_no_page(req: &Req) -> bool {
    let Some(origin) = req.headers.get(header::ORIGIN) else { return true };
    let Some(host) = req.header(&header::HOST) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let same_origin = origin.to_str().ok().and_then(|o| o.split_once("://")).is_some_and(|(_, o)| o == host);
    same_origin && (address || name == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;
    use hyper::header::{HeaderMap, HeaderName, HeaderValue};
    use inferd_hosts::HostsConfig;

    fn app(api_key: Option<&str>) -> App {
        let config = ApiConfig { api_key: api_key.map(str::to_owned), ..ApiConfig::default() };
        App::new(Hosts::new(HostsConfig::default()), config)
    }

    fn from(peer: &str, headers: &[(&str, &str)]) -> Req {
        let header = |(n, v): &(&str, &str)| {
            (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap())
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        Req {
            method: hyper::Method::POST,
            path: "/v2/repository/models/m/load".to_owned(),
            query: None,
            id: RequestId::from_headers(&headers),
            headers,
            body: bytes::Bytes::new(),
            peer: std::net::SocketAddr::new(peer.parse().unwrap(), 4000),
            received: Instant::now(),
        }
    }

    fn status(app: &App, req: &Req) -> u16 {
        app.may_change(req).map_or_else(|r| r.status.as_u16(), |()| 200)
    }

    #[test]
    fn without_a_key_only_this_machine_may_change_it() {
        let app = app(None);
        for local in ["127.0.0.1", "::1", "127.8.8.8", "::ffff:127.0.0.1"] {
            assert_eq!(status(&app, &from(local, &[])), 200, "{local}");
        }
        for other in ["192.168.1.7", "::ffff:192.168.1.7", "fe80::1", "0.0.0.0"] {
            assert_eq!(status(&app, &from(other, &[])), 403, "{other}");
        }
    }

    #[test]
    fn a_foreign_page_in_a_local_browser_may_not() {
        let app = app(None);
        let page = |origin, host| status(&app, &from("127.0.0.1", &[("origin", origin), ("host", host)]));
        assert_eq!(page("http://localhost:9000", "localhost:9000"), 200);
        assert_eq!(page("http://127.0.0.1:9000", "127.0.0.1:9000"), 200);
        assert_eq!(page("http://[::1]:9000", "[::1]:9000"), 200);
        assert_eq!(page("http://evil.example", "127.0.0.1:9000"), 403);
        assert_eq!(page("http://evil.example:9000", "evil.example:9000"), 403, "a name that was rebound");
        assert_eq!(page("null", "localhost:9000"), 403);
    }

    #[test]
    fn with_a_key_everyone_needs_it() {
        let app = app(Some("correct-horse-battery"));
        let given = |headers: &[(&str, &str)]| status(&app, &from("127.0.0.1", headers));
        assert_eq!(given(&[]), 401);
        assert_eq!(given(&[("x-api-key", "wrong")]), 403);
        assert_eq!(given(&[("authorization", "Basic correct-horse-battery")]), 401);
        assert_eq!(given(&[("authorization", "Bearer correct-horse-batter")]), 403);
        assert_eq!(given(&[("authorization", "bearer correct-horse-battery")]), 200);
        assert_eq!(given(&[("x-api-key", "correct-horse-battery")]), 200);
        let far = from("192.168.1.7", &[("x-api-key", "correct-horse-battery")]);
        assert_eq!(status(&app, &far), 200);
    }
}
