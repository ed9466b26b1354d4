//! Slots, sizes and numbers against NVIDIA's headers, where `INFERD_TENSORRT_INCLUDE` names a folder with them (TensorRT 10, its
//! `include`). Two programs are compiled with the C++ compiler: one prints what the headers say, the other is a client made of the
//! headers' own inline functions that runs a plan on the double.
//!
//! NVIDIA's headers include CUDA's for two types, which the tests declare.

use inferd_tensorrt_abi::tables::SLOTS;
use inferd_tensorrt_abi::{DataType, Dims, IoMode, Location, Severity, TensorFormat};
use std::path::{Path, PathBuf};
use std::process::Command;

const DRIVE: &str = env!("CARGO_BIN_EXE_drive");

/// The folder of the headers; without one there is nothing to compare with, and the test says so.
fn headers() -> Option<PathBuf> {
    let named = std::env::var_os("INFERD_TENSORRT_INCLUDE").filter(|v| !v.is_empty()).map(PathBuf::from);
    if named.is_none() {
        eprintln!("not compared: INFERD_TENSORRT_INCLUDE names no headers of TensorRT 10");
    }
    named
}

fn compile(dir: &Path, include: &Path, source: &str) -> PathBuf {
    let stub =
        "#pragma once\ntypedef struct CUstream_st* cudaStream_t;\ntypedef struct CUevent_st* cudaEvent_t;\n";
    std::fs::write(dir.join("cuda_runtime_api.h"), stub).unwrap();
    std::fs::write(dir.join("main.cpp"), source).unwrap();
    let out = dir.join("main");
    let compiled = Command::new("c++")
        .args(["-std=c++17", "-Wno-deprecated-declarations", "-I"])
        .arg(dir)
        .arg("-I")
        .arg(include)
        .arg(dir.join("main.cpp"))
        .arg("-o")
        .arg(&out)
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    out
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn slots_sizes_and_numbers_are_those_of_the_headers() {
    let Some(include) = headers() else { return };
    // A pointer to a virtual member function is its offset in the table plus one; on aarch64 the one is in the second word.
    let mut source = String::from(
        "#include <NvInferRuntime.h>\n#include <cstdio>\n#include <cstring>\n#include <type_traits>\nusing namespace nvinfer1;\n\
         template <typename T> size_t slot(T function) {\n  size_t word[2]; static_assert(sizeof function == sizeof word);\n\
         std::memcpy(word, &function, sizeof word);\n\
         #if defined(__aarch64__)\n  return word[0] / 8;\n#else\n  return (word[0] - 1) / 8;\n#endif\n}\n\
         struct Logger : ILogger { void log(Severity, char const*) noexcept override {} };\n\
         int main() {\n",
    );
    for (class, function, _) in SLOTS {
        let wanted = match *function {
            "deserializeCudaEngine" => {
                "static_cast<ICudaEngine* (apiv::VRuntime::*)(void const*, std::size_t)>(&apiv::VRuntime::deserializeCudaEngine)".to_owned()
            }
            name => format!("&apiv::{class}::{name}"),
        };
        // noexcept is part of a function's type since C++17, so the cast above is from one that is.
        source += &format!("  std::printf(\"{class}.{function} %zu\\n\", slot({wanted}));\n");
    }
    source += "  std::printf(\"sizeof Dims %zu\\n\", sizeof(Dims));\n\
               std::printf(\"offset Dims.d %zu\\n\", offsetof(Dims, d));\n\
               std::printf(\"sizeof public %zu %zu %zu\\n\", sizeof(IRuntime), sizeof(ICudaEngine), sizeof(IExecutionContext));\n\
               std::printf(\"ILogger.log %zu\\n\", slot(&ILogger::log));\n\
               std::printf(\"types %d %d %d %d %d %d %d %d %d %d\\n\", int(DataType::kFLOAT), int(DataType::kHALF), int(DataType::kINT8), \
               int(DataType::kINT32), int(DataType::kBOOL), int(DataType::kUINT8), int(DataType::kFP8), int(DataType::kBF16), \
               int(DataType::kINT64), int(DataType::kINT4));\n\
               std::printf(\"modes %d %d %d\\n\", int(TensorIOMode::kNONE), int(TensorIOMode::kINPUT), int(TensorIOMode::kOUTPUT));\n\
               std::printf(\"places %d %d\\n\", int(TensorLocation::kDEVICE), int(TensorLocation::kHOST));\n\
               std::printf(\"linear %d\\n\", int(TensorFormat::kLINEAR));\n\
               std::printf(\"severities %d %d %d %d %d\\n\", int(ILogger::Severity::kINTERNAL_ERROR), int(ILogger::Severity::kERROR), \
               int(ILogger::Severity::kWARNING), int(ILogger::Severity::kINFO), int(ILogger::Severity::kVERBOSE));\n\
               std::printf(\"static %d\\n\", int(ExecutionContextAllocationStrategy::kSTATIC));\n}\n";
    let dir = tempfile::tempdir().unwrap();
    let said = run(&mut Command::new(compile(dir.path(), &include, &source)));

    let mut expected = String::new();
    for (class, function, slot) in SLOTS {
        expected += &format!("{class}.{function} {slot}\n");
    }
    let list = |numbers: Vec<i32>| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    expected +=
        &format!("sizeof Dims {}\noffset Dims.d {}\n", size_of::<Dims>(), std::mem::offset_of!(Dims, sizes));
    expected += "sizeof public 16 16 16\nILogger.log 0\n";
    expected += &format!("types {}\n", list(DataType::ALL.iter().map(|v| *v as i32).collect()));
    expected += &format!("modes {}\n", list(IoMode::ALL.iter().map(|v| *v as i32).collect()));
    expected += &format!("places {}\n", list(Location::ALL.iter().map(|v| *v as i32).collect()));
    expected += &format!("linear {}\n", TensorFormat::Linear as i32);
    expected +=
        &format!("severities {}\nstatic 0\n", list(Severity::ALL.iter().map(|v| *v as i32).collect()));
    assert_eq!(said, expected);
}

#[test]
fn a_client_of_the_headers_runs_a_plan_on_the_double() {
    let Some(include) = headers() else { return };
    let dir = tempfile::tempdir().unwrap();
    let client = compile(dir.path(), &include, include_str!("client.cpp"));
    let plan = dir.path().join("plan");
    let model = format!("{}/../models/two-in-two-out", env!("CARGO_MANIFEST_DIR"));
    assert!(Command::new(DRIVE).args(["plan", &model]).arg(&plan).status().unwrap().success());
    let double = Path::new(DRIVE).with_file_name("deps/libinferd_tensorrt_double.so");
    let said = run(Command::new(client).arg(double).arg(plan));
    assert_eq!(
        said,
        "a input 4 type 0\nb input 4 type 3\nsum output 4 type 0\nproduct output 4 type 3\n\
         refused: IExecutionContext::setInputShape: Error Code 3: API Usage Error (Static dimension mismatch)\n\
         sum 11.5 22.5 33.5 44.5\nproduct 10 40 90 160\nno plan: 1\n"
    );
}
