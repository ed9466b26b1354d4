//! Hosts that misbehave on purpose: the requests in them see an error, nobody else does, and the daemon stays what it was.
//!
//! The test program is the host of an engine that computes as the built-in one does, unless the first byte of the first input
//! tells it to do something else.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod common;

use common::*;
use inferd_engine::{CpuEngine, Engine, EngineError, Model, Session};
use inferd_hosts::{
    CountingAllocator, End, HostEvent, Hosts, HostsConfig, InferError, Served, engine_host_main_with,
};
use inferd_model::{EngineKind, Manifest};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Where the ring lies in the host.
static RING: OnceLock<(usize, usize)> = OnceLock::new();

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-host") {
        return engine_host_main_with(|kind| match kind {
            EngineKind::Cpu => {
                let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
                let line = maps.lines().find(|l| l.contains("memfd:inferd-ring"))?;
                let (from, to) = line.split(' ').next()?.split_once('-')?;
                let number = |s| usize::from_str_radix(s, 16).ok();
                let _ = RING.set((number(from)?, number(to)?));
                Some(Box::new(Odd(CpuEngine::new())))
            }
            _ => None,
        });
    }
    run_all![
        a_host_has_no_privilege_and_a_filter,
        a_system_call_that_is_not_listed_ends_the_host_and_is_named,
        threads_and_memory_are_still_to_be_had,
        without_a_filter_descriptors_run_out_and_nothing_else_does,
        endless_words_cost_a_bounded_part_of_the_daemon,
        last_words_come_with_the_end,
        garbage_in_the_ring_ends_the_host_or_nothing,
        an_answer_never_comes_from_a_clock_that_lies,
        outputs_that_are_not_written_are_an_error_of_the_engine,
    ]
}

// ------------------------------------------------------------------------------------------------------ the engine

struct Odd(CpuEngine);

impl Engine for Odd {
    fn kind(&self) -> EngineKind {
        EngineKind::Cpu
    }

    fn version(&self) -> String {
        "odd 1.0.0".into()
    }

    fn device(&self) -> String {
        "cpu".into()
    }

    fn load(&self, onnx: &'static [u8], manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        Ok(Box::new(OddModel(self.0.load(onnx, manifest)?)))
    }

    fn worker(&self, life: Box<dyn FnOnce() + Send + '_>) {
        self.0.worker(life);
    }
}

struct OddModel(Box<dyn Model>);

impl Model for OddModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(OddSession(self.0.session()?)))
    }
}

struct OddSession(Box<dyn Session>);

const SOCKET: u8 = 0xe0;
const OPEN: u8 = 0xe1;
const EXECUTE: u8 = 0xe2;
const FORK: u8 = 0xe3;
const TRACE: u8 = 0xe4;
const EXECUTABLE: u8 = 0xe5;
const UNCATCH: u8 = 0xe6;
const THREADS: u8 = 0xe7;
const DESCRIPTORS: u8 = 0xe8;
const TALK: u8 = 0xe9;
const TALK_AND_DIE: u8 = 0xea;
const SCRIBBLE: u8 = 0xeb;
const FUTURE: u8 = 0xec;
const SHORT: u8 = 0xed;

impl Session for OddSession {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let (what, seed) = (inputs[0][0], inputs[0][1]);
        // SAFETY: system calls with values that live; what comes of them is what is tested.
        unsafe {
            match what {
                SOCKET => libc::close(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
                OPEN => libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY),
                EXECUTE => libc::execve(c"/bin/true".as_ptr(), std::ptr::null(), std::ptr::null()),
                FORK => libc::fork(),
                TRACE => i32::try_from(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)).unwrap(),
                EXECUTABLE => {
                    let prot = libc::PROT_READ | libc::PROT_EXEC;
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                    libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
                    0
                }
                UNCATCH => {
                    libc::signal(libc::SIGSYS, libc::SIG_IGN);
                    0
                }
                _ => 0,
            };
        }
        match what {
            THREADS => {
                for _ in 0..20 {
                    std::thread::spawn(|| vec![1_u8; 1 << 20].len()).join().unwrap();
                }
            }
            DESCRIPTORS => {
                let opened: Vec<_> =
                    (0..10_000).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
                assert!(opened.len() < 64, "{}", opened.len());
                return Err(EngineError::Run(format!("{} descriptors", opened.len())));
            }
            TALK => {
                std::thread::spawn(|| {
                    let line = [b'x'; 1000];
                    loop {
                        let _ = std::io::stderr().write_all(&line);
                    }
                });
            }
            TALK_AND_DIE => {
                for i in 0..100 {
                    eprintln!("line {i}");
                }
                std::process::abort();
            }
            SCRIBBLE => {
                let &(from, to) = RING.get().unwrap();
                let mut random = u64::from(seed) << 32 | 0x9e37_79b9;
                // The whole header, then the head of every slot and what follows.
                for _ in 0..200_000 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let at = from + usize::try_from(random >> 20).unwrap() % (to - from);
                    let byte = u8::try_from(random >> 56 & 0xff).unwrap();
                    // SAFETY: inside of the mapping; that it breaks every rule is the point.
                    unsafe { (at as *mut u8).write_volatile(byte) };
                }
            }
            FUTURE => {
                let &(from, to) = RING.get().unwrap();
                // Every clock and counter as late as can be, then silence.
                let later = || {
                    for at in (from..to).step_by(8) {
                        // SAFETY: as above, aligned to 8.
                        let now = unsafe { (at as *const u64).read_volatile() };
                        // What looks like a time of this clock.
                        if now > 1_000_000_000 && now < 1 << 60 {
                            // SAFETY: as above.
                            unsafe { (at as *mut u64).write_volatile(u64::MAX >> 1) };
                        }
                    }
                };
                loop {
                    later();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            SHORT => return Err(EngineError::Length { name: "y".into(), got: 3, want: outputs[0].len() }),
            _ => {}
        }
        self.0.run(inputs, outputs)
    }
}

// --------------------------------------------------------------------------------------------------------- helpers

async fn tell(served: &Arc<Served>, what: u8, seed: u8) -> Result<(), InferError> {
    let mut ticket = served.begin(None)?;
    let n = ticket.manifest().inputs.len();
    for i in 0..n {
        ticket.input_mut(i).fill(0);
    }
    let input = ticket.input_mut(0);
    (input[0], input[1]) = (what, seed);
    ticket.run().await.map(|_| ())
}

/// The answer of somebody else, from the next host if need be.
async fn served_again(served: &Arc<Served>) {
    loop {
        match golden(served).await {
            Ok(()) => return,
            Err(e) if ["model_unavailable", "host_lost", "timeout", "queue_full"].contains(&e.kind()) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

async fn end(events: &mut tokio::sync::broadcast::Receiver<HostEvent>) -> (End, String, Vec<String>) {
    loop {
        if let HostEvent::HostEnded { cause, reason, words, .. } = events.recv().await.unwrap() {
            return (cause, reason, words);
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- tests

async fn a_host_has_no_privilege_and_a_filter() {
    let (hosts, served) = serve("two-in-two-out").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&served).await)).unwrap();
    let field = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid(&served).await)).unwrap();
    for (name, value) in [("Max file size", "0"), ("Max core file size", "0"), ("Max open files", "64")] {
        let line = limits.lines().find(|l| l.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_ascii_whitespace().next(), Some(value), "{line}");
    }
    hosts.shutdown().await;
}

async fn a_system_call_that_is_not_listed_ends_the_host_and_is_named() {
    let (hosts, served) = serve("two-in-two-out").await;
    let mut events = hosts.events();
    let tried = [
        (SOCKET, "socket"),
        (OPEN, "open"),
        (EXECUTE, "execve"),
        (FORK, "fork clone"),
        (TRACE, "ptrace"),
        (EXECUTABLE, "mmap of executable memory"),
        (UNCATCH, "rt_sigaction"),
    ];
    for (what, name) in tried {
        let e = tell(&served, what, 0).await.unwrap_err();
        assert_eq!(e.kind(), "host_lost", "{name}: {e}");
        let (cause, reason, _) = end(&mut events).await;
        assert_eq!(cause, End::Seccomp, "{name}: {reason}");
        // musl blocks all signals around a fork; then the kernel ends the host itself and the number is not known.
        let nameless = what == FORK && reason.contains("tried a system call");
        assert!(nameless || name.split(' ').any(|n| reason.contains(n)), "{name}: {reason}");
        served_again(&served).await;
    }
    assert_eq!(ends(&served, "seccomp"), 7);
    hosts.shutdown().await;
}

async fn threads_and_memory_are_still_to_be_had() {
    let (hosts, served) = serve("two-in-two-out").await;
    tell(&served, THREADS, 0).await.unwrap();
    golden(&served).await.unwrap();
    assert_eq!(served.snapshot().starts, 1);
    hosts.shutdown().await;
}

async fn without_a_filter_descriptors_run_out_and_nothing_else_does() {
    let (hosts, served) = serve_with(HostsConfig { seccomp: false, ..config() }, "two-in-two-out").await;
    for _ in 0..3 {
        let e = tell(&served, DESCRIPTORS, 0).await.unwrap_err();
        assert!(e.to_string().contains("descriptors"), "{e}");
        golden(&served).await.unwrap();
    }
    hosts.shutdown().await;
}

async fn endless_words_cost_a_bounded_part_of_the_daemon() {
    let (hosts, served) = serve("two-in-two-out").await;
    let (before, _) = usage();
    tell(&served, TALK, 0).await.unwrap();
    let begun = std::time::Instant::now();
    let mut answers = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        golden(&served).await.unwrap();
        answers += 1;
    }
    assert!(answers > 0);
    let grown = usage().0.saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    hosts.shutdown().await;
}

async fn last_words_come_with_the_end() {
    let (hosts, served) = serve("two-in-two-out").await;
    let mut events = hosts.events();
    tell(&served, TALK_AND_DIE, 0).await.unwrap_err();
    let (cause, _, words) = end(&mut events).await;
    assert_eq!(cause, End::Crash);
    let want: Vec<String> = (84..100).map(|i| format!("line {i}")).collect();
    assert_eq!(words, want);
    hosts.shutdown().await;
}

async fn garbage_in_the_ring_ends_the_host_or_nothing() {
    let (hosts, served) = serve("two-in-two-out").await;
    let (before, _) = usage();
    for seed in 0..20 {
        // Whatever it is, it is typed, and it comes.
        let _ = tell(&served, SCRIBBLE, seed).await;
        let s = served.snapshot();
        assert!(s.slots_in_use <= s.slots && s.waiting <= s.slots, "{s:?}");
        served_again(&served).await;
    }
    let grown = usage().0.saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    // Numbers of requests stay numbers of requests.
    let s = served.snapshot();
    assert!(s.compute_ns < 3_600_000_000_000 && s.queue_ns < 3_600_000_000_000, "{s:?}");
    hosts.shutdown().await;
}

async fn an_answer_never_comes_from_a_clock_that_lies() {
    let (hosts, served) = serve("two-in-two-out").await;
    let mut events = hosts.events();
    let e = tell(&served, FUTURE, 0).await.unwrap_err();
    assert_eq!(e.kind(), "host_lost", "{e}");
    let (cause, reason, _) = end(&mut events).await;
    assert!(matches!(cause, End::Deadline | End::Protocol), "{reason}");
    served_again(&served).await;
    hosts.shutdown().await;
}

async fn outputs_that_are_not_written_are_an_error_of_the_engine() {
    let (hosts, served) = serve("two-in-two-out").await;
    let before = pid(&served).await;
    let e = tell(&served, SHORT, 0).await.unwrap_err();
    assert!(matches!(&e, InferError::Engine(why) if why.contains("3 bytes")), "{e}");
    golden(&served).await.unwrap();
    assert_eq!(pid(&served).await, before);
    hosts.shutdown().await;
    drop(Hosts::new(config()));
}
