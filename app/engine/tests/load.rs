//! What is refused at load, and how it is said.

mod common;

use common::{models, read};
use inferd_engine::{CpuEngine, Engine, EngineError, NetworkFile};
use inferd_model::{DType, TensorSpec};

fn load(file: &[u8]) -> EngineError {
    let dir = read("identity-fp32");
    let described = CpuEngine::describe(file).err();
    let error = CpuEngine::new()
        .load(NetworkFile::onnx(file.to_vec().leak()), &dir.manifest)
        .err()
        .expect("must be refused");
    if let Some(described) = described {
        assert_eq!(described, error, "both doors say the same");
    }
    error
}

#[test]
fn what_is_no_network_is_refused_in_a_sentence() {
    assert_eq!(load(b""), EngineError::Empty);
    for file in [
        &b"DUMMY_HEF_CONTENT_FOR_TESTING_tcn_encoder_v0.1.0"[..],
        b"{\"mock_hef\": true}",
        b"<!DOCTYPE html><html>Not Found</html>",
        b"PK\x03\x04checkpoint",
        &[0; 4096],
        &[0xff; 4096],
        b"\x08",
    ] {
        assert!(matches!(load(file), EngineError::Load(_)), "{file:?}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = read("fault-slow").onnx;
    for end in 1..whole.len() {
        let error = load(&whole[..end]);
        assert!(matches!(error, EngineError::Load(_)), "{end} of {} bytes: {error}", whole.len());
    }
}

#[test]
fn the_manifest_must_name_the_graphs_tensors() {
    let dir = read("two-in-two-out");
    let refused = |change: &dyn Fn(&mut inferd_model::Manifest)| {
        let mut changed = dir.clone();
        change(&mut changed.manifest);
        match changed.load().err() {
            Some(EngineError::Tensor { name, graph, manifest }) => (name, graph, manifest),
            other => panic!("{other:?}"),
        }
    };
    let (name, graph, manifest) = refused(&|m| m.inputs[0].shape = vec![5]);
    assert_eq!((name.as_str(), graph.as_str(), manifest.as_str()), ("a", "FP32 [4]", "FP32 [5]"));
    let (name, ..) = refused(&|m| m.inputs[1].dtype = DType::Int64);
    assert_eq!(name, "b");
    let (name, ..) = refused(&|m| m.outputs[1].shape = vec![1, 4]);
    assert_eq!(name, "product");
    let (name, graph, _) = refused(&|m| m.outputs[0].name = "total".into());
    assert_eq!((name.as_str(), graph.as_str()), ("total", "only sum, product"));
    let (name, _, manifest) = refused(&|m| drop(m.inputs.pop()));
    assert_eq!((name.as_str(), manifest.as_str()), ("b", "nothing"));
}

#[test]
fn a_dynamic_dimension_has_one_size_wherever_its_name_occurs() {
    let mut dir = read("dynamic-shape");
    dir.manifest.inputs[0].shape = vec![3, 4];
    dir.manifest.outputs[0].shape = vec![3, 2];
    let x: Vec<u8> = (0..12_u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
    let y = dir.run(&[&x]).unwrap().remove(0);
    assert_eq!(common::f32s(&y), [1.5, 3.0, 5.5, 7.0, 9.5, 11.0]);
    dir.manifest.outputs[0].shape = vec![4, 2];
    let Some(EngineError::Tensor { name, graph, .. }) = dir.load().err() else {
        panic!("two sizes for `batch`")
    };
    assert_eq!((name.as_str(), graph.as_str()), ("y", "FP32 [batch, 2]"));
}

#[test]
fn an_output_nobody_asks_for_is_not_needed() {
    let mut dir = read("two-in-two-out");
    dir.manifest.outputs.remove(0);
    let a: Vec<u8> = [2.0_f32; 4].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(dir.run(&[&a, &common::i32s(&[1, 2, 3, 4])]).unwrap(), [common::i32s(&[2, 4, 6, 8])]);
}

#[test]
fn a_manifest_that_adds_a_tensor_is_refused() {
    let mut dir = read("identity-fp32");
    dir.manifest.inputs.push(TensorSpec::plain("z", DType::Fp32, &[1]));
    assert!(matches!(dir.load().err(), Some(EngineError::Tensor { name, .. }) if name == "z"));
}

/// Deterministic numbers, xorshift64.
struct Random(u64);

impl Random {
    #[allow(clippy::unwrap_used)]
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(n).unwrap()).unwrap()
    }
}

#[test]
fn damaged_files_end_in_an_error_or_a_model_but_never_in_a_panic() {
    std::panic::set_hook(Box::new(|_| ())); // what rten panics with at load is caught, and not of interest
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut loaded, mut refused) = (0, 0);
    let mut names: Vec<_> = std::fs::read_dir(models()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let name = name.into_string().unwrap();
        if !models().join(&name).join("manifest.toml").is_file() {
            continue;
        }
        let dir = read(&name);
        for _ in 0..100 {
            let mut bytes = dir.onnx.to_vec();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                match random.below(5) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                    2 => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
                    3 => drop(bytes.remove(at)),
                    _ => {
                        let to = random.below(bytes.len());
                        bytes[at] = bytes[to];
                    }
                }
            }
            let _ = CpuEngine::describe(&bytes);
            match CpuEngine::new().load(NetworkFile::onnx(bytes.leak()), &dir.manifest) {
                Ok(_) => loaded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}
