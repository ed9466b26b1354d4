//! The updater as the ways in that the device starts itself see it, and those ways: pull by URL, USB stick, fleet server.

use crate::config::Config;
use inferd_api::{Ended, Pull, PullError, PullWish, Pulling};
use inferd_bundle::{Bundle, Refusal};
use inferd_fetch::{
    About, Clock, Device, HEADER, Limits, Missing, Offer, Piece, Refused, Report, Standing, SystemClock,
    Target, Way, Wish,
    ddi::{Ddi, DdiConfig, Security},
    usb::{Sticks, UsbConfig},
};
use inferd_rollout::{Busy, Fetch, InstallError, Outcome, Status, Updater, Way as From};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{error, info, warn};

/// What a fleet server may know of this device beside what the updater says.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name in permits.
    pub device: String,
    /// The board.
    pub board: String,
}

/// The updater, in the words of the ways in.
pub struct Receiver {
    updater: Arc<Updater>,
    about: Identity,
}

/// One fetch into the free slot.
pub struct Slot {
    fetch: Fetch,
}

fn refused(code: &str, sentence: String, about: About) -> Refused {
    Refused { code: Cow::Owned(code.to_owned()), sentence, about }
}

fn told(e: &InstallError) -> Refused {
    let about = match e {
        InstallError::Refused(_) => About::Bundle,
        InstallError::Interrupted(_) => About::Bytes,
        InstallError::Storage(_) | InstallError::Misused(_) => About::Device,
    };
    refused(e.code(), e.to_string(), about)
}

fn busy(e: Busy) -> Refused {
    refused(e.code(), e.to_string(), About::Device)
}

/// Where a bundle stands, by what the updater shows: the trial, the slots, and its last verdicts, of which `last` is the newest.
///
/// A refusal that later verdicts have pushed out of sight is still known by the slot it marked bad, until another bundle is
/// written there. That mark has no number, so it counts only for who asks about all times.
fn standing(status: &Status, last: u64, id: &str, after: u64) -> Standing {
    if let Some(trial) = status.trial.as_ref().filter(|t| t.bundle == id) {
        return Standing::Trial(format!("{:?}", trial.phase).to_ascii_lowercase());
    }
    let slot =
        |wanted: &str| status.slots.iter().find(|s| s.status == wanted && s.bundle.as_deref() == Some(id));
    if slot("committed").is_some_and(|s| s.active) {
        return Standing::Committed;
    }
    // The journal was lost and its numbers began anew: every verdict there is is of a later time.
    let after = if after > last { 0 } else { after };
    let against = status
        .verdicts
        .iter()
        .rev()
        .filter(|v| v.number > after && v.bundle.as_deref() == Some(id))
        .find(|v| matches!(v.outcome, Outcome::Refuse | Outcome::Reverse));
    match (against, slot("bad").filter(|_| after == 0)) {
        (Some(v), _) => {
            let refused = refused(&v.code, v.sentence.clone(), About::Bundle);
            match v.outcome {
                Outcome::Reverse => Standing::Returned(refused),
                _ => Standing::Refused(refused),
            }
        }
        (None, Some(s)) => {
            let sentence = format!("slot {} holds this bundle, marked as bad", s.slot);
            Standing::Refused(refused("slot-bad", sentence, About::Bundle))
        }
        (None, None) => Standing::Unknown,
    }
}

impl Target for Slot {
    async fn measure(&mut self, header: &[u8; HEADER]) -> Result<u64, Refused> {
        self.fetch.prefix_len(header).await.map_err(|e| told(&e))
    }

    async fn begin(&mut self, prefix: Vec<u8>) -> Result<Offer, Refused> {
        let parsed = Bundle::parse(&prefix);
        self.fetch.prefix(prefix).await.map_err(|e| told(&e))?;
        let mut offer = Offer::of(&parsed.map_err(|e: Refusal| Refused::from(e))?);
        // None where these very bytes serve already.
        offer.pages = (0..self.fetch.pages()).map(|page| self.fetch.page_range(page)).collect();
        Ok(offer)
    }

    async fn page(&mut self, number: u32, bytes: Vec<u8>) -> Result<Missing, Refused> {
        let before = self.fetch.saved();
        let wanted = self.fetch.page(number, bytes).await.map_err(|e| told(&e))?;
        let after = self.fetch.saved();
        let held = |saved: inferd_rollout::Saved| saved.local.saturating_add(saved.resumed);
        Ok(Missing {
            pieces: wanted.iter().map(|w| Piece { number: w.chunk, offset: w.offset, len: w.len }).collect(),
            reused: held(after).saturating_sub(held(before)),
        })
    }

    async fn chunk(&mut self, piece: Piece, stored: Vec<u8>) -> Result<(), Refused> {
        self.fetch.chunk(piece.number, stored).await.map_err(|e| told(&e))
    }

    async fn finish(self) -> Result<(), Refused> {
        self.fetch.finish().await.map(drop).map_err(|e| told(&e))
    }
}

impl Device for Receiver {
    type Target = Slot;

    async fn open(&self, way: Way) -> Result<Slot, Refused> {
        let way = match way {
            Way::Pull => From::Pull,
            Way::Usb => From::Usb,
            Way::Hawkbit => From::Hawkbit,
        };
        Ok(Slot { fetch: self.updater.begin_fetch(way).await.map_err(busy)? })
    }

    fn mark(&self) -> u64 {
        self.updater.last_verdict()
    }

    fn standing(&self, id: &str, after: u64) -> Standing {
        standing(&self.updater.status().borrow(), self.updater.last_verdict(), id, after)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let status = self.updater.status().borrow().clone();
        let mut all = BTreeMap::from([
            ("device".to_owned(), self.about.device.clone()),
            ("board".to_owned(), self.about.board.clone()),
            ("inferd".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        let serving = &status.serving;
        if let (Some(product), Some(version)) = (&serving.product, serving.version) {
            all.insert("product".to_owned(), product.clone());
            all.insert("version".to_owned(), version.to_string());
        }
        all
    }
}

/// Begins what the configuration asks for; ends when dropped.
pub fn start(config: &Config, receiver: &Arc<Receiver>) -> JoinSet<()> {
    let mut ways = JoinSet::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    if let Some(root) = &config.updates.usb_dir {
        let watched = UsbConfig { root: root.clone(), ..UsbConfig::default() };
        ways.spawn(Sticks::new(watched, Arc::clone(receiver), Arc::clone(&clock)).watch());
    }
    if let Some(hawkbit) = &config.updates.hawkbit {
        let security = match (&hawkbit.token, &hawkbit.gateway_token) {
            (Some(token), _) => Security::TargetToken(token.clone()),
            (None, Some(token)) => Security::GatewayToken(token.clone()),
            (None, None) => Security::None,
        };
        let ddi = DdiConfig {
            server: hawkbit.url.clone(),
            tenant: hawkbit.tenant.clone(),
            controller: hawkbit.controller.clone().unwrap_or_else(|| receiver.about.device.clone()),
            security,
            memory: config.updates.data_dir.join("hawkbit"),
            confirm: hawkbit.confirm,
            limits: Limits::default(),
        };
        match Ddi::new(ddi, Arc::clone(receiver), clock) {
            Ok(ddi) => {
                ways.spawn(ddi.run());
            }
            Err(e) => error!("the fleet server is not asked: {e}"),
        }
    }
    ways
}

impl Receiver {
    /// Over this updater.
    pub fn new(updater: Arc<Updater>, about: Identity) -> Self {
        Self { updater, about }
    }
}

/// Fetches by URL, one at a time, as long as it takes.
pub struct Puller {
    receiver: Arc<Receiver>,
    last: Mutex<Option<Last>>,
}

/// A pull, in progress or over.
struct Last {
    /// Without user, password and query: those may be secret.
    from: String,
    report: watch::Receiver<Report>,
    /// `None` while it goes on.
    outcome: watch::Receiver<Option<PullOutcome>>,
    /// The operator's wish to end it.
    end: Arc<Notify>,
}

/// How a pull ended; the code and the sentence of what did not go well.
type PullOutcome = Result<(), (String, String)>;

/// A pull that the operator ended has this code.
const CANCELLED: &str = "pull-cancelled";
/// The medium gives a transfer up within this, or it is given up waiting for.
const LETTING_GO: Duration = Duration::from_secs(10);

impl Puller {
    /// Over this device.
    pub fn new(receiver: Arc<Receiver>) -> Self {
        Self { receiver, last: Mutex::default() }
    }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Every critical section leaves it whole.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device whose first install is already open: whoever asked is told at once when it cannot be.
struct Opened {
    device: Arc<Receiver>,
    first: Mutex<Option<Slot>>,
}

impl Device for Opened {
    type Target = Slot;

    async fn open(&self, way: Way) -> Result<Slot, Refused> {
        let first = lock(&self.first).take();
        match first {
            Some(slot) => Ok(slot),
            None => self.device.open(way).await,
        }
    }
    fn mark(&self) -> u64 {
        self.device.mark()
    }
    fn standing(&self, id: &str, after: u64) -> Standing {
        self.device.standing(id, after)
    }
    fn attributes(&self) -> BTreeMap<String, String> {
        self.device.attributes()
    }
}

impl Pull for Puller {
    fn begin(&self, wish: PullWish) -> Pulling<'_> {
        Box::pin(async move {
            let url = match inferd_fetch::Url::parse(&wish.url) {
                Ok(url) => url.to_string(),
                Err(e) => {
                    return Err(PullError::Refused { code: e.code().to_owned(), sentence: e.to_string() });
                }
            };
            let fetch = self.receiver.updater.begin_fetch(From::Pull).await.map_err(PullError::Busy)?;
            let device =
                Opened { device: Arc::clone(&self.receiver), first: Mutex::new(Some(Slot { fetch })) };
            let (progress, report) = watch::channel(Report::default());
            let from = url.split(['?', '#']).next().unwrap_or_default().to_owned();
            let end = Arc::new(Notify::new());
            let (told, outcome) = watch::channel(None);
            let shown = report.clone();
            *lock(&self.last) = Some(Last { from: from.clone(), report, outcome, end: Arc::clone(&end) });
            tokio::spawn(async move {
                let token = wish.token.map(|t| format!("Bearer {t}"));
                let wanted = Wish { token, sha256: wish.sha256, hold: false };
                let clock: Arc<dyn Clock> = Arc::new(SystemClock);
                let limits = Limits::default();
                // A block: what is ended is gone before anybody is told so.
                let outcome = async {
                    let mut work = pin!(inferd_fetch::pull(
                        &device,
                        Way::Pull,
                        &wish.url,
                        &wanted,
                        &limits,
                        &clock,
                        &progress
                    ));
                    tokio::select! {
                        biased;
                        outcome = &mut work => Some(outcome),
                        // With nothing missing its trial begins: rolling back ends that.
                        () = end.notified() => {
                            let whole = shown.borrow().missing == Some(0);
                            if whole { Some(work.await) } else { None }
                        }
                    }
                }
                .await;
                let outcome = match outcome {
                    Some(Ok(fetched)) => {
                        let Offer { product, version, .. } = fetched.offer;
                        let (fetched, reused) = (fetched.report.fetched, fetched.report.reused);
                        info!(product, version, fetched, reused, "fetched from {from}; its trial begins");
                        Ok(())
                    }
                    Some(Err(e)) => {
                        warn!(code = e.code(), "not fetched from {from}: {e}");
                        Err((e.code().to_owned(), e.to_string()))
                    }
                    None => {
                        info!(code = CANCELLED, "no longer fetched from {from}: the operator ended it");
                        Err((CANCELLED.to_owned(), "the operator ended it; what has come is kept".to_owned()))
                    }
                };
                told.send_replace(Some(outcome));
            });
            Ok(())
        })
    }

    fn last(&self) -> Option<Value> {
        let last = lock(&self.last);
        let last = last.as_ref()?;
        Some(last.shown())
    }

    fn end(&self) -> Ended<'_> {
        Box::pin(async move {
            let mut outcome = {
                let last = lock(&self.last);
                let last = last.as_ref().filter(|last| last.outcome.borrow().is_none())?;
                last.end.notify_one();
                last.outcome.clone()
            };
            let cancelled =
                |outcome: &Option<PullOutcome>| matches!(outcome, Some(Err((code, _))) if code == CANCELLED);
            let ended = outcome.wait_for(Option::is_some).await.is_ok_and(|outcome| cancelled(&outcome));
            if !ended {
                return None;
            }
            let mut status = self.receiver.updater.status();
            let free = status.wait_for(|s| s.install.as_ref().is_none_or(|i| i.way != From::Pull.name()));
            if timeout(LETTING_GO, free).await.is_err() {
                warn!("a pull that was ended still holds its slot");
            }
            self.last()
        })
    }
}

impl Last {
    fn shown(&self) -> Value {
        let (state, error) = match &*self.outcome.borrow() {
            None => ("fetching", None),
            Some(Ok(())) => ("fetched", None),
            Some(Err((code, sentence))) => ("failed", Some(json!({ "code": code, "detail": sentence }))),
        };
        json!({ "url": self.from, "state": state, "error": error, "report": *self.report.borrow() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_rollout::{Gate, SlotView, Verdict};

    fn verdict(number: u64, outcome: Outcome, bundle: &str) -> Verdict {
        Verdict {
            number,
            gate: Gate::Golden,
            outcome,
            code: "golden-differs".to_owned(),
            sentence: "a sentence".to_owned(),
            evidence: Value::Null,
            bundle: Some(bundle.to_owned()),
            product: None,
            slot: None,
            version: None,
            boot_id: String::new(),
            uptime_ms: 0,
        }
    }

    fn slot(status: &'static str, active: bool, bundle: &str) -> SlotView {
        let bundle = Some(bundle.to_owned());
        SlotView { slot: 'B', status, active, bundle, product: None, version: None, len: 0, capacity: 0 }
    }

    fn code(standing: &Standing) -> &str {
        match standing {
            Standing::Refused(r) | Standing::Returned(r) => &r.code,
            _ => "",
        }
    }

    #[test]
    fn a_refusal_that_is_out_of_sight_is_known_by_its_bad_slot() {
        let mut status = Status { verdicts: vec![verdict(9, Outcome::Pass, "other")], ..Status::default() };
        assert_eq!(standing(&status, 9, "b", 0), Standing::Unknown);
        status.slots = vec![slot("bad", false, "b")];
        assert_eq!(code(&standing(&status, 9, "b", 0)), "slot-bad");
        assert_eq!(standing(&status, 9, "other", 0), Standing::Unknown);
        // Of an earlier time, for who asks about a later one.
        assert_eq!(standing(&status, 9, "b", 9), Standing::Unknown);
        status.verdicts.push(verdict(10, Outcome::Reverse, "b"));
        assert_eq!(code(&standing(&status, 10, "b", 9)), "golden-differs", "the gate's own words go first");
    }

    #[test]
    fn verdicts_count_after_a_mark_of_a_journal_that_was_lost() {
        let status = Status { verdicts: vec![verdict(2, Outcome::Refuse, "b")], ..Status::default() };
        assert_eq!(standing(&status, 2, "b", 2), Standing::Unknown);
        assert!(matches!(standing(&status, 2, "b", 500), Standing::Refused(_)));
    }

    #[test]
    fn what_serves_is_committed_whatever_was_decided_before() {
        let status = Status {
            verdicts: vec![verdict(2, Outcome::Reverse, "b")],
            slots: vec![slot("committed", true, "b")],
            ..Status::default()
        };
        assert_eq!(standing(&status, 2, "b", 0), Standing::Committed);
    }
}
