//! What a host may do: no privilege, few resources, and the system calls that computing needs.
//!
//! | when | what |
//! |---|---|
//! | first thing | `no_new_privs`; every capability dropped, from the bounding set too where that is allowed; `RLIMIT_NOFILE` 64, `RLIMIT_FSIZE` 0, `RLIMIT_CORE` 0, `RLIMIT_NPROC` |
//! | everything inherited is mapped, the engine is made, nothing of the model was read ([`Stage::Loading`]) | the system calls that loading needs and no others, for every thread |
//! | model loaded, golden vectors passed, nothing served yet ([`Stage::Serving`]) | four of them less, for every thread |
//!
//! A hostile network is read, prepared and run for the first time behind the filter that it is served behind. A host computes:
//! it maps memory, waits for futexes, reads and writes descriptors it has, and may start another thread. It opens nothing, looks
//! at no path, maps no file, connects to nothing, starts no process, has nothing executable made. What it has to read lies in
//! memory that was mapped before, and its own `/proc/self/status` is an open descriptor by then; so there is no list of paths
//! and no need of Landlock. Loading may do four things that serving may not: cap its memory, let the C library catch the three
//! signals it keeps for its threads, and add the second filter (`seccomp`, `no_new_privs` again), which only takes away.
//!
//! A system call that is not listed is not made: the kernel sends `SIGSYS` instead (`SECCOMP_RET_TRAP`), whose handler leaves the
//! call's number in the ring and ends the process. The handler cannot be taken away, and a thread that has blocked the signal
//! (musl does around `fork`) is ended by the kernel, without a number. (`SECCOMP_RET_KILL_PROCESS` would always end it so, and
//! never say what was tried.)
//!
//! That is [`Profile::Tight`], for the built-in engine. A vendor's library opens device nodes, reads `/sys`, loads and generates
//! code, at load and later. [`Profile::Wide`] therefore lists what none of them has a reason for and allows the rest: programs,
//! processes, other processes' memory, sockets that leave the machine, mounts and namespaces, io_uring, BPF, userfaultfd, keys,
//! kernel modules, clocks. It is there before the model is read and stays as it is. What such a library writes to is left to the
//! permissions of the daemon's user, on an image whose root filesystem cannot be written.
//!
//! `RLIMIT_NPROC` counts all tasks of a user; it is what the machine runs at the start of the host and 256 more. Where a cgroup
//! has `pids.max` that is the narrower limit. It does not hold for root.
#![allow(unsafe_code)]

use crate::sys;
use inferd_model::EngineKind;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// Most descriptors of a host; it has seven.
const DESCRIPTORS: u64 = 64;
/// Tasks a host's user may have beyond those there are.
const TASKS: u64 = 256;
/// Exit status after a system call that is not allowed.
pub const TRAPPED: u8 = 4;

/// Environment variables without which a host would make system calls that it may not make.
///
/// When it has made eight arenas for as many threads, glibc's allocator reads the number of cores out of `/sys` to see how many
/// more it may make, unless it was told. (musl's has none, and knows no such variable.) A worker and the engine's thread for it
/// have one each, as they had.
pub fn environment(workers: usize) -> [(&'static str, String); 2] {
    let (name, on) = NO_REPORTS;
    [("MALLOC_ARENA_MAX", (2 * workers + 8).to_string()), (name, on.to_owned())]
}

/// ONNX Runtime from 1.29 on opens a connection to its maker and reports what it runs, unless this is set before it is loaded
/// (its documentation of privacy). Nothing that a device computes is anybody else's business, and a host that tries is ended.
pub const NO_REPORTS: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// Gives up every privilege and most resources. Before any thread is started.
///
/// # Errors
/// What could not be given up.
pub fn give_up_rights(engine: EngineKind) -> io::Result<()> {
    sys::drop_privileges()?;
    let least = |resource, want: u64| -> io::Result<()> {
        let (_, hard) = nix::sys::resource::getrlimit(resource)?;
        let limit = want.min(hard);
        Ok(setrlimit(resource, limit, limit)?)
    };
    if engine == EngineKind::Cpu {
        least(Resource::RLIMIT_NOFILE, DESCRIPTORS)?;
        least(Resource::RLIMIT_FSIZE, 0)?;
        if let Some(tasks) = tasks() {
            least(Resource::RLIMIT_NPROC, tasks + TASKS)?;
        }
    }
    Ok(())
}

/// All tasks of the machine.
fn tasks() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()
}

/// How far a host is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing of the model was read.
    Loading,
    /// The golden vectors have passed, nothing is served.
    Serving,
}

/// What is known of the system calls an engine's library makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Profile {
    /// All of them; the others are refused.
    Tight,
    /// Which it has no reason for; those are refused.
    Wide,
}

impl Profile {
    fn of(engine: EngineKind) -> Self {
        match engine {
            EngineKind::Cpu => Self::Tight,
            EngineKind::Ort | EngineKind::Hailo | EngineKind::Tensorrt => Self::Wide,
        }
    }
}

/// What may be asked for at any time.
const CALLS: &[libc::c_long] = &[
    // memory
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // waiting, time
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_restart_syscall,
    // descriptors it has
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_close,
    // threads
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    // ending, by a panic that is not contained too
    libc::SYS_exit_group,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
];

/// What no engine has a reason for.
const NEVER: &[(libc::c_long, &str)] = &[
    // programs and processes
    (libc::SYS_execve, "execve"),
    (libc::SYS_execveat, "execveat"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork"),
    // other processes
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_process_vm_readv, "process_vm_readv"),
    (libc::SYS_process_vm_writev, "process_vm_writev"),
    (libc::SYS_pidfd_open, "pidfd_open"),
    (libc::SYS_pidfd_getfd, "pidfd_getfd"),
    (libc::SYS_kcmp, "kcmp"),
    // mounts, namespaces, files by their number
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_mount_setattr, "mount_setattr"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_open_tree, "open_tree"),
    (libc::SYS_fsopen, "fsopen"),
    (libc::SYS_fsconfig, "fsconfig"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_fspick, "fspick"),
    (libc::SYS_pivot_root, "pivot_root"),
    (libc::SYS_chroot, "chroot"),
    (libc::SYS_unshare, "unshare"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_open_by_handle_at, "open_by_handle_at"),
    // ways around a filter, and large parts of the kernel
    (libc::SYS_io_uring_setup, "io_uring_setup"),
    (libc::SYS_io_uring_enter, "io_uring_enter"),
    (libc::SYS_io_uring_register, "io_uring_register"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_perf_event_open, "perf_event_open"),
    (libc::SYS_userfaultfd, "userfaultfd"),
    (libc::SYS_fanotify_init, "fanotify_init"),
    (libc::SYS_add_key, "add_key"),
    (libc::SYS_request_key, "request_key"),
    (libc::SYS_keyctl, "keyctl"),
    // the machine
    (libc::SYS_init_module, "init_module"),
    (libc::SYS_finit_module, "finit_module"),
    (libc::SYS_delete_module, "delete_module"),
    (libc::SYS_kexec_load, "kexec_load"),
    (libc::SYS_reboot, "reboot"),
    (libc::SYS_swapon, "swapon"),
    (libc::SYS_swapoff, "swapoff"),
    (libc::SYS_acct, "acct"),
    (libc::SYS_quotactl, "quotactl"),
    (libc::SYS_syslog, "syslog"),
    (libc::SYS_sethostname, "sethostname"),
    (libc::SYS_settimeofday, "settimeofday"),
    (libc::SYS_clock_settime, "clock_settime"),
    (libc::SYS_clock_adjtime, "clock_adjtime"),
    (libc::SYS_adjtimex, "adjtimex"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_iopl, "iopl"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ioperm, "ioperm"),
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::Error>;

/// A condition on an argument of 32 bits (the kernel ignores the upper half) or on a whole one.
fn is(argument: u8, op: SeccompCmpOp, value: u64) -> Built<SeccompCondition> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?)
}

fn masked(argument: u8, mask: u64, value: u64) -> Built<SeccompCondition> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)?)
}

fn all<const N: usize>(conditions: [Built<SeccompCondition>; N]) -> Built<SeccompRule> {
    Ok(SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)?)
}

fn bits(flags: libc::c_int) -> u64 {
    u64::from(flags.unsigned_abs())
}

fn program(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Built<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()?)
}

/// `clone3` as on a kernel without it, which the C libraries know: its flags lie in memory, where no filter sees them.
fn without_clone3() -> Built<BpfProgram> {
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    program(BTreeMap::from([(libc::SYS_clone3, vec![])]), SeccompAction::Allow, enosys)
}

/// What computing needs, and loading beside it.
fn tight(stage: Stage) -> Built<BpfProgram> {
    use SeccompCmpOp::{Eq, Ge, Le};
    let mut rules: Rules = CALLS.iter().map(|&call| (call, vec![])).collect();
    let anonymous = || masked(3, bits(libc::MAP_ANONYMOUS), bits(libc::MAP_ANONYMOUS));
    let not_executable = || masked(2, bits(libc::PROT_EXEC), 0);
    rules.insert(libc::SYS_mmap, vec![all([anonymous(), not_executable()])?]);
    rules.insert(libc::SYS_mprotect, vec![all([not_executable()])?]);
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![all([masked(0, thread, thread)])?]);
    // Refused by the other filter, whose answer would not be heard if this one trapped.
    rules.insert(libc::SYS_clone3, vec![]);
    // Rust's library asks whether a descriptor is open before it closes one, in programs with debug assertions.
    rules.insert(libc::SYS_fcntl, vec![all([is(1, Eq, bits(libc::F_GETFD))])?]);
    let option = |option| all([is(0, Eq, bits(option))]);
    let mut options = vec![option(libc::PR_SET_NAME)?, option(libc::PR_SET_VMA)?];
    if stage == Stage::Loading {
        options.push(option(libc::PR_SET_NO_NEW_PRIVS)?);
        rules.insert(libc::SYS_seccomp, vec![all([is(0, Eq, u64::from(libc::SECCOMP_SET_MODE_FILTER))])?]);
        let own = is(0, Eq, 0);
        let memory = is(1, Eq, Resource::RLIMIT_DATA as u64);
        rules.insert(libc::SYS_prlimit64, vec![all([own, memory])?]);
        // The signals below the first that a program may have for itself: each C library keeps some for its threads, and
        // catches them when it starts the first one.
        rules.insert(libc::SYS_rt_sigaction, vec![all([is(0, Ge, 32), is(0, Le, 34)])?]);
    }
    rules.insert(libc::SYS_prctl, options);
    program(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// Everything but what no engine has a reason for.
fn wide() -> Built<BpfProgram> {
    use SeccompCmpOp::{Eq, Ne};
    let mut rules: Rules = NEVER.iter().map(|&(call, _)| (call, vec![])).collect();
    rules.insert(libc::SYS_clone, vec![all([masked(0, bits(libc::CLONE_THREAD), 0)])?]);
    rules.insert(libc::SYS_rt_sigaction, vec![all([is(0, Eq, bits(libc::SIGSYS))])?]);
    // Drivers are asked about over netlink, and a vendor's service listens on a Unix socket.
    let local = [is(0, Ne, bits(libc::AF_UNIX)), is(0, Ne, bits(libc::AF_NETLINK))];
    rules.insert(libc::SYS_socket, vec![all(local)?]);
    program(rules, SeccompAction::Allow, SeccompAction::Trap)
}

/// x86_64 kernels may know every system call by a second number (the x32 ABI), which a list of what is refused does not name.
#[cfg(target_arch = "x86_64")]
fn without_second_numbers() -> BpfProgram {
    /// `__X32_SYSCALL_BIT` (asm/unistd.h).
    const SECOND: u32 = 0x4000_0000;
    let instruction = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    vec![
        // The number of the call: the first word of `struct seccomp_data`.
        instruction(0x20, 0, 0, 0),
        instruction(0x35, 0, 1, SECOND),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// The filters that come with a stage, on top of those that are there.
///
/// # Errors
/// Never on the machines it is built for.
fn filters(engine: EngineKind, stage: Stage) -> Built<Vec<BpfProgram>> {
    Ok(match (Profile::of(engine), stage) {
        (Profile::Tight, Stage::Loading) => vec![without_clone3()?, tight(stage)?],
        (Profile::Tight, Stage::Serving) => vec![tight(stage)?],
        (Profile::Wide, Stage::Loading) => vec![
            #[cfg(target_arch = "x86_64")]
            without_second_numbers(),
            without_clone3()?,
            wide()?,
        ],
        (Profile::Wide, Stage::Serving) => vec![],
    })
}

/// Where the handler leaves the number.
static CELL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// From now on no thread of this process makes a system call that this stage does not need. `cell`: where the number of one that
/// was tried is left, and 1 added to it.
///
/// # Errors
/// When the kernel has no seccomp.
pub fn limit_calls(engine: EngineKind, stage: Stage, cell: &'static AtomicU64) -> Result<(), String> {
    let programs = filters(engine, stage).map_err(|e| e.to_string())?;
    if stage == Stage::Loading {
        CELL.store(std::ptr::from_ref(cell).cast_mut(), Relaxed);
        sys::on_bad_call(trapped).map_err(|e| e.to_string())?;
    }
    for program in programs {
        seccompiler::apply_filter_all_threads(&program).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The handler of `SIGSYS`: async-signal-safe, it stores one number and ends the process.
extern "C" fn trapped(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let cell = CELL.load(Relaxed);
    if !cell.is_null() {
        // SAFETY: the cell is in the ring, which is mapped for the rest of the process' life (`Ring::leak`).
        unsafe { &*cell }.store(u64::from(sys::bad_call(info)) + 1, Relaxed);
    }
    sys::exit_now(TRAPPED.into())
}

/// A system call in words: `41 (socket)`.
pub fn name_of(call: u64) -> String {
    let known: &[(libc::c_long, &str)] = &[
        (libc::SYS_openat, "openat"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_clone, "clone of a process"),
        (libc::SYS_mmap, "mmap of a file or of executable memory"),
        (libc::SYS_mprotect, "mprotect to executable"),
        (libc::SYS_kill, "kill"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_dup, "dup"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_prlimit64, "prlimit64"),
        (libc::SYS_seccomp, "seccomp"),
        (libc::SYS_rt_sigaction, "rt_sigaction"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, "open"),
    ];
    match known.iter().chain(NEVER).find(|(n, _)| u64::try_from(*n) == Ok(call)) {
        Some((_, name)) => format!("{call} ({name})"),
        None => call.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_has_a_filter_before_its_model_is_read() {
        for engine in EngineKind::ALL {
            assert!(filters(engine, Stage::Loading).unwrap().len() >= 2, "{engine}");
        }
        assert_eq!(filters(EngineKind::Cpu, Stage::Serving).unwrap().len(), 1);
    }

    #[test]
    fn only_the_built_in_engine_is_known_well_enough_for_a_tight_one() {
        let tight: Vec<_> =
            EngineKind::ALL.into_iter().filter(|e| Profile::of(*e) == Profile::Tight).collect();
        assert_eq!(tight, [EngineKind::Cpu]);
    }

    #[test]
    fn a_call_is_named_where_it_has_a_name() {
        assert!(name_of(u64::try_from(libc::SYS_socket).unwrap()).ends_with(" (socket)"));
        assert!(name_of(u64::try_from(libc::SYS_bpf).unwrap()).ends_with(" (bpf)"));
        assert_eq!(name_of(9999), "9999");
    }
}
