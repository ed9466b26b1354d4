//! Calibration for a person, without a clock, a socket or a file: numbers in, numbers and sentences out.
//!
//! | module | what |
//! |---|---|
//! | [`recording`] | is a recording good enough: gaps, clipping, dead channels, strength against rest |
//! | [`mod@fit`] | scaler and head from recordings; what is held back, and how both models do on it |
//! | [`order`] | are the channels where the model expects them? |
//! | [`record`] | what is kept of it: signed by the device, bound to one network |
//!
//! The way of a calibration: recordings of rest and of each gesture → [`recording::Recording::assess`] → [`fit::scaler`] → the features
//! of windows, by whoever runs the network → [`fit::head`] → [`fit::Check`] on windows that were held back → [`record::Calibration`].

#![forbid(unsafe_code)]

pub mod fit;
pub mod order;
pub mod record;
pub mod recording;
