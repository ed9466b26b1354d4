//! Text of /proc and /sys, as the resource monitor takes it apart.

use inferd_watch::monitor::parse;

/// Every parser gets the text; two parts of it, split at the first NUL, are two readings of the processors' times.
pub fn kernel(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    let sane = |percent: f64| assert!((0.0..=100.0).contains(&percent), "{percent}");
    let times = (parse::cpu_times(first), parse::cpu_times(second));
    if let (Some(before), Some(after)) = times {
        assert!(before.busy <= before.total);
        after.percent_since(before).into_iter().for_each(sane);
    }
    if let Some((total, available)) = parse::memory(first) {
        assert!(available <= total && total > 0);
        sane(parse::percent(total - available, total));
    }
    if let Some(pressure) = parse::pressure(first) {
        sane(pressure.some_avg10);
        pressure.full_avg10.into_iter().for_each(sane);
    }
    if let Some(path) = parse::cgroup(first) {
        assert!(!path.split('/').any(|part| part == ".."), "it stays below its root");
    }
    if let Some(mount) = parse::mount_of(first, second) {
        assert!(mount.point == "/" || second.starts_with(&mount.point));
    }
    if let Some(celsius) = parse::celsius(first) {
        assert!((-100.0..=250.0).contains(&celsius));
    }
    if let Some(bytes) = parse::health_bytes(first) {
        assert!((1..=2).contains(&bytes.len()));
    }
    let _ = (parse::written(first), parse::written_by_process(first), parse::throttled(first));
}
