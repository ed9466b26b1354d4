//! What the tests of this folder share.

use super::tensors::Slots;
use inferd_model::{Manifest, TensorSpec};

/// A manifest with these tensors.
pub fn manifest(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Manifest {
    let page = format!(
        "schema = 1\nname = \"m\"\nversion = \"1.0\"\ntask = \"tensor\"\nengines = [\"cpu\"]\n\
         [budget]\nmemory_mib = 64\ndeadline_ms = 100\n[onnx]\nfile = \"model.onnx\"\nsha256 = \"{0}\"\n\
         [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{0}\"\ncosine = 0.99\nmax_abs = 1e-3\n\
         [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [1]\n[[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [1]\n",
        "0".repeat(64)
    );
    let mut m = Manifest::from_toml(&page).expect("the page is valid");
    m.inputs = inputs;
    m.outputs = outputs;
    m.validated().expect("the tensors are valid")
}

/// Slots in memory, each byte `background` until it is written.
#[derive(Debug, PartialEq)]
pub struct Buffers(pub Vec<Vec<u8>>);

impl Buffers {
    pub fn of(model: &Manifest, background: u8) -> Self {
        Self(model.inputs.iter().map(|s| vec![background; s.byte_len()]).collect())
    }
}

impl Slots for Buffers {
    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        &mut self.0[i]
    }
}
