//! Which backend this board has: its `board.toml`, which the image carries, and the partitions that are there.

use crate::Slot;
use crate::boot::Backend;
use crate::install::Parts;
use crate::release::Image;
use crate::sectors::FileSectors;
use crate::tryboot::{Firmware, Tryboot};
use crate::uboot::{Uboot, is_try, slot_of};
use crate::uefi::{Initramfs, Uefi};
use inferd_slots::FileMedium;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What this room needs of a `board.toml`.
#[derive(Clone, Debug, Deserialize)]
pub struct Board {
    /// `rpi5-hailo8`.
    pub name: String,
    boot: Boot,
    #[serde(default)]
    firmware: FirmwareFacts,
}

#[derive(Clone, Debug, Deserialize)]
struct Boot {
    backend: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct FirmwareFacts {
    floor: Option<String>,
}

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// It cannot be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// `board.toml` is none.
    #[error("{}: {why}", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A partition is not there.
    #[error("there is no partition {0}")]
    Partition(&'static str),
    /// A partition is there twice: another medium is plugged in.
    #[error("two partitions are called {0}: take the other medium out")]
    Twice(&'static str),
    /// Nobody knows this backend.
    #[error("there is no boot backend {0:?}")]
    Unknown(String),
}

/// Where a board is looked at; tests give it other places.
#[derive(Clone, Debug)]
pub struct Places {
    /// The board's facts.
    pub board: PathBuf,
    /// What the image says of itself.
    pub release: PathBuf,
    /// The kernel's command line.
    pub cmdline: PathBuf,
    /// Which slot was mounted, as the boot script found it.
    pub slot: PathBuf,
    /// The firmware's part of the device tree.
    pub bootloader: PathBuf,
    /// The functions of the kernel that runs.
    pub kallsyms: PathBuf,
    /// The variables of the UEFI.
    pub efivars: PathBuf,
    /// Block devices of the kernel, each with its `uevent`.
    pub blocks: PathBuf,
    /// Their nodes.
    pub devices: PathBuf,
}

impl Places {
    /// Those of a running system whose root is this directory: `/`, or what a test makes of it.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            board: root.join("etc/inferd/board.toml"),
            release: root.join("etc/os-release"),
            cmdline: root.join("proc/cmdline"),
            slot: root.join("run/inferd/slot"),
            bootloader: root.join("proc/device-tree/chosen/bootloader"),
            kallsyms: root.join("proc/kallsyms"),
            efivars: root.join("sys/firmware/efi/efivars"),
            blocks: root.join("sys/class/block"),
            devices: root.join("dev"),
        }
    }

    /// The partitions of both systems: their root filesystems, and what starts them where the board has that.
    ///
    /// # Errors
    /// [`BoardError`] when one is not there.
    pub fn parts(&self) -> Result<[Parts<FileMedium>; 2], BoardError> {
        let open = |name| {
            let path = self.partition(name)?.device;
            let failed = |error| BoardError::Io { path: path.clone(), error };
            // A file in place of a device does not grow.
            let len = fs::metadata(&path).map_err(failed)?.len();
            FileMedium::open(&path, len).map_err(failed)
        };
        let slot = |rootfs, boot| {
            let boot = match open(boot) {
                Ok(medium) => Some(medium),
                Err(BoardError::Partition(_)) => None,
                Err(error) => return Err(error),
            };
            Ok(Parts { rootfs: open(rootfs)?, boot })
        };
        Ok([slot("rootfs-a", "boot-a")?, slot("rootfs-b", "boot-b")?])
    }

    /// Which system this is, by its own root filesystem; `None` where its image does not say.
    #[must_use]
    pub fn image(&self) -> Option<Image> {
        Image::parse(&fs::read_to_string(&self.release).ok()?)
    }

    /// Whether the boot loader or the firmware says that this system was started to be tried. It may be chosen by now.
    #[must_use]
    pub fn tried(&self) -> bool {
        let cmdline = fs::read_to_string(&self.cmdline).unwrap_or_default();
        is_try(&cmdline) || Firmware::read(&self.bootloader).is_try()
    }

    /// The slot that was to be tried and the one whose root filesystem its initramfs mounted instead: one system's kernel runs the other.
    #[must_use]
    pub fn strayed(&self) -> Option<(Slot, Slot)> {
        let said = slot_of(&fs::read_to_string(&self.cmdline).ok()?)?;
        let mounted = self.mounted()?;
        (self.tried() && said != mounted).then_some((said, mounted))
    }

    fn mounted(&self) -> Option<Slot> {
        fs::read_to_string(&self.slot).ok()?.trim().parse().ok()
    }

    /// Whether the kernel that runs passes the argument of a restart on to a Raspberry Pi's firmware: Raspberry Pi's own does, in this
    /// function; one that does not restarts the chosen system whatever it is told.
    #[must_use]
    pub fn passes_arguments_on(&self) -> bool {
        let Ok(symbols) = fs::read(&self.kallsyms) else { return false };
        symbols
            .split(|&byte| byte == b'\n')
            .any(|line| line.split(u8::is_ascii_whitespace).any(|word| word == b"rpi_firmware_notify_reboot"))
    }

    /// The board of this image.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn board(&self) -> Result<Board, BoardError> {
        let text = read(&self.board)?;
        toml::from_str(&text)
            .map_err(|e| BoardError::Form { path: self.board.clone(), why: e.message().to_owned() })
    }

    /// The backend of this board. To `write`, its partition must be one that may be written; root can.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn backend(&self, board: &Board, write: bool) -> Result<Box<dyn Backend>, BoardError> {
        Ok(match board.boot.backend.as_str() {
            "uboot-env" => {
                Box::new(Uboot::new(self.open("bootstate", write)?, &read(&self.cmdline)?, self.mounted()))
            }
            "rpi-tryboot" => {
                let numbers = [self.partition("boot-a")?.number, self.partition("boot-b")?.number];
                let firmware = Firmware::read(&self.bootloader);
                let floor = board.firmware.floor.as_deref();
                Box::new(Tryboot::new(
                    self.open("boot", write)?,
                    numbers,
                    firmware,
                    &read(&self.cmdline)?,
                    self.mounted(),
                    floor,
                ))
            }
            "uefi-nv" => Box::new(Uefi::new(&self.efivars)),
            "initramfs" => Box::new(Initramfs),
            other => return Err(BoardError::Unknown(other.to_owned())),
        })
    }

    fn open(&self, name: &'static str, write: bool) -> Result<FileSectors, BoardError> {
        let path = self.partition(name)?.device;
        FileSectors::open(&path, write).map_err(|error| BoardError::Io { path, error })
    }

    /// The one partition of this name. A stick with another one decides nothing: then nobody is sure which is meant.
    fn partition(&self, name: &'static str) -> Result<Partition, BoardError> {
        let failed = |error| BoardError::Io { path: self.blocks.clone(), error };
        let mut found = None;
        for entry in fs::read_dir(&self.blocks).map_err(failed)? {
            let Ok(uevent) = fs::read_to_string(entry.map_err(failed)?.path().join("uevent")) else {
                continue;
            };
            let of = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            if of("PARTNAME") != Some(name) {
                continue;
            }
            if let (Some(node), Some(number)) = (of("DEVNAME"), of("PARTN").and_then(|n| n.parse().ok())) {
                let partition = Partition { device: self.devices.join(node), number };
                if found.replace(partition).is_some() {
                    return Err(BoardError::Twice(name));
                }
            }
        }
        found.ok_or(BoardError::Partition(name))
    }
}

struct Partition {
    device: PathBuf,
    number: u32,
}

fn read(path: &Path) -> Result<String, BoardError> {
    fs::read_to_string(path).map_err(|error| BoardError::Io { path: path.to_owned(), error })
}

/// What a board says of its two systems, for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The backend, as `board.toml` calls it.
    pub backend: String,
    /// The system that runs, where that is known.
    pub runs: Option<Slot>,
    /// Which system that is, where its image says so.
    #[serde(default)]
    pub image: Option<Image>,
    /// Whether it was started to be tried.
    pub on_trial: bool,
    /// The system that is started whenever nothing is tried.
    pub chosen: Option<Slot>,
    /// Why its system is not updated: a code, and one sentence.
    pub refused: Option<(String, String)>,
}

impl View {
    /// Of the board at these places; `None` where none is described. Only reads.
    #[must_use]
    pub fn of(places: &Places) -> Option<Self> {
        let board = places.board().ok()?;
        let mut view = Self {
            backend: board.boot.backend.clone(),
            runs: None,
            image: places.image(),
            on_trial: false,
            chosen: None,
            refused: None,
        };
        match places.backend(&board, false) {
            Ok(backend) => {
                if let Ok(now) = backend.now() {
                    (view.runs, view.on_trial, view.chosen) =
                        (Some(now.runs), now.on_trial, Some(now.chosen));
                }
                view.refused =
                    backend.preflight().err().map(|refused| (refused.code.to_owned(), refused.sentence));
            }
            Err(error) => view.refused = Some(("boot-backend".to_owned(), error.to_string())),
        }
        Some(view)
    }
}
