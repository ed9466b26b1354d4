//! `inferctl slots`, `rollback`, `pull` and `trust`: what a device holds, and the small orders it takes.

use crate::{
    client::{Answer, Client, ClientError},
    device::{Device, Slot, System},
    fail::Failure,
    show, words,
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Verdicts shown by `slots` unless more are asked for.
const VERDICTS: usize = 8;

/// Arguments of `slots`.
#[derive(Debug, clap::Args)]
pub struct Slots {
    /// How many of the last verdicts are shown
    #[arg(long, value_name = "N", default_value_t = VERDICTS)]
    verdicts: usize,
}

/// Arguments of `rollback`.
#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// Why, for the device's journal
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Where the bundle lies: http://HOST/PATH.imb, as the device reaches it
    #[arg(required_unless_present = "cancel")]
    bundle: Option<String>,
    /// End the fetch in progress; what has come is kept for the next
    #[arg(long, exclusive = true)]
    cancel: bool,
    /// A bearer token for that server
    #[arg(long, env = "INFERD_PULL_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// SHA-256 of the whole file, which the device checks when it fetches all of it
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// What to wait for before this command ends
    #[arg(long, value_enum, default_value_t)]
    wait: crate::push::Wait,
}

/// Arguments of `trust`.
#[derive(Debug, clap::Args)]
pub struct Trust {
    /// Documents in the order to send them: the next root, a revocation list, a permit
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Slots {
    /// Shows both slots, what is on trial, and the last verdicts.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if json {
            show::json(&client.json::<Value>("/api/v1/slots")?);
        } else {
            show::line(&page(&Device::ask(client)?, self.verdicts));
        }
        Ok(())
    }
}

impl Rollback {
    /// Goes back to what served before.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let body = if self.reason.is_empty() { json!({}) } else { json!({ "reason": self.reason }) };
        let said = order(client, "/api/v1/rollback", "application/json", body.to_string().as_bytes())?;
        if json {
            show::json(&said);
        } else {
            show::line(&format!("it went back: {}", serving(&Device::ask(client)?)));
        }
        Ok(())
    }
}

impl Pull {
    /// Has the device fetch a bundle by itself, or end that.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.cancel {
            let said = taken(&client.delete("/api/v1/pull")?)?;
            if json {
                show::json(&said);
            } else {
                show::line("the device no longer fetches; what has come is kept");
            }
            return Ok(());
        }
        let before = Device::ask(client)?.newest();
        let body = json!({ "url": self.bundle, "token": self.token, "sha256": self.sha256 }).to_string();
        order(client, "/api/v1/pull", "application/json", body.as_bytes())?;
        crate::push::follow_pull(client, before, self.wait, json)
    }
}

impl Trust {
    /// Sends documents of trust, one after the other.
    ///
    /// # Errors
    /// [`Failure`]: the first that is refused ends it.
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        for file in &self.files {
            let bytes = crate::read_input(file)?;
            let said = order(client, "/api/v1/trust", "application/octet-stream", &bytes)
                .map_err(|e| Failure::Other(format!("{}: {e}", file.display())))?;
            if json {
                show::json(&said);
            } else {
                show::line(&format!("{}: taken", file.display()));
            }
        }
        if !json {
            let trust = Device::ask(client)?.trust;
            show::line(&format!(
                "the device has root {} and revocation list {}",
                trust.root_version, trust.revocation_version
            ));
        }
        Ok(())
    }
}

/// Sends an order that must be answered with 2xx.
///
/// # Errors
/// [`ClientError`].
pub fn order(client: &Client, path: &str, form: &str, body: &[u8]) -> Result<Value, ClientError> {
    taken(&client.post(path, &[("Content-Type".into(), form.into())], body)?)
}

/// The page of an answer with 2xx; any other is a refusal.
///
/// # Errors
/// [`ClientError::Refused`].
pub fn taken(answer: &Answer) -> Result<Value, ClientError> {
    if (200..300).contains(&answer.status) {
        return Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null));
    }
    Err(ClientError::Refused(refusal(answer)))
}

/// A refusal in the device's words, with what to do about it. Whoever gives no code says it in HTTP's words.
#[must_use]
pub fn refusal(answer: &Answer) -> String {
    let page: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    match (page["code"].as_str(), page["detail"].as_str()) {
        (Some(code), Some(detail)) => words::explain(code, detail),
        _ => answer.reason(),
    }
}

/// The whole page of `slots`.
fn page(device: &Device, verdicts: usize) -> String {
    let mut lines = vec![serving(device)];
    let rows: Vec<Vec<String>> = device.slots.iter().map(row).collect();
    if !rows.is_empty() {
        lines.push(String::new());
        lines.push(show::table(&["slot", "status", "product", "version", "size", "bundle"], &rows));
    }
    lines.extend(install(device).into_iter().chain(trial(device)));
    if let Some(of) = &device.system {
        lines.push(String::new());
        lines.extend(system(of));
    }
    lines.push(String::new());
    lines.push(trust(device));
    if let Some(id) = &device.device {
        lines.push(format!("this device's id, for permits: {id}"));
    }
    if !device.floors.is_empty() {
        let floors: Vec<String> = device.floors.iter().map(|(p, v)| format!("{p} {v}")).collect();
        lines.push(format!("oldest versions it still takes: {}", floors.join(", ")));
    }
    lines.extend(device.warnings.iter().map(|w| format!("warning: {w}")));
    let shown = &device.verdicts[device.verdicts.len().saturating_sub(verdicts)..];
    if !shown.is_empty() {
        lines.push(String::new());
        lines.push("last verdicts:".into());
        lines.extend(shown.iter().map(|v| {
            let of = v.product.as_ref().zip(v.version).map_or(String::new(), |(p, n)| format!(" [{p} {n}]"));
            v.line() + &of
        }));
    }
    lines.join("\n")
}

/// What serves, in one line.
#[must_use]
pub fn serving(device: &Device) -> String {
    let s = &device.serving;
    let models: Vec<String> = s
        .models
        .iter()
        .map(|m| format!("{} {}{}", m.name, m.version, if m.factory { " (of the image)" } else { "" }))
        .collect();
    let models = if models.is_empty() { String::new() } else { format!(": {}", models.join(", ")) };
    let label = s.label.as_ref().map_or(String::new(), |l| format!(" ({l})"));
    match (s.from.as_str(), s.slot, &s.product, s.version) {
        ("slot", Some(slot), Some(product), Some(version)) => {
            format!("slot {slot} serves {product} {version}{label}{models}")
        }
        ("factory", ..) => format!("the image's own models serve{models}"),
        ("starting", ..) => "it is starting".into(),
        ("nothing", ..) => "nothing serves".into(),
        (other, ..) => format!("{other} serves{models}"),
    }
}

fn row(slot: &Slot) -> Vec<String> {
    let dash = || "-".to_owned();
    let size = if slot.len == 0 {
        format!("0 of {}", show::bytes(slot.capacity))
    } else {
        format!("{} of {}", show::bytes(slot.len), show::bytes(slot.capacity))
    };
    vec![
        format!("{}{}", slot.slot, if slot.active { " *" } else { "" }),
        slot.status.clone(),
        slot.product.clone().unwrap_or_else(dash),
        slot.version.map_or_else(dash, |v| v.to_string()),
        size,
        slot.bundle.as_ref().map_or_else(dash, |b| b.chars().take(16).collect()),
    ]
}

/// What is being received, and how far it is.
#[must_use]
pub fn install(device: &Device) -> Option<String> {
    let i = device.install.as_ref()?;
    let of = i.total.map_or(String::new(), |t| format!(" of {}", show::bytes(t)));
    let what = i.product.as_ref().zip(i.version).map_or(String::new(), |(p, v)| format!(" {p} {v}"));
    let spared = i.local + i.resumed;
    let spared =
        if spared == 0 { String::new() } else { format!(", {} of it was here already", show::bytes(spared)) };
    Some(format!("arriving ({}):{what} {}{of}{spared}", i.way, show::bytes(i.done)))
}

/// What is on trial, and how far it is.
#[must_use]
pub fn trial(device: &Device) -> Option<String> {
    let t = device.trial.as_ref()?;
    let mut bounds = Vec::new();
    if t.of_ms > 0 {
        bounds.push(format!("{} of {}", show::age(t.elapsed_ms / 1000), show::age(t.of_ms / 1000)));
    }
    if t.of_requests > 0 {
        bounds.push(format!("{} of {} requests", t.requests, t.of_requests));
    }
    let bounds = if bounds.is_empty() { String::new() } else { format!(" ({})", bounds.join(", ")) };
    let cuts = match t.interruptions {
        0 => String::new(),
        n => format!(", {n} power cuts lived through"),
    };
    Some(format!("on trial in slot {}: {} {}, {}{bounds}{cuts}", t.slot, t.product, t.version, t.phase))
}

/// The board's own systems: which one runs, what was begun with the other, what became of the last, and why there are no more.
fn system(system: &System) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(board) = &system.board {
        let name = |slot: Option<char>| slot.map_or_else(|| "?".to_owned(), |slot| slot.to_string());
        // One that was committed since its start has no trial any more.
        let chosen = board.runs == board.chosen;
        let trial = if board.on_trial && !chosen { " on trial" } else { "" };
        let chosen = match chosen {
            true => String::new(),
            false => format!(", {} is started when nothing is tried", name(board.chosen)),
        };
        lines.push(format!("system {} runs{trial}{chosen} ({})", name(board.runs), board.backend));
        lines.push(match &board.image {
            Some(image) => format!("it is {} {} by its own word", image.product, image.version),
            None => "its image does not say which version it is: only what was committed here keeps older ones out".into(),
        });
    }
    if let Some(state) = &system.state {
        if let (Some(slot), Some(about)) = (state.slot, &state.about) {
            let what = match state.phase.as_str() {
                "writing" => "is being written into",
                "staged" => "is staged in",
                _ => "is on trial in",
            };
            lines.push(format!(
                "{} {} ({}) {what} system slot {slot}",
                about.product, about.version, about.label
            ));
        }
        if !state.floors.is_empty() {
            let floors: Vec<String> = state.floors.iter().map(|(p, v)| format!("{p} {v}")).collect();
            lines.push(format!("oldest systems it still takes: {}", floors.join(", ")));
        }
        if let Some(last) = state.verdicts.last() {
            let of = format!("{} {}", last.about.product, last.about.version);
            lines.push(format!("{of} was {}: {}", last.outcome, last.sentence));
        }
    }
    if let Some(why) = &system.refused {
        lines.push(format!("no system is installed here: {}", words::explain(&why.code, &why.sentence)));
    }
    lines
}

fn trust(device: &Device) -> String {
    let t = &device.trust;
    if t.root_version == 0 {
        return "it has no root of trust, so it accepts no bundle: it needs an image made with --root FILE"
            .into();
    }
    let list = match t.revocation_version {
        0 => "no revocation list".to_owned(),
        n => format!("revocation list {n}"),
    };
    let dev = match (t.dev, t.dev_serving) {
        (true, true) => {
            "; it accepts bundles signed for development, and serves one: never so outside a workshop"
        }
        (true, false) => "; it accepts bundles signed for development: never so outside a workshop",
        _ => "",
    };
    format!("root {}, {list}{dev}", t.root_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        serde_json::from_value(json!({
            "device": "0815",
            "serving": {"from": "slot", "slot": "A", "product": "collar", "version": 7, "label": "1.2.0",
                        "models": [{"name": "imu-motion", "version": "1.0.0", "factory": false}]},
            "slots": [
                {"slot": "A", "status": "committed", "active": true, "bundle": "ab".repeat(32), "product": "collar",
                 "version": 7, "len": 400_000, "capacity": 67_108_864},
                {"slot": "B", "status": "empty", "active": false, "len": 0, "capacity": 67_108_864}],
            "trust": {"root_version": 3, "revocation_version": 0, "dev": true},
            "floors": {"collar": 7},
            "verdicts": [
                {"number": 4, "gate": "commit", "outcome": "pass", "code": "committed", "sentence": "it stays"},
                {"number": 5, "gate": "floor", "outcome": "refuse", "code": "x", "sentence": "it is older", "product": "collar", "version": 6}]
        }))
        .unwrap()
    }

    #[test]
    fn the_page_names_what_serves_what_lies_in_the_slots_and_why_something_was_refused() {
        let text = page(&device(), 8);
        for part in [
            "slot A serves collar 7 (1.2.0): imu-motion 1.0.0",
            "A *   committed  collar   7        400.0 kB of 67.1 MB  abababababababab",
            "B     empty      -        -        0 of 67.1 MB         -",
            "root 3, no revocation list; it accepts bundles signed for development",
            "this device's id, for permits: 0815",
            "oldest versions it still takes: collar 7",
            "  NO   floor            it is older [collar 6]",
        ] {
            assert!(text.contains(part), "{part}\n---\n{text}");
        }
        let short = page(&device(), 1);
        assert!(short.contains("floor") && !short.contains("it stays"), "{short}");
    }

    #[test]
    fn a_device_says_which_system_runs_what_is_begun_what_became_of_the_last_and_why_there_is_none() {
        let mut device = device();
        let about = json!({"product": "inferd-os", "version": 3, "label": "1.3"});
        let verdict = json!({"outcome": "returned", "code": "not-ready", "sentence": "x", "about": {"product": "inferd-os", "version": 2}});
        let state = json!({"phase": "trial", "slot": "b", "about": about, "floors": {"inferd-os": 1}, "verdicts": [verdict]});
        let image = json!({"product": "inferd-os", "version": 3});
        let board = json!({"backend": "uboot-env", "runs": "b", "on_trial": true, "chosen": "a", "refused": null, "image": image});
        device.system =
            serde_json::from_value(json!({"board": board, "state": state, "refused": null})).unwrap();
        let text = page(&device, 0);
        for part in [
            "system b runs on trial, a is started when nothing is tried (uboot-env)",
            "it is inferd-os 3 by its own word",
            "inferd-os 3 (1.3) is on trial in system slot b",
            "oldest systems it still takes: inferd-os 1",
            "inferd-os 2 was returned: x",
        ] {
            assert!(text.contains(part), "{part}\n---\n{text}");
        }
        let refused = json!({"code": "firmware-too-old", "sentence": "the EEPROM is of 2020"});
        device.system =
            serde_json::from_value(json!({"board": null, "state": null, "refused": refused})).unwrap();
        let text = page(&device, 0);
        assert!(text.contains("the EEPROM is of 2020. Update the board's firmware"), "{text}");
    }

    #[test]
    fn a_device_without_a_root_says_that_it_accepts_nothing() {
        let bare: Device =
            serde_json::from_value(json!({"serving": {"from": "factory"}, "trust": {}})).unwrap();
        let text = page(&bare, 8);
        assert!(
            text.starts_with("the image's own models serve\n") && text.contains("no root of trust"),
            "{text}"
        );
    }

    #[test]
    fn a_trial_says_how_far_it_is() {
        let mut device = device();
        let trial_of = json!({"slot": "B", "product": "collar", "version": 8, "phase": "probation", "elapsed_ms": 30_000,
            "of_ms": 300_000, "requests": 4, "of_requests": 100, "interruptions": 1});
        device.trial = serde_json::from_value(trial_of).unwrap();
        assert_eq!(
            trial(&device).unwrap(),
            "on trial in slot B: collar 8, probation (30 s of 5 min, 4 of 100 requests), 1 power cuts lived through"
        );
    }
}
