//! Engine hosts: child processes that run models, and the only way the daemon reaches an engine.
//!
//! One host per CPU model. `inferd` re-executes itself as `inferd engine-host`; parent and child share one sealed memfd
//! (the ring: a fixed number of slots sized from the manifest, each with request id and generation), wake each other with
//! a futex and an eventfd, and speak over one Unix socket while a model is loaded. This room owns the processes, the ring,
//! the queue (its length is the number of slots), deadlines, memory caps, restarts with backoff, and the swap of one
//! model for another.
//!
//! The path of a request: [`Hosts::get`] → [`Served::begin`] takes a slot → the caller parses into [`Ticket::input_mut`] →
//! [`Ticket::run`] queues it and waits → [`Answer::output`] is read in place → dropping the answer frees the slot.
//!
//! The path of a new model: [`Hosts::prepare`] makes a [`Candidate`] of a [`ModelSource`] (a directory, or verified bytes out of a
//! bundle) → [`Hosts::start_shadow`] may let it follow live requests → [`Hosts::promote`] turns the routes of all models of a
//! bundle at one instant → [`Served::observe`] tells how they do. [`Hosts::load`] is the short way for a directory.
//!
//! It promises: an answer belongs to its request (a late one is counted and dropped); a host may be killed, stopped, out
//! of memory or panicking and every caller still gets a typed error within its deadline; a model is ready only after its
//! golden vectors passed in the very process that serves it; a replacement fails no request, and each is answered by one
//! model from beginning to end; a shadow delays nobody; nothing here grows with load.

#![deny(unsafe_code)]

mod alloc;
mod breaker;
mod candidate;
mod cgroup;
mod child;
mod confine;
mod edition;
mod events;
mod host;
mod house;
mod limits;
#[cfg(target_arch = "x86_64")]
mod mem;
mod observe;
mod package;
mod programs;
mod recovery;
mod ring;
mod served;
mod set;
mod shadow;
mod stats;
mod suspects;
mod sys;
mod words;

pub use alloc::{CountingAllocator, keep_scratch_on_this_thread};
pub use breaker::{BreakerRules, BreakerState, BreakerView};
pub use candidate::{Candidate, PeakMemory, PrepareError, PromoteError, Promotion};
pub use child::{Engines, engine_host_main, engine_host_main_with};
pub use events::HostEvent;
pub use inferd_engine::{DEVICE_EVENTS, DeviceState};
pub use observe::{Drift, Latencies, Observation, Outputs};
pub use package::{LoadError, ModelSource, OpenFile, Origin};
pub use programs::{Asking, EngineHere, engines_main};
pub use recovery::{Device, Ladder, MAX_REBOOTS};
pub use served::{
    Answer, EngineInfo, Fallback, Histograms, InferError, Served, Snapshot, State, Ticket, Timing,
    WorkerSnapshot,
};
pub use set::{Announced, Hosts, HostsConfig};
pub use shadow::{Shadow, ShadowError, ShadowPolicy, ShadowReport};
pub use stats::End;
