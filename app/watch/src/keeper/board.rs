//! What only root may do to the board.

#![allow(unsafe_code)] // reboot(2)

use crate::ask::Argument;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The file in the keeper's directory that has the argument of the next restart, for whoever calls `reboot(2)` last.
const ARGUMENT: &str = "restart";
/// What systemd runs when it has ended everything: tells it what that file says (rootfs-overlay).
const AT_SYSTEMDS_END: &str = "/usr/lib/systemd/system-shutdown/inferd";

/// How the board is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// By init, and by the kernel when init does not.
    Board,
    /// By a program, with `reboot`, `force` or `panic` as its argument, and what a restart says behind it: for tests on machines that must
    /// not be restarted.
    Program(PathBuf),
}

/// The name of process 1.
fn init() -> String {
    fs::read_to_string("/proc/1/comm").unwrap_or_default().trim().to_owned()
}

impl Restart {
    /// Whether a restart can say something to the firmware here: BusyBox's init can be asked for that, and systemd where the image has
    /// what tells it.
    #[must_use]
    pub fn takes_arguments(&self) -> bool {
        *self != Self::Board
            || match init().as_str() {
                "init" => true,
                "systemd" => Path::new(AT_SYSTEMDS_END).exists(),
                _ => false,
            }
    }

    /// Asks init to shut the system down and restart the board. With an argument, which is left in the keeper's directory `run`, it ends
    /// everything as for any restart. BusyBox's init then becomes [`restart_last`]; systemd is told the argument at its end.
    ///
    /// # Errors
    /// When init cannot be asked.
    pub fn ask_init(&self, run: &Path, argument: Option<Argument>) -> io::Result<()> {
        match (self, argument) {
            (Self::Program(program), argument) => command(
                program,
                &["reboot"].into_iter().chain(argument.map(Argument::words)).collect::<Vec<_>>(),
            ),
            (Self::Board, argument) => {
                match argument {
                    Some(argument) => fs::write(run.join(ARGUMENT), argument.words())?,
                    // Of a restart that never came.
                    None => match fs::remove_file(run.join(ARGUMENT)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    },
                }
                // systemd takes SIGINT for ctrl-alt-del, which is "shut down and restart"; BusyBox takes SIGTERM for that, and SIGQUIT for
                // `::restart:` of inittab.
                let signal = match (init().as_str(), argument) {
                    ("systemd", _) => Signal::SIGINT,
                    (_, Some(_)) => Signal::SIGQUIT,
                    (_, None) => Signal::SIGTERM,
                };
                Ok(kill(Pid::from_raw(1), signal)?)
            }
        }
    }

    /// Restarts at once: nothing is ended, nothing is written any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn force(&self) -> io::Result<()> {
        match self {
            Self::Program(program) => command(program, &["force"]),
            Self::Board => {
                // SAFETY: no memory is passed; the call does not return when it works.
                match unsafe { libc::reboot(libc::RB_AUTOBOOT) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
        }
    }

    /// Has the kernel panic.
    ///
    /// # Errors
    /// When it does not want to.
    pub fn panic(&self) -> io::Result<()> {
        match self {
            Self::Program(program) => command(program, &["panic"]),
            Self::Board => fs::write("/proc/sysrq-trigger", "c"),
        }
    }
}

/// What init becomes when it has ended everything: calls `reboot(2)` with the argument that the keeper left in its directory `run`, if
/// it left one. Nothing else runs by then, and every file system was synced; it does so once more.
///
/// It returns only when that was not to be, or did not work: process 1 then ends, the kernel panics, and restarts without any argument.
#[must_use]
pub fn restart_last(run: &Path) -> io::Error {
    if std::process::id() != 1 {
        return io::Error::other("only init restarts the board so: nothing else may run any more");
    }
    nix::unistd::sync();
    let left = fs::read_to_string(run.join(ARGUMENT)).ok();
    let argument =
        left.and_then(|words| Argument::of(&words)).and_then(|argument| CString::new(argument.words()).ok());
    if let Some(argument) = argument {
        // SAFETY: the kernel reads the string, which outlives the call; that does not return when it works.
        unsafe {
            libc::syscall(
                libc::SYS_reboot,
                libc::LINUX_REBOOT_MAGIC1,
                libc::LINUX_REBOOT_MAGIC2,
                libc::LINUX_REBOOT_CMD_RESTART2,
                argument.as_ptr(),
            )
        };
        // Any other restart starts the chosen system, which is what is left.
    }
    Restart::Board.force().err().unwrap_or_else(|| io::Error::other("the kernel does not restart the board"))
}

fn command(program: &Path, arguments: &[&str]) -> io::Result<()> {
    Command::new(program).args(arguments).stdin(Stdio::null()).spawn().map(drop)
}

/// A PCI device that the daemon may have taken away and given back: an accelerator. Anything else (the medium, the network) is
/// none of its business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator {
    sysfs: PathBuf,
    device: String,
}

/// Base classes of the PCI code and ID assignment specification: display (GPUs), processors, and processing accelerators.
const CLASSES: [&str; 3] = ["0x03", "0x0b", "0x12"];

impl Accelerator {
    /// The device with this address, if it is one.
    ///
    /// # Errors
    /// One sentence.
    pub fn named(sysfs: &Path, device: &str) -> Result<Self, String> {
        if !is_address(device) {
            return Err(format!("{device:?} is no PCI address such as 0001:01:00.0"));
        }
        let folder = sysfs.join("bus/pci/devices").join(device);
        let class = fs::read_to_string(folder.join("class"))
            .map_err(|error| format!("there is no PCI device {device}: {error}"))?;
        if !CLASSES.iter().any(|base| class.starts_with(base)) {
            return Err(format!("the PCI device {device} is no accelerator (class {})", class.trim()));
        }
        Ok(Self { sysfs: sysfs.to_owned(), device: device.to_owned() })
    }

    /// Takes it away from its driver and gives it back. May take as long as the driver takes.
    ///
    /// # Errors
    /// One sentence.
    pub fn rebind(&self, driver: &str) -> Result<(), String> {
        let good = !driver.is_empty()
            && driver.len() <= 64
            && driver.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !good {
            return Err(format!("{driver:?} is no name of a driver"));
        }
        let folder = self.sysfs.join("bus/pci/drivers").join(driver);
        // A device that lost its driver has nothing to be taken away from.
        if folder.join(&self.device).exists() {
            self.write(&folder.join("unbind"))?;
        }
        self.write(&folder.join("bind"))
    }

    /// Removes it from the bus and has the bus looked at again, where it must be found.
    ///
    /// # Errors
    /// One sentence.
    pub fn rescan(&self) -> Result<(), String> {
        let folder = self.sysfs.join("bus/pci/devices").join(&self.device);
        put(&folder.join("remove"), "1")?;
        put(&self.sysfs.join("bus/pci/rescan"), "1")?;
        if folder.exists() {
            return Ok(());
        }
        Err(format!("the PCI device {} was removed and not found again", self.device))
    }

    fn write(&self, file: &Path) -> Result<(), String> {
        put(file, &self.device)
    }
}

fn put(file: &Path, text: &str) -> Result<(), String> {
    // Never creates: sysfs has the file or the device is not there.
    let write = fs::OpenOptions::new().write(true).open(file);
    write
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|error| format!("{}: {error}", file.display()))
}

/// `0001:01:00.0`.
fn is_address(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b':',
        10 => byte == b'.',
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    text.len() == 12 && text.bytes().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("bus/pci/devices/0001:01:00.0/class", "0x0b4000\n");
        make("bus/pci/devices/0001:01:00.0/remove", "");
        make("bus/pci/devices/0000:00:01.0/class", "0x010000\n");
        make("bus/pci/drivers/hailo/bind", "");
        make("bus/pci/drivers/hailo/unbind", "");
        make("bus/pci/drivers/hailo/0001:01:00.0/x", "");
        make("bus/pci/rescan", "");
        root
    }

    #[test]
    fn an_accelerator_is_bound_anew_and_the_bus_looked_at_again() {
        let root = machine();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        let device = Accelerator::named(root.path(), "0001:01:00.0").unwrap();
        device.rebind("hailo").unwrap();
        assert_eq!(read("bus/pci/drivers/hailo/unbind"), "0001:01:00.0");
        assert_eq!(read("bus/pci/drivers/hailo/bind"), "0001:01:00.0");
        device.rescan().unwrap();
        assert_eq!(
            (read("bus/pci/devices/0001:01:00.0/remove"), read("bus/pci/rescan")),
            ("1".into(), "1".into())
        );
    }

    #[test]
    fn a_device_that_the_bus_does_not_give_back_is_told() {
        let root = machine();
        let folder = root.path().join("bus/pci/devices/0001:01:00.0");
        let files = [folder.join("remove"), root.path().join("bus/pci/rescan")];
        for file in &files {
            fs::remove_file(file).unwrap();
            nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let device = Accelerator::named(root.path(), "0001:01:00.0").unwrap();
        let bus = std::thread::spawn(move || {
            assert_eq!(fs::read_to_string(&files[0]).unwrap(), "1");
            fs::remove_dir_all(folder).unwrap();
            assert_eq!(fs::read_to_string(&files[1]).unwrap(), "1");
        });
        assert!(device.rescan().unwrap_err().ends_with("was removed and not found again"));
        bus.join().unwrap();
    }

    #[test]
    fn what_is_no_accelerator_or_leads_elsewhere_is_refused() {
        let root = machine();
        let refused = |device: &str| Accelerator::named(root.path(), device).unwrap_err();
        assert!(refused("0000:00:01.0").contains("is no accelerator"), "the medium");
        assert!(refused("0000:00:02.0").contains("there is no PCI device"));
        for bad in ["", "../../../..", "0001:01:00/0", "0001:01:00.g", "0001.01.00.0", "0001:01:00.00"] {
            assert!(refused(bad).contains("is no PCI address"), "{bad}");
        }
        let device = Accelerator::named(root.path(), "0001:01:00.0").unwrap();
        for bad in ["", "../hailo", "a b", "a/b"] {
            assert!(device.rebind(bad).unwrap_err().contains("is no name"), "{bad}");
        }
        assert!(device.rebind("other").is_err(), "there is no such driver");
    }
}
