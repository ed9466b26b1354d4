//! Systems, which root installs: what root says of them, as verdicts and in the status.
//!
//! Root keeps the record. It is asked every two seconds while something is under way there and soon after a start, every fifteen otherwise; its
//! verdicts become verdicts here, each once, by their numbers.

use crate::core::{About, Core, blocking};
use crate::finding::Finding;
use crate::updater::TrustError;
use crate::verdict::{Gate, Outcome};
use inferd_slots::replace;
use inferd_system::door::Told;
use inferd_system::state::{self, Phase};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often root is asked while something is under way, or may be soon.
const OFTEN: Duration = Duration::from_secs(2);
/// How often otherwise.
const SELDOM: Duration = Duration::from_secs(15);
/// How long after the start what was tried may still be judged.
const EARLY: Duration = Duration::from_secs(120);
/// Holds the number of root's last verdict that is a verdict here.
const SEEN: &str = "system.seen";

/// The gate that a code of root's is about, and what it says of the bundle.
pub fn judged_by(code: &str) -> (Gate, Outcome) {
    match code {
        "no-root" | "unsigned" | "unknown-keys" | "signature-wrong" => (Gate::Keys, Outcome::Refuse),
        "below-threshold" | "wrong-role" | "role-unassigned" | "dev-role" => (Gate::Role, Outcome::Refuse),
        "key-revoked" | "bundle-revoked" => (Gate::Revocation, Outcome::Refuse),
        "older-version" | "same-version" | "too-many-products" => (Gate::Floor, Outcome::Refuse),
        "wrong-board" | "inferd-too-old" | "firmware-too-old" | "boot-backend" | "probation"
        | "wrong-parts" | "other-product" | "kind-unsupported" => (Gate::Target, Outcome::Refuse),
        "slot-too-small" => (Gate::Disk, Outcome::Refuse),
        "medium-failed" | "read-back-differs" | "state-lost" => (Gate::Disk, Outcome::Interrupted),
        "truncated" => (Gate::Install, Outcome::Interrupted),
        "busy" | "system-on-trial" | "system-gone" | "no-keeper" | "no-door" => {
            (Gate::System, Outcome::Interrupted)
        }
        _ => (Gate::Install, Outcome::Refuse),
    }
}

/// Asks root again and again.
pub async fn follow(core: Arc<Core>) {
    let began = Instant::now();
    loop {
        let asking = core.clone();
        let under_way = blocking(move || look(&asking)).await;
        let pause = if under_way || began.elapsed() < EARLY { OFTEN } else { SELDOM };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.systems_changed.notified() => {}
        }
    }
}

/// Asks root once. Whether something is under way there. Blocking.
fn look(core: &Core) -> bool {
    let door = &core.config.systems;
    // One that is just being started again is gone for a moment; what it said stands.
    let Some(told) = door.is_there().then(|| door.status().ok()).flatten() else { return false };
    // Who has read a verdict finds what it is about.
    if core.status.borrow().system.as_ref() != Some(&told) {
        core.publish(|s| s.system = Some(told.clone()));
    }
    let Some(state) = &told.state else { return false };
    note_new(core, state);
    state.phase != Phase::Idle
}

/// Makes verdicts of those of root's that are none here yet.
fn note_new(core: &Core, state: &state::State) {
    let path = core.config.data.join(SEEN);
    let newest = state.verdicts.last().map_or(0, |v| v.number);
    let seen = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    // Root's record was lost, and its numbers began anew.
    let seen = seen.filter(|seen| *seen <= newest).unwrap_or(0);
    let new: Vec<&state::Verdict> = state.verdicts.iter().filter(|v| v.number > seen).collect();
    for verdict in &new {
        let outcome = match verdict.outcome {
            state::Outcome::Committed => Outcome::Pass,
            state::Outcome::Returned => Outcome::Reverse,
            state::Outcome::Interrupted => Outcome::Interrupted,
        };
        let code = match verdict.outcome {
            state::Outcome::Committed => "committed",
            _ => verdict.reason.code.as_str(),
        };
        let evidence = json!({
            "system_verdict": verdict.number, "system_slot": verdict.slot, "outcome": verdict.outcome,
            "boot": verdict.boot, "interruptions": verdict.tries.interruptions, "failures": verdict.tries.failures,
        });
        let about = about(&verdict.about);
        core.note(
            &about,
            vec![(Gate::System, outcome, Finding::new(code, &*verdict.reason.sentence, evidence))],
        );
    }
    if !new.is_empty()
        && let Err(error) = replace(&path, newest.to_string().as_bytes())
    {
        tracing::warn!(%error, "verdicts of systems are not remembered as told: they are told again after a start");
    }
}

fn about(of: &state::About) -> About {
    About {
        bundle: Some(of.bundle.clone()),
        product: Some(of.product.clone()),
        version: Some(of.version),
        // That of a model.
        slot: None,
    }
}

/// The system that lies there and waits.
fn staged(told: &Told) -> Option<About> {
    match &told.state.as_ref()?.phase {
        Phase::Staged { about: of, .. } => Some(about(of)),
        _ => None,
    }
}

/// Has root restart the board.
pub async fn try_it(core: &Arc<Core>) -> Result<(), TrustError> {
    let asking = core.clone();
    blocking(move || {
        let door = &asking.config.systems;
        let error = |code: &str, sentence: &str| TrustError { code: code.into(), sentence: sentence.into() };
        if !door.is_there() {
            return Err(error("kind-unsupported", "nobody installs systems on this device"));
        }
        let of = door.status().ok().as_ref().and_then(staged).unwrap_or_default();
        door.try_it().map_err(|why| {
            if why.code != "nothing-staged" {
                let finding = Finding::new(&*why.code, &*why.sentence, json!({}));
                asking.note(&of, vec![(Gate::System, Outcome::Refuse, finding)]);
            }
            error(&why.code, &why.sentence)
        })
    })
    .await
}
