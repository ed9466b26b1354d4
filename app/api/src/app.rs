//! What all handlers share.

use crate::{ApiConfig, Metrics, Reply, Req};
use inferd_hosts::{Hosts, Served};
use inferd_model::Task;
use std::sync::Arc;
use std::time::Instant;

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
    /// What the Open Inference Protocol counts for its statistics.
    pub oip: crate::oip::Doors,
}

impl App {
    /// The endpoint over these models.
    #[must_use]
    pub fn new(hosts: Arc<Hosts>, config: ApiConfig) -> Self {
        Self { hosts, config, metrics: Metrics::default(), started: Instant::now(), oip: crate::oip::Doors::default() }
    }

    /// The model that answers `/infer`: the configured one, else the first IMU encoder by name.
    #[must_use]
    pub fn default_model(&self) -> Option<Arc<Served>> {
        match &self.config.default_model {
            Some(name) => self.hosts.get(name),
            None => self.hosts.list().into_iter().find(|m| m.manifest().task == Task::ImuEncoder),
        }
    }

    /// Whether this request may change the device (load or unload a model).
    ///
    /// # Errors
    /// The 401 or 403 reply, with the reason.
    pub fn may_change(&self, _req: &Req) -> Result<(), Reply> {
        Err(Reply::refusal(hyper::StatusCode::FORBIDDEN, "forbidden", "not yet decided", true))
    }
}
