//! Two systems on one medium, `a` and `b`: which one runs, having the other one tried once, and committing it.
//!
//! A [`Backend`] is what a board's boot loader or firmware offers. It holds these promises, which `tests/crash.rs` checks at every
//! instant a power cut may come:
//!
//! * [`Backend::arm`] changes nothing but what the *next* start tries. Whatever happens to that start, the one after it is the chosen system.
//! * [`Backend::commit`] chooses the system that runs, with one write of one sector. Before it the old one is chosen, after it the new one.
//! * [`Backend::preflight`] says, before a byte is written, why this board cannot be trusted with that.
//!
//! [`Systems`] is what root does with that: a signed bundle is written into the slot that is not chosen, proven from the medium, tried, and
//! committed or given up. [`state`] has the states between, each safe to cut.

mod board;
mod boot;
mod install;
mod release;
mod sectors;
mod systems;
mod tryboot;
mod uboot;
mod uefi;

pub mod autoboot;
pub mod door;
pub mod fat;
pub mod record;
pub mod state;

pub use board::{Board, BoardError, Places, View};
pub use boot::{Backend, BootError, Now, Refused, Restart};
pub use install::{Parts, Take, TakeError, plan, prove};
pub use release::{Image, field};
pub use sectors::{FileSectors, SECTOR, Sectors, write_proven};
pub use systems::{Facts, Folder, Keep, Systems};
pub use tryboot::{Firmware, Tryboot};
pub use uboot::{Uboot, is_try};
pub use uefi::{Initramfs, Uefi};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One of the two systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// `rootfs-a`, and `boot-a` where there is one.
    A,
    /// `rootfs-b`, and `boot-b`.
    B,
}

impl Slot {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// It is neither `a` nor `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are the slots a and b")]
pub struct NoSlot;

impl FromStr for Slot {
    type Err = NoSlot;

    fn from_str(text: &str) -> Result<Self, NoSlot> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err(NoSlot),
        }
    }
}
