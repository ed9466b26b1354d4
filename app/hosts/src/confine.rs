//! What a host may do: no privilege, few resources, and the system calls that computing needs.
//!
//! | when | what |
//! |---|---|
//! | first thing | `no_new_privs`; every capability dropped, from the bounding set too where that is allowed; `RLIMIT_NOFILE` 64, `RLIMIT_FSIZE` 0, `RLIMIT_CORE` 0, `RLIMIT_NPROC` |
//! | model loaded, golden vectors passed, nothing served yet | the system calls below and no others, for every thread |
//!
//! A host that is ready computes: it maps memory, waits for futexes, reads and writes descriptors it has, and may start another
//! thread. It opens nothing, connects to nothing, starts no process, maps nothing executable. A system call that is not listed is
//! not made: the kernel sends `SIGSYS` instead (`SECCOMP_RET_TRAP`), whose handler leaves the call's number in the ring and ends
//! the process. The handler cannot be taken away: `rt_sigaction` is not listed, and a thread that has blocked the signal (musl does
//! around `fork`) is ended by the kernel, without a number. (`SECCOMP_RET_KILL_PROCESS` would always end it so, and never say
//! what was tried.)
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

/// The filter of a host that is ready, by engine; `None`: not known yet what its library does.
///
/// # Errors
/// Never on the machines it is built for.
fn filter(engine: EngineKind) -> Result<Option<Vec<BpfProgram>>, seccompiler::Error> {
    if engine != EngineKind::Cpu {
        return Ok(None);
    }
    let masked = |argument: u8, mask: u64, value: u64| {
        let op = SeccompCmpOp::MaskedEq(mask);
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value)?;
        SeccompRule::new(vec![condition])
    };
    let bits = |flags: libc::c_int| u64::from(flags.unsigned_abs());
    let not_executable = || masked(2, bits(libc::PROT_EXEC), 0);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &call in CALLS {
        rules.insert(call, vec![]);
    }
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![masked(0, thread, thread)?]);
    let name = |option: libc::c_int| masked(0, u64::from(u32::MAX), bits(option));
    rules.insert(libc::SYS_prctl, vec![name(libc::PR_SET_NAME)?, name(libc::PR_SET_VMA)?]);
    // Rust's library asks whether a descriptor is open before it closes one, in programs with debug assertions.
    let asks = masked(1, u64::from(u32::MAX), bits(libc::F_GETFD))?;
    rules.insert(libc::SYS_fcntl, vec![asks]);
    // Its flags lie in memory, where no filter sees them: as on a kernel without it, which the C libraries know.
    let newer = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    rules.insert(libc::SYS_clone3, vec![]);

    let arch = std::env::consts::ARCH.try_into()?;
    let strict = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let older = SeccompFilter::new(newer, SeccompAction::Allow, enosys, arch)?;
    Ok(Some(vec![older.try_into()?, strict.try_into()?]))
}

/// Where the handler leaves the number.
static CELL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// From now on no thread of this process makes a system call that is not listed. `cell`: where the number of one that was tried
/// is left, and 1 added to it.
///
/// # Errors
/// When the kernel has no seccomp.
pub fn shut(engine: EngineKind, cell: &'static AtomicU64) -> Result<(), String> {
    let Some(programs) = filter(engine).map_err(|e| e.to_string())? else { return Ok(()) };
    CELL.store(std::ptr::from_ref(cell).cast_mut(), Relaxed);
    sys::on_bad_call(trapped).map_err(|e| e.to_string())?;
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
        (libc::SYS_execve, "execve"),
        (libc::SYS_execveat, "execveat"),
        (libc::SYS_clone, "clone of a process"),
        (libc::SYS_ptrace, "ptrace"),
        (libc::SYS_mmap, "mmap of executable memory"),
        (libc::SYS_mprotect, "mprotect to executable"),
        (libc::SYS_kill, "kill"),
        (libc::SYS_mount, "mount"),
        (libc::SYS_bpf, "bpf"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_dup, "dup"),
        (libc::SYS_rt_sigaction, "rt_sigaction"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, "open"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_fork, "fork"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_vfork, "vfork"),
    ];
    match known.iter().find(|(n, _)| u64::try_from(*n) == Ok(call)) {
        Some((_, name)) => format!("{call} ({name})"),
        None => call.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_engine_has_a_filter_on_this_machine() {
        assert_eq!(filter(EngineKind::Cpu).unwrap().unwrap().len(), 2);
        assert!(filter(EngineKind::Hailo).unwrap().is_none());
    }

    #[test]
    fn a_call_is_named_where_it_has_a_name() {
        assert!(name_of(u64::try_from(libc::SYS_socket).unwrap()).ends_with(" (socket)"));
        assert_eq!(name_of(9999), "9999");
    }
}
