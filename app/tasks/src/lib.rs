//! What a request of each task means.
//!
//! The room owns, per task, the form of a request body, its validation against the manifest, and the form of the answer:
//! * [`imu`]: a window of inertial samples to a latent vector and motif scores.
//!
//! It works on byte slices and `f32` slices only: no sockets, no processes, no clock, so that every parser here can be
//! fuzzed and tested alone. It promises never to panic on any input, to parse a good body straight into the slot it is given
//! without allocating, and to repeat no more of a client's body in an error
//! than a number.

#![forbid(unsafe_code)]

pub mod imu;
