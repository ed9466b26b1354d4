//! What the kernel tells about this device and this process. What it does not tell is absent: nothing is made up.

use std::fs;
use std::path::Path;

/// One temperature sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Temperature {
    /// The zone and what the kernel calls it: `thermal_zone0:cpu-thermal`.
    pub sensor: String,
    /// Degrees Celsius.
    pub celsius: f64,
}

/// Every thermal zone that can be read, in the order of its number.
#[must_use]
pub fn temperatures() -> Vec<Temperature> {
    zones(Path::new("/sys/class/thermal"))
}

fn zones(root: &Path) -> Vec<Temperature> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<(u32, Temperature)> = entries
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let number = name.strip_prefix("thermal_zone")?.parse().ok()?;
            let text = |file: &str| fs::read_to_string(e.path().join(file)).ok();
            let millidegrees: f64 = text("temp")?.trim().parse().ok()?;
            let kind = text("type").unwrap_or_default();
            let sensor = format!("{name}:{}", kind.trim());
            Some((number, Temperature { sensor, celsius: millidegrees / 1000.0 }))
        })
        .collect();
    found.sort_by_key(|(n, _)| *n);
    found.into_iter().map(|(_, t)| t).collect()
}

/// The numbers every exporter has about its own process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident bytes.
    pub resident_bytes: Option<u64>,
    /// Virtual bytes.
    pub virtual_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The most that may be open.
    pub max_fds: Option<u64>,
    /// Unix time of the start, in seconds.
    pub start_seconds: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

/// Ticks per second in /proc: `USER_HZ` is 100 on every architecture Linux still supports.
const USER_HZ: f64 = 100.0;

/// This process.
#[must_use]
pub fn process() -> Process {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").ok().and_then(|d| u64::try_from(d.count()).ok());
    let mut p = parse(
        &read("/proc/self/stat"),
        &read("/proc/self/status"),
        &read("/proc/self/limits"),
        &read("/proc/stat"),
    );
    p.open_fds = open_fds;
    p
}

fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Process {
    // The name in the second field may hold anything; fields are counted from behind its closing parenthesis.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let line = |text: &str, key: &str| {
        text.lines().find_map(|l| Some(l.strip_prefix(key)?.split_whitespace().next()?.to_owned()))
    };
    let kib = |key: &str| line(status, key)?.parse::<u64>().ok().map(|k| k * 1024);
    let boot = line(system, "btime").and_then(|t| t.parse::<f64>().ok());
    Process {
        cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / USER_HZ),
        resident_bytes: kib("VmRSS:"),
        virtual_bytes: kib("VmSize:"),
        open_fds: None,
        max_fds: line(limits, "Max open files").and_then(|n| n.parse().ok()),
        start_seconds: boot.zip(field(22)).map(|(boot, ticks)| boot + ticks / USER_HZ),
        threads: line(status, "Threads:").and_then(|n| n.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_pages_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 1234 1000 10";
        let status = "Name:\ta\nVmSize:\t  2048 kB\nVmRSS:\t   512 kB\nThreads:\t9\n";
        let limits =
            "Limit  Soft  Hard  Units\nMax open files            1024                 4096     files\n";
        let p = parse(stat, status, limits, "cpu 1 2\nbtime 1000000\n");
        assert_eq!(p.cpu_seconds, Some(2.0));
        assert_eq!(p.resident_bytes, Some(512 * 1024));
        assert_eq!(p.virtual_bytes, Some(2048 * 1024));
        assert_eq!(p.max_fds, Some(1024));
        assert_eq!(p.start_seconds, Some(1_000_012.34));
        assert_eq!(p.threads, Some(9));
        assert_eq!(parse("", "", "", ""), Process::default(), "what is not told is absent");
    }

    #[test]
    fn this_process_has_numbers() {
        let p = process();
        assert!(p.resident_bytes.is_some_and(|b| b > 100_000));
        assert!(p.open_fds.is_some_and(|n| n >= 3));
    }

    #[test]
    fn sensors_that_cannot_be_read_are_left_out() {
        let root = std::env::temp_dir().join(format!("inferd-zones-{}", std::process::id()));
        let zone = |n: &str, files: &[(&str, &str)]| {
            let dir = root.join(n);
            fs::create_dir_all(&dir).unwrap();
            files.iter().for_each(|(f, text)| fs::write(dir.join(f), text).unwrap());
        };
        zone("thermal_zone10", &[("type", "gpu\n"), ("temp", "51250\n")]);
        zone("thermal_zone0", &[("type", "cpu-thermal\n"), ("temp", "-5000\n")]);
        zone("thermal_zone1", &[("type", "off\n")]);
        zone("thermal_zone2", &[("type", "odd\n"), ("temp", "unknown\n")]);
        zone("cooling_device0", &[("type", "fan\n"), ("temp", "1\n")]);
        let found = zones(&root);
        fs::remove_dir_all(&root).unwrap();
        let t = |sensor: &str, celsius| Temperature { sensor: sensor.to_owned(), celsius };
        assert_eq!(found, [t("thermal_zone0:cpu-thermal", -5.0), t("thermal_zone10:gpu", 51.25)]);
        assert!(zones(Path::new("/nowhere")).is_empty());
    }
}
