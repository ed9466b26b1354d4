//! `inferctl status` and `inferctl models`.

use crate::{
    client::{Client, ClientError},
    fail::Failure,
    input::percent,
    show,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// One line of the repository's index.
#[derive(Clone, Debug, Deserialize)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// Its version; servers may leave it out.
    #[serde(default)]
    pub version: String,
    /// `READY`, `UNAVAILABLE`, ...
    #[serde(default)]
    pub state: String,
    /// Why it is not ready.
    #[serde(default)]
    pub reason: String,
}

/// Every model the daemon knows.
///
/// # Errors
/// [`ClientError`].
pub fn index(client: &Client) -> Result<Vec<IndexEntry>, ClientError> {
    let path = "/v2/repository/index";
    client.post(path, &[("Content-Type".into(), "application/json".into())], b"{}")?.json(path)
}

/// Prints whether the daemon serves. Fails when it does not.
///
/// # Errors
/// [`Failure`].
pub fn status(client: &Client, json: bool) -> Result<(), Failure> {
    let ready = client.get("/readyz")?;
    let status: Value = client.json("/status")?;
    if json {
        let readiness = serde_json::from_slice::<Value>(&ready.body).unwrap_or(Value::Null);
        show::json(
            &json!({ "url": client.base().to_string(), "ready": ready.status == 200, "readiness": readiness, "status": status }),
        );
    } else {
        show::line(&summary(&client.base().to_string(), ready.status, &ready.body, &status));
        show::line("");
        show::line(&models_table(client)?);
    }
    if ready.status == 200 { Ok(()) } else { Err(Failure::Said) }
}

/// The first lines of `status`.
fn summary(url: &str, code: u16, readiness: &[u8], status: &Value) -> String {
    let readiness: Value = serde_json::from_slice(readiness).unwrap_or(Value::Null);
    let word = |value: &Value, keys: &[&str]| {
        keys.iter().find_map(|key| value[*key].as_str().filter(|s| !s.is_empty()).map(str::to_owned))
    };
    let mut lines = Vec::new();
    let state = match (code, word(&readiness, &["reason", "detail"]), word(&readiness, &["phase"])) {
        (200, ..) => "ready".to_owned(),
        (_, Some(reason), Some(phase)) => format!("not ready ({phase}): {reason}"),
        (_, Some(reason), None) => format!("not ready: {reason}"),
        (_, None, Some(phase)) => format!("not ready ({phase})"),
        (_, None, None) => {
            format!("not ready: {}", crate::client::reason_of(readiness.to_string().as_bytes()))
        }
    };
    lines.push(format!("{url} is {state}"));
    let mut facts = Vec::new();
    if let Some(version) = word(status, &["version", "inferd_version"]) {
        facts.push(format!("inferd {version}"));
    }
    if let Some(seconds) = status["uptime_s"].as_u64() {
        facts.push(format!("up {}", show::age(seconds)));
    }
    if let Some(model) = word(status, &["model_name"]) {
        facts.push(format!("default model {model}"));
    }
    if !facts.is_empty() {
        lines.push(facts.join(", "));
    }
    let device = &status["identity"];
    match (word(device, &["hostname"]), word(device, &["id"])) {
        (Some(name), Some(id)) => lines.push(format!("device {name}, id {id}")),
        (Some(name), None) => lines.push(format!("device {name}")),
        (None, Some(id)) => lines.push(format!("device id {id}")),
        (None, None) => {}
    }
    if let Some(error) = word(status, &["initialization_error"]) {
        lines.push(format!("last error: {error}"));
    }
    lines.join("\n")
}

/// Prints the models.
///
/// # Errors
/// [`Failure`].
pub fn models(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        let entries = index(client)?;
        let all: Vec<Value> = entries
            .iter()
            .map(|entry| {
                let metadata: Option<Value> = client.json(&format!("/v2/models/{}", percent(&entry.name))).ok();
                json!({ "name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason, "metadata": metadata })
            })
            .collect();
        show::json(&all);
    } else {
        show::line(&models_table(client)?);
    }
    Ok(())
}

fn models_table(client: &Client) -> Result<String, ClientError> {
    let entries = index(client)?;
    if entries.is_empty() {
        return Ok(no_models(&client.json("/status").unwrap_or(Value::Null)));
    }
    let mut rows = Vec::new();
    for entry in &entries {
        let path = format!("/v2/models/{}", percent(&entry.name));
        let metadata: Value = client.json(&path).unwrap_or(Value::Null);
        let stats: Value = client.json(&format!("{path}/stats")).unwrap_or(Value::Null);
        rows.push(row(entry, &metadata, &stats["model_stats"][0]));
    }
    let heads =
        ["model", "version", "state", "task", "engine", "in", "out", "answers", "failures", "compute"];
    let reasons = entries.iter().filter(|entry| !entry.reason.is_empty());
    let reasons: String = reasons.map(|entry| format!("\n{}: {}", entry.name, entry.reason)).collect();
    Ok(show::table(&heads, &rows) + &reasons)
}

/// Why there are none, and what helps.
fn no_models(status: &Value) -> String {
    match status["safe_mode"]["reason"].as_str() {
        Some(reason) => format!(
            "safe mode: no models are loaded, because {reason}\n\
             A bundle that is committed ends it, and so does `inferctl safe-mode leave`."
        ),
        None => "no models; give the daemon some with --models DIR or models.dirs".into(),
    }
}

fn row(entry: &IndexEntry, metadata: &Value, stats: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let tensors = |value: &Value| {
        let tensors = value.as_array().into_iter().flatten().map(|t| {
            let shape: Vec<String> =
                t["shape"].as_array().into_iter().flatten().map(ToString::to_string).collect();
            format!("{} {}", t["datatype"].as_str().unwrap_or("?"), shape.join("x"))
        });
        let all: Vec<String> = tensors.collect();
        if all.is_empty() { "-".to_owned() } else { all.join(", ") }
    };
    let counted = |name: &str, field: &str| stats["inference_stats"][name][field].as_u64();
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let compute = match (counted("compute_infer", "ns"), counted("compute_infer", "count")) {
        (Some(ns), Some(count @ 1..)) => show::micros(micros(ns / count)),
        _ => "-".to_owned(),
    };
    vec![
        entry.name.clone(),
        if entry.version.is_empty() { "-".into() } else { entry.version.clone() },
        entry.state.clone(),
        text(&metadata["parameters"]["task"]),
        match metadata["parameters"]["engine"].as_str().filter(|rung| !rung.is_empty()) {
            Some(rung) => format!("{rung} ({})", text(&metadata["parameters"]["engine_version"])),
            None => text(&metadata["parameters"]["engine_version"]),
        },
        tensors(&metadata["inputs"]),
        tensors(&metadata["outputs"]),
        number(counted("success", "count")),
        number(counted("fail", "count")),
        compute,
    ]
}

/// Nanoseconds of one inference as microseconds.
fn micros(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_why_a_daemon_is_not_ready() {
        let table = [
            (200, json!({"status": "ready"}), "u is ready"),
            (
                503,
                json!({"phase": "golden", "reason": "running golden vectors"}),
                "u is not ready (golden): running golden vectors",
            ),
            (503, json!({"detail": "no model is loaded"}), "u is not ready: no model is loaded"),
        ];
        for (code, readiness, first) in table {
            let status = json!({"uptime_s": 300, "model_name": "imu-motion"});
            let text = summary("u", code, readiness.to_string().as_bytes(), &status);
            assert_eq!(text, format!("{first}\nup 5 min, default model imu-motion"));
        }
    }

    #[test]
    fn the_summary_names_the_device_by_what_is_known_of_it() {
        let said = |identity: Value| summary("u", 200, b"{}", &json!({ "identity": identity }));
        assert_eq!(said(json!({ "hostname": "door-7", "id": "00ff" })), "u is ready\ndevice door-7, id 00ff");
        assert_eq!(said(json!({ "hostname": "door-7", "id": null })), "u is ready\ndevice door-7");
        assert_eq!(said(Value::Null), "u is ready");
    }

    #[test]
    fn in_safe_mode_nobody_is_told_to_give_the_daemon_models() {
        let text = no_models(&json!({"safe_mode": {"reason": "it ended 3 times", "since_s": 4}}));
        assert!(text.starts_with("safe mode: no models are loaded, because it ended 3 times"), "{text}");
        assert!(text.contains("safe-mode leave") && !text.contains("--models"), "{text}");
        for other in [json!({"safe_mode": null}), Value::Null] {
            assert!(no_models(&other).contains("--models"));
        }
    }

    #[test]
    fn a_row_shows_what_is_known_and_a_dash_for_the_rest() {
        let entry = IndexEntry {
            name: "m".into(),
            version: "1".into(),
            state: "READY".into(),
            reason: String::new(),
        };
        let metadata = json!({
            "inputs": [{"datatype": "FP32", "shape": [1, 100, 9]}],
            "outputs": [{"datatype": "FP32", "shape": [1, 64]}, {"datatype": "FP32", "shape": [1, 12]}],
            "parameters": {"task": "imu-encoder", "engine_version": "rten 0.27.0"}
        });
        let stats = json!({"inference_stats": {
            "success": {"count": 4, "ns": 9}, "fail": {"count": 1, "ns": 0}, "compute_infer": {"count": 4, "ns": 4_000_000}
        }});
        assert_eq!(
            row(&entry, &metadata, &stats),
            [
                "m",
                "1",
                "READY",
                "imu-encoder",
                "rten 0.27.0",
                "FP32 1x100x9",
                "FP32 1x64, FP32 1x12",
                "4",
                "1",
                "1.00ms"
            ]
        );
        let broken = IndexEntry { state: "UNAVAILABLE".into(), version: String::new(), ..entry };
        assert_eq!(row(&broken, &Value::Null, &Value::Null)[1..4], ["-", "UNAVAILABLE", "-"]);
    }
}
