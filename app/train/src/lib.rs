//! Training of the small sensor models on the synthetic motion and EMG of `app/sources`.
//!
//! The room owns
//! * [`net`]: a temporal convolutional network with its derivatives, and the optimiser;
//! * [`training`]: the training loop and honest measurement on unseen windows;
//! * [`head`]: linear heads fitted to labelled latents, for calibration on a device;
//! * [`onnx`]: the network as an ONNX file;
//! * [`imu_motion`]: the appliance's default model, written as a model directory.
//!
//! It promises that the same seed gives the same windows on every platform, and the same network on the same machine;
//! that what it writes is what it computed (golden vectors come from its own forward pass); and that a model says in
//! its manifest what it was trained and measured on. It never opens a socket and never reads a clock. Of it the daemon runs
//! [`head`] alone, when a calibration is fitted (`app/calibrate`), beside the requests; the trainer is linked and never called there.

#![forbid(unsafe_code)]

mod directory;
pub mod emg_gestures;
pub mod head;
pub mod imu_motion;
pub mod net;
pub mod onnx;
pub mod training;

pub use directory::WriteError;
