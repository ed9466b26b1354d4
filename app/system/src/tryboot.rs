//! `rpi-tryboot`: the firmware of a Raspberry Pi chooses between two boot partitions by `autoboot.txt` on the partition `boot`, and starts
//! the other one once after `reboot "0 tryboot"`.
//!
//! Taken from the makers' documentation; none of it has met a board. The sector is written whole in its place; whether a card keeps such
//! a write whole when its power goes is the card's promise.

use crate::Slot;
use crate::autoboot::Autoboot;
use crate::boot::{Backend, BootError, Now, Refused, Restart, may_arm};
use crate::fat;
use crate::sectors::{SECTOR, Sectors, write_proven};
use crate::uboot::slot_of;
use std::path::Path;

/// The file.
const FILE: &str = "AUTOBOOT.TXT";
/// What a restart says to have the other system tried.
const TRY: &str = "0 tryboot";

/// What the firmware has left in the device tree, `/proc/device-tree/chosen/bootloader`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// The number of the boot partition that it started.
    pub partition: Option<u32>,
    /// Whether that was a try.
    pub tryboot: Option<u32>,
    /// When the bootloader in the EEPROM was built, in Unix seconds.
    pub built: Option<u32>,
}

impl Firmware {
    /// Reads it from that directory; what is not there is absent.
    #[must_use]
    pub fn read(directory: &Path) -> Self {
        let cell = |name: &str| {
            let bytes = std::fs::read(directory.join(name)).ok()?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        Self { partition: cell("partition"), tryboot: cell("tryboot"), built: cell("build-timestamp") }
    }

    /// Whether it says that this start is a try.
    #[must_use]
    pub fn is_try(&self) -> bool {
        self.tryboot == Some(1)
    }
}

/// The backend.
pub struct Tryboot<S> {
    boot: S,
    /// The numbers of `boot-a` and `boot-b` in the partition table.
    numbers: [u32; 2],
    firmware: Firmware,
    /// The system whose kernel runs, and the one whose root filesystem it has.
    said: Option<Slot>,
    runs: Option<Slot>,
    /// The oldest bootloader that is trusted, as a date and in Unix seconds.
    floor: Option<(String, u32)>,
}

impl<S: Sectors> Tryboot<S> {
    /// Of the partition `boot`, the numbers of `boot-a` and `boot-b`, what the firmware said, the kernel's command line, the slot whose root
    /// filesystem was mounted in the end, and the board's `firmware.floor` (`YYYY-MM-DD`).
    pub fn new(
        boot: S,
        numbers: [u32; 2],
        firmware: Firmware,
        cmdline: &str,
        mounted: Option<Slot>,
        floor: Option<&str>,
    ) -> Self {
        let floor = floor.map(|date| (date.to_owned(), seconds(date).unwrap_or(u32::MAX)));
        let said = slot_of(cmdline);
        Self { boot, numbers, firmware, said, runs: mounted.or(said), floor }
    }

    fn slot(&self, number: u32) -> Option<Slot> {
        Slot::BOTH.into_iter().zip(self.numbers).find(|(_, n)| *n == number).map(|(slot, _)| slot)
    }

    /// The choice, where it lies, and what runs.
    fn state(&self) -> Result<(Now, Autoboot, u64), BootError> {
        let unfit = |why: &str| BootError::Unfit(why.to_owned());
        let at = fat::sector_of(&self.boot, FILE)?;
        let mut bytes = [0; SECTOR];
        self.boot.read(at, &mut bytes).map_err(BootError::Read)?;
        let file = Autoboot::decode(&bytes)
            .ok_or_else(|| unfit("autoboot.txt is not one that an image of inferd has: it is left alone"))?;
        let chosen = self.slot(u32::from(file.chosen)).filter(|_| self.slot(u32::from(file.other)).is_some());
        let chosen =
            chosen.ok_or_else(|| unfit("autoboot.txt names other partitions than boot-a and boot-b"))?;
        let runs =
            self.runs.ok_or_else(|| unfit("the kernel's command line does not say which system this is"))?;
        let started = self.firmware.partition.and_then(|number| self.slot(number));
        if started != self.said {
            let number = self.firmware.partition.map_or("none".to_owned(), |n| n.to_string());
            return Err(BootError::Unfit(format!(
                "the firmware says that it started partition {number}, and the command line says system {}",
                self.said.map_or("none".to_owned(), |said| said.to_string())
            )));
        }
        // An initramfs that found nothing in its own slot has mounted the other one: that is no try of anything.
        let on_trial = self.firmware.is_try() && self.said == Some(runs);
        Ok((Now { runs, on_trial, chosen }, file, at))
    }
}

impl<S: Sectors> Backend for Tryboot<S> {
    fn name(&self) -> &'static str {
        "rpi-tryboot"
    }

    fn preflight(&self) -> Result<(), Refused> {
        let Some((date, floor)) = &self.floor else {
            return Err(Refused::new(
                "boot-backend",
                "board.toml does not say how old the bootloader may be (firmware.floor)",
            ));
        };
        let advice = "update it with rpi-eeprom-update, on a supply that lasts, before the system";
        match self.firmware.built {
            None => {
                let sentence = format!("the bootloader in the EEPROM does not say how old it is: {advice}");
                return Err(Refused::new("firmware-too-old", sentence));
            }
            Some(built) if built < *floor => {
                let sentence = format!(
                    "the bootloader in the EEPROM is of {}, and only one of {date} or later comes back from a try: {advice}",
                    day(built)
                );
                return Err(Refused::new("firmware-too-old", sentence));
            }
            Some(_) => {}
        }
        self.state().map(drop).map_err(|error| Refused::new("boot-backend", error.to_string()))
    }

    fn now(&self) -> Result<Now, BootError> {
        self.state().map(|(now, _, _)| now)
    }

    fn restart(&self) -> Restart {
        Restart::Argument(TRY)
    }

    fn arm(&self, slot: Slot) -> Result<Restart, BootError> {
        let (now, _, _) = self.state()?;
        may_arm(now, slot)?;
        // Nothing is written: the flag is the restart's, and gone after it.
        Ok(self.restart())
    }

    fn disarm(&self) -> Result<(), BootError> {
        // Nothing was told to anybody.
        Ok(())
    }

    fn commit(&self) -> Result<(), BootError> {
        let (now, file, at) = self.state()?;
        if now.chosen == now.runs {
            return Ok(());
        }
        write_proven(&self.boot, at, &file.turned().encode()).map_err(BootError::Write)
    }
}

/// The first second of a day, `YYYY-MM-DD`, in Unix seconds.
fn seconds(date: &str) -> Option<u32> {
    let mut parts = date.split('-').map(|part| part.parse::<u32>().ok());
    let (y, m, d) = (parts.next()??, parts.next()??, parts.next()??);
    let sound =
        parts.next().is_none() && (1970..2106).contains(&y) && (1..=12).contains(&m) && (1..=31).contains(&d);
    // Days before the year, as the months go: the year begins in March, so that the leap day is its last.
    let (y, m) = if m > 2 { (y, m - 3) } else { (y - 1, m + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + d - 1;
    sound.then(|| days.checked_sub(719_468)?.checked_mul(86_400)).flatten()
}

/// The day of a second, `YYYY-MM-DD`.
fn day(second: u32) -> String {
    let days = second / 86_400 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let d = of_year - (153 * month + 2) / 5 + 1;
    let (y, m) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    format!("{:04}-{m:02}-{d:02}", y + era * 400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_seconds_and_back() {
        // `date -u -d DAY +%s`
        for (date, want) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2000-03-01", 951_868_800),
            ("2025-02-11", 1_739_232_000),
            ("2025-10-08", 1_759_881_600),
            ("2100-02-28", 4_107_456_000),
        ] {
            assert_eq!(seconds(date), Some(want), "{date}");
            assert_eq!(day(want), date);
            assert_eq!(day(want + 86_399), date);
        }
        for bad in [
            "",
            "2025",
            "2025-10",
            "2025-13-01",
            "2025-10-00",
            "2025-10-08-01",
            "1969-12-31",
            "x-y-z",
            "2200-01-01",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
