//! Faults on demand: a JSON file beside the library, `LIBRARY.faults`, read whenever something happens.
//!
//! It is beside the library because a host gets no environment of the test's, and the daemon must not know that it is tested. Write it
//! elsewhere and rename it: it is read at any time. Without one everything works.

use serde::Deserialize;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Another version than 4.23.0.
    pub version: Option<[u32; 3]>,
    /// The chip is off the bus: none is found, every call gives 36.
    pub lost: bool,
    /// The driver shows a chip that has no device node: it is found, and opening it gives 36.
    pub no_node: bool,
    /// Opening the chip takes this long.
    pub open_ms: u64,
    /// Beside `lost`: who waits for a frame waits until the network is shut down, whatever its timeout.
    pub stuck: bool,
    /// Who looks for chips waits forever.
    pub silent: bool,
    /// Who looks for chips ends by a bad access to memory.
    pub crashes: bool,
    /// Who looks for chips has this printed to standard output.
    pub prints: Option<String>,
    /// The driver is not loaded: opening gives 64.
    pub no_driver: bool,
    /// The driver's version is another one: opening gives 76.
    pub driver_mismatch: bool,
    /// The firmware hangs: every call that talks to the chip gives 87.
    pub hung: bool,
    /// `hailo8l` and so on; `hailo8` when absent.
    pub architecture: Option<String>,
    /// Degrees Celsius, both sensors; 45 when absent.
    pub temperature: Option<f32>,
    /// Frames are aborted (63), as after the chip has stopped itself.
    pub shut_down: bool,
    /// Notifications, each sent once to an open device that was asked for it.
    pub notify: Vec<Notify>,
    /// Who shares the chip is told neither temperature nor power, and of nothing.
    pub service_tells_nothing: bool,
    /// Nobody is notified of anything.
    pub mute: bool,
    /// What happens to frames.
    pub frames: Vec<FrameFault>,
}

/// A notification.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notify {
    /// As in the header.
    pub id: u32,
    /// The first four bytes of its body: the zone of an alarm.
    pub word: u32,
}

/// What happens to some frames.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrameFault {
    /// How many frames go well before, since the file was written.
    pub after: u64,
    /// How many it happens to; all that follow when absent.
    pub count: Option<u64>,
    /// The answer comes this much later.
    pub delay_ms: u64,
    /// No answer comes.
    pub dropped: bool,
    /// Every number of the answer is none, where floats were asked for.
    pub nan: bool,
    /// The process aborts.
    pub abort: bool,
    /// The process ends by a bad access to memory.
    pub segv: bool,
    /// A frame of the answer is the one before.
    pub repeats: bool,
}

/// The file this code was loaded from.
pub fn library() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: the address is of a function of this object, the structure is filled when it says so.
        let found = unsafe { libc::dladdr(library as *const libc::c_void, &raw mut info) };
        assert!(found != 0 && !info.dli_fname.is_null(), "the linker does not know this library");
        // SAFETY: a text of the linker's that lives as long as the library.
        let name = unsafe { CStr::from_ptr(info.dli_fname) };
        std::path::absolute(OsStr::from_bytes(name.to_bytes())).unwrap_or_default()
    })
}

/// A file beside the library.
pub fn beside(extension: &str) -> PathBuf {
    let mut name = library().clone().into_os_string();
    name.push(extension);
    name.into()
}

/// The file's text and what it says. One that cannot be read as such ends the process: a test would test nothing.
pub fn read() -> (String, Faults) {
    let Ok(text) = std::fs::read_to_string(beside(".faults")) else { return Default::default() };
    match serde_json::from_str(&text) {
        Ok(faults) => (text, faults),
        Err(e) => {
            eprintln!("hailort double: {}: {e}", beside(".faults").display());
            std::process::abort()
        }
    }
}

/// Notes that a rule of the interface was broken, for the test to find in `LIBRARY.misuse`.
pub fn misuse(what: &str) {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(beside(".misuse"));
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{what}");
    }
}
