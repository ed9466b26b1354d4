//! `uboot-env`: U-Boot reads its choice from the partition `bootstate`, see [`crate::record`].
//!
//! Which system runs is told by the kernel's command line, which U-Boot's script ends with `inferd.slot=a|b` and, for a try, `inferd.try=1`.

use crate::Slot;
use crate::boot::{Backend, BootError, Now, Refused, Restart, may_arm};
use crate::record::{MAX_GENERATION, PLACES, Record, newest};
use crate::sectors::{SECTOR, Sectors, write_proven};

/// The backend.
pub struct Uboot<S> {
    bootstate: S,
    runs: Option<Slot>,
    on_trial: bool,
}

impl<S: Sectors> Uboot<S> {
    /// Of the partition `bootstate` and the kernel's command line. `mounted` is the slot whose root filesystem was mounted in the end.
    pub fn new(bootstate: S, cmdline: &str, mounted: Option<Slot>) -> Self {
        let said = slot_of(cmdline);
        let on_trial = is_try(cmdline);
        // An initramfs that found nothing in the slot it was told has mounted the other one: that is no try of anything.
        let runs = mounted.or(said);
        Self { bootstate, runs, on_trial: on_trial && runs == said }
    }

    /// The record that counts, and where the next one goes.
    fn record(&self) -> Result<(Record, usize), BootError> {
        let mut records = [None; 2];
        for (record, place) in records.iter_mut().zip(PLACES) {
            let mut bytes = [0; SECTOR];
            self.bootstate.read(place, &mut bytes).map_err(BootError::Read)?;
            *record = Record::decode(&bytes);
        }
        Ok(match newest(records) {
            Some((at, record)) => (record, 1 - at),
            // A new medium.
            None => (Record { generation: 0, chosen: Slot::A, tried: None }, 0),
        })
    }

    fn write(&self, record: Record, at: usize) -> Result<(), BootError> {
        if record.generation > MAX_GENERATION {
            return Err(BootError::Unfit(
                "the boot loader's choice was changed too often for its number".into(),
            ));
        }
        let place = PLACES.get(at).copied().unwrap_or_default();
        write_proven(&self.bootstate, place, &record.encode()).map_err(BootError::Write)
    }

    fn state(&self) -> Result<(Now, Record, usize), BootError> {
        let (record, next) = self.record()?;
        let unknown =
            || BootError::Unfit("the kernel's command line does not say which system this is".into());
        let now =
            Now { runs: self.runs.ok_or_else(unknown)?, on_trial: self.on_trial, chosen: record.chosen };
        Ok((now, record, next))
    }
}

impl<S: Sectors> Backend for Uboot<S> {
    fn name(&self) -> &'static str {
        "uboot-env"
    }

    fn preflight(&self) -> Result<(), Refused> {
        let end = PLACES[1] + SECTOR as u64;
        if self.bootstate.len() < end {
            return Err(Refused::new(
                "boot-backend",
                "the partition bootstate is too small for the boot loader's choice",
            ));
        }
        match self.state() {
            Ok(_) => Ok(()),
            Err(error) => Err(Refused::new("boot-backend", error.to_string())),
        }
    }

    fn now(&self) -> Result<Now, BootError> {
        self.state().map(|(now, _, _)| now)
    }

    fn restart(&self) -> Restart {
        Restart::Plain
    }

    fn arm(&self, slot: Slot) -> Result<Restart, BootError> {
        let (now, record, next) = self.state()?;
        may_arm(now, slot)?;
        if record.tried != Some(slot) {
            let armed =
                Record { generation: record.generation + 1, chosen: record.chosen, tried: Some(slot) };
            self.write(armed, next)?;
        }
        Ok(self.restart())
    }

    fn disarm(&self) -> Result<(), BootError> {
        let (record, next) = self.record()?;
        match record.tried {
            Some(_) => self.write(Record { generation: record.generation + 1, tried: None, ..record }, next),
            None => Ok(()),
        }
    }

    fn commit(&self) -> Result<(), BootError> {
        let (now, record, next) = self.state()?;
        let want = Record { generation: record.generation + 1, chosen: now.runs, tried: None };
        if (record.chosen, record.tried) == (want.chosen, want.tried) {
            return Ok(());
        }
        self.write(want, next)
    }
}

/// Whether a kernel's command line says that its system was started to be tried.
#[must_use]
pub fn is_try(cmdline: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| word == "inferd.try=1")
}

/// The slot that a kernel's command line names; the last word counts, as with the kernel.
pub(crate) fn slot_of(cmdline: &str) -> Option<Slot> {
    let words = cmdline.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix("inferd.slot=")?.parse().ok()).next_back()
}
