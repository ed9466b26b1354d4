//! What a boot loader or firmware offers.

use crate::Slot;
use crate::fat::FatError;
use std::io;

/// Which system runs, and which one is started next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The system that runs.
    pub runs: Slot,
    /// Whether it was started to be tried: the next start is the chosen one again.
    pub on_trial: bool,
    /// The system that is started whenever nothing is tried.
    pub chosen: Slot,
}

/// How the board has to be restarted for a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// As always.
    Plain,
    /// With this argument to `reboot(2)` (`LINUX_REBOOT_CMD_RESTART2`). Any other restart starts the chosen system and tries nothing.
    Argument(&'static str),
}

/// Why a board takes no update of its system: one sentence for the operator, and a code for programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refused {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub sentence: String,
}

impl Refused {
    pub(crate) fn new(code: &'static str, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}

/// Why the choice cannot be read or changed. Nothing was changed then, or [`BootError::Write`] says so.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// This board's system is not updated.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The place of the choice cannot be read.
    #[error("the boot loader's choice cannot be read: {0}")]
    Read(io::Error),
    /// It was not written, or another thing is there now: read it again.
    #[error("the boot loader's choice was not written: {0}")]
    Write(io::Error),
    /// The file that holds it has no place of its own.
    #[error("the partition boot: {0}")]
    Fat(#[from] FatError),
    /// What was found contradicts itself, or what was asked for does not go with it.
    #[error("{0}")]
    Unfit(String),
}

/// What a board's boot loader or firmware offers.
pub trait Backend: Send {
    /// As `board.toml` calls it.
    fn name(&self) -> &'static str;

    /// Whether the board can be trusted to try a system and to come back from it. Asked before anything is written, and again before
    /// a try.
    ///
    /// # Errors
    /// [`Refused`].
    fn preflight(&self) -> Result<(), Refused>;

    /// Which system runs, and which one is chosen.
    ///
    /// # Errors
    /// [`BootError`].
    fn now(&self) -> Result<Now, BootError>;

    /// How the board has to be restarted for a try.
    fn restart(&self) -> Restart;

    /// Has the next start try the system that is not chosen, once. Only the chosen system may ask for it: what comes after the try is
    /// the one that asked.
    ///
    /// # Errors
    /// [`BootError`].
    fn arm(&self, slot: Slot) -> Result<Restart, BootError>;

    /// Takes back what [`Self::arm`] told, also when it was told only in part. Nothing is armed: nothing is written.
    ///
    /// # Errors
    /// [`BootError`]; then the next start may try the other system.
    fn disarm(&self) -> Result<(), BootError>;

    /// Chooses the system that runs. Done already: nothing is written.
    ///
    /// # Errors
    /// [`BootError`].
    fn commit(&self) -> Result<(), BootError>;
}

/// Whether this system may have the other one tried.
pub(crate) fn may_arm(now: Now, slot: Slot) -> Result<(), BootError> {
    if now.runs != now.chosen {
        return Err(BootError::Unfit(format!(
            "system {} runs and {} is chosen: only the chosen one has another one tried",
            now.runs, now.chosen
        )));
    }
    if slot == now.runs {
        return Err(BootError::Unfit(format!("system {slot} runs already")));
    }
    Ok(())
}
