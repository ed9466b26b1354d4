//! The benchmark that chooses: every rung of a model's ladder is measured on this device, and a pure function says which is best.
//!
//! The path of a benchmark: a [`Request`] is checked → `jobs` lets it run when its turn comes → `protocol` starts a host of its own
//! for each rung, beside what serves, and measures the nine steps → [`decide`] chooses from the numbers → the [`Record`] is kept,
//! and [`report`] makes pages of it for people.
//!
//! It promises: percentiles are of the nearest rank, so each is a time that was measured; a rung that cannot be measured is a
//! result with its reason, never a failed benchmark and never a made-up number; what a device cannot say (temperature, power) is absent,
//! never 0; the same numbers give the same decision and the same bytes of every report, whatever the order of the candidates, and
//! no clock is in them; a baseline is never replaced by a better one by itself; every queue and every store here is bounded.
//!
//! Without the feature `device` it is numbers, decision and reports only: what tools on a laptop need.

#![forbid(unsafe_code)]

mod constraint;
#[cfg(feature = "device")]
pub mod hosts;
#[cfg(feature = "device")]
pub mod jobs;
#[cfg(feature = "device")]
pub mod protocol;
mod record;
mod regress;
pub mod report;
mod request;
mod select;
mod stats;
#[cfg(feature = "device")]
mod store;
mod units;

pub use constraint::{Constraint, ConstraintError, MAX_CONSTRAINTS, Metric, Side};
pub use record::{
    BatchOf, BatchPoint, Conditions, Found, JobState, Kept, LoadPoint, MAX_BYTES, MAX_RUNGS, Measured,
    MemoryOf, NoRecord, Peak, Record, RungInfo, RungResult, SCHEMA, Step, StepResult, Stop, Subject,
};
pub use regress::{
    Baseline, CRITICAL_P99, CRITICAL_PERCENT, Key, LEAST_SAMPLES, Level, MAX_BASELINES, Regression,
    WARN_PERCENT, check,
};
pub use request::{BadRequest, MAX_BODY, MAX_SOAK_S, Request};
pub use select::{Decision, Outcome, TIE_PERCENT, Verdict, decide};
pub use stats::{STABLE_PERCENT, Summary, Thinned, agree, mean, nearest_rank, spread_percent};
pub use units::{Number, Time};
