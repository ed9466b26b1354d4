//! `inferd-report.txt`: what a laptop shows when the card is in it again.
//!
//! ASCII with CRLF, so that every editor shows it, and always as long as a multiple of [`UNIT`]: written over where it stands, it changes
//! neither the FAT nor a directory.

use crate::settle::{Closed, FILE, Settled, State};
use std::fmt::Write as _;

/// The file on the boot partition.
pub const REPORT: &str = "inferd-report.txt";
/// Bytes that the report is filled up to.
pub const UNIT: usize = 4096;
/// Whether the device was ever given a configuration stands behind this.
const CONFIGURED: &str = "Configured:   ";
/// Mistakes that are named.
const MOST: usize = 40;

/// What the device is.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Its host name.
    pub name: String,
    /// Firmware and board.
    pub firmware: String,
    /// Its identity, drawn once.
    pub id: Option<String>,
    /// The address it had last.
    pub address: Option<String>,
    /// SHA-256 of its own certificate.
    pub fingerprint: Option<String>,
    /// Whether the endpoint speaks TLS with it.
    pub tls: bool,
    /// Port of the endpoint.
    pub port: u16,
    /// Why the daemon does not start with what was taken over, where that is known.
    pub unused: Option<String>,
    /// The file that the daemon starts with in place of it, where there is one.
    pub overruled: Option<String>,
}

/// What the report of an earlier start says of whether the device was ever given a configuration; `None`: nothing, or it did not know.
#[must_use]
pub fn remembers(report: &[u8]) -> Option<bool> {
    let text = String::from_utf8_lossy(report);
    match text.lines().find_map(|line| line.strip_prefix(CONFIGURED))?.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// The report.
#[must_use]
pub fn report(device: &Device, settled: &Settled) -> Vec<u8> {
    let mut out = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(out, "{text}");
    };
    line(&format!("inferd: what this device made of {FILE}"));
    line("");
    let refused = matches!(settled.state, State::Refused(_) | State::Unread(_));
    match &settled.state {
        State::Absent => line(&format!("There is no {FILE} on this partition.")),
        State::Unread(why) => line(&format!("{FILE} was NOT taken, it cannot be read: {why}.")),
        State::InUse { encoding } if device.unused.is_some() => {
            line(&format!("{FILE} was taken over, read as {encoding}, and is NOT in use."));
        }
        State::InUse { encoding } if device.overruled.is_some() => {
            line(&format!("{FILE} was taken over, read as {encoding}. The daemon does NOT go by it."));
        }
        State::InUse { encoding } => line(&format!("{FILE} is in use. It was read as {encoding}.")),
        State::NotKept { encoding } => {
            line(&format!("{FILE} is in use, read as {encoding}, but could not be taken over."))
        }
        State::Refused(problems) => {
            line(&format!("{FILE} was NOT taken, nothing of it. What is wrong with it:"));
            for problem in problems.iter().take(MOST) {
                line(&format!("  {problem}"));
            }
            if problems.len() > MOST {
                line(&format!("  and {} more", problems.len() - MOST));
            }
            line("Keys and passphrases that are in it still are.");
        }
    }
    if refused || settled.state == State::Absent {
        line(match (&settled.text, &settled.closed) {
            (Some(_), _) => "What was taken over earlier stays in use.",
            (None, None) => {
                "The device runs with its defaults: DHCP on the first wired interface, no SSH, no API key."
            }
            (None, Some(_)) => {
                "The device runs CLOSED: DHCP on the first wired interface, no SSH, and only health probes are answered."
            }
        });
    }
    if let Some(why) = &device.unused {
        line(&format!("The daemon does not start with it: {why}"));
        line(
            "In its place are the image's own settings, or those of the data partition. Where it shuts doors, reading and",
        );
        line("inference need a key meanwhile.");
    }
    if let Some(by) = &device.overruled {
        line(&format!(
            "The daemon goes by {by} on the device, which somebody has written there, in place of what was taken"
        ));
        line("over from here: take that file away there, or have a factory reset do it.");
    }
    match &settled.closed {
        Some(Closed { why, by_file: true }) => {
            line(&format!("CLOSED: {why}."));
            line(&format!("  Mend {FILE}, or take it off this partition for the defaults."));
        }
        Some(Closed { why, by_file: false }) => {
            line(&format!("CLOSED: {why}, and somebody may have shut doors there that are open by default."));
            let or = if device.id.is_some() {
                ", or an empty file called factory-reset for the defaults"
            } else {
                ""
            };
            line(&format!("  Put an {FILE} with your keys here{or}."));
        }
        None => {}
    }
    for key in &settled.lost {
        let why = match settled.state {
            State::NotKept { .. } => "which cannot be had without the data partition",
            _ => "and this device has none. Write it again",
        };
        line(&format!("MISSING: {key} is \"{}\", {why}.", crate::secrets::KEPT));
    }
    for note in &settled.notes {
        line(&format!("NOTE: {note}"));
    }
    line("");
    line(&format!("Name:         {}", device.name));
    line(&format!("Firmware:     {}", device.firmware));
    line(&format!("Identity:     {}", device.id.as_deref().unwrap_or("none: there is no data partition")));
    line(&format!("Last address: {}", device.address.as_deref().unwrap_or("none yet")));
    line(&format!("Certificate:  {}", device.fingerprint.as_deref().unwrap_or("none")));
    let configured = settled.configured.map_or("unknown", |yes| if yes { "yes" } else { "no" });
    line(&format!("{CONFIGURED}{configured}"));
    line("");
    line("What to do next:");
    if refused || device.unused.is_some() {
        line(&format!("  - Mend {FILE} on this partition and start the device again."));
    }
    match &device.address {
        Some(address) => line(&format!("  - Ask it: curl http://{address}:{}/healthz", device.port)),
        None => line(&format!(
            "  - Look up the address of {} at your router, or put the card in once more.",
            device.name
        )),
    }
    if !device.tls {
        line(
            "  - For TLS add [tls] self_signed = true; inferctl --fingerprint then knows it by the certificate above.",
        );
    }
    line(&format!(
        "  - To change something edit {FILE} here and start again. \"{}\" stands for a secret that the",
        crate::secrets::KEPT
    ));
    line("    device keeps: leave it, or write another one in its place.");
    // Without a data partition there is nothing that a reset could change.
    if device.id.is_some() {
        line("  - To forget everything that was configured put an empty file called factory-reset here.");
    } else {
        line(
            "  - The data partition cannot be used: have another machine look at it (e2fsck), or flash the medium anew.",
        );
    }
    let ascii: String =
        out.chars().map(|c| if c.is_ascii_graphic() || matches!(c, ' ' | '\n') { c } else { '?' }).collect();
    let mut bytes = ascii.replace('\n', "\r\n").into_bytes();
    while !bytes.len().is_multiple_of(UNIT) {
        bytes.extend(if UNIT - bytes.len() % UNIT == 1 { &b" "[..] } else { &b"\r\n"[..] });
    }
    bytes
}
