//! The few system calls around the ring: sealed memory files, mappings, futex, monotonic time, memory limits.
//!
//! With `ring`, `alloc`, `mem` and `confine` the only places of the room with `unsafe`; each block says why it is sound.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nanoseconds of `CLOCK_MONOTONIC`: the same clock in the daemon and its hosts, never stepped.
pub fn now_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC is always there");
    u64::try_from(Duration::from(t).as_nanos()).unwrap_or(u64::MAX)
}

/// A memory file that can be sealed.
pub fn memory_file(name: &str) -> io::Result<File> {
    let name = std::ffi::CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?))
}

/// Nobody can change the size of this memory file any more, nor its content when `read_only`.
pub fn seal(file: &File, read_only: bool) -> io::Result<()> {
    let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    if read_only {
        seals |= SealFlag::F_SEAL_WRITE;
    }
    fcntl(file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

/// Whether size (and content, when `read_only`) of this memory file are sealed.
pub fn is_sealed(file: &File, read_only: bool) -> io::Result<bool> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    let mut want = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    if read_only {
        want |= SealFlag::F_SEAL_WRITE;
    }
    Ok(seals.contains(want))
}

/// A shared mapping of a whole memory file; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that stays where it is; what is done with it is up to `ring`, which uses atomics for
// everything two parties write.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a sealed file of exactly `len` bytes. The size cannot change any more, so no access can fault.
    pub fn new(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        if !is_sealed(file, !writable)? || file.metadata()?.len() != len as u64 {
            return Err(io::Error::other("the memory file is not sealed or has another size"));
        }
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let at = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
        Ok(Self { at: at.cast(), len })
    }

    /// Maps a sealed file, whatever its length.
    pub fn whole(file: &File, writable: bool) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Self::new(file, len, writable)
    }

    /// Where the mapping starts (page-aligned).
    pub fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a read-only mapping, for the rest of the process' life.
    pub fn leak(self) -> &'static [u8] {
        let me = std::mem::ManuallyDrop::new(self);
        // SAFETY: the mapping is never unmapped any more, is `len` bytes long, and nobody can write to the file behind
        // it: `new` saw it sealed against writes (only read-only mappings are leaked, see `Package`).
        unsafe { std::slice::from_raw_parts(me.at.as_ptr(), me.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing borrowed from it outlives the mapping (`ring` hands out
        // references bound to its own life).
        let _ = unsafe { munmap(self.at.cast(), self.len) };
    }
}

/// Sleeps while `*word == expected`, at most `timeout`. Wakes up for no reason now and then; the caller looks again.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let t = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(3600),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the word is a valid, aligned u32 for the whole call; FUTEX_WAIT only reads it. Not PRIVATE: it is shared
    // between processes.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const t) };
}

/// Wakes up to `count` sleepers of this word.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: FUTEX_WAKE does not access memory through the pointer; it is only the name of the queue.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

/// Registers an eventfd with the runtime.
pub fn async_event(event: EventFd) -> io::Result<AsyncFd<EventFd>> {
    // SAFETY: `EventFd` owns its descriptor and always names the same one until the `AsyncFd` drops it.
    unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.map_err(|e| e.into_parts().1)
}

/// What a child does between fork and exec. Only async-signal-safe calls, no allocation.
#[derive(Debug)]
pub struct ChildSetup {
    /// Descriptors the child inherits.
    pub inherit: Vec<OwnedFd>,
    /// Opened `cgroup.procs` of the child's group.
    pub cgroup_procs: Option<File>,
    /// The process that must still be the parent.
    pub parent: i32,
}

/// Prepares a command: own process group, dies with its parent, inherits exactly the named descriptors, joins its cgroup
/// before its first instruction, leaves no core files.
pub fn prepare(command: &mut tokio::process::Command, setup: ChildSetup) {
    use std::os::fd::AsRawFd;
    // SAFETY: the closure runs in the forked child and makes only async-signal-safe system calls on values that were made
    // before the fork; it allocates nothing (`io::Error::from_raw_os_error` is two words).
    unsafe {
        command.pre_exec(move || {
            let last = || io::Error::last_os_error();
            if libc::setpgid(0, 0) != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(last());
            }
            if libc::getppid() != setup.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if libc::setrlimit(libc::RLIMIT_CORE, &raw const core) != 0 {
                return Err(last());
            }
            if let Some(procs) = &setup.cgroup_procs
                && libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
            {
                return Err(last());
            }
            for fd in &setup.inherit {
                if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                    return Err(last());
                }
            }
            Ok(())
        });
    }
}

/// Takes over an inherited descriptor; each number once, at the start of a host.
pub fn take_fd(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: fcntl on any number is harmless; it fails for one that is not open.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::other(format!("descriptor {number} was not inherited")));
    }
    // SAFETY: it is open (checked), above the standard ones, and named once on our command line, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What this process has in memory, told by a file that was opened while files still could be.
#[derive(Debug)]
pub struct OwnMemory(File);

impl OwnMemory {
    /// Opens `/proc/self/status`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/status")?))
    }

    /// Caps private writable memory of this process at what it has now plus `budget`.
    ///
    /// `RLIMIT_DATA` rather than `RLIMIT_AS`: it counts private writable mappings (heap, stacks) and leaves out the shared
    /// ring, read-only files and address space that an allocator merely reserves.
    pub fn cap(mut self, budget: u64) -> io::Result<u64> {
        use nix::sys::resource::{Resource, setrlimit};
        use std::io::Read;
        // Read as it is: `read_to_string` asks for the file's size first, a system call more. The kernel writes the text at the
        // first read, and the line is among its first thirty.
        let (mut text, mut len) = ([0; 8192], 0);
        while let n @ 1.. = self.0.read(&mut text[len..])? {
            len += n;
        }
        let status = String::from_utf8_lossy(&text[..len]);
        let line = status.lines().find_map(|l| l.strip_prefix("VmData:"));
        let kib = line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok());
        let now = kib.ok_or_else(|| io::Error::other("no VmData in /proc/self/status"))? * 1024;
        let cap = now.saturating_add(budget);
        setrlimit(Resource::RLIMIT_DATA, cap, cap)?;
        Ok(cap)
    }
}

/// The most private memory a process has had resident, in bytes, as near as `/proc` tells (see `PeakMemory`).
pub fn private_peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let shared = kib("RssFile:")? + kib("RssShmem:")?;
    Some(kib("VmHWM:")?.saturating_sub(shared).max(kib("RssAnon:")?) * 1024)
}

/// Processor time a process has used so far, all its threads together.
pub fn cpu_time(pid: u32) -> Option<std::time::Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let clock = nix::time::clock_getcpuclockid(pid).ok()?;
    Some(nix::time::clock_gettime(clock).ok()?.into())
}

/// Kills what is left of the group of a process that has just ended: a host without a filter and without a cgroup may have begun
/// others. No other group has that number yet: the kernel counts through all of them first.
pub fn kill_group(leader: u32) {
    if let Ok(leader @ 2..) = i32::try_from(leader) {
        let _ =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Sets the niceness of every thread of a process group, -20 to 19.
///
/// # Errors
/// `EACCES` when it would be lower than it is and this process may not do that.
pub fn set_nice(group: u32, nice: i32) -> io::Result<()> {
    // By number: the C libraries disagree about the type of the first argument.
    // SAFETY: three integers; touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PGRP, group, nice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the niceness of the calling thread.
///
/// # Errors
/// As the system call; raising is always allowed.
pub fn set_own_nice(nice: i32) -> io::Result<()> {
    // SAFETY: as above; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The niceness of the calling thread.
pub fn own_nice() -> i32 {
    // SAFETY: two integers; touches no memory.
    let raw = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    // The call itself answers 20 - nice, from 1 to 40; below 0 is an error, which it has no reason for.
    i32::try_from(raw).ok().filter(|r| (1..=40).contains(r)).map_or(0, |r| 20 - r)
}

/// Ends the process at once, without running destructors: workers may be in the middle of anything.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Nothing this process executes gives it a right any more, and it has no capability left. What the bounding set holds is
/// dropped where that is allowed; without a right to take from, it gives none.
pub fn drop_privileges() -> io::Result<()> {
    /// `struct __user_cap_header_struct` and two of `__user_cap_data_struct`, version 3 (capset(2)).
    const VERSION_3: u32 = 0x2008_0522;
    let none = [0_u32; 6];
    let header: [u32; 2] = [VERSION_3, 0];
    // SAFETY: prctl with integers only; touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in 0..64 {
        // SAFETY: as above. Fails without CAP_SETPCAP, and beyond the last capability.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: as above. Fails only on kernels before 4.3, which have no ambient set.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // SAFETY: capset reads a header of two and data of six 32-bit words; both arrays are that long and live.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What runs when the kernel refuses a system call.
pub type BadCall = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets the handler of `SIGSYS`.
pub fn on_bad_call(handler: BadCall) -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is complete, the handler is a function of the type that SA_SIGINFO asks for.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of the system call that `SIGSYS` is about.
pub fn bad_call(info: *const libc::siginfo_t) -> u32 {
    /// `_sigsys._syscall`: after the three leading integers (padded to 16 bytes) and the address of the call, on every machine
    /// of 64 bits (siginfo.h of the kernel).
    const SYSCALL: usize = 24;
    // SAFETY: the kernel hands the handler a siginfo_t of 128 bytes; the field lies inside, is aligned, and any bits are an i32.
    let number = unsafe { info.cast::<u8>().add(SYSCALL).cast::<i32>().read() };
    number.unsigned_abs()
}
