//! Hosts that misbehave on purpose: the requests in them see an error, nobody else does, and the daemon stays what it was.
//!
//! The test program is the host of an engine that computes as the built-in one does, unless the first byte of the first input
//! tells it to do something else, or the manifest's summary does while it loads. Under the name of engine `ort` it is one whose
//! system calls nobody has listed. Hosts of some models begin odd, by the name of the model.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod common;

use common::*;
use inferd_engine::{CpuEngine, Engine, EngineError, Model, NetworkFile, Session};
use inferd_hosts::{
    CountingAllocator, End, HostEvent, Hosts, HostsConfig, InferError, Served, engine_host_main_with,
};
use inferd_model::{EngineKind, Manifest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Where the ring lies in the host.
static RING: OnceLock<(usize, usize)> = OnceLock::new();

/// A thread of the host that is older than its filters: does what it is told, and says when it has.
static OLD_THREAD: OnceLock<Mutex<(mpsc::Sender<u8>, mpsc::Receiver<()>)>> = OnceLock::new();

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-host") {
        begin_odd(std::env::args().next().as_deref());
        return engine_host_main_with(|kind| match kind {
            EngineKind::Cpu | EngineKind::Ort => {
                let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
                let line = maps.lines().find(|l| l.contains("memfd:inferd-ring"))?;
                let (from, to) = line.split(' ').next()?.split_once('-')?;
                let number = |s| usize::from_str_radix(s, 16).ok();
                let _ = RING.set((number(from)?, number(to)?));
                let ((tell, told), (done, is_done)) = (mpsc::channel(), mpsc::channel());
                std::thread::spawn(move || {
                    for what in told {
                        call(what);
                        done.send(()).unwrap();
                    }
                });
                let _ = OLD_THREAD.set(Mutex::new((tell, is_done)));
                Some(Box::new(Odd(CpuEngine::new(), kind)))
            }
            _ => None,
        });
    }
    run_all![
        a_host_has_no_privilege_and_a_filter,
        a_system_call_that_is_not_listed_ends_the_host_and_is_named,
        a_system_call_while_loading_ends_the_host_and_is_named,
        every_thread_of_a_host_is_filtered,
        an_engine_that_is_not_known_well_is_kept_from_what_none_needs,
        a_host_of_many_workers_needs_no_more,
        threads_and_memory_are_still_to_be_had,
        threads_without_end_come_to_one,
        without_a_filter_processes_without_end_come_to_one_and_go_with_their_host,
        a_host_that_ignores_sigterm_ends_when_it_must,
        without_a_filter_descriptors_run_out_and_nothing_else_does,
        endless_words_cost_a_bounded_part_of_the_daemon,
        last_words_come_with_the_end,
        garbage_in_the_ring_ends_the_host_or_nothing,
        an_answer_never_comes_from_a_clock_that_lies,
        outputs_that_are_not_written_are_an_error_of_the_engine,
    ]
}

// ------------------------------------------------------------------------------------------------------ the engine

/// The name of a model whose host is not root's, for whom limits on tasks do not hold.
const NOBODYS: &str = "nobodys";
/// The name of a model whose host ignores every signal that can be ignored.
const DEAF: &str = "deaf";

/// What hosts of some models do before anything else, by the name the daemon gave the process.
fn begin_odd(name: Option<&str>) {
    let name = name.and_then(|n| n.strip_prefix("inferd-host:")).unwrap_or_default();
    // SAFETY: system calls without pointers, before any thread.
    unsafe {
        if name == NOBODYS && libc::getuid() == 0 {
            assert_eq!(
                (libc::setgroups(0, std::ptr::null()), libc::setgid(65534), libc::setuid(65534)),
                (0, 0, 0)
            );
        }
        if name == DEAF {
            for signal in (1..32).filter(|s| ![libc::SIGCHLD, libc::SIGSYS].contains(s)) {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

struct Odd(CpuEngine, EngineKind);

impl Engine for Odd {
    fn kind(&self) -> EngineKind {
        self.1
    }

    fn version(&self) -> String {
        "odd 1.0.0".into()
    }

    fn device(&self) -> String {
        "cpu".into()
    }

    fn set_up(&self) -> Result<(), EngineError> {
        self.0.set_up()
    }

    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let told = manifest.summary.split_once(' ').and_then(|(at, what)| Some((at, what.parse().ok()?)));
        let mut at_first = None;
        match told {
            Some(("load", what)) => call(what),
            Some(("old-thread", what)) => {
                let old = OLD_THREAD.get().unwrap().lock().unwrap();
                old.0.send(what).unwrap();
                old.1.recv().unwrap();
            }
            Some(("golden", what)) => at_first = Some(what),
            _ => {}
        }
        Ok(Box::new(OddModel(self.0.load(network, manifest)?, at_first)))
    }

    fn worker(&self, life: Box<dyn FnOnce() + Send + '_>) {
        self.0.worker(life);
    }
}

struct OddModel(Box<dyn Model>, Option<u8>);

impl Model for OddModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(OddSession(self.0.session()?, self.1)))
    }
}

struct OddSession(Box<dyn Session>, Option<u8>);

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
const OPEN_TO_WRITE: u8 = 0xee;
const MAP_FILE: u8 = 0xef;
const LOOK: u8 = 0xf0;
const IO_URING: u8 = 0xf1;
const BPF: u8 = 0xf2;
const USERFAULTFD: u8 = 0xf3;
const KEYCTL: u8 = 0xf4;
const MOUNT: u8 = 0xf5;
const LIBRARY: u8 = 0xf6;
const ENDLESS_THREADS: u8 = 0xf7;
const ENDLESS_PROCESSES: u8 = 0xf8;
const NEVER_DONE: u8 = 0xf9;

/// What no host may do, and words one of which the reason names it by.
const NEVER: &[(u8, &str)] = &[
    (SOCKET, "socket"),
    (EXECUTE, "execve"),
    (FORK, "fork clone"),
    (TRACE, "ptrace"),
    (UNCATCH, "rt_sigaction"),
    (IO_URING, "io_uring_setup"),
    (BPF, "bpf"),
    (USERFAULTFD, "userfaultfd"),
    (KEYCTL, "keyctl"),
    (MOUNT, "mount"),
];

/// What the built-in engine has no reason for either.
const NOT_FOR_COMPUTING: &[(u8, &str)] =
    &[(OPEN, "open"), (OPEN_TO_WRITE, "open"), (MAP_FILE, "mmap"), (EXECUTABLE, "mmap"), (LOOK, "statx")];

fn call(what: u8) {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: system calls with values that live; what comes of them is what is tested.
    unsafe {
        match what {
            SOCKET => i64::from(libc::close(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0))),
            OPEN => libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY).into(),
            OPEN_TO_WRITE => libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY).into(),
            EXECUTE => libc::execve(c"/bin/true".as_ptr(), std::ptr::null(), std::ptr::null()).into(),
            FORK => libc::fork().into(),
            TRACE => libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0),
            EXECUTABLE => {
                let prot = libc::PROT_READ | libc::PROT_EXEC;
                libc::mmap(null, 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
                0
            }
            MAP_FILE => {
                libc::mmap(null, 4096, libc::PROT_READ, libc::MAP_PRIVATE, 0, 0);
                0
            }
            UNCATCH => {
                libc::signal(libc::SIGSYS, libc::SIG_IGN);
                0
            }
            LOOK => {
                let mut about = std::mem::zeroed::<libc::statx>();
                libc::statx(0, c"/etc/passwd".as_ptr(), 0, libc::STATX_ALL, &raw mut about).into()
            }
            IO_URING => libc::syscall(libc::SYS_io_uring_setup, 1, null),
            BPF => libc::syscall(libc::SYS_bpf, 0, null, 0),
            USERFAULTFD => libc::syscall(libc::SYS_userfaultfd, 0),
            KEYCTL => libc::syscall(libc::SYS_keyctl, 0, 0, 0),
            MOUNT => libc::mount(c"a".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, null).into(),
            _ => 0,
        };
    }
    if what == LIBRARY {
        // What a vendor's library does: devices, /sys, its own code, threads, a service on this machine.
        let device = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(std::fs::read_dir("/sys").unwrap().count() > 0);
        std::os::unix::net::UnixDatagram::unbound().unwrap();
        std::thread::spawn(move || drop(device)).join().unwrap();
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        let (prot, size) = (libc::PROT_READ | libc::PROT_EXEC, std::num::NonZeroUsize::new(4096).unwrap());
        let prot = nix::sys::mman::ProtFlags::from_bits_truncate(prot);
        let private = nix::sys::mman::MapFlags::MAP_PRIVATE;
        // SAFETY: a fresh mapping, at an address of the kernel's choice, that nobody looks into.
        unsafe { nix::sys::mman::mmap(None, size, prot, private, &program, 0) }.unwrap();
    }
}

impl Session for OddSession {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let (what, seed) = (self.1.take().unwrap_or(inputs[0][0]), inputs[0][1]);
        call(what);
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
            ENDLESS_THREADS => {
                let one = || std::thread::Builder::new().stack_size(16 << 10).spawn(std::thread::park);
                let begun = std::iter::from_fn(|| one().ok()).count();
                return Err(EngineError::Run(format!("{begun} threads")));
            }
            ENDLESS_PROCESSES => {
                let mut begun = 0;
                // SAFETY: a child only begins children of its own, and waits for a signal when it can have no more.
                unsafe {
                    loop {
                        match libc::fork() {
                            0 => begun = -1_i32,
                            1.. if begun >= 0 => begun += 1,
                            1.. => {}
                            _ if begun >= 0 => break,
                            _ => _ = libc::pause(),
                        }
                    }
                }
                return Err(EngineError::Run(format!("{begun} processes")));
            }
            NEVER_DONE => loop {
                std::hint::spin_loop();
            },
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

/// Whether the reason names the call. A C library that blocks all signals around a fork leaves it to the kernel to end the host,
/// and then the number is not known.
fn names(reason: &str, what: u8, name: &str) -> bool {
    let nameless = what == FORK && reason.contains("tried a system call");
    nameless || reason.contains("tried system call") && name.split(' ').any(|n| reason.contains(n))
}

async fn a_system_call_that_is_not_listed_ends_the_host_and_is_named() {
    let (hosts, served) = serve("two-in-two-out").await;
    let mut events = hosts.events();
    for &(what, name) in NEVER.iter().chain(NOT_FOR_COMPUTING) {
        let e = tell(&served, what, 0).await.unwrap_err();
        assert_eq!(e.kind(), "host_lost", "{name}: {e}");
        let (cause, reason, _) = end(&mut events).await;
        assert_eq!(cause, End::Seccomp, "{name}: {reason}");
        assert!(names(&reason, what, name), "{name}: {reason}");
        served_again(&served).await;
    }
    assert_eq!(ends(&served, "seccomp"), 15);
    hosts.shutdown().await;
}

/// A model of this name, for this engine, whose host does that while it loads.
fn told(name: &str, engine: EngineKind, summary: &str) -> tempfile::TempDir {
    let dir = copy("two-in-two-out");
    let path = dir.path().join("manifest.toml");
    let mut manifest = Manifest::from_toml(&std::fs::read_to_string(&path).unwrap()).unwrap();
    manifest.name = inferd_model::ModelName::new(name).unwrap();
    manifest.summary = summary.to_owned();
    manifest.engines = vec![engine.into()];
    manifest.engine_versions.clear();
    manifest.budget.deadline_ms = 2000;
    std::fs::write(path, manifest.to_toml()).unwrap();
    dir
}

async fn a_system_call_while_loading_ends_the_host_and_is_named() {
    let hosts = Hosts::new(config());
    let mut events = hosts.events();
    for place in ["load", "old-thread", "golden"] {
        for &(what, name) in NEVER.iter().chain(NOT_FOR_COMPUTING) {
            let dir = told("loads-badly", EngineKind::Cpu, &format!("{place} {what}"));
            let e = hosts.load(dir.path()).await.err().unwrap().to_string();
            assert!(e.contains("ended while it loaded the model"), "{place}, {name}: {e}");
            let (cause, reason, _) = end(&mut events).await;
            assert_eq!(cause, End::Seccomp, "{place}, {name}: {reason}");
            assert!(names(&reason, what, name), "{place}, {name}: {reason}");
        }
    }
    // One that only computes while it loads is served.
    let served = hosts.load(told("loads-badly", EngineKind::Cpu, "load 0").path()).await.unwrap();
    golden(&served).await.unwrap();
    hosts.shutdown().await;
}

async fn every_thread_of_a_host_is_filtered() {
    let (hosts, served) = serve("two-in-two-out").await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid(&served).await)).unwrap();
    let filters: Vec<String> = tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            status.lines().filter(|l| l.starts_with("Seccomp")).collect::<Vec<_>>().join(" ")
        })
        .collect();
    // The first, one from before the filters, the workers with a thread of the engine each.
    assert!(filters.len() >= 4, "{filters:?}");
    assert!(filters.iter().all(|f| *f == "Seccomp:\t2 Seccomp_filters:\t3"), "{filters:?}");
    hosts.shutdown().await;
}

async fn an_engine_that_is_not_known_well_is_kept_from_what_none_needs() {
    let engines = [(EngineKind::Ort, PathBuf::from("/proc/self/exe"))].into();
    let hosts = Hosts::new(HostsConfig { engines, ..config() });
    let mut events = hosts.events();
    for &(what, name) in NEVER {
        for place in ["load", "old-thread", "golden"] {
            let dir = told("foreign", EngineKind::Ort, &format!("{place} {what}"));
            hosts.load(dir.path()).await.err().unwrap();
            let (cause, reason, _) = end(&mut events).await;
            assert_eq!(cause, End::Seccomp, "{place}, {name}: {reason}");
            assert!(names(&reason, what, name), "{place}, {name}: {reason}");
        }
    }
    let dir = told("foreign", EngineKind::Ort, &format!("load {LIBRARY}"));
    let served = hosts.load(dir.path()).await.unwrap();
    tell(&served, LIBRARY, 0).await.unwrap();
    for &(what, name) in NEVER {
        tell(&served, what, 0).await.unwrap_err();
        let (cause, reason, _) = end(&mut events).await;
        assert_eq!(cause, End::Seccomp, "{name}: {reason}");
        assert!(names(&reason, what, name), "{name}: {reason}");
        served_again(&served).await;
    }
    hosts.shutdown().await;
}

/// The most tasks the host's user may have.
async fn task_limit(served: &Arc<Served>) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid(served).await)).unwrap();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max processes")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

async fn threads_without_end_come_to_one() {
    let hosts = Hosts::new(config());
    let served = hosts.load(told(NOBODYS, EngineKind::Cpu, "").path()).await.unwrap();
    let (before, most) = (pid(&served).await, task_limit(&served).await);
    let e = tell(&served, ENDLESS_THREADS, 0).await.unwrap_err();
    assert!(matches!(&e, InferError::Engine(why) if why.contains(" threads")), "{e}");
    let tasks = std::fs::read_dir(format!("/proc/{before}/task")).unwrap().count();
    assert!((256..=most).contains(&tasks), "{tasks} of {most}");
    // It goes on, and there is room for others.
    golden(&served).await.unwrap();
    assert_eq!(pid(&served).await, before);
    let other = hosts.load(&models().join("two-in-two-out")).await.unwrap();
    golden(&other).await.unwrap();
    hosts.shutdown().await;
}

/// Processes of this group.
fn group(leader: Pid) -> usize {
    let stat = |p: std::fs::DirEntry| std::fs::read_to_string(p.path().join("stat")).ok();
    let of_it = |stat: &String| {
        let mut fields = stat.rsplit(')').next().unwrap().split_ascii_whitespace();
        let (state, group) = (fields.next().unwrap(), fields.nth(1).unwrap());
        group == leader.to_string() && !"ZX".contains(state)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(stat).filter(of_it).count()
}

async fn without_a_filter_processes_without_end_come_to_one_and_go_with_their_host() {
    let hosts = Hosts::new(HostsConfig { seccomp: false, ..config() });
    let served = hosts.load(told(NOBODYS, EngineKind::Cpu, "").path()).await.unwrap();
    let (before, most) = (pid(&served).await, task_limit(&served).await);
    let e = tell(&served, ENDLESS_PROCESSES, 0).await.unwrap_err();
    assert!(matches!(&e, InferError::Engine(why) if why.contains(" processes")), "{e}");
    let processes = group(before);
    assert!((2..=most).contains(&processes), "{processes} of {most}");
    golden(&served).await.unwrap();
    let other = hosts.load(&models().join("two-in-two-out")).await.unwrap();
    golden(&other).await.unwrap();
    kill(before, Signal::SIGKILL).unwrap();
    replaced(&served, before).await;
    while group(before) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    hosts.shutdown().await;
}

async fn a_host_that_ignores_sigterm_ends_when_it_must() {
    let hosts = Hosts::new(config());
    let mut events = hosts.events();
    let served = hosts.load(told(DEAF, EngineKind::Cpu, "").path()).await.unwrap();
    let first = pid(&served).await;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(first, signal).unwrap();
    }
    golden(&served).await.unwrap();
    assert_eq!(pid(&served).await, first, "it ignores them");
    // Past its deadline.
    let e = tell(&served, NEVER_DONE, 0).await.unwrap_err();
    assert_eq!(e.kind(), "host_lost", "{e}");
    let (cause, reason, _) = end(&mut events).await;
    assert_eq!(cause, End::Deadline, "{reason}");
    replaced(&served, first).await;
    // When the daemon stops, in the middle of a request.
    let second = pid(&served).await;
    let running = tokio::spawn({
        let served = served.clone();
        async move { tell(&served, NEVER_DONE, 0).await }
    });
    while !served.snapshot().workers.iter().any(|w| w.busy) {
        tokio::task::yield_now().await;
    }
    hosts.shutdown().await;
    assert_eq!(kill(second, None), Err(nix::errno::Errno::ESRCH), "nothing of it is left");
    running.await.unwrap().unwrap_err();
}

async fn a_host_of_many_workers_needs_no_more() {
    let (hosts, served) = serve_with(HostsConfig { workers: 24, ..config() }, "two-in-two-out").await;
    golden(&served).await.unwrap();
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
