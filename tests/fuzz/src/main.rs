//! Fuzz targets for every parser that reads what others wrote; `INFERD_FUZZ_TARGET` names the one that runs.
//!
//! One program for all: the crates behind it are compiled and linked once. A target returns for input it accepts and for
//! input it refuses, and panics when a promise of the parser is broken. See README.md and `./run --help`.

#![no_main]

mod announce;
mod bench;
mod bundle;
mod fetch;
mod flash;
mod kernel;
mod slots;
mod sources;
mod system;
mod targets;
mod watch;

/// The daemon's configuration: a program cannot be a dependency, so its module is compiled in here.
#[path = "../../../app/inferd/src"]
mod inferd {
    #[allow(dead_code, unused_imports)]
    pub mod config;
}

/// What the operator's tool reads before it flashes a card or packs a system, for the same reason.
#[path = "../../../app/inferctl/src"]
mod inferctl {
    #[allow(dead_code)]
    #[path = "flash/bmap.rs"]
    pub mod bmap;
    #[allow(dead_code)]
    #[path = "minisign/form.rs"]
    pub mod form;
    #[allow(dead_code)]
    #[path = "bundle/rootfs.rs"]
    pub mod rootfs;
}

use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;

/// No input here is larger than some hundred KiB, so whoever asks for this much at once believed a number in it.
const LARGEST_ALLOCATION: usize = 128 << 20;

/// The system's allocator, which ends the run at an allocation that an input cannot justify.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn bounded(size: usize) {
    if size > LARGEST_ALLOCATION {
        // No panic: it would allocate, and might be caught.
        eprintln!("an allocation of {size} bytes, more than {LARGEST_ALLOCATION}");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        bounded(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() {
    let name = std::env::var("INFERD_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = targets::ALL.iter().find(|(n, _)| *n == name) else {
        let names: Vec<&str> = targets::ALL.iter().map(|(n, _)| *n).collect();
        eprintln!("INFERD_FUZZ_TARGET is {name:?}; there are: {}", names.join(" "));
        std::process::exit(2);
    };
    TARGET.set(*target).expect("this is called once");
    if name == "network" {
        // libfuzzer-sys ends the process at every panic, also one that the engine contains. Those may pass; one that
        // escapes ends the process in libfuzzer-sys' own catch_unwind.
        std::panic::set_hook(Box::new(targets::remember_panic));
    }
}

fuzz_target!(init: choose(), |data: &[u8]| {
    TARGET.get().expect("the fuzzer calls `choose` first")(data);
});
