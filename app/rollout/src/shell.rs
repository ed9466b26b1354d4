//! The task that owns a trial: does what the state machine says, and tells it what happened.

use crate::core::{About, Core, Occupied, Proof, blocking, lock, millis};
use crate::finding::Finding;
use crate::judge::{self, Compared};
use crate::serve::{self, Fault};
use crate::status::{ServingFrom, TrialPhase, TrialView};
use crate::trial::{self, Action, Cause, Event, Recorded, State};
use crate::updater::{Command, TrustError};
use crate::verdict::{Gate, Outcome};
use inferd_bundle::Policy;
use inferd_hosts::{Candidate, Observation, Shadow, ShadowPolicy};
use inferd_slots::{FileMedium, Found, OpenSlot, Phase, Scrub, SlotId, SlotStatus, Step};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a shadow and a probation are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the background verification goes on.
const SCRUB_EVERY: Duration = Duration::from_secs(1);
/// How soon what should serve and does not is tried again; it doubles each time.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_LAST: Duration = Duration::from_secs(600);
/// How soon a bundle that does not run on a system on trial is proven again.
const PROVE_AGAIN: Duration = Duration::from_secs(30);
/// The end of a warning that is taken back when the active slot serves again.
const IN_PLACE: &str = " serves in place of the active one, which cannot";

pub struct Shell {
    core: Arc<Core>,
    commands: mpsc::UnboundedReceiver<Command>,
    state: State,
    open: Option<Open>,
    scrub: Scrubbing,
    /// A trial ended since it was last looked for what else could be tried.
    ended: bool,
    /// Nothing that served before is loaded, until a bundle commits or the operator goes back to one.
    idle: bool,
    /// Not before this is the active slot tried again.
    again_at: Duration,
    again_after: Duration,
    /// When the other slot's bundle was last proven, or was not.
    proven_at: Duration,
}

/// The trial that is open.
struct Open {
    slot: SlotId,
    about: About,
    /// The bundle, once the slot was opened.
    bundle: Option<OpenSlot<FileMedium>>,
    policy: Policy,
    candidates: Vec<Candidate>,
    /// With the names of their models.
    shadows: Vec<(String, Shadow)>,
    /// Of the models it replaces, until the flip.
    before: BTreeMap<String, Observation>,
    /// When the phase began.
    since: Duration,
    /// When its shadow was looked at last.
    looked: Duration,
    /// How long its shadow had to rest because optional work was shed.
    rested: Duration,
    /// How long it was on probation.
    watched: Duration,
    /// Its golden vectors were run once more at the end of probation.
    rechecked: bool,
    /// When what ends it was found.
    found_at: Option<Duration>,
    /// The gate that found it.
    gate: Gate,
    flipped: bool,
    interruptions: u8,
}

enum Scrubbing {
    /// Not begun for the active slot of now.
    Fresh,
    Running(SlotId, Box<Scrub<FileMedium>>),
    /// Damage was found that nothing can be done about.
    Given(SlotId),
}

impl Shell {
    pub fn new(core: Arc<Core>, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        Self {
            core,
            commands,
            state: State::Idle,
            open: None,
            scrub: Scrubbing::Fresh,
            ended: false,
            idle: false,
            again_at: Duration::ZERO,
            again_after: AGAIN_FIRST,
            proven_at: Duration::ZERO,
        }
    }

    /// Runs until nobody can ask for anything any more.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut scrub = tokio::time::interval(SCRUB_EVERY);
        for timer in [&mut look, &mut scrub] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                _ = look.tick(), if matches!(self.state, State::Shadow | State::Probation) => {
                    // Hosts that end because the daemon does are no fault of a model.
                    if !self.stopping() {
                        self.look().await;
                    }
                }
                _ = scrub.tick() => {
                    self.catch_up().await;
                    self.prove_the_way_back().await;
                    if self.core.config.scrub_bytes_per_s > 0 {
                        self.scrub().await;
                    }
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        *lock(&self.core.busy) == Occupied::Stopping
    }

    /// Takes the device for something that no transfer may come between; `false` while something else goes on.
    fn occupy(&self) -> bool {
        let mut busy = lock(&self.core.busy);
        let free = *busy == Occupied::Free;
        if free {
            *busy = Occupied::Trial;
        }
        free
    }

    /// What should serve and does not is tried again, less and less often; where nothing was ever committed, what else lies in
    /// the slots.
    async fn catch_up(&mut self) {
        if self.idle || self.state != State::Idle || self.core.config.clock.uptime() < self.again_at {
            return;
        }
        let state = self.core.store.state();
        let missing = state.active.filter(|active| !self.core.serves(*active));
        if missing.is_none() {
            self.again_after = AGAIN_FIRST;
        }
        let next = state.active.is_none() && self.ended;
        if (missing.is_none() && !next) || !self.occupy() {
            return;
        }
        self.ended = false;
        if let Some(active) = missing {
            self.again_at = self.now() + self.again_after;
            self.again_after = (self.again_after * 2).min(AGAIN_LAST);
            match serve::slot(&self.core, active).await {
                Ok(()) => self.core.unwarn(IN_PLACE),
                Err((_, e)) => {
                    tracing::info!(slot = %active, "the active slot still cannot serve: {}", e.sentence)
                }
            }
        } else if let Some(slot) = self.waiting(&state).await {
            return self.begin(slot, Event::Staged).await;
        }
        free(&self.core);
        self.core.publish_slots();
    }

    /// While a system is on trial: proves on it the bundle that the operator, or rot, would go back to. One that fails is tried again, in
    /// case that everything just started at once.
    async fn prove_the_way_back(&mut self) {
        if !self.core.system_on_trial.load(Relaxed) {
            if lock(&self.core.other).take().is_some() {
                self.core.unwarn(serve::BEFORE_IT_SERVES);
            }
            return;
        }
        let Some((slot, bundle)) = self.core.way_back() else { return };
        let known = lock(&self.core.other).clone().filter(|(of, _)| *of == bundle);
        let again = match known {
            None => true,
            Some((_, Proof::Failed(_))) => self.core.config.clock.uptime() >= self.proven_at + PROVE_AGAIN,
            Some(_) => false,
        };
        let serves = self.core.store.state().active.is_some_and(|active| self.core.serves(active));
        if !again || !serves || self.state != State::Idle || !self.occupy() {
            return;
        }
        let proof = serve::prove(&self.core, slot).await;
        match &proof {
            Proof::Failed(why) => tracing::warn!("{why}"),
            Proof::Proven => tracing::info!("the bundle in slot {slot} is proven on this system"),
            Proof::Unasked => {}
        }
        *lock(&self.core.other) = Some((bundle, proof));
        self.proven_at = self.now();
        free(&self.core);
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Event { event, slot } => self.begin(slot, event).await,
            Command::Boot { serve, told } => {
                self.idle = !serve;
                self.boot(told).await;
            }
            Command::Rollback(reason, told) => {
                let done = self.rollback(&reason).await;
                let _ = told.send(done);
            }
            Command::Trust(envelope, told) => {
                let done = self.trust(envelope).await;
                let _ = told.send(done);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ the trial

    async fn begin(&mut self, slot: SlotId, event: Event) {
        let state = self.core.store.state();
        let interruptions = state.trial.as_ref().map_or(0, |t| t.interruptions);
        self.open = Some(Open {
            slot,
            about: About::slot(&state, slot),
            bundle: None,
            policy: Policy::default(),
            candidates: Vec::new(),
            shadows: Vec::new(),
            before: BTreeMap::new(),
            since: self.now(),
            looked: self.now(),
            rested: Duration::ZERO,
            watched: Duration::ZERO,
            rechecked: false,
            found_at: None,
            gate: Gate::Boot,
            flipped: state.trial.as_ref().is_some_and(|t| t.phase == Phase::Probation),
            interruptions,
        });
        *lock(&self.core.busy) = Occupied::Trial;
        self.happen(event).await;
    }

    fn now(&self) -> Duration {
        self.core.config.clock.uptime()
    }

    /// Lets an event happen, with all that follows from it.
    async fn happen(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let Event::Found(_) | Event::Asked(_) = event
                && let Some(open) = &mut self.open
            {
                open.found_at.get_or_insert(self.core.config.clock.uptime());
            }
            let (next, actions) = trial::step(self.state, event);
            if next != self.state
                && let Some(open) = &mut self.open
            {
                open.since = self.core.config.clock.uptime();
            }
            self.state = next;
            if next != State::Idle {
                self.publish();
            }
            for action in actions {
                match self.act(action).await {
                    Ok(None) => {}
                    Ok(Some(event)) => events.push_back(event),
                    // What should have been recorded is not: nothing that builds on it may happen.
                    Err(why) => {
                        events.push_back(Event::Found(why));
                        break;
                    }
                }
            }
        }
        if self.state == State::Idle && self.open.is_some() {
            self.open = None;
            self.ended = true;
            self.scrub = Scrubbing::Fresh;
            free(&self.core);
        }
        self.core.publish_slots();
        self.publish();
    }

    async fn act(&mut self, action: Action) -> Result<Option<Event>, Box<Finding>> {
        let Some(open) = &mut self.open else { return Ok(None) };
        match action {
            Action::Try => {
                let boot_id = self.core.evidence.boot_id.clone();
                let slot = open.slot;
                self.record(Step::Try { slot, boot_id }).await?;
                Ok(None)
            }
            Action::Resume => {
                open.interruptions = open.interruptions.saturating_add(1);
                open.flipped = false;
                let (n, about) = (open.interruptions, open.about.clone());
                let boot_id = self.core.evidence.boot_id.clone();
                self.record(Step::Resume { boot_id }).await?;
                let sentence = format!(
                    "the trial was interrupted and begins anew ({n} of at most {})",
                    trial::MAX_INTERRUPTIONS
                );
                let evidence = json!({ "interruptions": n, "limit": trial::MAX_INTERRUPTIONS });
                let finding = Finding::new("trial-interrupted", sentence, evidence);
                self.core.verdict(about, Gate::Boot, Outcome::Interrupted, finding).await;
                Ok(None)
            }
            Action::Advance(to) => {
                let phase = match to {
                    Recorded::Shadow => Phase::Shadow,
                    Recorded::Probation => Phase::Probation,
                };
                self.record(Step::Advance { phase }).await?;
                Ok(None)
            }
            Action::Load => match self.load().await {
                Ok(shadow) => Ok(Some(Event::Loaded { shadow })),
                Err(fault) => Ok(Some(self.fault(fault))),
            },
            Action::Mirror => Ok(self.mirror()),
            Action::Flip => match self.flip().await {
                Ok(()) => Ok(Some(Event::Flipped)),
                Err(finding) => Ok(Some(self.fault((Gate::Flip, finding)))),
            },
            Action::Watch => Ok(None),
            Action::Recheck => match self.recheck().await {
                Ok(()) => Ok(Some(Event::Rechecked)),
                Err(finding) => Ok(Some(self.fault((Gate::Probation, finding)))),
            },
            Action::Commit => Ok(self.commit().await),
            Action::Drop => {
                open.candidates.clear();
                open.shadows.clear();
                Ok(None)
            }
            Action::Return(why) => {
                self.give_back(*why).await;
                Ok(None)
            }
            Action::Restore(why) => {
                self.restore(&why).await;
                Ok(Some(Event::Restored))
            }
        }
    }

    /// Takes a durable step.
    async fn record(&self, step: Step) -> Result<(), Box<Finding>> {
        let core = self.core.clone();
        let done = blocking(move || core.store.step(&step)).await;
        done.map(drop).map_err(|e| {
            Box::new(Finding::new(e.code(), format!("the state cannot be recorded: {e}"), json!({})))
        })
    }

    /// Remembers the gate and makes the event.
    fn fault(&mut self, (gate, finding): Fault) -> Event {
        if let Some(open) = &mut self.open {
            open.gate = gate;
        }
        Event::Found(Box::new(finding))
    }

    /// Loads the models beside the serving ones; whether a shadow is wanted and possible.
    async fn load(&mut self) -> Result<bool, Fault> {
        let Some(open) = &mut self.open else { return Ok(false) };
        open.gate = Gate::Load;
        let bundle = serve::open(&self.core, open.slot).await?;
        open.about = serve::about(&bundle);
        open.policy = bundle.bundle().manifest().policy.clone();
        let own = self.core.config.probation;
        let policy = &mut open.policy.probation;
        policy.seconds = own.seconds.unwrap_or(policy.seconds);
        policy.requests = own.requests.unwrap_or(policy.requests);
        open.bundle = Some(bundle.clone());
        let candidates = serve::prepare(&bundle, &self.core, true).await?;
        let passed = serve::measured(&candidates)?;
        let verdicts = passed.into_iter().map(|(g, f)| (g, Outcome::Pass, f)).collect();
        let (core, about) = (self.core.clone(), open.about.clone());
        blocking(move || core.note(&about, verdicts)).await;
        let comparable = candidates.iter().any(|c| self.core.hosts.get(&c.name()).is_some());
        open.candidates = candidates;
        Ok(open.policy.shadow.is_some() && comparable)
    }

    /// Sets the candidates beside the models they would replace. Those that replace nothing, or something of another shape, are
    /// not compared; when that is all of them, the comparison is over.
    fn mirror(&mut self) -> Option<Event> {
        let now = self.now();
        let open = self.open.as_mut()?;
        open.gate = Gate::Shadow;
        open.looked = now;
        for candidate in std::mem::take(&mut open.candidates) {
            let name = candidate.name();
            match self.core.hosts.start_shadow(candidate, ShadowPolicy::default()) {
                Ok(shadow) => open.shadows.push((name, shadow)),
                Err((e, candidate)) => {
                    tracing::info!(model = name, reason = %e, "no shadow");
                    open.candidates.push(candidate);
                }
            }
        }
        open.shadows.is_empty().then_some(Event::Compared)
    }

    /// Looks at a shadow or a probation.
    async fn look(&mut self) {
        let event = match self.state {
            State::Shadow => self.look_at_shadow().await,
            State::Probation => self.look_at_probation(),
            _ => None,
        };
        match event {
            Some(event) => self.happen(event).await,
            None => self.publish(),
        }
    }

    async fn look_at_shadow(&mut self) -> Option<Event> {
        let now = self.now();
        let open = self.open.as_mut()?;
        let policy = open.policy.shadow.clone()?;
        let limit = Duration::from_secs(open.policy.probation.seconds.into());
        let last = std::mem::replace(&mut open.looked, now);
        if self.core.hosts.is_shedding() {
            // It waits for its requests, but only as long again as it may last: an update may be what ends the load.
            open.rested = (open.rested + now.saturating_sub(last)).min(limit);
        }
        let over = now.saturating_sub(open.since) >= limit + open.rested;
        let mut reports = serde_json::Map::new();
        let mut more = false;
        for (name, shadow) in &open.shadows {
            let report = shadow.report();
            match judge::shadow(name, &policy, &report, over) {
                Compared::Bad(finding) => return Some(self.fault((Gate::Shadow, *finding))),
                Compared::More => more = true,
                Compared::Enough => {}
            }
            reports.insert(name.clone(), json!(report));
        }
        if more {
            return None;
        }
        let mut least = u64::MAX;
        for (_, shadow) in std::mem::take(&mut open.shadows) {
            let report = shadow.report();
            least = least.min(report.mirrored + report.failed);
            match shadow.finish().await {
                Ok(candidate) => open.candidates.push(candidate),
                Err(e) => {
                    let finding = Finding::new("shadow-host-ended", e.to_string(), json!({}));
                    return Some(self.fault((Gate::Shadow, finding)));
                }
            }
        }
        let (code, sentence) = if least >= u64::from(policy.requests) {
            ("ok", format!("it answered copies of {least} live requests like the serving model"))
        } else {
            (
                "shadow-thin",
                format!(
                    "only {least} of {} live requests came to compare with, and nothing was wrong",
                    policy.requests
                ),
            )
        };
        let finding = Finding::new(code, sentence, json!({ "models": reports, "wanted": policy.requests }));
        self.core.verdict(open.about.clone(), Gate::Shadow, Outcome::Pass, finding).await;
        Some(Event::Compared)
    }

    /// Flips the routes. What the old models did until now is what the new ones are held against.
    async fn flip(&mut self) -> Result<(), Finding> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.gate = Gate::Flip;
        let candidates = std::mem::take(&mut open.candidates);
        let names: Vec<String> = candidates.iter().map(Candidate::name).collect();
        open.before = names
            .iter()
            .filter_map(|name| Some((name.clone(), self.core.hosts.get(name)?.observe())))
            .collect();
        let began = self.core.config.clock.uptime();
        serve::take_over(&self.core, candidates).await?;
        open.flipped = true;
        let took = millis(self.core.config.clock.uptime().saturating_sub(began));
        serve::publish(&self.core, ServingFrom::Slot, open.bundle.as_ref());
        let sentence = format!("requests go to the new model(s) now: {}", names.join(", "));
        let finding = Finding::new("ok", sentence, json!({ "models": names, "took_ms": took }));
        self.core.verdict(open.about.clone(), Gate::Flip, Outcome::Pass, finding).await;
        open.gate = Gate::Probation;
        Ok(())
    }

    /// What the models did since the flip: by name, with what they replaced.
    fn watched(&self) -> Vec<(String, Observation)> {
        let Some(open) = &self.open else { return Vec::new() };
        let Some(bundle) = &open.bundle else { return Vec::new() };
        let id = bundle.bundle().id().to_string();
        let of_trial = |s: &inferd_hosts::Served| matches!(s.origin(), inferd_hosts::Origin::Bundle { id: of, .. } if of == id);
        let models = bundle.bundle().manifest().models.iter();
        models
            .filter_map(|m| self.core.hosts.get(m.name.as_str()))
            .filter(|s| of_trial(s))
            .map(|s| (s.manifest().name.to_string(), s.observe()))
            .collect()
    }

    fn look_at_probation(&mut self) -> Option<Event> {
        let now = self.now();
        let watched = self.watched();
        let open = self.open.as_ref()?;
        let policy = &open.policy.probation;
        let elapsed = now.saturating_sub(open.since);
        let requests: u64 = watched.iter().map(|(_, o)| o.success + o.faults()).sum();
        let over = elapsed >= Duration::from_secs(policy.seconds.into())
            || (policy.requests > 0 && requests >= u64::from(policy.requests));
        let models = open.bundle.as_ref().map_or(0, |b| b.bundle().manifest().models.len());
        if watched.len() < models {
            let sentence =
                "something else took the place of the bundle's models while they were on probation";
            let evidence = json!({ "models": models, "watched": watched.len() });
            return Some(self.fault((Gate::Probation, Finding::new("displaced", sentence, evidence))));
        }
        for (name, seen) in &watched {
            if let Some(finding) = judge::probation(name, policy, seen, open.before.get(name), over) {
                return Some(self.fault((Gate::Probation, finding)));
            }
        }
        if !over {
            return None;
        }
        if let Some(open) = &mut self.open {
            open.watched = elapsed;
        }
        let judged = watched.iter().all(|(_, o)| o.success + o.faults() >= judge::ENOUGH);
        Some(Event::Over { judged })
    }

    /// Without enough requests the golden vectors must do: once more, on the path that requests take.
    async fn recheck(&mut self) -> Result<(), Finding> {
        for (name, _) in self.watched() {
            let Some(served) = self.core.hosts.get(&name) else { continue };
            if serve::used_enough(&served) {
                continue;
            }
            if let Some(open) = &mut self.open {
                open.rechecked = true;
            }
            if let Err(e) = serve::golden_again(&served).await {
                let sentence =
                    format!("model {name} serves and does not reproduce its golden vectors any more: {e}");
                return Err(Finding::new("golden-recheck", sentence, json!({ "model": name })));
            }
        }
        Ok(())
    }

    /// The permit that the commit of what is on trial uses up: in one step with it, so that neither happens without the other.
    fn permit(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        let (product, version) = (open.about.product.as_deref()?, open.about.version?);
        let below = version < self.core.store.state().floor(product);
        if below { self.core.permit_for(product, version) } else { None }
    }

    /// It stays. When that cannot be recorded, the record still names the old one: then the old one must serve.
    async fn commit(&mut self) -> Option<Event> {
        let watched = self.watched();
        let requests: u64 = watched.iter().map(|(_, o)| o.success + o.faults()).sum();
        let permit = self.permit();
        if let Err(why) = self.record(Step::Commit { permit }).await {
            self.state = State::Probation;
            return Some(self.fault((Gate::Commit, *why)));
        }
        let open = self.open.as_ref()?;
        let about = open.about.clone();
        let elapsed = millis(open.watched);
        if permit.is_some() {
            self.core.permit_used();
        }
        self.idle = false;
        let (product, version) =
            (about.product.clone().unwrap_or_default(), about.version.unwrap_or_default());
        let floor = self.core.store.state().floor(&product);
        let thin = open.rechecked;
        let sentence = format!(
            "version {version} of {product} stays; the floor is {floor}{}",
            if thin { " (few requests came, so its golden vectors were run once more)" } else { "" }
        );
        // Whose answers and latencies could not be held against those of before: a daemon that has just started, or that nobody
        // asks, has none.
        let alone: Vec<&str> = watched
            .iter()
            .filter(|(name, seen)| !judge::comparable(seen, open.before.get(name)))
            .map(|(name, _)| name.as_str())
            .collect();
        let evidence = json!({
            "floor": floor, "requests": requests, "probation_ms": elapsed, "rechecked": thin, "not_compared": alone,
        });
        let code = if thin { "ok-rechecked" } else { "ok" };
        self.core.verdict(about, Gate::Commit, Outcome::Pass, Finding::new(code, sentence, evidence)).await;
        None
    }

    /// Records that the trial is over and the slot is bad.
    async fn give_back(&mut self, why: Finding) {
        if let Err(e) = self.record(Step::Return { bad: true }).await {
            self.core.warn(e.sentence.clone());
        }
        let Some(open) = &self.open else { return };
        let outcome = if open.flipped { Outcome::Reverse } else { Outcome::Refuse };
        self.core.verdict(open.about.clone(), open.gate, outcome, why).await;
        self.core.publish_slots();
    }

    /// Brings back what served before, and says how long requests went to the wrong model after it was known to be wrong.
    async fn restore(&mut self, why: &Finding) {
        let Some(open) = &self.open else { return };
        let (slot, about, found_at) = (open.slot, open.about.clone(), open.found_at);
        let served = self.serve_best(Some(slot), Gate::Return).await;
        let safe = millis(self.now().saturating_sub(found_at.unwrap_or_default()));
        self.core.publish(|s| s.counters.last_return_ms = Some(safe));
        let (code, words) = match served {
            Rung::Slot(slot) => ("restored", format!("the bundle in slot {slot} serves again")),
            Rung::Factory => ("restored-factory", "the image's own models serve again".to_owned()),
            Rung::Nothing if self.idle => ("nothing-left", "nothing serves, as before".to_owned()),
            Rung::Nothing => ("nothing-left", "nothing is left to serve".to_owned()),
        };
        let sentence = format!("{words}, {safe} ms after the reason was found ({})", why.code);
        let finding = Finding::new(code, sentence, json!({ "safe_after_ms": safe, "because": why.code }));
        self.core.verdict(about, Gate::Return, Outcome::Reverse, finding).await;
    }

    // ------------------------------------------------------------------------------------------------ what serves

    /// Serves the first of these that can be: the active slot, the other one if it was ever committed, the image's own models.
    async fn serve_best(&mut self, without: Option<SlotId>, gate: Gate) -> Rung {
        if self.idle {
            // What a trial brought goes; what was there before does not come.
            serve::nothing(&self.core).await;
            return Rung::Nothing;
        }
        let state = self.core.store.state();
        let committed = |s: &SlotId| state.slot(*s).status == SlotStatus::Committed && Some(*s) != without;
        let active = state.active;
        let rungs = active.into_iter().chain(SlotId::BOTH.into_iter().filter(|s| Some(*s) != active));
        for slot in rungs.filter(committed) {
            let about = About::slot(&state, slot);
            let mut served = serve::slot(&self.core, slot).await;
            if matches!(&served, Err((Gate::Load, f)) if f.code == "load-failed") {
                // A host that was slow or killed while everything starts at once deserves a second try.
                served = serve::slot(&self.core, slot).await;
            }
            match served {
                Ok(()) => {
                    self.core.unwarn(IN_PLACE);
                    if state.active != Some(slot) {
                        self.core.warn(format!("slot {slot}{IN_PLACE}"));
                    }
                    return Rung::Slot(slot);
                }
                Err((_, finding)) => {
                    serve::condemn(&self.core, slot, &finding).await;
                    self.core.verdict(about, gate, Outcome::Refuse, finding).await;
                }
            }
        }
        match serve::factory_only(&self.core).await {
            0 => Rung::Nothing,
            _ => Rung::Factory,
        }
    }

    /// Judges an interrupted trial, serves what is best, and goes on with the trial when that serves.
    async fn boot(&mut self, told: tokio::sync::oneshot::Sender<()>) {
        if self.core.store.found() == Found::Lost {
            self.recover().await;
        }
        let interrupted = self.core.store.state().trial.map(|t| {
            let event = Event::Interrupted { cause: cause(&self.core, &t.boot_id), before: t.interruptions };
            (t.slot, event)
        });
        let goes_on = interrupted
            .as_ref()
            .is_some_and(|(_, event)| trial::step(State::Idle, event.clone()).0 != State::Idle);
        if let Some((slot, event)) = interrupted.clone()
            && !goes_on
        {
            // Recorded before anything is loaded: whatever happens now, it is not tried again.
            self.begin(slot, event).await;
        }
        *lock(&self.core.busy) = Occupied::Starting;
        if self.idle {
            serve::publish(&self.core, ServingFrom::Nothing, None);
        } else if self.core.store.state().active.is_none() {
            // Nothing was ever committed: the image's own models, side by side.
            serve::factory_beside(&self.core).await;
            let from =
                if self.core.hosts.list().is_empty() { ServingFrom::Nothing } else { ServingFrom::Factory };
            serve::publish(&self.core, from, None);
        } else {
            match self.serve_best(interrupted.as_ref().map(|(slot, _)| *slot), Gate::Boot).await {
                Rung::Slot(slot) => {
                    serve::factory_beside(&self.core).await;
                    if let Ok(open) = serve::open(&self.core, slot).await {
                        serve::publish(&self.core, ServingFrom::Slot, Some(&open));
                    }
                }
                Rung::Factory => {}
                Rung::Nothing => {
                    self.core.warn("nothing can be served: no slot and no model of the image".into())
                }
            }
        }
        self.core.publish_slots();
        let state = self.core.store.state();
        let next = match interrupted {
            Some(found) if goes_on => Some(found),
            _ => self.waiting(&state).await.map(|slot| (slot, Event::Staged)),
        };
        if next.is_some() {
            *lock(&self.core.busy) = Occupied::Trial;
        } else {
            free(&self.core);
        }
        let _ = told.send(());
        if let Some((slot, event)) = next {
            self.begin(slot, event).await;
        }
    }

    /// The newest bundle that was complete when the run ended, without its trial begun. The gates before the payload are asked
    /// again: floors, trust and this device's configuration may be others than when it came.
    async fn waiting(&self, state: &inferd_slots::State) -> Option<SlotId> {
        let mut staged: Vec<SlotId> =
            SlotId::BOTH.into_iter().filter(|s| state.slot(*s).status == SlotStatus::Staged).collect();
        staged.sort_by_key(|s| std::cmp::Reverse(state.slot(*s).version));
        for slot in staged {
            let asked = match serve::open(&self.core, slot).await {
                Ok(open) => {
                    let core = self.core.clone();
                    blocking(move || core.admit(open.bundle(), false).refused).await
                }
                Err(fault) => Some(fault),
            };
            let Some((gate, finding)) = asked else { return Some(slot) };
            let about = About::slot(state, slot);
            // What this device lacks for the moment is not the bundle's fault: it waits for the next start.
            let waits = ["no-root", "trust-went-back", "memory-free"].contains(&finding.code.as_str());
            if !waits && let Err(e) = self.record(Step::Condemn { slot }).await {
                self.core.warn(e.sentence.clone());
            }
            self.core.verdict(about, gate, Outcome::Refuse, finding).await;
        }
        self.core.publish_slots();
        None
    }

    /// Both state records are damaged: what verifies in full is staged, and judged anew.
    async fn recover(&self) {
        let core = self.core.clone();
        let found = blocking(move || core.store.recover(&mut |_, _, _| ())).await;
        let finding = match found {
            Ok(Some(r)) => {
                let sentence = match r.candidate {
                    Some(slot) => format!(
                        "both state records were damaged; slot {slot} verifies in full and is judged anew"
                    ),
                    None => "both state records were damaged, and no slot verifies in full".to_owned(),
                };
                Finding::new("state-recovered", sentence, json!({ "candidate": r.candidate }))
            }
            Ok(None) => return,
            Err(e) => Finding::new(e.code(), e.to_string(), json!({})),
        };
        self.core.verdict(About::default(), Gate::Boot, Outcome::Interrupted, finding).await;
        self.core.publish_slots();
    }

    async fn rollback(&mut self, reason: &str) -> Result<(), TrustError> {
        let refuse = |code: &str, sentence: String| TrustError { code: code.into(), sentence };
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
        if matches!(self.state, State::Shadow | State::Probation) {
            let sentence = format!(
                "the operator took it back: {}",
                if reason.is_empty() { "no reason given" } else { &reason }
            );
            if let Some(open) = &mut self.open {
                open.gate = Gate::Return;
            }
            let finding = Finding::new("rollback-asked", sentence, json!({ "reason": reason }));
            self.happen(Event::Asked(Box::new(finding))).await;
            return Ok(());
        }
        {
            let mut busy = lock(&self.core.busy);
            match *busy {
                Occupied::Free => *busy = Occupied::Trial,
                Occupied::Transfer(way) => {
                    let sentence = format!("a bundle is being transferred ({}); end that first", way.name());
                    return Err(refuse("busy-transfer", sentence));
                }
                _ => return Err(refuse("busy-starting", "the device is starting or stopping".into())),
            }
        }
        let done = self.roll_back(&reason).await;
        free(&self.core);
        self.scrub = Scrubbing::Fresh;
        self.core.publish_slots();
        done.map_err(|finding| refuse(&finding.code, finding.sentence))
    }

    async fn roll_back(&mut self, reason: &str) -> Result<(), Finding> {
        let state = self.core.store.state();
        let nothing = |sentence: String| Finding::new("nothing-to-go-back-to", sentence, json!({}));
        let from = state.active.ok_or_else(|| {
            nothing("no bundle serves, so there is none to go back from; the image's own models are the last resort".into())
        })?;
        let to = from.other();
        let status = state.slot(to).status;
        if status != SlotStatus::Committed {
            let holds = match status {
                SlotStatus::Empty => "is empty".to_owned(),
                status => format!("holds a bundle that is {}", crate::core::status_name(status)),
            };
            return Err(nothing(format!(
                "there is nothing to go back to: slot {to} {holds}. A push takes the place of the bundle before, whatever becomes of it"
            )));
        }
        if let Err((_, finding)) = serve::slot(&self.core, to).await {
            serve::condemn(&self.core, to, &finding).await;
            self.core.verdict(About::slot(&state, to), Gate::Return, Outcome::Refuse, finding.clone()).await;
            return Err(finding);
        }
        if let Err(e) = self.record(Step::Rollback).await {
            // The record names the old one, so the old one serves.
            self.serve_best(None, Gate::Return).await;
            return Err(*e);
        }
        self.idle = false;
        let sentence = format!(
            "the operator went back to the bundle in slot {to}: {}; the floor stays",
            if reason.is_empty() { "no reason given" } else { reason }
        );
        let finding =
            Finding::new("rollback-asked", sentence, json!({ "reason": reason, "from": from, "to": to }));
        self.core.verdict(About::slot(&state, from), Gate::Return, Outcome::Reverse, finding).await;
        Ok(())
    }

    async fn trust(&mut self, envelope: Vec<u8>) -> Result<String, TrustError> {
        let core = self.core.clone();
        let accepted = blocking(move || {
            let accepted = core.accept(&envelope);
            let outcome = if accepted.is_ok() { Outcome::Pass } else { Outcome::Refuse };
            let finding = match &accepted {
                Ok((_, f)) | Err(f) => f.clone(),
            };
            core.note(&About::default(), vec![(Gate::Trust, outcome, finding)]);
            accepted
        })
        .await;
        let (kind, finding) = accepted.map_err(|f| TrustError { code: f.code, sentence: f.sentence })?;
        if kind != "permit" {
            self.believe_again().await;
        }
        Ok(finding.sentence)
    }

    /// What serves, is on trial or lies in a slot may not be believed any more.
    async fn believe_again(&mut self) {
        if let Some(open) = &self.open
            && let Err(fault) = serve::open(&self.core, open.slot).await
        {
            let event = self.fault(fault);
            self.happen(event).await;
        }
        // No transfer may begin into the slot that is to take over. One that runs already has made it none.
        let taken = self.occupy();
        let state = self.core.store.state();
        for slot in SlotId::BOTH {
            let complete = matches!(state.slot(slot).status, SlotStatus::Staged | SlotStatus::Committed);
            if complete && self.open.as_ref().is_none_or(|open| open.slot != slot) {
                self.disown(&state, slot).await;
            }
        }
        if let Some(active) = self.core.store.state().active
            && self.state == State::Idle
            && !self.core.serves(active)
        {
            // The other one, or one that a missing document kept from serving.
            self.serve_best(None, Gate::Return).await;
        } else if state.active.is_some()
            && self.core.store.state().active.is_none()
            && self.state == State::Idle
        {
            self.serve_best(state.active, Gate::Return).await;
        }
        if taken {
            free(&self.core);
        }
        self.core.publish_slots();
    }

    /// Records that a slot is bad when its bundle is not believed any more: from now on it is nobody's, not after the next start
    /// either, and not when the document that says so is lost.
    async fn disown(&mut self, state: &inferd_slots::State, slot: SlotId) {
        let Err((gate, finding)) = serve::open(&self.core, slot).await else { return };
        if !matches!(gate, Gate::Revocation | Gate::Keys | Gate::Role) || finding.code == "trust-went-back" {
            return;
        }
        if let Err(e) = self.record(Step::Condemn { slot }).await {
            self.core.warn(format!("that slot {slot} is bad cannot be recorded: {}", e.sentence));
        }
        let active = state.active == Some(slot);
        let outcome = if active { Outcome::Reverse } else { Outcome::Refuse };
        self.core.verdict(About::slot(state, slot), gate, outcome, finding).await;
        self.scrub = Scrubbing::Fresh;
    }

    // ------------------------------------------------------------------------------------------------ the background

    /// Verifies a little more of the active slot, when nothing else is going on and no optional work is shed.
    async fn scrub(&mut self) {
        if *lock(&self.core.busy) != Occupied::Free {
            return;
        }
        if self.core.hosts.is_shedding() {
            return self.core.publish(|s| s.scrub.rested += 1);
        }
        let Some(active) = self.core.store.state().active else { return };
        let mut scrub = match std::mem::replace(&mut self.scrub, Scrubbing::Fresh) {
            Scrubbing::Given(slot) if slot == active => {
                self.scrub = Scrubbing::Given(slot);
                return;
            }
            Scrubbing::Running(slot, scrub) if slot == active => scrub,
            _ => {
                let core = self.core.clone();
                match blocking(move || core.store.open(active)).await {
                    Ok(open) => Box::new(open.scrub()),
                    Err(e) => {
                        let finding = Finding::new(e.code(), e.to_string(), json!({}));
                        return self.rot(active, finding).await;
                    }
                }
            }
        };
        let bytes = self.core.config.scrub_bytes_per_s;
        let (scrub, done) = blocking(move || {
            // A medium may fail to read once; what is wrong twice is wrong.
            let done = scrub.step(bytes).or_else(|_| scrub.step(bytes));
            (scrub, done)
        })
        .await;
        match done {
            Ok(step) => {
                self.scrub = Scrubbing::Running(active, scrub);
                self.core.publish(|s| {
                    (s.scrub.done, s.scrub.total) = (step.done, step.total);
                    s.scrub.rounds += u64::from(step.finished);
                });
            }
            Err(e) => {
                let finding = Finding::new(e.code(), e.to_string(), json!({}));
                self.rot(active, finding).await;
            }
        }
    }

    /// The active slot has rotted: the other one takes over if all of it verifies; otherwise what serves goes on from memory.
    async fn rot(&mut self, active: SlotId, finding: Finding) {
        if !self.occupy() {
            // A transfer began, perhaps into the slot that would take over: looked at again behind it.
            self.scrub = Scrubbing::Fresh;
            return;
        }
        self.take_over_from(active, finding).await;
        free(&self.core);
    }

    async fn take_over_from(&mut self, active: SlotId, finding: Finding) {
        self.core.publish(|s| s.scrub.damages += 1);
        let state = self.core.store.state();
        let other = active.other();
        let about = About::slot(&state, active);
        let mut took_over = false;
        if !self.idle && state.slot(other).status == SlotStatus::Committed {
            let core = self.core.clone();
            let whole = blocking(move || {
                let open = core.store.open(other)?;
                open.verify_all(&mut |_, _| ())
            });
            if whole.await.is_ok() {
                took_over = serve::slot(&self.core, other).await.is_ok();
            }
        }
        let (outcome, words) = if took_over {
            (Outcome::Reverse, format!("slot {other} has taken over"))
        } else {
            (
                Outcome::Interrupted,
                "what serves goes on from memory, and will not come back after a restart: install it again"
                    .to_owned(),
            )
        };
        if took_over {
            self.scrub = Scrubbing::Fresh;
            let core = self.core.clone();
            if let Err(e) = blocking(move || core.store.step(&Step::Condemn { slot: active })).await {
                self.core.warn(format!("that slot {active} is bad cannot be recorded: {e}"));
            }
        } else {
            self.scrub = Scrubbing::Given(active);
        }
        let sentence = format!("{}; {words}", finding.sentence);
        self.core.warn(sentence.clone());
        self.core.verdict(about, Gate::Scrub, outcome, Finding { sentence, ..finding }).await;
        self.core.publish_slots();
    }

    fn publish(&self) {
        let view = self.open.as_ref().and_then(|open| {
            let phase = match self.state {
                State::Idle => return None,
                State::Gates | State::Flip => TrialPhase::Gates,
                State::Shadow => TrialPhase::Shadow,
                State::Probation | State::Recheck => TrialPhase::Probation,
                State::Return => TrialPhase::Returning,
            };
            let (policy, shadow) = (&open.policy.probation, open.policy.shadow.as_ref());
            let (requests, of_requests) = match phase {
                TrialPhase::Shadow => {
                    let seen =
                        open.shadows.iter().map(|(_, s)| s.report()).map(|r| r.mirrored + r.failed).min();
                    (seen.unwrap_or(0), shadow.map_or(0, |s| s.requests))
                }
                TrialPhase::Probation => {
                    (self.watched().iter().map(|(_, o)| o.success + o.faults()).sum(), policy.requests)
                }
                _ => (0, 0),
            };
            let timed = matches!(phase, TrialPhase::Shadow | TrialPhase::Probation);
            Some(TrialView {
                slot: open.slot.letter(),
                bundle: open.about.bundle.clone().unwrap_or_default(),
                product: open.about.product.clone().unwrap_or_default(),
                version: open.about.version.unwrap_or_default(),
                phase,
                elapsed_ms: millis(self.now().saturating_sub(open.since)),
                requests,
                of_requests: of_requests.into(),
                of_ms: if timed { u64::from(policy.seconds) * 1000 } else { 0 },
                interruptions: open.interruptions,
            })
        });
        self.core.publish(|s| s.trial = view);
    }
}

/// Where what serves comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    Slot(SlotId),
    Factory,
    Nothing,
}

/// Nothing is under way any more.
fn free(core: &Core) {
    let mut busy = lock(&core.busy);
    if matches!(*busy, Occupied::Trial | Occupied::Starting) {
        *busy = Occupied::Free;
    }
}

/// What ended the run in which a trial was last taken up.
fn cause(core: &Core, boot_id: &str) -> Cause {
    let e = &core.evidence;
    if e.boot_id == boot_id {
        return if e.clean_stop { Cause::Stopped } else { Cause::Crashed };
    }
    if !e.panics.is_empty() {
        Cause::Panicked
    } else if e.watchdog_reset {
        Cause::Watchdog
    } else {
        Cause::PowerCut
    }
}
