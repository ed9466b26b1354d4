//! The environment variables of the sidecar this daemon replaces, so that its compose files and unit files go on working.
//!
//! | variable | what becomes of it |
//! |---|---|
//! | `SIDECAR_HOST`, `SIDECAR_PORT` | `server.listen` |
//! | `FASTAPI_HOST`, `FASTAPI_PORT` | the same, where the `SIDECAR_` one is absent |
//! | `LOG_LEVEL` | `logging.level`; `warning` and `critical` are understood |
//! | `WORKERS` | `hosts.workers` |
//! | `BACKEND_TIMEOUT_MS` | `inference.timeout_ms` |
//! | `NUM_MOTIFS` | `inference.motifs_without_head` |
//! | `RESOURCE_MONITOR_INTERVAL` | `monitor.interval_s`, in whole seconds, rounded up |
//! | `HIGH_CPU_THRESHOLD`, `HIGH_MEMORY_THRESHOLD` | `monitor.cpu_percent`, `monitor.memory_percent`, whole, rounded down |
//! | `HEF_PATH` | `models.dirs` when it names a model directory, otherwise reported |
//! | `INFER_MODE` | `stub` is refused: this program never makes answers up; other values change nothing |
//! | `MAX_BATCH_SIZE`, `BATCH_SIZE` | reported when they ask for something else than the daemon does |
//! | `HEALTH_CHECK_INTERVAL`, `MODEL_VERSION`, `MODEL_ACCURACY`, `HAILO_DEVICE_ID` | reported as not used, with the reason |

use std::{collections::BTreeMap, path::Path};

/// Settings found under the old names.
#[derive(Debug, Default)]
pub struct Translated {
    /// Key to (text, name of the variable).
    pub settings: BTreeMap<&'static str, (String, String)>,
    /// What was found and changes nothing, one sentence each.
    pub notes: Vec<String>,
    /// What cannot be honoured, one sentence each.
    pub problems: Vec<String>,
}

/// Reads the old names.
#[must_use]
pub fn translate(environment: &BTreeMap<String, String>) -> Translated {
    let mut out = Translated::default();
    let get = |name: &str| environment.get(name).map(|s| s.trim()).filter(|s| !s.is_empty());

    let host = first(&get, ["SIDECAR_HOST", "FASTAPI_HOST"]);
    let port = first(&get, ["SIDECAR_PORT", "FASTAPI_PORT"]);
    if host.is_some() || port.is_some() {
        let names: Vec<&str> = host.iter().chain(&port).map(|(name, _)| *name).collect();
        let address = join(host.map_or("0.0.0.0", |(_, v)| v), port.map_or("9000", |(_, v)| v));
        out.settings.insert("server.listen", (address, names.join(" and ")));
    }
    if let Some(level) = get("LOG_LEVEL") {
        let word = match level.to_ascii_lowercase().as_str() {
            "warning" => "warn".to_owned(),
            "critical" | "fatal" => "error".to_owned(),
            other => other.to_owned(),
        };
        out.settings.insert("logging.level", (word, "LOG_LEVEL".into()));
    }
    for (name, key) in [
        ("WORKERS", "hosts.workers"),
        ("BACKEND_TIMEOUT_MS", "inference.timeout_ms"),
        ("NUM_MOTIFS", "inference.motifs_without_head"),
    ] {
        if let Some(value) = get(name) {
            out.settings.insert(key, (value.to_owned(), name.into()));
        }
    }
    for (name, key, up) in [
        ("RESOURCE_MONITOR_INTERVAL", "monitor.interval_s", true),
        ("HIGH_CPU_THRESHOLD", "monitor.cpu_percent", false),
        ("HIGH_MEMORY_THRESHOLD", "monitor.memory_percent", false),
    ] {
        if let Some(value) = get(name) {
            out.settings.insert(key, (whole(value, up), name.into()));
        }
    }
    if let Some(path) = get("HEF_PATH") {
        if Path::new(path).join(inferd_model::MANIFEST_FILE).is_file() {
            out.settings.insert("models.dirs", (path.to_owned(), "HEF_PATH".into()));
        } else {
            out.notes.push(format!(
                "HEF_PATH={path} is not used: it is not a model directory (with {}). \
                 Name model directories in models.dirs or with --models.",
                inferd_model::MANIFEST_FILE
            ));
        }
    }
    match get("INFER_MODE").map(str::to_ascii_lowercase).as_deref() {
        Some("stub") => out.problems.push(
            "INFER_MODE is \"stub\" (from environment): this program never makes answers up. \
             Unset it, or use any other value to run the real model."
                .into(),
        ),
        None | Some("hailo" | "cpu" | "real" | "auto") => {}
        Some(other) => out.notes.push(format!(
            "INFER_MODE={other} is not used: a model's manifest names the engines that may run it."
        )),
    }
    for (name, only, reason) in [
        ("MAX_BATCH_SIZE", "1", "a request is one window and is never held back to wait for others"),
        ("BATCH_SIZE", "1", "a request is one window and is never held back to wait for others"),
    ] {
        if let Some(value) = get(name).filter(|v| *v != only) {
            out.notes.push(format!("{name}={value} is not used: {reason}."));
        }
    }
    for (name, reason) in [
        ("HEALTH_CHECK_INTERVAL", "who probes decides how often; /healthz costs microseconds"),
        ("MODEL_VERSION", "a model's version stands in its manifest"),
        ("MODEL_ACCURACY", "a model's accuracy stands in its manifest"),
        ("HAILO_DEVICE_ID", "no Hailo engine is part of this program yet"),
    ] {
        if let Some(value) = get(name) {
            out.notes.push(format!("{name}={value} is not used: {reason}."));
        }
    }
    out
}

/// A number without its fraction; what is no number stays as it is, for the setting to refuse.
fn whole(text: &str, up: bool) -> String {
    match text.split_once('.') {
        Some((number, fraction)) if fraction.bytes().all(|b| b.is_ascii_digit()) => {
            let more = up && fraction.bytes().any(|b| b != b'0');
            number
                .parse::<u64>()
                .map_or_else(|_| text.to_owned(), |n| n.saturating_add(more.into()).to_string())
        }
        _ => text.to_owned(),
    }
}

/// The first of these variables that is set.
fn first<'a>(
    get: &impl Fn(&str) -> Option<&'a str>,
    names: [&'static str; 2],
) -> Option<(&'static str, &'a str)> {
    names.into_iter().find_map(|name| get(name).map(|value| (name, value)))
}

/// Host and port as one address; IPv6 in brackets.
fn join(host: &str, port: &str) -> String {
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
