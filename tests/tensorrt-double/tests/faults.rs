//! The engine `tensorrt` against the double: what works, and every fault it can play. Each case is a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const DRIVE: &str = env!("CARGO_BIN_EXE_drive");

/// A folder with the double under both of its names, and a plan.
struct Place {
    dir: tempfile::TempDir,
}

fn model(name: &str) -> String {
    format!("{}/../models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The shared object that cargo builds for tests.
fn double() -> PathBuf {
    Path::new(DRIVE).with_file_name("deps/libinferd_tensorrt_double.so")
}

impl Place {
    fn new(model_name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // One object for both parts: they share the device's memory.
        std::fs::copy(double(), dir.path().join("libnvinfer.so.10")).unwrap();
        std::os::unix::fs::symlink("libnvinfer.so.10", dir.path().join("libcuda.so.1")).unwrap();
        let place = Self { dir };
        place.plan(model_name, &[]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plan(&self, model_name: &str, bound_to: &[&str]) {
        let made = Command::new(DRIVE)
            .args(["plan", &model(model_name)])
            .arg(self.path("plan"))
            .args(bound_to)
            .output();
        assert!(made.unwrap().status.success());
    }

    fn fault(&self, text: &str) {
        std::fs::write(self.path("faults"), text).unwrap();
    }

    fn command(&self, model_name: &str) -> Command {
        let mut command = Command::new(DRIVE);
        command.arg("run").arg(self.path("libnvinfer.so.10")).arg(self.path("libcuda.so.1"));
        command.arg(model(model_name)).arg(self.path("plan"));
        command
    }

    fn run(&self, model_name: &str) -> (bool, String) {
        words(&self.command(model_name).output().unwrap())
    }
}

fn words(output: &Output) -> (bool, String) {
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        output.status.code().is_some(),
        "it ended by a signal: {said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), said)
}

#[test]
fn plans_give_the_answers_of_their_networks_on_two_threads() {
    for name in [
        "two-in-two-out",
        "identity-fp32",
        "identity-fp16",
        "identity-int8",
        "identity-int64",
        "identity-bool",
        "qdq-int8-conv",
    ] {
        let (good, said) = Place::new(name).run(name);
        assert!(good, "{name}: {said}");
        assert_eq!(said, "tensorrt 10.3.0 on Double (sm_87, CUDA 12.6), cosine 1.000000", "{name}");
    }
}

#[test]
fn every_fault_is_a_sentence() {
    let place = Place::new("two-in-two-out");
    for (fault, said) in [
        ("cuda-init=999", "set-up: the device is lost: cuInit: CUDA_ERROR_UNKNOWN (999)"),
        ("cuda-init=100", "set-up: the device is lost: CUDA finds no device"),
        ("cuda-init=803", "set-up: the device is lost: cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
        ("devices=0", "set-up: the device is lost: CUDA finds no device"),
        ("version=8601", "it is TensorRT 8.6.1, this program knows 10"),
        ("version=110100", "it is TensorRT 11.1.0, this program knows 10"),
        (
            "runtime=null",
            "load: the model file cannot be loaded: TensorRT gives no runtime: it does not say why",
        ),
        (
            "runtime=moved",
            "TensorRT gives no runtime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)",
        ),
        (
            "context=null",
            "session: the model file cannot be loaded: TensorRT gives no execution context: Error Code 2: OutOfMemory",
        ),
        ("allocate=2", "session: inference failed: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (2)"),
        (
            "enqueue=no",
            "golden: golden case 0: inference failed: TensorRT did not run the plan: IExecutionContext::enqueueV3: ",
        ),
        ("synchronize=719", "the device is lost: cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED (719)"),
        ("synchronize=1", "inference failed: cuStreamSynchronize: CUDA_ERROR_INVALID_VALUE (1)"),
        ("output=nan", "golden: "),
    ] {
        place.fault(fault);
        let (good, words) = place.run("two-in-two-out");
        assert!(!good && words.contains(said), "{fault}: {words}");
    }
    place.fault("");
    assert!(place.run("two-in-two-out").0, "and it works again");
}

#[test]
fn a_plan_for_another_library_or_device_or_a_damaged_one_is_refused_in_the_librarys_words() {
    let place = Place::new("two-in-two-out");
    place.plan("two-in-two-out", &["8.6.1"]);
    let (good, said) = place.run("two-in-two-out");
    assert!(!good && said.contains("expecting library version 10.3.0 got 8.6.1"), "{said}");
    place.plan("two-in-two-out", &["10.3.0", "sm_72"]);
    let (good, said) = place.run("two-in-two-out");
    assert!(!good && said.contains("expecting compute sm_87 got compute sm_72"), "{said}");

    place.plan("two-in-two-out", &[]);
    let whole = std::fs::read(place.path("plan")).unwrap();
    std::fs::write(place.path("plan"), b"").unwrap();
    assert_eq!(place.run("two-in-two-out"), (false, "load: the model file is empty".to_owned()));
    for length in [1, 7, 20, whole.len() / 2, whole.len() - 1] {
        std::fs::write(place.path("plan"), &whole[..length]).unwrap();
        let (good, said) = place.run("two-in-two-out");
        assert!(!good && said.contains("TensorRT refuses the plan"), "cut to {length}: {said}");
    }
    for at in [0, 9, whole.len() - 9] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        std::fs::write(place.path("plan"), flipped).unwrap();
        let (good, said) = place.run("two-in-two-out");
        assert!(!good && said.contains("TensorRT refuses the plan"), "bit at {at}: {said}");
    }
}

#[test]
fn a_plan_of_another_network_is_refused_by_its_tensors() {
    let place = Place::new("two-in-two-out");
    place.plan("identity-fp32", &[]);
    let (good, said) = place.run("two-in-two-out");
    assert!(!good && said.starts_with("load: tensor "), "{said}");
    place.plan("identity-fp16", &[]);
    let (good, said) = place.run("identity-fp32");
    assert!(!good && said.starts_with("load: tensor ") && said.contains("Half"), "{said}");
}

#[test]
fn a_device_that_hangs_holds_its_caller_until_it_goes_on() {
    let place = Place::new("two-in-two-out");
    place.fault("hang=1");
    let mut child = place.command("two-in-two-out").stdout(std::process::Stdio::piped()).spawn().unwrap();
    // It cannot end while the device hangs; were it to, the wait below would see it.
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    place.fault("");
    assert!(words(&child.wait_with_output().unwrap()).0);
}

#[test]
fn libraries_that_are_none_are_refused_before_they_are_trusted() {
    let place = Place::new("two-in-two-out");
    let whole = std::fs::read(place.path("libnvinfer.so.10")).unwrap();
    std::fs::remove_file(place.path("libcuda.so.1")).unwrap();
    let (_, said) = place.run("two-in-two-out");
    assert!(said.contains("libcuda.so.1: No such file"), "{said}");
    std::fs::write(place.path("libcuda.so.1"), &whole).unwrap();

    let mut other = whole.clone();
    other[18] = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let libm = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
    let libm = std::fs::read(libm.iter().find(|p| Path::new(p).exists()).unwrap()).unwrap();
    for (bytes, said) in [
        (&whole[..100_000], "it was cut short"),
        (&other[..], "it is for "),
        (&b"INPUT(-lnvinfer)"[..], "it is no shared object of 64 bits"),
        (&libm[..], "it is no TensorRT (it has no getInferLibVersion)"),
    ] {
        // Not written over: a process that has just ended may still have the old one mapped.
        std::fs::remove_file(place.path("libnvinfer.so.10")).unwrap();
        std::fs::write(place.path("libnvinfer.so.10"), bytes).unwrap();
        let (good, words) = place.run("two-in-two-out");
        assert!(!good && words.contains(said), "{words}");
    }
    std::fs::remove_file(place.path("libnvinfer.so.10")).unwrap();
    let (_, said) = place.run("two-in-two-out");
    assert!(said.contains("libnvinfer.so.10: No such file"), "{said}");
}
