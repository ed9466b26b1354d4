//! Model directories for the tests, and a worker to run them on.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use inferd_engine::{AlignedBuffer, CpuEngine, Engine, EngineError, NetworkFile, Runner};
use inferd_model::{Golden, MANIFEST_FILE, Manifest};
use std::{path::PathBuf, sync::Arc};

pub fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

/// A model directory in memory.
#[derive(Clone)]
pub struct Dir {
    pub manifest: Manifest,
    pub onnx: &'static [u8],
    pub golden: Vec<u8>,
}

pub fn read(name: &str) -> Dir {
    let dir = models().join(name);
    let manifest = Manifest::from_toml(&std::fs::read_to_string(dir.join(MANIFEST_FILE)).unwrap()).unwrap();
    let onnx = std::fs::read(dir.join(&manifest.onnx.file)).unwrap().leak();
    let golden = std::fs::read(dir.join(&manifest.golden.file)).unwrap();
    Dir { manifest, onnx, golden }
}

impl Dir {
    pub fn golden(&self) -> Golden {
        Golden::parse(&self.golden, &self.manifest).unwrap()
    }

    pub fn load(&self) -> Result<Box<dyn inferd_engine::Model>, EngineError> {
        CpuEngine::new().load(NetworkFile::onnx(self.onnx), &self.manifest)
    }

    pub fn runner(&self) -> Runner {
        Runner::new(&*self.load().unwrap(), Arc::new(self.manifest.clone())).unwrap()
    }

    /// One inference.
    pub fn run(&self, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>, EngineError> {
        run(&mut self.runner(), &self.manifest, inputs)
    }
}

pub fn run(runner: &mut Runner, manifest: &Manifest, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>, EngineError> {
    let inputs: Vec<_> = inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
    let mut outputs: Vec<_> = manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
    runner.run(&inputs, &mut slices)?;
    Ok(outputs.iter().map(|o| o.as_bytes().to_vec()).collect())
}

pub fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
