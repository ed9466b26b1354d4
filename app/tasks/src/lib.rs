//! What a request of each task means.
//!
//! The room owns, per task, the form of a request body, its validation against the manifest, and the form of the answer:
//! * [`imu`]: a window of inertial samples to a latent vector and motif scores;
//! * [`emg`]: a window of muscle signals to a gesture.
//!
//! What they share: [`window`], a window of samples in JSON, and [`form`], a form of a few optional fields.
//!
//! It works on byte slices and `f32` slices only: no sockets, no processes, no clock, so that every parser here can be
//! fuzzed and tested alone. It promises never to panic on any input, to parse a good body straight into the slot it is given
//! without allocating, and to repeat no more of a client's body in an error
//! than a number.

#![forbid(unsafe_code)]

pub mod emg;
pub mod form;
pub mod imu;
pub mod window;

use inferd_model::Task;

/// Why a manifest gives no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("model {name} is of task {task}, not {wanted}")]
    Task { name: String, task: Task, wanted: Task },
    #[error("model {name}: {reason}")]
    Manifest { name: String, reason: String },
    #[error("model {name}: motif weights: {reason}")]
    Weights { name: String, reason: String },
}

/// The engine answered something that is no number; such an answer is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine answered a value that is not finite")]
pub struct NotFinite;
