//! What a request of each task means.
//!
//! The room owns, per task, the form of a request body, its validation against the manifest, and the form of the answer.
//! It works on byte slices and `f32` slices only: no sockets, no processes, no clock, so that every parser here can be
//! fuzzed and tested alone. It promises never to panic on any input, never to allocate in proportion to it, and never to
//! echo it back.

#![forbid(unsafe_code)]

