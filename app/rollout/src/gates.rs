//! The gates before the payload: everything that the beginning of a bundle decides, with no disk and no process.
//!
//! Order: keys, role, revocation, floor, target, engine, memory. (The disk gate is the slot itself: it reserves the room.)

use crate::config::Engine;
use crate::finding::Finding;
use crate::verdict::Gate;
use inferd_bundle::{Authorized, Bundle, Kind, Permit, Refusal, Role, Trust};
use inferd_model::{EngineKind, Manifest, Rung, TensorSpec};
use serde_json::json;
use std::collections::BTreeMap;

/// What the gates hold a bundle against.
pub struct Facts<'a> {
    /// Whom the device believes; nobody: no bundle is accepted.
    pub trust: Option<&'a Trust>,
    /// The documents on disk are older than what the state has seen: the sentence that says so.
    pub trust_stale: Option<&'a str>,
    /// This board.
    pub board: &'a str,
    /// This daemon's version.
    pub version: &'a str,
    /// Whether root takes systems from this way in.
    pub systems: bool,
    /// The engines there are.
    pub engines: &'a [Engine],
    /// The floors.
    pub floors: &'a BTreeMap<String, u64>,
    /// The permit that waits.
    pub permit: Option<&'a Permit>,
    /// The last permit that was used.
    pub last_nonce: u64,
    /// The memory there is.
    pub memory: Memory,
    /// How large rings become.
    pub ring: Ring,
    /// The wall clock in Unix seconds, when it is plausible.
    pub now: Option<u64>,
}

impl Facts<'_> {
    /// This engine, when it is one of those there are.
    fn engine(&self, kind: EngineKind) -> Option<&Engine> {
        self.engines.iter().find(|e| e.name == kind.name())
    }
}

/// The memory there is, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What all hosts together may use: the setting.
    pub limit: Option<u64>,
    /// What the kernel says can be had now, in addition to what is used.
    pub available: Option<u64>,
    /// What each serving model may use.
    pub running: Vec<(String, u64)>,
}

/// The settings that a ring's size follows from.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Slots, when a manifest does not say.
    pub queue: usize,
    /// Workers, when a manifest does not say.
    pub workers: usize,
}

/// What the gates said.
#[derive(Debug, Default)]
pub struct Admission {
    /// The gates that were passed.
    pub passed: Vec<(Gate, Finding)>,
    /// The gate that refused, the last one that looked.
    pub refused: Option<(Gate, Finding)>,
    /// Who authorised the bundle.
    pub authorized: Option<Authorized>,
    /// The manifests of its models.
    pub manifests: Vec<Manifest>,
    /// It is past its advised date.
    pub stale: Option<String>,
}

/// Asks every gate in order until one refuses.
pub fn admit(bundle: &Bundle, facts: &Facts<'_>) -> Admission {
    let mut admission = Admission::default();
    if let Err(refused) = ask(bundle, facts, &mut admission) {
        admission.refused = Some(refused);
    }
    admission
}

type Asked = Result<(), (Gate, Finding)>;

fn ask(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    signatures(bundle, facts, admission)?;
    if bundle.manifest().kind == Kind::System {
        return system(facts);
    }
    floor(bundle, facts, admission)?;
    target(bundle, facts, admission)?;
    engine(bundle, facts, admission)?;
    memory(bundle, facts, admission)
}

/// A passed gate's code.
const PASS: &str = "ok";

fn signatures(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    let Some(trust) = facts.trust else {
        let sentence =
            "this device has no root of trust, so no bundle can be accepted: give it a root document";
        return Err((Gate::Keys, Finding::new("no-root", sentence, json!({}))));
    };
    if let Some(sentence) = facts.trust_stale {
        return Err((Gate::Keys, Finding::new("trust-went-back", sentence, json!({}))));
    }
    let authorized = authorize(bundle, trust)?;
    let m = bundle.manifest();
    let keys: Vec<String> = authorized.keys.iter().map(ToString::to_string).collect();
    let count = keys.len();
    let mut pass = |gate, sentence: String, evidence| {
        admission.passed.push((gate, Finding::new(PASS, sentence, evidence)));
    };
    pass(
        Gate::Keys,
        format!("{count} known key(s) signed it and every signature is right"),
        json!({ "keys": keys, "root": authorized.root }),
    );
    pass(
        Gate::Role,
        format!("{count} key(s) of role {} signed, {} needed", m.role, authorized.threshold),
        json!({ "role": m.role.name(), "keys": count, "threshold": authorized.threshold }),
    );
    pass(
        Gate::Revocation,
        "neither the bundle nor a key that counts is revoked".into(),
        json!({ "revocations": authorized.revocations }),
    );
    admission.authorized = Some(authorized);
    Ok(())
}

/// Whether the trusted keys signed; otherwise the gate that says no.
pub fn authorize(bundle: &Bundle, trust: &Trust) -> Result<Authorized, (Gate, Finding)> {
    bundle.authorize(trust).map_err(|refusal| {
        let gate = match &refusal {
            Refusal::KeyRevoked { .. } | Refusal::BundleRevoked(_) => Gate::Revocation,
            Refusal::WrongRole { .. }
            | Refusal::BelowThreshold { .. }
            | Refusal::RoleUnassigned(_)
            | Refusal::DevRole => Gate::Role,
            _ => Gate::Keys,
        };
        let evidence = json!({
            "role": bundle.manifest().role.name(),
            "root": trust.root_version(),
            "revocations": trust.revocation_version(),
            "signatures": bundle.signatures().len(),
        });
        (gate, refused(&refusal, evidence))
    })
}

/// A refusal of the format with some numbers.
pub fn refused(refusal: &Refusal, evidence: serde_json::Value) -> Finding {
    Finding::new(refusal.code(), refusal.to_string(), evidence)
}

/// Slots for bundles hold models. Root judges a system, whatever was judged here.
fn system(facts: &Facts<'_>) -> Asked {
    match facts.systems {
        true => Ok(()),
        false => Err((Gate::Target, refused(&Refusal::Kind("system"), json!({})))),
    }
}

fn floor(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    let m = bundle.manifest();
    let (product, version) = (m.product.as_str(), m.version);
    let floor = facts.floors.get(product).copied().unwrap_or(0);
    let evidence = json!({ "version": version, "floor": floor });
    if version >= floor {
        let sentence = format!("version {version} of {product} is not below the floor, {floor}");
        admission.passed.push((Gate::Floor, Finding::new(PASS, sentence, evidence)));
        return Ok(());
    }
    match facts.permit {
        Some(p) if p.product.as_str() == product && p.version == version && p.nonce > facts.last_nonce => {
            let sentence = format!(
                "version {version} of {product} is below the floor, {floor}, and permit {} allows it on this device once",
                p.nonce
            );
            let evidence = json!({ "version": version, "floor": floor, "permit": p.nonce });
            admission.passed.push((Gate::Floor, Finding::new("permitted", sentence, evidence)));
            Ok(())
        }
        _ => {
            let sentence = format!(
                "version {version} of {product} is older than {floor}, which this device has committed; to go back, sign a permit for it"
            );
            Err((Gate::Floor, Finding::new("older-version", sentence, evidence)))
        }
    }
}

fn target(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    let m = bundle.manifest();
    let board = facts.board;
    let evidence =
        json!({ "board": board, "targets": m.targets, "inferd": facts.version, "min_inferd": m.min_inferd });
    if !m.runs_on(board) {
        let sentence = format!("it is for {}, this board is {board:?}", m.targets.join(" or "));
        return Err((Gate::Target, Finding::new("wrong-board", sentence, evidence)));
    }
    if !m.runs_with(facts.version) {
        let least = m.min_inferd.as_deref().unwrap_or_default();
        let sentence =
            format!("it needs inferd {least}, this is {}: update the device's software first", facts.version);
        return Err((Gate::Target, Finding::new("inferd-too-old", sentence, evidence)));
    }
    admission.stale = match (m.not_after, facts.now) {
        (Some(until), Some(now)) if now > until => Some(format!(
            "bundle {} {} is past the date its maker advised; that is advice only",
            m.product, m.label
        )),
        _ => None,
    };
    admission
        .passed
        .push((Gate::Target, Finding::new(PASS, "it is for this board and this daemon", evidence)));
    Ok(())
}

fn engine(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    let has: Vec<&str> = facts.engines.iter().map(|e| e.name.as_str()).collect();
    let versions: Vec<String> = facts.engines.iter().map(|e| format!("{} ({})", e.name, e.version)).collect();
    let mut chosen = BTreeMap::new();
    for entry in &bundle.manifest().models {
        let manifest = entry
            .parse()
            .map_err(|e| (Gate::Engine, refused(&e, json!({ "model": entry.name.as_str() }))))?;
        let wants: Vec<String> = manifest.engines.iter().map(ToString::to_string).collect();
        let rungs = manifest.engines.iter().filter_map(|&rung| Some((rung, facts.engine(rung.engine)?)));
        let fits = rungs.clone().find(|(rung, here)| manifest.suits(*rung, &here.version));
        if let (None, Some((rung, here))) = (fits, rungs.clone().next()) {
            let wanted = manifest.asks_of(rung).join(", ");
            let sentence =
                format!("model {} needs {rung} {wanted}, this image has {}", entry.name, here.version);
            let evidence =
                json!({ "model": entry.name.as_str(), "wants": manifest.engine_versions, "has": versions });
            return Err((Gate::Engine, Finding::new("engine-version", sentence, evidence)));
        }
        let Some((rung, _)) = fits else {
            let sentence = format!(
                "model {} runs on {}, this image has {}",
                entry.name,
                wants.join(" or "),
                if has.is_empty() { "no engine".into() } else { has.join(" and ") }
            );
            let evidence = json!({ "model": entry.name.as_str(), "wants": wants, "has": versions });
            return Err((Gate::Engine, Finding::new("engine-missing", sentence, evidence)));
        };
        chosen.insert(entry.name.to_string(), rung.to_string());
        admission.manifests.push(manifest);
    }
    let evidence = json!({ "models": chosen, "has": versions });
    let sentence = format!("every model has an engine here ({} model(s))", chosen.len());
    admission.passed.push((Gate::Engine, Finding::new(PASS, sentence, evidence)));
    Ok(())
}

fn memory(bundle: &Bundle, facts: &Facts<'_>, admission: &mut Admission) -> Asked {
    let declared: BTreeMap<String, u64> = bundle
        .manifest()
        .models
        .iter()
        .zip(&admission.manifests)
        .map(|(entry, m)| {
            // A host's memory holds the networks of rungs that can be run here, and no others.
            let runs = |i| {
                let here = |r: &&Rung| m.network_index(**r) == Some(i) && facts.engine(r.engine).is_some();
                m.engines.iter().any(|r| here(&r))
            };
            let unread = |file: &str| m.networks().enumerate().any(|(i, n)| n.file == file && !runs(i));
            let files: u64 = entry.files.iter().filter(|f| !unread(&f.name)).map(|f| f.len).sum();
            (m.name.to_string(), declared(m, files, facts.ring))
        })
        .collect();
    let needed: u64 = declared.values().fold(0, |sum, n| sum.saturating_add(*n));
    let running: u64 = facts.memory.running.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n));
    let evidence = json!({
        "needed_bytes": needed,
        "models": declared,
        "running_bytes": running,
        "running": facts.memory.running.iter().cloned().collect::<BTreeMap<_, _>>(),
        "limit_bytes": facts.memory.limit,
        "available_bytes": facts.memory.available,
    });
    let refuse = |code, sentence| Err((Gate::Memory, Finding::new(code, sentence, evidence.clone())));
    // Both sets run side by side from the load until the old one has drained.
    if let Some(limit) = facts.memory.limit
        && needed.saturating_add(running) > limit
    {
        let sentence = format!(
            "its models declare {} MiB and {} MiB run meanwhile; this device allows {} MiB in all",
            mib(needed),
            mib(running),
            mib(limit)
        );
        return refuse("memory-limit", sentence);
    }
    if let Some(available) = facts.memory.available
        && needed > available
    {
        let sentence = format!(
            "its models declare {} MiB and {} MiB are free beside what runs",
            mib(needed),
            mib(available)
        );
        return refuse("memory-free", sentence);
    }
    let sentence = format!("its models declare {} MiB, which fit beside what runs", mib(needed));
    admission.passed.push((Gate::Memory, Finding::new(PASS, sentence, evidence)));
    Ok(())
}

/// Whether the models of a bundle could be loaded beside what runs, one at a time; else why not.
pub fn one_by_one(bundle: &Bundle, memory: &Memory, ring: Ring) -> Result<(), String> {
    let running: u64 = memory.running.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n));
    let room = match memory.limit {
        Some(limit) => limit.saturating_sub(running),
        None => memory.available.unwrap_or(u64::MAX),
    };
    for entry in &bundle.manifest().models {
        // What cannot be read is found by loading it.
        let Ok(manifest) = entry.parse() else { continue };
        let needed = declared(&manifest, entry.files.iter().map(|f| f.len).sum(), ring);
        if needed > room {
            let (needed, room) = (mib(needed), mib(room));
            return Err(format!(
                "model {} declares {needed} MiB, and {room} MiB are free beside what runs",
                entry.name
            ));
        }
    }
    Ok(())
}

/// What a model may use at most: its declared budget, its files in sealed memory, and its ring.
pub fn declared(manifest: &Manifest, files: u64, ring: Ring) -> u64 {
    let budget = u64::from(manifest.budget.memory_mib) << 20;
    budget.saturating_add(files).saturating_add(ring_bytes(manifest, ring))
}

/// An estimate of a ring (app/hosts makes it): as many slots as asked for, by default at most 64 MiB of them.
fn ring_bytes(manifest: &Manifest, ring: Ring) -> u64 {
    const DEFAULT_RING_BYTES: u64 = 64 << 20;
    let tensors = manifest.inputs.iter().chain(&manifest.outputs);
    let slot: u64 = tensors.map(|t| (TensorSpec::byte_len(t) as u64).next_multiple_of(64)).sum::<u64>() + 64;
    let workers = manifest.budget.workers.map_or(ring.workers, usize::from) as u64;
    let slots = match manifest.budget.queue {
        Some(q) => u64::from(q),
        None => (ring.queue as u64).min((DEFAULT_RING_BYTES / slot).max(2 * workers)),
    };
    slots.saturating_mul(slot)
}

/// Whole MiB, rounded up: a limit is never said to be met by what exceeds it.
pub fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Whether a bundle was signed for development.
pub fn is_dev(bundle: &Bundle) -> bool {
    bundle.manifest().role == Role::ModelDev
}

/// What the kernel says can be had now: free memory and what it would give back, and what this process' control groups
/// still allow, whichever is less. `None` where neither can be read.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text.lines().find_map(|l| {
        let kib = l.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim();
        kib.parse::<u64>().ok().map(|k| k << 10)
    });
    free.into_iter().chain(cgroup_room()).min()
}

/// The least room of the control groups this process is in (cgroup v2).
fn cgroup_room() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::/"))?.to_owned();
    let root = std::path::Path::new("/sys/fs/cgroup");
    let number = |p: std::path::PathBuf| std::fs::read_to_string(p).ok()?.trim().parse::<u64>().ok();
    root.join(&path)
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(|dir| {
            Some(number(dir.join("memory.max"))?.saturating_sub(number(dir.join("memory.current"))?))
        })
        .min()
}

/// The wall clock in Unix seconds when it can be true: at or after 2026, when this format began. Only advice hangs on it.
pub fn plausible_now() -> Option<u64> {
    const BEGIN_OF_2026: u64 = 1_767_225_600;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    (now >= BEGIN_OF_2026).then_some(now)
}
