//! Boards whose system is not updated by this version, and why: they say so before anything is written.

use crate::Slot;
use crate::boot::{Backend, BootError, Now, Refused, Restart};
use std::path::{Path, PathBuf};

/// NVIDIA's names for its variables in the UEFI.
const NVIDIA: &str = "781e084c-a330-417c-b678-38e696380cb9";

/// `uefi-nv`: a Jetson. Its variables are read and never written: one written wrongly can leave a board that does not start.
///
/// Taken from documents; it has never met a board.
#[derive(Clone, Debug)]
pub struct Uefi {
    efivars: PathBuf,
}

impl Uefi {
    /// Of the directory of the variables, `/sys/firmware/efi/efivars`.
    #[must_use]
    pub fn new(efivars: &Path) -> Self {
        Self { efivars: efivars.to_owned() }
    }

    /// The first byte of a variable: four bytes of attributes come before it.
    fn variable(&self, name: &str) -> Option<u8> {
        std::fs::read(self.efivars.join(format!("{name}-{NVIDIA}"))).ok()?.get(4).copied()
    }

    fn refused(&self) -> Refused {
        let sentence = match self.variable("RootfsRedundancyLevel") {
            None => "this Jetson has one root filesystem: it was not flashed with a redundant layout (RootfsRedundancyLevel is not there)"
                .to_owned(),
            Some(0) => "this Jetson's root filesystem is not redundant (RootfsRedundancyLevel is 0)".to_owned(),
            Some(_) => {
                let word = |name| match self.variable(name) {
                    None => "unknown",
                    Some(0) => "normal",
                    Some(0xff) => "unbootable",
                    Some(_) => "being tried",
                };
                format!(
                    "this Jetson has two root filesystems (a is {}, b is {}), and this version does not change which one starts",
                    word("RootfsStatusSlotA"),
                    word("RootfsStatusSlotB")
                )
            }
        };
        Refused::new("boot-backend", format!("{sentence}; update the system as its maker does"))
    }
}

/// `initramfs`: the kernel does not lie in the slot, so there is nothing that could start another system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Initramfs;

impl Initramfs {
    fn refused() -> Refused {
        let why = "this image has one kernel outside of its slots, and nothing that would come back from a system that does not start";
        Refused::new("boot-backend", format!("{why}; write a new image to the medium"))
    }
}

macro_rules! refusing {
    ($backend:ty, $name:literal, $refused:expr) => {
        impl Backend for $backend {
            fn name(&self) -> &'static str {
                $name
            }

            fn preflight(&self) -> Result<(), Refused> {
                Err($refused(self))
            }

            fn now(&self) -> Result<Now, BootError> {
                Err($refused(self).into())
            }

            fn restart(&self) -> Restart {
                Restart::Plain
            }

            fn arm(&self, _: Slot) -> Result<Restart, BootError> {
                Err($refused(self).into())
            }

            fn disarm(&self) -> Result<(), BootError> {
                Ok(())
            }

            fn commit(&self) -> Result<(), BootError> {
                Err($refused(self).into())
            }
        }
    };
}

refusing!(Uefi, "uefi-nv", Uefi::refused);
refusing!(Initramfs, "initramfs", |_: &Initramfs| Initramfs::refused());
