//! What the kernel writes in /proc and /sys, taken apart. Text it would not write is refused: `None`, never a guess.

use serde::Serialize;

/// The times of all processors since the boot, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Neither idle nor waiting for a disk.
    pub busy: u64,
    /// All of it.
    pub total: u64,
}

impl CpuTimes {
    /// How busy the processors were since `before`, in percent; `None` where no time has passed.
    #[must_use]
    pub fn percent_since(self, before: Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|t| *t > 0)?;
        // What waits for a disk may go back a little: the kernel says so.
        Some(percent(self.busy.saturating_sub(before.busy).min(total), total))
    }
}

/// `part` of `whole` in percent; 0 of nothing.
#[must_use]
#[allow(clippy::cast_precision_loss)] // a percentage needs no more than 53 bits
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// The first line of `/proc/stat`. Time of guests is part of `user` already.
#[must_use]
pub fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let mut words = stat.lines().next()?.split_ascii_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<u64> = words.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = *ticks.get(3)?;
    let waiting = ticks.get(4).copied().unwrap_or(0);
    let total = ticks.iter().fold(0_u64, |sum, t| sum.saturating_add(*t));
    Some(CpuTimes { busy: total.saturating_sub(idle).saturating_sub(waiting), total })
}

/// `MemTotal` and `MemAvailable` of `/proc/meminfo`, in bytes.
#[must_use]
pub fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let (number, unit) = rest.trim().split_once(' ')?;
        (unit.trim() == "kB").then(|| number.parse::<u64>().ok()?.checked_mul(1024)).flatten()
    };
    let (total, available) = (field("MemTotal")?, field("MemAvailable")?);
    (total > 0 && available <= total).then_some((total, available))
}

/// Pressure stall information: the share of the last ten seconds in which work stood still for want of something, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pressure {
    /// At least one task stood still.
    pub some_avg10: f64,
    /// All of them did; the kernel does not tell it of everything.
    pub full_avg10: Option<f64>,
}

/// `/proc/pressure/*`.
#[must_use]
pub fn pressure(text: &str) -> Option<Pressure> {
    let average = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
        value.parse::<f64>().ok().filter(|v| (0.0..=100.0).contains(v))
    };
    Some(Pressure { some_avg10: average("some")?, full_avg10: average("full") })
}

/// The cgroup v2 of `/proc/self/cgroup`, as a path below the mount point.
#[must_use]
pub fn cgroup(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

/// Where a directory lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of its device; major 0 is no device.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub point: String,
    /// What the mount calls its device: `/dev/mmcblk0p6`.
    pub source: String,
}

/// The mount of `/proc/self/mountinfo` that holds `path`: the one with the longest mount point, the last of several.
#[must_use]
pub fn mount_of(mountinfo: &str, path: &str) -> Option<Mount> {
    let mut best: Option<Mount> = None;
    for line in mountinfo.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let mut head = head.split_ascii_whitespace().skip(2);
        let (Some(device), Some(_root), Some(point)) = (head.next(), head.next(), head.next()) else {
            continue;
        };
        let Some((major, minor)) = device.split_once(':') else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let point = unescape(point);
        let holds = point == "/"
            || path.strip_prefix(point.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if holds && best.as_ref().is_none_or(|b| b.point.len() <= point.len()) {
            let source = tail.split_ascii_whitespace().nth(1).map(unescape).unwrap_or_default();
            best = Some(Mount { device: (major, minor), point, source });
        }
    }
    best
}

/// Undoes the kernel's octal escapes of space, tab, line feed and backslash.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [("\\040", ' '), ("\\011", '\t'), ("\\012", '\n'), ("\\134", '\\')];
        match known.iter().find(|(code, _)| rest.starts_with(code)) {
            Some((code, plain)) => {
                out.push(*plain);
                rest = &rest[code.len()..];
            }
            None => {
                out.push('\\');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Bytes written, of a block device's `stat`: its seventh field counts sectors of 512 bytes, whatever the device's own are.
#[must_use]
pub fn written(stat: &str) -> Option<u64> {
    stat.split_ascii_whitespace().nth(6)?.parse::<u64>().ok()?.checked_mul(512)
}

/// `write_bytes` of `/proc/self/io`.
#[must_use]
pub fn written_by_process(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

/// Thousandths of a degree as degrees Celsius; what no silicon survives is no temperature.
#[must_use]
pub fn celsius(millidegrees: &str) -> Option<f64> {
    let n: i32 = millidegrees.trim().parse().ok()?;
    (-100_000..=250_000).contains(&n).then(|| f64::from(n) / 1000.0)
}

/// What the firmware of a Raspberry Pi says of its supply and clocks (`get_throttled`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(clippy::struct_excessive_bools)] // the bits of one word
pub struct Throttled {
    /// The supply is below its limit now.
    pub under_voltage: bool,
    /// The clock is capped now.
    pub capped: bool,
    /// The clock is throttled now.
    pub throttled: bool,
    /// The soft temperature limit is active now.
    pub soft_limit: bool,
    /// Any of these was so before, in the order above, as bits 0 to 3.
    pub before: u8,
}

/// The hexadecimal word of `get_throttled`, with or without `0x`.
#[must_use]
pub fn throttled(text: &str) -> Option<Throttled> {
    let text = text.trim();
    let word = u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()?;
    let bit = |n: u32| word >> n & 1 == 1;
    Some(Throttled {
        under_voltage: bit(0),
        capped: bit(1),
        throttled: bit(2),
        soft_limit: bit(3),
        before: u8::try_from(word >> 16 & 0xf).unwrap_or_default(),
    })
}

/// One or two bytes of an eMMC's health, as `life_time` (areas A and B) and `pre_eol_info` write them: `0x01 0x02`.
#[must_use]
pub fn health_bytes(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split_ascii_whitespace()
        .take(3)
        .map(|word| u8::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok())
        .collect();
    bytes.filter(|b| (1..=2).contains(&b.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_busy_time_is_taken_between_two_readings() {
        let at = |text| cpu_times(text).unwrap();
        let before = at("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4\n");
        assert_eq!(before, CpuTimes { busy: 200, total: 1000 });
        assert_eq!(at("cpu 175 0 100 720 105 0 0 0 50 0\n").percent_since(before), Some(75.0));
        assert_eq!(before.percent_since(before), None, "no time has passed");
        assert_eq!(CpuTimes { busy: 150, total: 1100 }.percent_since(before), Some(0.0));
        for bad in ["", "cpu", "cpu 1 2 3", "cpu a b c d", "cpu0 1 2 3 4", "intr 1 2 3 4 5"] {
            assert_eq!(cpu_times(bad), None, "{bad}");
        }
    }

    #[test]
    fn memory_is_total_and_available() {
        let text = "MemTotal:        1000 kB\nMemFree:  10 kB\nMemAvailable:     250 kB\n";
        assert_eq!(memory(text), Some((1_024_000, 256_000)));
        for bad in [
            "",
            "MemTotal: 1000 kB",
            "MemTotal: 1 kB\nMemAvailable: 2 kB",
            "MemTotal: 0 kB\nMemAvailable: 0 kB",
            "MemTotal: 10 MB\nMemAvailable: 2 MB",
            "MemTotal: 18446744073709551615 kB\nMemAvailable: 2 kB",
        ] {
            assert_eq!(memory(bad), None, "{bad}");
        }
    }

    #[test]
    fn pressure_may_lack_its_second_line() {
        let text =
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0 avg300=0 total=1\n";
        assert_eq!(pressure(text), Some(Pressure { some_avg10: 1.5, full_avg10: Some(0.25) }));
        let some = text.lines().next().unwrap();
        assert_eq!(pressure(some), Some(Pressure { some_avg10: 1.5, full_avg10: None }));
        for bad in ["", "some", "some avg10=NaN", "some avg10=-1", "some avg10=101", "full avg10=1"] {
            assert_eq!(pressure(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_longest_mount_point_holds_a_path() {
        let text = "22 1 179:2 / / ro - squashfs /dev/mmcblk0p2 ro\n\
                    30 22 179:6 / /data rw,noatime shared:1 - ext4 /dev/mmcblk0p6 rw\n\
                    31 22 0:9 / /data/with\\040space rw - tmpfs none rw\n\
                    nonsense\n1 2 x:y / /data - a b c\n";
        let at = |path| mount_of(text, path).map(|m| (m.device, m.point, m.source));
        let data = ((179, 6), "/data".to_owned(), "/dev/mmcblk0p6".to_owned());
        assert_eq!(at("/data/inferd"), Some(data.clone()));
        assert_eq!(at("/data"), Some(data));
        assert_eq!(at("/database").unwrap().0, (179, 2));
        assert_eq!(at("/data/with space/x").unwrap().0, (0, 9));
        assert_eq!(mount_of("", "/"), None);
    }

    #[test]
    fn small_numbers_are_read_or_refused() {
        assert_eq!(written("1 2 3 4 5 6 7 8 9 10 11\n"), Some(7 * 512));
        assert_eq!(written("1 2 3 4 5 6"), None);
        assert_eq!(written("1 2 3 4 5 6 18446744073709551615"), None);
        assert_eq!(written_by_process("rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 9\n"), Some(4096));
        assert_eq!(celsius("48250\n"), Some(48.25));
        assert_eq!(celsius("-2147483648"), None);
        assert_eq!(health_bytes("0x01 0x0b\n"), Some(vec![1, 11]));
        assert_eq!(health_bytes("0x02"), Some(vec![2]));
        assert_eq!(health_bytes("0x01 0x02 0x03"), None);
        assert_eq!(health_bytes(""), None);
        let now = throttled("50005\n").unwrap();
        assert!(now.under_voltage && now.throttled && !now.capped && !now.soft_limit);
        assert_eq!(now.before, 5);
        assert_eq!(throttled("0x8").unwrap(), Throttled { soft_limit: true, ..Throttled::default() });
        assert_eq!(throttled("x"), None);
        assert_eq!(cgroup("1:name=systemd:/x\n0::/inferd/daemon\n"), Some("inferd/daemon"));
        assert_eq!(cgroup("0::/../../etc\n"), None);
    }
}
