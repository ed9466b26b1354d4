//! What the kernel tells about this process. What it does not tell is absent: nothing is made up.

use std::fs;

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
}
