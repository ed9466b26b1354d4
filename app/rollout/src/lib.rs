//! Rolls a bundle out: every gate a new model must pass, from its signature to the end of its probation.
//!
//! The room owns the order of the gates, the verdicts they leave, the trial of a staged bundle, the flip of the routes, the
//! probation, the commit and the return. Everything that brings, shows or stops an update talks to the [`Updater`]; one
//! task of it owns the state machine, which itself ([`trial`]) knows no clock, no disk and no process.
//!
//! The path of a bundle: [`Updater::begin`] → [`Upload::push`] (keys, role, revocation, floor, target, engine, memory and disk are
//! decided from the prefix, before a payload byte is stored) → [`Upload::finish`] (staged, read back from the medium) →
//! load, golden vectors, measured memory, shadow → flip → probation → commit, or return to what served before.
//!
//! It promises: what serves stays until something better has proved itself, and comes back when that was wrong; every
//! refusal and reversal leaves a [`Verdict`] with its numbers, across reboots; a power cut is not held against a model, a
//! crash is. Nothing here asks what time it is.

#![forbid(unsafe_code)]

mod believe;
mod boot;
mod clock;
mod config;
mod core;
mod finding;
mod gates;
mod install;
mod judge;
mod readiness;
mod serve;
mod shell;
mod status;
mod systems;
pub mod trial;
mod updater;
mod verdict;

pub use believe::believed;
pub use boot::{BootEvidence, Evidence, SystemEvidence};
pub use clock::{Clock, SystemClock};
pub use config::{Engine, Probation, UpdaterConfig};
pub use finding::Finding;
pub use install::{Accepted, Busy, Fetch, InstallError, Resumable, Saved, Upload, Wanted, Way};
pub use readiness::{Configuration, On, Serves, against};
pub use status::{
    CommitReady, Counters, ModelView, Progress, Scrub, Serving, ServingFrom, SlotView, Stage, Status,
    TrialPhase, TrialView, TrustView,
};
pub use updater::{ON_TRIAL, StartError, TrustError, Updater};
pub use verdict::{Gate, Outcome, Verdict};
