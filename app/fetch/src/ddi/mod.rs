//! Eclipse hawkBit's Direct Device Integration: the fleet's server is asked, the device answers.
//!
//! One action at a time. What must survive a power cut is in one small file, written before it is acted on ([`memory`]):
//!
//! | phase | meaning | the server is told | next |
//! |---|---|---|---|
//! | download | the bundle is fetched, with delta and resume | `download` | held, trial or closing |
//! | held | everything is stored; `update` is `skip`, or the maintenance window is closed | `downloaded` | download (only the index) when it may |
//! | trial | the gates judge, the bundle is on probation | `downloaded`, `proceeding` | closing |
//! | closing | committed, refused or returned; with the verdict's code and sentence | `closed` | none, when the server acknowledged |
//!
//! Each of these is told until the server acknowledged it, and not again after that. A reply that is lost after the server took it
//! is told twice: that cannot be told apart from one that never arrived. Told again, too, is the end of an action that the server
//! offers although it acknowledged it (it was restored from a backup).

mod memory;
pub mod wire;

use crate::error::FetchError;
use crate::file::blocking;
use crate::http::{Client, Token};
use crate::limits::Limits;
use crate::pull::{Report, Wish, pull};
use crate::target::{Device, Refused, Standing, Way};
use crate::time::{Backoff, Clock};
use crate::url::Url;
use hyper::Method;
use memory::{Action, Closed, Keeper, MOST_TOLD, Memory, Outcome, Phase};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wire::{Base, Cancel, Confirmation, Deployment, Execution, Finished, Handling, Href};

/// The pause between polls when the server names none.
const USUAL_SLEEP: Duration = Duration::from_secs(300);
/// The server's wish is kept within these.
const SLEEP: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(24 * 3600);
/// How often the device is asked what became of a trial.
const GLANCE: Duration = Duration::from_secs(5);
/// During a download the server is asked this often whether to give it up.
const CANCEL_GLANCE: Duration = Duration::from_secs(60);

/// How the device proves to the server who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Security {
    /// Not at all; the server must allow it.
    None,
    /// A token of this device's own.
    TargetToken(String),
    /// A token of the gateway, for all devices of a tenant.
    GatewayToken(String),
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::TargetToken(_) => "TargetToken(..)",
            Self::GatewayToken(_) => "GatewayToken(..)",
        })
    }
}

impl Security {
    fn header(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::TargetToken(token) => Some(format!("TargetToken {token}")),
            Self::GatewayToken(token) => Some(format!("GatewayToken {token}")),
        }
    }
}

/// The fleet server and this device's place there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdiConfig {
    /// `http://HOST[:PORT]`, with a path if the server is below one.
    pub server: String,
    /// `DEFAULT` unless the server has several.
    pub tenant: String,
    /// This device's name at the server.
    pub controller: String,
    /// How it proves that.
    pub security: Security,
    /// A small file for what must survive a restart; its directory exists.
    pub memory: PathBuf,
    /// Agree to every update that somebody is to agree to. Otherwise the operator agrees at the server.
    pub confirm: bool,
    /// How patient downloads are.
    pub limits: Limits,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The server's address.
    #[error("hawkbit server: {0}")]
    Server(FetchError),
    /// Tenant or controller.
    #[error("hawkbit {what} {text:?}: 1 to 128 letters, digits and . _ ~ : - are allowed")]
    Name {
        /// Which.
        what: &'static str,
        /// What it was.
        text: String,
    },
    /// A token that cannot be in a header.
    #[error("hawkbit token: only visible ASCII characters are allowed")]
    Token,
}

/// What the operator can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct View {
    /// Polls the server answered.
    pub polls: u64,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure, if it stands: code and sentence.
    pub problem: Option<(String, String)>,
    /// The open action.
    pub action: Option<String>,
    /// How far it is: `download`, `held`, `trial`, `closing`.
    pub phase: Option<&'static str>,
    /// The download.
    pub report: Report,
    /// Pause until the next poll, in seconds.
    pub sleep: u64,
}

/// The client.
pub struct Ddi<D> {
    config: DdiConfig,
    base: Url,
    client: Client,
    device: Arc<D>,
    clock: Arc<dyn Clock>,
    keeper: Keeper,
    memory: Memory,
    sleep: Duration,
    backoff: Backoff,
    view: watch::Sender<View>,
    progress: watch::Sender<Report>,
}

impl<D: Device> Ddi<D> {
    /// A client that has asked nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: DdiConfig, device: Arc<D>, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        for (what, text) in [("tenant", &config.tenant), ("controller", &config.controller)] {
            let good = (1..=128).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~:-".contains(&b))
                && !text.bytes().all(|b| b == b'.');
            if !good {
                return Err(ConfigError::Name { what, text: text.chars().take(128).collect() });
            }
        }
        let server = Url::parse(&config.server).map_err(ConfigError::Server)?;
        let base = format!("{}/controller/v1/{}", config.tenant, config.controller);
        let base = server.below(&base).map_err(ConfigError::Server)?;
        let token = match config.security.header() {
            None => None,
            Some(value) => Some(Token::new(&base, &value).ok_or(ConfigError::Token)?),
        };
        let keeper = Keeper::new(config.memory.clone());
        Ok(Self {
            client: Client::new(config.limits.clone(), token),
            base,
            device,
            clock,
            memory: keeper.load(),
            keeper,
            sleep: USUAL_SLEEP,
            backoff: Backoff { first: Duration::from_secs(10), most: Duration::from_secs(900) },
            view: watch::channel(View::default()).0,
            progress: watch::channel(Report::default()).0,
            config,
        })
    }

    /// What the operator can see.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Polls for ever.
    pub async fn run(mut self) {
        loop {
            let pause = self.poll().await;
            self.rest(pause).await;
        }
    }

    /// One poll and everything that follows from it; answers how long to wait until the next.
    pub async fn poll(&mut self) -> Duration {
        let outcome = self.round().await;
        let mut failures = self.view.borrow().failures;
        let mut asked = None;
        match &outcome {
            Ok(()) => failures = 0,
            Err(e) => {
                failures = failures.saturating_add(1);
                if let FetchError::ServerBusy { retry_after, .. } = e {
                    asked = *retry_after;
                }
                tracing::warn!(code = e.code(), failures, "the fleet server: {e}");
            }
        }
        let pause = if failures == 0 {
            // A tenth more or less, so that a fleet that was switched on together does not ask together.
            self.sleep.mul_f64(0.9 + 0.2 * self.clock.random().clamp(0.0, 1.0))
        } else {
            self.backoff.pause(failures, self.clock.random(), asked)
        };
        self.view.send_modify(|view| {
            view.failures = failures;
            view.problem = outcome.err().map(|e| (e.code().to_owned(), e.to_string()));
            view.sleep = pause.as_secs();
        });
        self.show();
        pause
    }

    /// Waits, but not longer than a trial lasts.
    async fn rest(&mut self, pause: Duration) {
        let mut left = pause;
        while !left.is_zero() {
            let slice = left.min(GLANCE);
            self.clock.sleep(slice).await;
            left -= slice;
            if self.decided() {
                return;
            }
        }
    }

    /// Whether the bundle on trial has an outcome.
    fn decided(&self) -> bool {
        let Some(action) = self.memory.action.as_ref().filter(|action| action.phase == Phase::Trial) else {
            return false;
        };
        let standing = action.bundle.as_ref().map(|bundle| self.device.standing(bundle, action.mark));
        matches!(standing, Some(Standing::Committed | Standing::Refused(_) | Standing::Returned(_)))
    }

    async fn round(&mut self) -> Result<(), FetchError> {
        self.judge().await;
        self.settle().await?;
        let url = self.base.clone();
        let base: Base = self.document(&url).await?;
        self.sleep = base.sleep().unwrap_or(USUAL_SLEEP).clamp(*SLEEP.start(), *SLEEP.end());
        self.view.send_modify(|view| view.polls += 1);
        if let Some(link) = &base.links.cancel_action {
            // What else there is to do is seen at the next poll, without what was given up.
            return self.cancel(link).await;
        }
        if let Some(link) = &base.links.config_data {
            let url = self.base.join(&link.href)?;
            self.client.send(Method::PUT, &url, wire::config_data(&self.device.attributes())).await?;
        }
        if let Some(link) = base.links.confirmation_base.as_ref().filter(|_| self.config.confirm) {
            let url = self.base.join(&link.href)?;
            let _known: Confirmation = self.document(&url).await?;
            self.client.send(Method::POST, &url.below("feedback")?, wire::confirmed()).await?;
        }
        match &base.links.deployment_base {
            Some(link) => self.deploy(link).await?,
            None => self.forget().await,
        }
        self.settle().await
    }

    async fn document<T: DeserializeOwned>(&mut self, url: &Url) -> Result<T, FetchError> {
        let bytes = self.client.document(url).await?;
        serde_json::from_slice(&bytes).map_err(|e| FetchError::BadDocument {
            url: url.shown(),
            reason: e.to_string().chars().take(200).collect(),
        })
    }

    /// Keeps the memory before anything else is done; other tasks go on while the medium takes it.
    async fn save(&mut self) {
        let (keeper, memory) = (self.keeper.clone(), self.memory.clone());
        if let Err(e) = blocking(move || keeper.save(&memory)).await {
            tracing::error!("what was told to the fleet server cannot be kept: {e}");
        }
        self.show();
    }

    fn show(&self) {
        let action = self.memory.action.as_ref();
        self.view.send_modify(|view| {
            view.action = action.map(|action| action.id.clone());
            view.phase = action.map(|action| match action.phase {
                Phase::Download => "download",
                Phase::Held => "held",
                Phase::Trial => "trial",
                Phase::Closing(_) => "closing",
            });
            view.report = self.progress.borrow().clone();
        });
    }

    /// Changes the open action and keeps it.
    async fn become_phase(&mut self, phase: Phase) {
        if let Some(action) = &mut self.memory.action
            && action.phase != phase
        {
            action.phase = phase;
            self.save().await;
        }
    }

    async fn close(&mut self, finished: Finished, details: Vec<String>) {
        self.become_phase(Phase::Closing(Outcome { finished, details })).await;
    }

    /// Asks the device what became of the open action's bundle.
    async fn judge(&mut self) {
        let Some(action) = &self.memory.action else { return };
        let Some(bundle) = &action.bundle else { return };
        if !matches!(action.phase, Phase::Trial | Phase::Download) {
            return;
        }
        let said = |what: &str, refused: Refused| {
            vec![refused.sentence, format!("code: {}", refused.code), format!("{what}: bundle {bundle}")]
        };
        match self.device.standing(bundle, action.mark) {
            Standing::Committed => {
                let details = vec![format!("committed: bundle {bundle}")];
                self.close(Finished::Success, details).await;
            }
            Standing::Refused(refused) => {
                let details = said("refused", refused);
                self.close(Finished::Failure, details).await;
            }
            Standing::Returned(refused) => {
                let details = said("returned to what served before", refused);
                self.close(Finished::Failure, details).await;
            }
            Standing::Trial(_) => self.become_phase(Phase::Trial).await,
            // The device knows nothing of a trial: it was cut off before it was noted anywhere. What is stored is found again.
            Standing::Unknown => self.become_phase(Phase::Download).await,
        }
    }

    /// Tells the server what is open to be told.
    async fn settle(&mut self) -> Result<(), FetchError> {
        let Some(action) = &self.memory.action else { return Ok(()) };
        match action.phase.clone() {
            Phase::Download => Ok(()),
            Phase::Held => {
                self.tell("downloaded", Execution::Downloaded, vec!["stored, waiting for the window".into()])
                    .await
            }
            Phase::Trial => {
                self.tell("downloaded", Execution::Downloaded, vec!["stored".into()]).await?;
                self.tell("trial", Execution::Proceeding, vec!["on trial".into()]).await
            }
            Phase::Closing(outcome) => {
                let id = action.id.clone();
                let to = self.feedback_of(&id)?;
                self.feedback(&to, &id, Execution::Closed, &outcome).await?;
                self.memory.closed = Some(Closed { id, outcome });
                self.memory.action = None;
                self.save().await;
                Ok(())
            }
        }
    }

    /// Tells the server one thing about the open action, once.
    async fn tell(
        &mut self,
        what: &str,
        execution: Execution,
        details: Vec<String>,
    ) -> Result<(), FetchError> {
        let Some(action) = &self.memory.action else { return Ok(()) };
        if action.told.contains(what) || action.told.len() >= MOST_TOLD {
            return Ok(());
        }
        let id = action.id.clone();
        let to = self.feedback_of(&id)?;
        self.feedback(&to, &id, execution, &Outcome { finished: Finished::None, details }).await?;
        if let Some(action) = &mut self.memory.action {
            action.told.insert(what.to_owned());
            self.save().await;
        }
        Ok(())
    }

    /// Where feedback to an action goes: by the API, not by a link, since it may be sent long after the link was seen.
    fn feedback_of(&self, action: &str) -> Result<Url, FetchError> {
        self.base.below(&format!("deploymentBase/{action}/feedback"))
    }

    async fn feedback(
        &mut self,
        to: &Url,
        id: &str,
        execution: Execution,
        outcome: &Outcome,
    ) -> Result<(), FetchError> {
        let body = wire::feedback(id, execution, outcome.finished, &outcome.details);
        match self.client.send(Method::POST, to, body).await {
            // The action is over at the server: nobody wants to hear of it.
            Err(FetchError::NotFound { .. }) => Ok(()),
            // Nor would it take it the next time, and everything after it would wait.
            Err(e @ FetchError::ServerRefused { status: 400..=499, .. }) => {
                tracing::warn!(code = e.code(), action = id, "the fleet server does not take feedback: {e}");
                Ok(())
            }
            other => other,
        }
    }

    /// The server has no update: it ended the open action on its side. A trial goes on all the same.
    async fn forget(&mut self) {
        if self.memory.action.as_ref().is_some_and(|a| matches!(a.phase, Phase::Download | Phase::Held)) {
            self.memory.action = None;
            self.save().await;
        }
    }

    /// The server wants an action given up. What is not on trial is; a trial ends by its own judgement.
    async fn cancel(&mut self, link: &Href) -> Result<(), FetchError> {
        let url = self.base.join(&link.href)?;
        let wish: Cancel = self.document(&url).await?;
        let stop = &wish.cancel_action.stop_id;
        let open = self.memory.action.as_ref().filter(|action| action.id == *stop);
        let too_late = match open.map(|action| &action.phase) {
            Some(Phase::Trial | Phase::Closing(_)) => true,
            Some(_) => false,
            None => self.memory.closed.as_ref().is_some_and(|closed| closed.id == *stop),
        };
        let to = url.below("feedback")?;
        if too_late {
            let label = format!("cancel-{}", wish.id);
            if open.is_some_and(|action| action.told.contains(&label)) {
                return Ok(());
            }
            let sentence =
                "too late: the bundle is on trial or judged; it is committed or returned by its gates";
            let outcome = Outcome { finished: Finished::None, details: vec![sentence.to_owned()] };
            self.feedback(&to, &wish.id, Execution::Rejected, &outcome).await?;
            if let Some(action) = &mut self.memory.action {
                action.told.insert(label);
            }
            self.save().await;
            return Ok(());
        }
        let sentence =
            if open.is_some() { "given up before it was activated" } else { "nothing of it was begun" };
        let outcome = Outcome { finished: Finished::Success, details: vec![sentence.to_owned()] };
        self.feedback(&to, &wish.id, Execution::Closed, &outcome).await?;
        if self.memory.action.as_ref().is_some_and(|action| action.id == *stop) {
            self.memory.action = None;
        }
        self.save().await;
        Ok(())
    }

    /// The server has an update.
    async fn deploy(&mut self, link: &Href) -> Result<(), FetchError> {
        let url = self.base.join(&link.href)?;
        let wish: Deployment = self.document(&url).await?;
        if let Some(closed) = self.memory.closed.clone().filter(|closed| closed.id == wish.id) {
            // It was told; the server knows it no more.
            let to = self.feedback_of(&closed.id)?;
            return self.feedback(&to, &closed.id, Execution::Closed, &closed.outcome).await;
        }
        if self.memory.action.as_ref().is_none_or(|action| action.id != wish.id) {
            self.memory.action = Some(Action {
                id: wish.id.clone(),
                bundle: None,
                mark: self.device.mark(),
                phase: Phase::Download,
                told: Default::default(),
            });
            self.save().await;
        }
        let may_update = wish.deployment.may_update();
        let phase = self.memory.action.as_ref().map(|action| action.phase.clone());
        match phase {
            Some(Phase::Download) if wish.deployment.download != Handling::Skip => {}
            Some(Phase::Held) if may_update => {}
            _ => return Ok(()),
        }
        // From here a power cut leaves an action whose outcome the device is asked for.
        self.become_phase(Phase::Download).await;
        let chosen = match wish.deployment.choose(&url) {
            Ok(chosen) => chosen,
            Err((code, sentence)) => {
                self.close(Finished::Failure, vec![sentence, format!("code: {code}")]).await;
                return Ok(());
            }
        };
        self.tell("download", Execution::Download, vec!["fetching the bundle".into()]).await?;
        let token =
            self.config.security.header().filter(|_| {
                Url::parse(&chosen.url).is_ok_and(|url| url.authority() == self.base.authority())
            });
        let pulled = self.fetch(&chosen.url, Wish { token, sha256: chosen.sha256, hold: !may_update }).await;
        match pulled {
            None => Ok(()),
            Some(Ok(())) if may_update => {
                self.become_phase(Phase::Trial).await;
                Ok(())
            }
            Some(Ok(())) => {
                // It may serve already: then there is nothing to wait for.
                self.judge().await;
                if self.memory.action.as_ref().is_some_and(|action| action.phase == Phase::Download) {
                    self.become_phase(Phase::Held).await;
                }
                Ok(())
            }
            Some(Err(e)) if e.is_passing() => {
                let details = vec![e.to_string(), format!("code: {}", e.code())];
                self.tell(&format!("waiting-{}", e.code()), Execution::Proceeding, details).await?;
                Err(e)
            }
            Some(Err(e)) => {
                self.close(Finished::Failure, vec![e.to_string(), format!("code: {}", e.code())]).await;
                Ok(())
            }
        }
    }

    /// Fetches the open action's bundle and asks the server meanwhile whether to give it up; `None` when it was.
    async fn fetch(&mut self, url: &str, wish: Wish) -> Option<Result<(), FetchError>> {
        let (device, clock, limits) = (self.device.clone(), self.clock.clone(), self.config.limits.clone());
        let sender = self.progress.clone();
        sender.send_replace(Report::default());
        let mut progress = sender.subscribe();
        let url = url.to_owned();
        let work = async move { pull(&*device, Way::Hawkbit, &url, &wish, &limits, &clock, &sender).await };
        let mut work = std::pin::pin!(work);
        loop {
            let glance = self.clock.sleep(self.sleep.min(CANCEL_GLANCE));
            let mut glance = std::pin::pin!(glance);
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => {
                        self.note_bundle().await;
                        return Some(done.map(|_| ()));
                    }
                    // Known before the trial can begin: the trial's outcome is found by it after a power cut.
                    _ = progress.changed() => self.note_bundle().await,
                    () = &mut glance => break,
                }
            }
            if self.cancelled().await {
                return None;
            }
        }
    }

    async fn note_bundle(&mut self) {
        let bundle = self.progress.borrow().bundle.clone();
        if let (Some(action), Some(bundle)) = (&mut self.memory.action, bundle)
            && action.bundle.as_ref() != Some(&bundle)
        {
            action.bundle = Some(bundle);
            self.save().await;
        }
        self.show();
    }

    /// Asks whether the open action is to be given up, and gives it up. A server that does not answer now wants nothing.
    async fn cancelled(&mut self) -> bool {
        let url = self.base.clone();
        let Ok(base) = self.document::<Base>(&url).await else { return false };
        let Some(link) = base.links.cancel_action else { return false };
        if let Err(e) = self.cancel(&link).await {
            tracing::warn!(code = e.code(), "the wish to cancel: {e}");
        }
        self.memory.action.is_none()
    }
}
