//! Engines: ways to run a model.
//!
//! The room owns two small traits and their implementations. An [`Engine`] turns a network into a [`Model`]; a model
//! hands out one [`Session`] per worker thread; a session turns input bytes into output bytes, and nothing else. Vendor
//! engines implement the same three. [`Runner`] puts normalisation before a session, so that the daemon's hosts and the
//! operator's tool go the same way from raw units to an answer, and [`Runner::check_golden`] is the proof every load has
//! to give.
//!
//! It promises that an answer is computed or an error is returned: nothing is made up, truncated or converted with a
//! silent loss. It knows nothing of processes, sockets or time limits; those are the hosts' business.

#![deny(unsafe_code)] // but for opening vendor libraries

mod buffer;
#[cfg(any(feature = "hailo", feature = "tensorrt", test))]
mod busy;
#[cfg(feature = "ort")]
mod cache;
mod convert;
mod cpu;
mod error;
mod fit;
mod graph;
#[cfg(feature = "hailo")]
mod hailo;
mod onnx;
#[cfg(feature = "ort")]
mod ort;
#[cfg(any(feature = "ort", test))]
mod plain;
mod runner;
#[cfg(any(feature = "ort", feature = "hailo", feature = "tensorrt", test))]
mod shared;
#[cfg(feature = "tensorrt")]
mod tensorrt;
mod vet;

pub use buffer::{ALIGNMENT, AlignedBuffer};
#[cfg(feature = "ort")]
pub use cache::{EngineCache, Entry};
pub use cpu::CpuEngine;
pub use error::EngineError;
pub use graph::{DimInfo, GraphInfo, TensorInfo};
#[cfg(feature = "hailo")]
pub use hailo::{COOL, HailoEngine, HailoHere};
#[cfg(feature = "ort")]
pub use ort::{OrtEngine, OrtLibrary, Provider};
pub use runner::{GoldenCheckError, Runner};
#[cfg(feature = "tensorrt")]
pub use tensorrt::{TensorrtEngine, TensorrtLibrary};

use inferd_model::{EngineKind, Manifest, NetworkFormat};
use std::path::PathBuf;

/// A network's file as a host has it: verified memory that lives as long as the process (a sealed memfd).
#[derive(Clone, Copy, Debug)]
pub struct NetworkFile {
    /// Its content.
    pub bytes: &'static [u8],
    /// How it is written down.
    pub format: NetworkFormat,
}

impl NetworkFile {
    /// An ONNX file.
    #[must_use]
    pub const fn onnx(bytes: &'static [u8]) -> Self {
        Self { bytes, format: NetworkFormat::Onnx }
    }

    /// Its content, when it is of the format an engine runs.
    ///
    /// # Errors
    /// [`EngineError::Format`].
    pub fn of(self, wanted: NetworkFormat) -> Result<&'static [u8], EngineError> {
        match self.format {
            got if got == wanted => Ok(self.bytes),
            got => Err(EngineError::Format { wanted, got }),
        }
    }
}

/// A way to run models.
pub trait Engine: Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// The library behind it and its version: `rten 0.27.0`.
    fn version(&self) -> String;

    /// The device it runs on, as `/healthz` shows it: `cpu`, `hailo8`.
    fn device(&self) -> String;

    /// Asks the system for what the engine's library needs once in a process, before any network is read: an engine host opens
    /// no file for the built-in engine afterwards. Nothing is lost without it elsewhere.
    ///
    /// # Errors
    /// [`EngineError`] when the library or its device is not to be had.
    fn set_up(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Where its library is, when it is one loaded at run time. Asked after a model was loaded.
    fn library(&self) -> Option<PathBuf> {
        None
    }

    /// What an operator should know of how the model was loaded: that something better was tried and why it was refused. Asked after it
    /// was.
    fn remark(&self) -> Option<String> {
        None
    }

    /// Whether loading this network builds an engine out of it first, which may take minutes and is done once for a device. Asked
    /// right before [`Engine::load`], so that it is shown and gets the time it needs.
    fn must_build(&self, _network: NetworkFile, _manifest: &Manifest) -> bool {
        false
    }

    /// Loads a network: the model's own, or a variant of it with the same inputs and outputs.
    ///
    /// # Errors
    /// [`EngineError`] when the file is of another format or damaged, an operator is missing or known to be computed wrongly, or inputs and
    /// outputs are not those of the manifest.
    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError>;

    /// How its device is, when it has one that says so. Asked from a thread of its own, while models are loaded and run.
    fn device_state(&self) -> Option<DeviceState> {
        None
    }

    /// Why nothing more comes of its device, when that shows without a request. Asked after [`Engine::device_state`]; the engine has let go
    /// of the device by then, and its host ends.
    fn lost(&self) -> Option<EngineError> {
        None
    }

    /// Runs a worker's whole life on a thread this engine computes well on, and returns when it is over. A panic in
    /// `life` comes out here.
    ///
    /// Sessions work on any thread, but inside of `life` they compute on the calling thread itself, without a hop to a
    /// thread of the engine's library and back. An engine without such threads runs `life` in place, as this default does.
    fn worker(&self, life: Box<dyn FnOnce() + Send + '_>) {
        life();
    }
}

/// How an accelerator is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceState {
    /// Degrees Celsius of the hotter sensor, when it answers.
    pub temperature: Option<f32>,
    /// Watts, where it can measure them.
    pub power: Option<f32>,
    /// The share of the time since it was asked last in which it had calls of this process under way, from 0 to 1.
    pub load: Option<f32>,
    /// Bytes of its memory that anybody uses, and all of it; where it tells.
    pub memory: Option<DeviceMemory>,
    /// What it said of its temperature last: 0 normal, 1 high, 2 too high; `None` for one that tells of nothing by itself.
    pub zone: Option<u32>,
    /// How often it has told each of [`DEVICE_EVENTS`] since it was opened.
    pub events: [u64; DEVICE_EVENTS.len()],
}

/// The memory of an accelerator, or what it shares with the board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that are in use, whoever uses them.
    pub used: u64,
    /// All bytes.
    pub total: u64,
}

/// What a device may tell, as metrics call it.
pub const DEVICE_EVENTS: [&str; 9] = [
    "temperature_alarm",
    "dataflow_shutdown",
    "overcurrent",
    "ecc_corrected",
    "ecc_uncorrectable",
    "cpu_ecc",
    "cpu_ecc_fatal",
    "clock_changed",
    "run_time_error",
];

/// A loaded network, shared by all workers.
pub trait Model: Send + Sync {
    /// Makes what one worker thread needs; called on that thread.
    ///
    /// # Errors
    /// [`EngineError`] when the engine cannot give another session.
    fn session(&self) -> Result<Box<dyn Session>, EngineError>;
}

/// One worker's way to run the network. It stays on the thread that made it.
pub trait Session {
    /// Runs the network once. One little-endian, row-major buffer per tensor in the manifest's order, each of exactly
    /// the specified length and aligned to 64 bytes; inputs are already normalised.
    ///
    /// # Errors
    /// [`EngineError`]; `outputs` then hold nothing of value.
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError>;

    /// Whether the device must be opened again before anything else runs. That may take longer than a request may, so a host ends
    /// then, once what was asked is answered: the next one opens the device while it loads.
    fn is_spent(&self) -> bool {
        false
    }
}
