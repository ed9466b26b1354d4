//! `inferctl push`: a bundle to a device, and its verdicts as they come.
//!
//! The bytes that are counted are those given to the network. Verdicts are asked for while the file goes up and while the device
//! tries the bundle. A cut connection is resumed from the byte that the device names, a refusal ends it with the device's
//! sentence and what to do about it.

use crate::{
    client::{Answer, Client, ClientError},
    device::{Device, SystemState, Transfers, Verdict},
    fail::Failure,
    meter::Meter,
    show, slots,
    upload::{self, Sent, Step},
    words,
};
use inferd_bundle::Bundle;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Between two questions about verdicts.
const EVERY: Duration = Duration::from_millis(300);
/// How long a device may be away while it is followed: it may reboot.
const AWAY: Duration = Duration::from_secs(120);
/// The same while it tries a system: one that nobody reaches is only then given up, 10 minutes and its probation after its start.
const AWAY_WITH_A_SYSTEM: Duration = Duration::from_secs(5400);
/// How long a device may take to hash what is staged, before it says that it restarts.
const HASHING: Duration = Duration::from_secs(1800);
/// The longest pause before a cut upload is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Said of a bundle that is there.
const SERVES_ALREADY: &str = "these very bytes serve already; nothing was changed";

/// Said of a system on a device that does not try it by itself.
const WAITS: &str = "the system is staged; the device waits for `inferctl system try`";

/// What to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Wait {
    /// For nothing once the device has taken the order
    Nothing,
    /// Until every byte is in the slot and was read back
    Staged,
    /// Until it serves, on probation
    #[default]
    Serving,
    /// Until its probation is over
    Committed,
}

/// Arguments of `push`.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// The bundle
    file: PathBuf,
    /// The device: HOST[:PORT], instead of --url
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// What to wait for before this command ends
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
    /// How often a cut connection is tried again without a byte of progress between
    #[arg(long, value_name = "N", default_value_t = 8)]
    tries: u32,
}

/// The bundle that is sent.
struct Parcel {
    file: File,
    total: u64,
    id: String,
    name: String,
}

impl Push {
    /// Sends it and follows it.
    ///
    /// # Errors
    /// [`Failure`]: the first reason that stands in the way.
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let mut parcel = Parcel::open(&self.file)?;
        let before = Device::ask(client)?;
        let mut follower = Follower::new(client, before.newest(), Some(parcel.id.clone()), json);
        if !json {
            show::line(&format!("{} to {}", parcel.name, client.base()));
        }
        let answer = self.send(client, &mut parcel, &mut follower)?;
        let page: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        if !(200..300).contains(&answer.status) {
            follower.look()?;
            return follower.refused(slots::refusal(&answer));
        }
        if page["bundle"]["already"] == true {
            return follower.done(SERVES_ALREADY);
        }
        follower.system = page["bundle"]["system"] == true;
        if page["next"] == "wait" && self.wait > Wait::Staged {
            return follower.done(WAITS);
        }
        follower.until(self.wait)
    }

    /// Sends it, again and again from where the device says, until there is an answer.
    fn send(
        &self,
        client: &Client,
        parcel: &mut Parcel,
        follower: &mut Follower<'_>,
    ) -> Result<Answer, Failure> {
        let (mut tries, mut furthest) = (0, 0);
        loop {
            let from = parcel.resume_at(client)?;
            tries = if from > furthest { 0 } else { tries };
            furthest = furthest.max(from);
            parcel.file.seek(SeekFrom::Start(from)).map_err(|e| unreadable(&self.file, &e))?;
            if from > 0 && !follower.json {
                show::line(&format!("  going on at {} of {}", show::bytes(from), show::bytes(parcel.total)));
            }
            let mut meter = Meter::new("  sending", from, parcel.total, follower.json);
            let mut asked = Instant::now();
            let mut step = |step: Step| {
                if let Step::Sent(n) = step {
                    meter.at(n);
                }
                if asked.elapsed() >= EVERY {
                    // An upload does not end because one question went unanswered.
                    let _ = follower.look_beside(&mut meter);
                    asked = Instant::now();
                }
            };
            let sent = upload::put(client, "/api/v1/bundle", from, parcel.total, &mut parcel.file, &mut step);
            meter.end();
            let why = match sent {
                Ok(Sent::Answered(answer)) if !passing(&answer) => return Ok(answer),
                Ok(Sent::Answered(answer)) => ClientError::Refused(slots::refusal(&answer)),
                Ok(Sent::Cut(e)) => client.explain_io(&e),
                Err(e @ ClientError::Unreachable { .. }) => e,
                Err(e) => return Err(e.into()),
            };
            tries += 1;
            if tries > self.tries {
                return Err(why.into());
            }
            if !follower.json {
                eprintln!("inferctl: {why}; trying again ({tries} of {})", self.tries);
            }
            std::thread::sleep(Duration::from_secs(1 << (tries - 1).min(8)).min(LONGEST_PAUSE));
        }
    }
}

/// Whether an answer says that the same bytes may be taken later: the transfer was cut, or the daemon is starting or ending.
fn passing(answer: &Answer) -> bool {
    let page: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    // Somebody has to do something about these first.
    let lasting = matches!(page["code"].as_str(), Some("no-room" | "medium-read-only"));
    matches!(answer.status, 408 | 503) || (page["retry"] == true && answer.status != 409 && !lasting)
}

impl Parcel {
    fn open(path: &Path) -> Result<Self, Failure> {
        let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
        let bundle = crate::bundle::read_prefix(&mut file, path)?;
        let total = file.metadata().map_err(|e| unreadable(path, &e))?.len();
        if total != bundle.total_len() {
            return Err(Failure::Other(format!(
                "{} is {total} bytes, the bundle in it {}: it was cut off or damaged",
                path.display(),
                bundle.total_len()
            )));
        }
        Ok(Self { file, total, id: bundle.id().to_string(), name: named(&bundle) })
    }

    /// Where to begin: at 0, or where this very bundle was cut off.
    fn resume_at(&self, client: &Client) -> Result<u64, ClientError> {
        let left = Transfers::ask(client)?.resume;
        let left = left.filter(|r| r.bundle == self.id && r.total == self.total);
        Ok(left.map_or(0, |r| if r.offset < self.total { r.offset } else { 0 }))
    }
}

fn named(bundle: &Bundle) -> String {
    let m = bundle.manifest();
    format!("{} {} ({}), {}", m.product, m.version, m.label, show::bytes(bundle.total_len()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("{} cannot be read: {error}", path.display()))
}

/// Follows a bundle the device fetches by itself: first its coming, then its trial.
///
/// # Errors
/// [`Failure`].
pub fn follow_pull(client: &Client, since: u64, wait: Wait, json: bool) -> Result<(), Failure> {
    let mut follower = Follower::new(client, since, None, json);
    if wait == Wait::Nothing {
        return follower.done("the device fetches it");
    }
    loop {
        let pull = Transfers::ask(client)?.pull.unwrap_or_default();
        follower.bundle.clone_from(&pull.report.bundle);
        if pull.state == "fetching" {
            if follower.bundle.is_some() {
                follower.look()?;
            }
            std::thread::sleep(EVERY);
            continue;
        }
        let device = follower.look()?;
        if let Some(why) = pull.error {
            return follower.refused(words::explain(&why.code, &why.detail));
        }
        if !json {
            let report = &pull.report;
            show::line(&format!(
                "  fetched {} for a bundle of {}; {} of it was there already",
                show::bytes(report.fetched),
                show::bytes(report.total),
                show::bytes(report.reused)
            ));
        }
        if follower.verdicts.is_empty() && follower.bundle.as_deref().is_some_and(|id| device.keeps(id)) {
            return follower.done(SERVES_ALREADY);
        }
        return follower.until(wait);
    }
}

/// Has a device try the system that is staged there, and follows that across its restart.
///
/// # Errors
/// [`Failure`].
pub fn follow_try(client: &Client, wait: Wait, json: bool) -> Result<(), Failure> {
    let before = Device::ask(client)?;
    let state = before.system.as_ref().and_then(|system| system.state.as_ref());
    let about = state.filter(|state| state.phase == "staged").and_then(|state| state.about.as_ref());
    let mut follower = Follower::new(client, before.newest(), about.map(|about| about.bundle.clone()), json);
    follower.system = true;
    match slots::taken(&match ask_for_a_try(client) {
        // It was there a moment ago, and it restarts when it has taken the order.
        Err(ClientError::Unreachable { why, .. }) => return follower.unanswered(&why, wait),
        asked => asked?,
    }) {
        Err(ClientError::Refused(why)) => return follower.refused(why),
        taken => taken.map(drop)?,
    }
    match (about, json) {
        (Some(about), false) => {
            show::line(&format!("{} {} ({}) is tried", about.product, about.version, about.label));
        }
        // It was staged a moment ago, and the device has not said so yet.
        (None, _) => {
            return follower.done("the device restarts with it: `inferctl slots` says what becomes of it");
        }
        _ => {}
    }
    if wait <= Wait::Staged {
        return follower.done("the device restarts with it");
    }
    follower.until(wait)
}

fn ask_for_a_try(client: &Client) -> Result<Answer, ClientError> {
    client.clone().within(HASHING).post(
        "/api/v1/system/try",
        &[("Content-Type".into(), "application/octet-stream".into())],
        b"",
    )
}

/// Prints verdicts as they come, and knows when enough of them have.
struct Follower<'a> {
    client: &'a Client,
    bundle: Option<String>,
    /// Its trial is a restart of the device.
    system: bool,
    /// Nobody has said yet whether the device took the order to try it.
    unanswered: bool,
    seen: u64,
    json: bool,
    verdicts: Vec<Verdict>,
    pages: Vec<Value>,
}

impl<'a> Follower<'a> {
    fn new(client: &'a Client, since: u64, bundle: Option<String>, json: bool) -> Self {
        Self {
            client,
            bundle,
            system: false,
            unanswered: false,
            seen: since,
            json,
            verdicts: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// Asks once, and shows what is new.
    fn look(&mut self) -> Result<Device, ClientError> {
        let (device, lines) = self.news()?;
        lines.iter().for_each(|line| show::line(line));
        Ok(device)
    }

    /// The same while a progress bar is drawn.
    fn look_beside(&mut self, meter: &mut Meter) -> Result<(), ClientError> {
        let (_, lines) = self.news()?;
        if !lines.is_empty() {
            meter.end();
            lines.iter().for_each(|line| show::line(line));
        }
        Ok(())
    }

    fn news(&mut self) -> Result<(Device, Vec<String>), ClientError> {
        let page: Value = self.client.json("/api/v1/slots")?;
        let device: Device = serde_json::from_value(page.clone()).map_err(|e| {
            ClientError::Refused(format!("/api/v1/slots: the answer is not what was expected: {e}"))
        })?;
        let mut lines = Vec::new();
        for (at, verdict) in device.verdicts.iter().enumerate().filter(|(_, v)| v.number > self.seen) {
            if verdict.bundle.is_some() && verdict.bundle != self.bundle {
                continue;
            }
            if !self.json {
                lines.push(verdict.line());
            }
            self.verdicts.push(verdict.clone());
            self.pages.push(page["verdicts"][at].clone());
        }
        self.seen = self.seen.max(device.newest());
        Ok((device, lines))
    }

    /// The answer to the order to try the system was lost, as a restart can do to it: the device says itself, later, what became of it.
    fn unanswered(mut self, why: &str, wait: Wait) -> Result<(), Failure> {
        let lost = format!("the device did not answer ({why}): it may be restarting with the system");
        if self.bundle.is_none() || wait <= Wait::Staged {
            return self.done(&format!("{lost}; `inferctl slots` says what became of it"));
        }
        eprintln!("inferctl: {lost}");
        self.unanswered = true;
        self.until(wait)
    }

    /// Where the order has not reached the device, which has the system as it was, it is given again. The reason when it is refused.
    fn order_again(&mut self, device: &Device) -> Result<Option<String>, ClientError> {
        let state = device.system.as_ref().and_then(|system| system.state.as_ref());
        let mine =
            |state: &&SystemState| state.about.as_ref().map(|about| &about.bundle) == self.bundle.as_ref();
        if state.filter(mine).is_none_or(|state| state.phase != "staged") {
            self.unanswered = false;
            return Ok(None);
        }
        let answer = ask_for_a_try(self.client)?;
        let page: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        // Root hashes it still, for the first order.
        if page["code"] == "busy" || answer.status == 503 {
            return Ok(None);
        }
        self.unanswered = false;
        Ok((!(200..300).contains(&answer.status)).then(|| slots::refusal(&answer)))
    }

    /// Waits until it is so far, or is refused.
    fn until(&mut self, wait: Wait) -> Result<(), Failure> {
        let (mut heard, mut told) = (Instant::now(), None);
        let away = if self.system { AWAY_WITH_A_SYSTEM } else { AWAY };
        loop {
            match self.look() {
                Ok(device) => {
                    heard = Instant::now();
                    if self.unanswered {
                        match self.order_again(&device) {
                            Ok(Some(reason)) => return self.refused(reason),
                            Ok(None) | Err(ClientError::Unreachable { .. }) => {}
                            Err(e) => return Err(e.into()),
                        }
                    }
                    if let Some(end) = self.outcome(&device, wait) {
                        return match end {
                            Ok(said) => self.done(said),
                            Err(reason) => self.refused(reason),
                        };
                    }
                    let phase = device.trial.as_ref().map(|t| t.phase.clone());
                    if phase != told && !self.json {
                        if let Some("shadow" | "probation") = phase.as_deref() {
                            eprintln!("  waiting: {}", slots::trial(&device).unwrap_or_default());
                        }
                        told = phase;
                    }
                }
                Err(e @ ClientError::Unreachable { .. }) if heard.elapsed() > away => return Err(e.into()),
                Err(ClientError::Unreachable { .. }) => {}
                // It ends, or has started and still looks at what it has.
                Err(e) if self.system && heard.elapsed() > away => return Err(e.into()),
                Err(_) if self.system => {}
                Err(e) => return Err(e.into()),
            }
            std::thread::sleep(EVERY);
        }
    }

    /// What the verdicts say about the goal, once they say it.
    fn outcome(&self, device: &Device, wait: Wait) -> Option<Result<&'static str, String>> {
        if let Some(no) = self.verdicts.iter().find(|v| matches!(v.outcome.as_str(), "refuse" | "reverse")) {
            // What served before is on its way back: its verdict comes as well.
            let returning = device.trial.as_ref().is_some_and(|t| t.phase == "returning");
            return (!returning).then(|| Err(no.reason()));
        }
        if self.system {
            return self.outcome_of_a_system(device, wait);
        }
        let passed = |gate: &str| self.verdicts.iter().any(|v| v.gate == gate && v.outcome == "pass");
        if passed("commit") {
            return Some(Ok("it is committed"));
        }
        match wait {
            Wait::Nothing => Some(Ok("the device has it")),
            Wait::Staged if passed("install") => Some(Ok("every byte is in the slot and was read back")),
            Wait::Serving if passed("flip") => Some(Ok("it serves, on probation")),
            _ => None,
        }
    }

    /// The same of a system. What it was interrupted by is shown and decides nothing: it is tried again.
    fn outcome_of_a_system(&self, device: &Device, wait: Wait) -> Option<Result<&'static str, String>> {
        if self.verdicts.iter().any(|v| v.gate == "system" && v.outcome == "pass") {
            return Some(Ok("the system is committed"));
        }
        let state = device.system.as_ref().and_then(|system| system.state.as_ref());
        let tried = state.is_some_and(|state| {
            state.phase == "trial" && state.about.as_ref().map(|about| &about.bundle) == self.bundle.as_ref()
        });
        let runs = device.system.as_ref().and_then(|system| system.board.as_ref()?.on_trial.then_some(()));
        match wait {
            Wait::Nothing => Some(Ok("the device has it")),
            Wait::Staged => Some(Ok("every byte is in its slot and was hashed from the medium")),
            Wait::Serving if tried && runs.is_some() => Some(Ok("the system runs, on trial")),
            _ => None,
        }
    }

    fn done(&self, said: &str) -> Result<(), Failure> {
        if self.json {
            self.page("done", said);
        } else {
            show::line(said);
        }
        Ok(())
    }

    fn refused(&self, reason: String) -> Result<(), Failure> {
        if self.json {
            self.page("refused", &reason);
            return Err(Failure::Said);
        }
        Err(Failure::Other(reason))
    }

    fn page(&self, outcome: &str, said: &str) {
        show::json(
            &json!({ "outcome": outcome, "said": said, "bundle": self.bundle, "verdicts": self.pages }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(gate: &str, outcome: &str) -> Verdict {
        Verdict {
            gate: gate.into(),
            outcome: outcome.into(),
            sentence: format!("{gate} said {outcome}"),
            ..Verdict::default()
        }
    }

    #[test]
    fn each_goal_is_reached_by_its_gate_and_a_refusal_ends_every_wait() {
        let client = Client::new("http://127.0.0.1:1", None, Duration::from_secs(1)).unwrap();
        let after = |gates: &[(&str, &str)], wait| {
            let mut follower = Follower::new(&client, 0, None, true);
            follower.verdicts = gates.iter().map(|(g, o)| verdict(g, o)).collect();
            follower.outcome(&Device::default(), wait)
        };
        let installed = [("keys", "pass"), ("install", "pass")];
        let flipped = [("install", "pass"), ("flip", "pass")];
        assert!(after(&installed, Wait::Serving).is_none());
        assert!(after(&installed, Wait::Staged).unwrap().is_ok());
        assert!(after(&flipped, Wait::Committed).is_none());
        assert!(after(&flipped, Wait::Serving).unwrap().is_ok());
        assert!(after(&[("flip", "pass"), ("commit", "pass")], Wait::Committed).unwrap().is_ok());
        for wait in [Wait::Nothing, Wait::Staged, Wait::Serving, Wait::Committed] {
            let no = after(&[("install", "pass"), ("golden", "refuse")], wait).unwrap();
            assert!(no.unwrap_err().contains("golden said refuse"));
        }
        assert!(after(&[("flip", "pass"), ("probation", "reverse")], Wait::Committed).unwrap().is_err());
    }

    #[test]
    fn a_reversal_is_told_when_the_old_models_are_back() {
        let client = Client::new("http://127.0.0.1:1", None, Duration::from_secs(1)).unwrap();
        let mut follower = Follower::new(&client, 0, None, true);
        follower.verdicts = vec![verdict("flip", "pass"), verdict("probation", "reverse")];
        let returning: Device = serde_json::from_value(json!({"trial": {"phase": "returning"}})).unwrap();
        assert!(follower.outcome(&returning, Wait::Committed).is_none());
        assert!(follower.outcome(&Device::default(), Wait::Committed).unwrap().is_err());
    }
}
