//! What serves: from a slot, from the image's directories, and which models go when others come.

use crate::core::{About, Core, Proof, blocking};
use crate::finding::Finding;
use crate::gates;
use crate::judge::ENOUGH;
use crate::status::{ModelView, Serving, ServingFrom};
use crate::verdict::Gate;
use inferd_bundle::{Bundle, ModelEntry};
use inferd_hosts::{Candidate, ModelSource, OpenFile, Origin, PrepareError, Served};
use inferd_model::{MANIFEST_FILE, Manifest};
use inferd_slots::{FileMedium, OpenSlot, SlotError, SlotId, Step};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

/// The end of a warning about a bundle that was not proven.
pub const BEFORE_IT_SERVES: &str = "; it is when somebody goes back to it, before it serves";

/// What is to be served or was found: a gate and why.
pub type Fault = (Gate, Finding);

/// Opens a slot and asks whether its bundle is (still) authorised.
pub async fn open(core: &Arc<Core>, slot: SlotId) -> Result<OpenSlot<FileMedium>, Fault> {
    let of_slot = core.clone();
    let open = blocking(move || of_slot.store.open(slot)).await;
    let open = open.map_err(|e| (Gate::Load, of_slot_error(&e)))?;
    let Some(trust) = core.trust() else {
        let sentence = "this device has no root of trust, so the bundle cannot be believed";
        return Err((Gate::Keys, Finding::new("no-root", sentence, json!({}))));
    };
    if let Some(sentence) = core.stale()
        && core.store.state().active != Some(slot)
    {
        // What was revoked is not known: only what served already goes on.
        return Err((Gate::Keys, Finding::new("trust-went-back", sentence, json!({}))));
    }
    gates::authorize(open.bundle(), &trust)?;
    Ok(open)
}

fn of_slot_error(e: &SlotError) -> Finding {
    Finding::new(e.code(), e.to_string(), json!({}))
}

/// The models of a bundle, started beside what serves: each loaded from verified memory, its golden vectors passed. `new`: it is on
/// trial, and what was compiled for an engine here must be right for it.
pub async fn prepare(open: &OpenSlot<FileMedium>, core: &Core, new: bool) -> Result<Vec<Candidate>, Fault> {
    let bundle = open.bundle();
    let mut candidates = Vec::new();
    // One after the other: two models that load at once would need the memory of both loads at once.
    for entry in &bundle.manifest().models {
        let manifest = entry
            .parse()
            .map_err(|e| (Gate::Engine, gates::refused(&e, json!({ "model": entry.name.as_str() }))))?;
        let source = source(open, bundle, entry);
        let prepared = match new {
            true => core.hosts.prepare(source).await,
            false => core.hosts.prepare_again(source).await,
        };
        match prepared {
            Ok(candidate) => candidates.push(candidate),
            Err(e) => return Err(rotten(open).await.unwrap_or_else(|| unfit(&manifest, e))),
        }
    }
    Ok(candidates)
}

fn source(open: &OpenSlot<FileMedium>, bundle: &Bundle, entry: &ModelEntry) -> ModelSource {
    let m = bundle.manifest();
    let origin = Origin::Bundle {
        id: bundle.id().to_string(),
        slot: open.slot().letter(),
        product: m.product.to_string(),
        version: m.version,
    };
    let (open, model) = (open.clone(), entry.name.to_string());
    let files: OpenFile = Box::new(move |file| {
        let reader = open.read_file(&model, file).map_err(io::Error::other)?;
        Ok(Box::new(reader) as Box<dyn Read>)
    });
    ModelSource { origin, manifest: entry.manifest.clone(), files }
}

/// Proves a bundle that does not serve: each of its models is loaded and answers its golden vectors in a host of its own, below its cap,
/// one after the other, on whichever rung can be had beside what serves.
pub async fn prove(core: &Arc<Core>, slot: SlotId) -> Proof {
    let unasked = |why: &str| {
        core.warn(format!("the bundle in slot {slot} is not proven on this system: {why}{BEFORE_IT_SERVES}"));
        Proof::Unasked
    };
    let open = match open(core, slot).await {
        Ok(open) => open,
        Err((_, finding)) => return unasked(&finding.sentence),
    };
    let (of_core, bundle) = (core.clone(), open.bundle().clone());
    if let Err(why) = blocking(move || of_core.has_room_to_prove(&bundle)).await {
        return unasked(&why);
    }
    for entry in &open.bundle().manifest().models {
        let failed = |why: &dyn fmt::Display| {
            let model = &entry.name;
            Proof::Failed(format!(
                "the bundle in slot {slot} does not run on this system: model {model}: {why}"
            ))
        };
        match core.hosts.prepare_again(source(&open, open.bundle(), entry)).await {
            // The next one gets the memory.
            Ok(candidate) => candidate.end().await,
            Err(PrepareError::Busy(why)) => return unasked(&format!("model {}: {why}", entry.name)),
            Err(error) => match rotten(&open).await {
                Some((_, finding)) => return unasked(&finding.sentence),
                None => return failed(&error),
            },
        }
    }
    Proof::Proven
}

/// A model that cannot be loaded may be one whose bytes are no longer there: looks at all of them.
async fn rotten(open: &OpenSlot<FileMedium>) -> Option<Fault> {
    let open = open.clone();
    let verified = blocking(move || open.verify_all(&mut |_, _| ())).await;
    verified.err().map(|e| (Gate::Load, of_slot_error(&e)))
}

fn unfit(manifest: &Manifest, e: PrepareError) -> Fault {
    let model = manifest.name.as_str();
    let sentence = format!("model {model}: {e}");
    match e {
        PrepareError::Manifest(_) => {
            (Gate::Engine, Finding::new("model-manifest", sentence, json!({ "model": model })))
        }
        PrepareError::Engine { wanted, has } => {
            let evidence = json!({ "model": model, "wants": wanted, "has": has });
            (Gate::Engine, Finding::new("engine-missing", sentence, evidence))
        }
        PrepareError::Memory { cap, .. } => {
            let evidence =
                json!({ "model": model, "cap_bytes": cap, "budget_mib": manifest.budget.memory_mib });
            (Gate::MemoryMeasured, Finding::new("memory-over-budget", sentence, evidence))
        }
        PrepareError::Busy(_) | PrepareError::Load(_) => {
            (Gate::Load, Finding::new("load-failed", sentence, json!({ "model": model })))
        }
        PrepareError::Golden { cosine, max_abs, limits, .. } => {
            let evidence = json!({
                "model": model, "cosine": cosine, "min_cosine": limits.cosine,
                "max_abs": max_abs, "limit_max_abs": limits.max_abs,
            });
            (Gate::Golden, Finding::new("golden-differs", sentence, evidence))
        }
    }
}

/// What the load, golden and memory gates found, when all was well; otherwise the model that used too much.
pub fn measured(candidates: &[Candidate]) -> Result<Vec<Fault>, Fault> {
    let mut loaded = Map::new();
    let mut agreement = Map::new();
    let mut memory = Map::new();
    let mut unproven = Vec::new();
    for c in candidates {
        let name = c.name();
        let engine = c.engine();
        loaded.insert(
            name.clone(),
            json!({ "engine": engine.rung, "version": engine.version, "device": engine.device }),
        );
        let (a, limits) = (c.agreement(), c.tolerance());
        let others = c.unproven();
        let why = |why: &Option<String>| why.clone().unwrap_or_else(|| "a rung before it came up".into());
        unproven.extend(others.iter().map(|(rung, _)| format!("{name} on {rung}")));
        let others: Map<String, Value> =
            others.iter().map(|(rung, told)| (rung.to_string(), why(told).into())).collect();
        agreement.insert(
            name.clone(),
            json!({
                "cosine": a.cosine, "min_cosine": limits.cosine, "max_abs": a.max_abs, "limit_max_abs": limits.max_abs,
                "cases": c.golden().cases().len(), "proven": engine.rung, "not_proven": others,
            }),
        );
        let Some(peak) = c.peak_memory() else {
            let why = c.ended().unwrap_or_else(|| "for no reason it left".into());
            let sentence = format!("model {name}: its engine host ended: {why}");
            return Err((Gate::Load, Finding::new("load-failed", sentence, json!({ "model": name }))));
        };
        let budget = u64::from(c.manifest().budget.memory_mib) << 20;
        let evidence = json!({ "peak_bytes": peak.bytes, "cap_bytes": peak.cap, "budget_bytes": budget, "how": peak.how });
        if peak.bytes > peak.cap {
            let sentence = format!(
                "model {name} used {} MiB where its budget allows {} MiB",
                gates::mib(peak.bytes),
                gates::mib(peak.cap)
            );
            return Err((Gate::MemoryMeasured, Finding::new("memory-over-budget", sentence, evidence)));
        }
        memory.insert(name, evidence);
    }
    let n = candidates.len();
    let mut reproduced = format!("{n} model(s) reproduce their golden vectors on this device");
    if !unproven.is_empty() {
        let _ = write!(reproduced, "; not tried or not to be had: {}", unproven.join(", "));
    }
    let ok = |gate, sentence, evidence| (gate, Finding::new("ok", sentence, Value::Object(evidence)));
    Ok(vec![
        ok(Gate::Load, format!("{n} model(s) read from the slot and loaded"), loaded),
        ok(Gate::Golden, reproduced, agreement),
        ok(Gate::MemoryMeasured, format!("{n} model(s) kept to their memory"), memory),
    ])
}

/// The image's own models, by name, as their directories say.
pub async fn factory(core: &Arc<Core>) -> BTreeMap<String, PathBuf> {
    let dirs = core.config.factory.clone();
    blocking(move || {
        let mut found = BTreeMap::new();
        for dir in dirs {
            let text = std::fs::read_to_string(dir.join(MANIFEST_FILE));
            if let Ok(manifest) = text
                .map_err(|e| e.to_string())
                .and_then(|t| Manifest::from_toml(&t).map_err(|e| e.to_string()))
            {
                found.entry(manifest.name.to_string()).or_insert(dir);
            }
        }
        found
    })
    .await
}

/// Lets these models take over, and ends those of other bundles that they do not replace; where the image has a model of
/// such a name, it comes back in the same instant.
pub async fn take_over(core: &Arc<Core>, mut candidates: Vec<Candidate>) -> Result<(), Finding> {
    let coming: BTreeSet<String> = candidates.iter().map(Candidate::name).collect();
    let going: Vec<String> = core
        .hosts
        .list()
        .iter()
        .filter(|s| matches!(s.origin(), Origin::Bundle { .. }))
        .map(|s| s.manifest().name.to_string())
        .filter(|name| !coming.contains(name))
        .collect();
    if !going.is_empty() {
        let factory = factory(core).await;
        for name in &going {
            let Some(dir) = factory.get(name) else { continue };
            match of_directory(core, dir.clone()).await {
                Ok(candidate) => candidates.push(candidate),
                Err(e) => core.warn(format!("the image's own model {name} does not come back: {e}")),
            }
        }
    }
    let promotion = core.hosts.promote(candidates, &going).await;
    // The old hosts end by themselves when their last requests are answered.
    promotion.map(drop).map_err(|e| Finding::new("promote-failed", e.to_string(), json!({})))
}

async fn of_directory(core: &Core, dir: PathBuf) -> Result<Candidate, String> {
    let source = blocking(move || ModelSource::directory(&dir)).await.map_err(|e| e.to_string())?;
    core.hosts.prepare_again(source).await.map_err(|e| e.to_string())
}

/// Serves the bundle of a slot, its gates up to the measured memory passed again.
pub async fn slot(core: &Arc<Core>, slot: SlotId) -> Result<(), Fault> {
    let open = open(core, slot).await?;
    let candidates = prepare(&open, core, false).await?;
    measured(&candidates)?;
    take_over(core, candidates).await.map_err(|f| (Gate::Flip, f))?;
    publish(core, ServingFrom::Slot, Some(&open));
    Ok(())
}

/// Serves the image's own models in place of any bundle's. Returns how many serve.
pub async fn factory_only(core: &Arc<Core>) -> usize {
    let mut candidates = Vec::new();
    for (name, dir) in factory(core).await {
        let served = core.hosts.get(&name).is_some_and(|s| matches!(s.origin(), Origin::Directory(_)));
        if served {
            continue;
        }
        match of_directory(core, dir).await {
            Ok(candidate) => candidates.push(candidate),
            Err(e) => core.warn(format!("the image's own model {name} cannot serve: {e}")),
        }
    }
    if let Err(e) = take_over(core, candidates).await {
        core.warn(e.sentence);
    }
    let serving = core.hosts.list().len();
    publish(core, if serving > 0 { ServingFrom::Factory } else { ServingFrom::Nothing }, None);
    serving
}

/// Loads those of the image's own models whose names nothing serves, side by side. Failures are remembered by the hosts.
pub async fn factory_beside(core: &Arc<Core>) {
    let named = factory(core).await;
    let mut loads = tokio::task::JoinSet::new();
    let mut readable: BTreeSet<PathBuf> = BTreeSet::new();
    for (name, dir) in named {
        readable.insert(dir.clone());
        if core.hosts.get(&name).is_none() {
            let hosts = core.hosts.clone();
            loads.spawn(async move { hosts.load(&dir).await.is_ok() });
        }
    }
    // One whose manifest cannot be read is loaded for its error to be known; a second one of a name is left out.
    for dir in core.config.factory.iter().filter(|dir| !readable.contains(*dir)) {
        let text = std::fs::read_to_string(dir.join(MANIFEST_FILE)).unwrap_or_default();
        if Manifest::from_toml(&text).is_err() {
            let (hosts, dir) = (core.hosts.clone(), dir.clone());
            loads.spawn(async move { hosts.load(&dir).await.is_ok() });
        }
    }
    while loads.join_next().await.is_some() {}
}

/// Ends all models that serve; the routes of all at one instant.
pub async fn nothing(core: &Arc<Core>) {
    let going: Vec<String> = core.hosts.list().iter().map(|s| s.manifest().name.to_string()).collect();
    if let Err(e) = core.hosts.promote(Vec::new(), &going).await {
        core.warn(e.to_string());
    }
    publish(core, ServingFrom::Nothing, None);
}

/// Publishes what serves.
pub fn publish(core: &Core, from: ServingFrom, open: Option<&OpenSlot<FileMedium>>) {
    let models = core
        .hosts
        .list()
        .iter()
        .map(|s| ModelView {
            name: s.manifest().name.to_string(),
            version: s.manifest().version.clone(),
            factory: matches!(s.origin(), Origin::Directory(_)),
        })
        .collect();
    let manifest = open.map(|o| o.bundle().manifest());
    let serving = Serving {
        from,
        slot: open.map(|o| o.slot().letter()),
        bundle: open.map(|o| o.bundle().id().to_string()),
        product: manifest.map(|m| m.product.to_string()),
        version: manifest.map(|m| m.version),
        label: manifest.map(|m| m.label.clone()),
        models,
    };
    let dev = open.is_some_and(|o| gates::is_dev(o.bundle()));
    core.publish(|s| {
        s.serving = serving;
        s.trust.dev_serving = dev;
    });
}

/// Records that a slot cannot be used any more, when that is what was found.
pub async fn condemn(core: &Arc<Core>, slot: SlotId, finding: &Finding) -> bool {
    let lost = ["rot", "other-bundle", "bundle-revoked", "key-revoked"].contains(&finding.code.as_str());
    if !lost {
        return false;
    }
    let (of_core, about) = (core.clone(), slot);
    let done = blocking(move || of_core.store.step(&Step::Condemn { slot: about })).await;
    if let Err(e) = &done {
        core.warn(format!("that slot {slot} is bad cannot be recorded: {e}"));
    }
    core.publish_slots();
    done.is_ok()
}

/// Runs the golden vectors of a served model through the path of every request.
pub async fn golden_again(served: &Arc<Served>) -> Result<usize, String> {
    let golden = served.golden();
    for (i, case) in golden.cases().iter().enumerate() {
        let mut ticket = served.begin(None).map_err(|e| e.to_string())?;
        for (n, bytes) in case.inputs.iter().enumerate() {
            ticket.input_mut(n).copy_from_slice(bytes);
        }
        let answer = ticket.run().await.map_err(|e| e.to_string())?;
        let manifest = answer.manifest().clone();
        let outputs: Vec<&[u8]> = (0..manifest.outputs.len()).map(|n| answer.output(n)).collect();
        golden.compare(i, &outputs, &manifest, answer.tolerance()).map_err(|e| e.to_string())?;
    }
    Ok(golden.cases().len())
}

/// Whether a model was used enough to be judged by its requests.
pub fn used_enough(served: &Served) -> bool {
    let seen = served.observe();
    seen.success + seen.faults() >= ENOUGH
}

/// The about of a bundle in a slot.
pub fn about(open: &OpenSlot<FileMedium>) -> About {
    About::bundle(open.bundle(), Some(open.slot()))
}
