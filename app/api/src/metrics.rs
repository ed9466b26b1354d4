//! The counters of the endpoint.

use std::time::Duration;

/// Counters and histograms of this room.
#[derive(Debug, Default)]
pub struct Metrics {}

/// Which wording of the endpoint an inference came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    /// `/infer` and its aliases.
    Infer,
    /// `/encode`.
    Encode,
    /// `/v2/.../infer`.
    Oip,
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

impl Metrics {
    /// Counts one inference that was answered. Exactly one of this and [`Self::failed`] per inference request.
    pub fn succeeded(&self, _surface: Surface, _model: &str, _stages: Stages) {}

    /// Counts one inference that was not, by kind ([`inferd_hosts::InferError::kind`], `validation_error`, ...). `model` is the
    /// name of a served model, or `""` when there is none: labels must stay few.
    pub fn failed(&self, _surface: Surface, _model: &str, _kind: &'static str) {}
}
