//! The updater as the ways in that the device starts itself see it, and those ways: pull by URL, USB stick, fleet server.

use crate::config::Config;
use inferd_api::{Pull, PullError, PullWish, Pulling};
use inferd_bundle::{Bundle, Refusal};
use inferd_fetch::{
    About, Clock, Device, HEADER, Limits, Missing, Offer, Piece, Refused, Report, Standing, SystemClock,
    Target, Way, Wish,
    ddi::{Ddi, DdiConfig, Security},
    usb::{Sticks, UsbConfig},
};
use inferd_rollout::{Busy, Fetch, InstallError, Outcome, Updater, Way as From};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, task::JoinSet};
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
        let status = self.updater.status().borrow().clone();
        if let Some(trial) = status.trial.as_ref().filter(|t| t.bundle == id) {
            return Standing::Trial(format!("{:?}", trial.phase).to_ascii_lowercase());
        }
        let committed = |s: &&inferd_rollout::SlotView| {
            s.status == "committed" && s.active && s.bundle.as_deref() == Some(id)
        };
        if status.slots.iter().any(|s| committed(&s)) {
            return Standing::Committed;
        }
        let last = status
            .verdicts
            .iter()
            .rev()
            .filter(|v| v.number > after && v.bundle.as_deref() == Some(id))
            .find(|v| matches!(v.outcome, Outcome::Refuse | Outcome::Reverse));
        match last {
            Some(v) => {
                let refused = refused(&v.code, v.sentence.clone(), About::Bundle);
                match v.outcome {
                    Outcome::Reverse => Standing::Returned(refused),
                    _ => Standing::Refused(refused),
                }
            }
            None => Standing::Unknown,
        }
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
    last: Arc<Mutex<Option<Last>>>,
}

/// A pull, in progress or over.
struct Last {
    /// Without user, password and query: those may be secret.
    from: String,
    report: watch::Receiver<Report>,
    /// `None` while it goes on.
    outcome: Option<Result<(), (String, String)>>,
}

impl Puller {
    /// Over this device.
    pub fn new(receiver: Arc<Receiver>) -> Self {
        Self { receiver, last: Arc::default() }
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
            *lock(&self.last) = Some(Last { from: from.clone(), report, outcome: None });
            let last = Arc::clone(&self.last);
            tokio::spawn(async move {
                let token = wish.token.map(|t| format!("Bearer {t}"));
                let wanted = Wish { token, sha256: wish.sha256, hold: false };
                let clock: Arc<dyn Clock> = Arc::new(SystemClock);
                let limits = Limits::default();
                let outcome =
                    inferd_fetch::pull(&device, Way::Pull, &wish.url, &wanted, &limits, &clock, &progress)
                        .await;
                let outcome = match outcome {
                    Ok(fetched) => {
                        let Offer { product, version, .. } = fetched.offer;
                        let (fetched, reused) = (fetched.report.fetched, fetched.report.reused);
                        info!(product, version, fetched, reused, "fetched from {from}; its trial begins");
                        Ok(())
                    }
                    Err(e) => {
                        warn!(code = e.code(), "not fetched from {from}: {e}");
                        Err((e.code().to_owned(), e.to_string()))
                    }
                };
                if let Some(last) = &mut *lock(&last) {
                    last.outcome = Some(outcome);
                }
            });
            Ok(())
        })
    }

    fn last(&self) -> Option<Value> {
        let last = lock(&self.last);
        let last = last.as_ref()?;
        let (state, error) = match &last.outcome {
            None => ("fetching", None),
            Some(Ok(())) => ("fetched", None),
            Some(Err((code, sentence))) => ("failed", Some(json!({ "code": code, "detail": sentence }))),
        };
        Some(json!({ "url": last.from, "state": state, "error": error, "report": *last.report.borrow() }))
    }
}
