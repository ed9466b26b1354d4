//! The host for vendor engines: what `inferd engine-host` is for the built-in one, linked dynamically.
//!
//! A static program cannot load shared objects, and vendors' libraries are shared objects of glibc. So they live in this program,
//! a process of their own for each model, on the same ring and under the same supervision as any other host (see the hosts room).
//!
//!     inferd-engine-host engine-host ORDERS      started by the daemon
//!     inferd-engine-host engines ort             what works here of an engine of this program, as JSON; asked by the daemon
//!     inferd-engine-host engines                 the same of all of them, for a person
//!
//! Where a library is comes in the environment: `INFERD_ORT_LIB`, `INFERD_HAILORT_LIB`, `INFERD_TENSORRT_LIB`, `INFERD_CUDA_LIB`; where
//! engines are kept that ONNX Runtime builds with TensorRT: `INFERD_ENGINE_CACHE`. `INFERD_HAILO_SERVICE=1`: a Hailo chip is asked for at
//! HailoRT's service. `INFERD_SYS`: where sysfs is, when it is not at `/sys`.

#![forbid(unsafe_code)]

use inferd_engine::Engine;
use inferd_hosts::EngineHere;
use inferd_model::EngineKind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Counts what each worker holds on our side; a library's own memory is the cgroup's to count.
#[global_allocator]
static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("engine-host") => inferd_hosts::engine_host_main_with(engine),
        Some("engines") => inferd_hosts::engines_main(look),
        _ => {
            eprintln!("usage: inferd-engine-host engines [ENGINE] (the daemon starts it with engine-host)");
            ExitCode::from(2)
        }
    }
}

/// The engines of this program.
fn engine(kind: EngineKind) -> Option<Box<dyn Engine>> {
    match kind {
        #[cfg(feature = "ort")]
        EngineKind::Ort => {
            let ort =
                inferd_engine::OrtEngine::new(library("INFERD_ORT_LIB"), library("INFERD_ENGINE_CACHE"));
            #[cfg(feature = "tensorrt")]
            let ort = ort.with_gpu(library("INFERD_TENSORRT_LIB"), library("INFERD_CUDA_LIB"));
            Some(Box::new(ort))
        }
        #[cfg(feature = "tensorrt")]
        EngineKind::Tensorrt => {
            let (tensorrt, cuda) = (library("INFERD_TENSORRT_LIB"), library("INFERD_CUDA_LIB"));
            Some(Box::new(inferd_engine::TensorrtEngine::new(tensorrt, cuda)))
        }
        #[cfg(feature = "hailo")]
        EngineKind::Hailo => Some(Box::new(hailo())),
        _ => None,
    }
}

#[cfg(feature = "hailo")]
fn hailo() -> inferd_engine::HailoEngine {
    let engine = inferd_engine::HailoEngine::new(library("INFERD_HAILORT_LIB"));
    match std::env::var_os("INFERD_HAILO_SERVICE").is_some_and(|v| v == "1") {
        true => engine.by_service(),
        false => engine,
    }
}

#[cfg_attr(not(any(feature = "ort", feature = "hailo", feature = "tensorrt")), allow(dead_code))]
fn library(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// What is known of an engine before any model; nothing of one that this program does not have.
fn look(engine: EngineKind) -> Option<EngineHere> {
    let mut here = EngineHere::unknown(engine);
    match engine {
        #[cfg(feature = "ort")]
        EngineKind::Ort => match inferd_engine::OrtLibrary::open(library("INFERD_ORT_LIB").as_deref()) {
            Ok(found) => {
                here.version = Some(format!("onnxruntime {}", found.version()));
                here.library = Some(found.path().to_owned());
                here.providers = found.providers().iter().map(|p| p.name().to_owned()).collect();
            }
            Err(why) => {
                here.absent =
                    library("INFERD_ORT_LIB").is_none() && !inferd_engine::OrtLibrary::is_installed();
                here.problem = Some(why.to_string());
            }
        },
        #[cfg(feature = "tensorrt")]
        EngineKind::Tensorrt => {
            let (tensorrt, cuda) = (library("INFERD_TENSORRT_LIB"), library("INFERD_CUDA_LIB"));
            match inferd_engine::TensorrtLibrary::open(tensorrt.as_deref(), cuda.as_deref()) {
                Ok(found) => {
                    here.version = Some(format!("tensorrt {}", found.version()));
                    here.library = Some(found.path().to_owned());
                    here.providers = vec![found.device()];
                }
                Err(why) => {
                    // Where both libraries are a GPU belongs to them: it is waited for.
                    here.library = inferd_engine::TensorrtLibrary::find(tensorrt.as_deref());
                    here.absent = tensorrt.is_none() && here.library.is_none();
                    here.waits = why.may_pass();
                    here.problem = Some(why.to_string());
                }
            }
        }
        #[cfg(feature = "hailo")]
        EngineKind::Hailo => match hailo().look(&library("INFERD_SYS").unwrap_or_else(|| "/sys".into())) {
            Ok(found) => {
                here.version = Some(found.version);
                here.library = Some(found.library);
                here.mismatch = found.mismatch;
                match found.chip {
                    Ok(chip) => here.providers = vec![chip],
                    Err(why) => {
                        here.waits = why.may_pass();
                        here.problem = Some(why.to_string());
                    }
                }
            }
            Err(why) => {
                here.absent =
                    library("INFERD_HAILORT_LIB").is_none() && !inferd_engine::HailoEngine::is_installed();
                here.problem = Some(why.to_string());
            }
        },
        _ => return None,
    }
    Some(here)
}
