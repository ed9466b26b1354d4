//! What all models of one [`Hosts`](crate::Hosts) share.

use crate::events::{Events, HostEvent};
use crate::host::StartError;
use crate::recovery::{Device, Ladder, Recovery, Step};
use crate::set::HostsConfig;
use inferd_model::EngineKind;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Which engines there are beside the built-in one.
struct Found {
    /// The programs that have them.
    programs: BTreeMap<EngineKind, PathBuf>,
    /// What their devices are, where that is known.
    devices: BTreeMap<EngineKind, String>,
    /// Those of which it is not known yet.
    unanswered: BTreeSet<EngineKind>,
}

/// Shared by all models.
pub struct House {
    /// The settings in force.
    pub config: HostsConfig,
    /// Who is told what happens.
    pub events: Events,
    found: watch::Sender<Found>,
    serial: AtomicU64,
    /// What has been done for each device, by its address.
    recoveries: Mutex<BTreeMap<String, Recovery>>,
    /// Steps so far, by device and name.
    steps: Mutex<BTreeMap<(String, &'static str), u64>>,
    /// One step at a time, of all models that wait for a device.
    recovering: tokio::sync::Mutex<()>,
}

/// How long those that share a device are given to leave it when it is lost: the service keeps it open as it was until the last one has,
/// and what is done to it before that is for nothing. Each finds out within 2 to 3 s; of one that was killed Hailo's service knows after
/// 2 to 3 s more (`HAILO_KEEPALIVE_INTERVAL` of 4.23.0).
const LEAVING: Duration = Duration::from_secs(6);

impl House {
    pub fn new(config: HostsConfig) -> Self {
        let found = Found {
            programs: config.engines.clone(),
            devices: config.devices.clone(),
            unanswered: config.unanswered.clone(),
        };
        Self {
            config,
            found: watch::Sender::new(found),
            events: Events::new(),
            serial: AtomicU64::default(),
            recoveries: Mutex::default(),
            steps: Mutex::default(),
            recovering: tokio::sync::Mutex::default(),
        }
    }

    /// Whether only one host at a time can have the device of this engine.
    pub fn has_one_owner(&self, engine: EngineKind) -> bool {
        engine == EngineKind::Hailo && !self.config.shared.contains(&engine)
    }

    /// The program that has this engine, if one has.
    pub fn program(&self, engine: EngineKind) -> Option<PathBuf> {
        match engine {
            EngineKind::Cpu => Some(self.config.program.clone()),
            other => self.found.borrow().programs.get(&other).cloned(),
        }
    }

    /// What the device of an engine is, where that is known: `hailo8`.
    pub fn device_name(&self, engine: EngineKind) -> Option<String> {
        self.found.borrow().devices.get(&engine).cloned()
    }

    /// An engine has answered what works here: it is in this program, on this device, or not to be used.
    pub fn answered(&self, engine: EngineKind, program: Option<PathBuf>, device: Option<String>) {
        self.found.send_modify(|found| {
            found.unanswered.remove(&engine);
            found.programs.extend(program.map(|p| (engine, p)));
            found.devices.extend(device.map(|d| (engine, d)));
        });
    }

    /// Those of these engines of which it is not known yet whether they are here.
    pub fn unanswered(&self, engines: &[EngineKind]) -> Vec<EngineKind> {
        let found = self.found.borrow();
        engines.iter().filter(|e| found.unanswered.contains(e)).copied().collect()
    }

    /// Waits until it is known which of these engines are here.
    pub async fn all_answered(&self, engines: &[EngineKind]) {
        let known = |found: &Found| engines.iter().all(|e| !found.unanswered.contains(e));
        // It ends only with us.
        let _ = self.found.subscribe().wait_for(known).await;
    }

    fn device(&self, engine: EngineKind) -> Option<(Arc<dyn Ladder>, Device)> {
        let ladder = self.config.ladder.clone()?;
        let device = ladder.device(engine)?;
        Some((ladder, device))
    }

    fn recovery<T>(&self, device: &Device, f: impl FnOnce(&mut Recovery) -> T) -> T {
        let mut recoveries = self.recoveries.lock().unwrap_or_else(PoisonError::into_inner);
        f(recoveries.entry(device.address.clone()).or_default())
    }

    /// Whether the device of this engine is lost, and there are steps left to get it back.
    pub fn recovers(&self, engine: EngineKind) -> bool {
        self.device(engine).is_some_and(|(_, device)| self.recovery(&device, |r| r.is_pending()))
    }

    /// A host of this engine came up.
    pub fn came_up(&self, engine: EngineKind) {
        if let Some((_, device)) = self.device(engine)
            && self.recovery(&device, Recovery::came_up)
        {
            let outcome =
                "the device is well again: an engine host passed its golden vectors on it".to_owned();
            tracing::info!(device = device.address, "a device was recovered");
            self.tell_step(&device, "recovered", outcome);
        }
    }

    /// A host of this engine could not be started, and another engine is turned to. Its device is recovered while that serves.
    pub fn lost(&self, engine: EngineKind, why: &StartError) {
        let Some((_, device)) = self.device(engine).filter(|_| why.is_the_devices()) else { return };
        let first = |r: &mut Recovery| (*r == Recovery::default()).then(|| r.failed(0));
        if let Some(step) = self.recovery(&device, first) {
            self.told(&device, step, &why.to_string(), "another engine host is tried".to_owned());
        }
    }

    fn told(&self, device: &Device, step: Step, reason: &str, outcome: String) {
        let (address, step) = (device.address.as_str(), step.name());
        tracing::warn!(device = address, step, reason, outcome, "recovering a device");
        self.tell_step(device, step, outcome);
    }

    fn tell_step(&self, device: &Device, step: &'static str, outcome: String) {
        let device = device.address.clone();
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        *steps.entry((device.clone(), step)).or_default() += 1;
        drop(steps);
        self.events.tell(HostEvent::Recovery { device, step, outcome });
    }

    /// Steps so far: device, step, how often.
    pub fn recovery_steps(&self) -> Vec<(String, &'static str, u64)> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.iter().map(|((device, step), &n)| (device.clone(), *step, n)).collect()
    }

    /// A host of this engine could not be started. Whether it is worth trying again at once, with the device put right: never
    /// when the model is to blame, or nothing is left to be done. Takes as long as the step. `taken`: [`House::steps_taken`] before the host was
    /// started.
    pub async fn recover(&self, engine: EngineKind, why: &StartError, taken: u64) -> bool {
        if !why.is_the_devices() {
            return false;
        }
        let Some((ladder, device)) = self.device(engine) else { return false };
        let _alone = self.recovering.lock().await;
        if self.steps_taken() != taken {
            // Something was done about it since, for another model: whether that helped is found out first.
            return true;
        }
        if self.config.shared.contains(&engine) {
            tokio::time::sleep(LEAVING).await;
        }
        loop {
            let before = self.recovery(&device, |r| *r);
            let reboots = if before.has_given_up() { 0 } else { blocking(&ladder, |l| l.reboots()).await };
            let step = self.recovery(&device, |r| r.failed(reboots));
            let words = why.to_string();
            let outcome = match step {
                Step::Restart => Ok("another engine host is tried".to_owned()),
                Step::Rebind => {
                    let d = device.clone();
                    let done = blocking(&ladder, move |l| l.rebind(&d)).await;
                    done.map(|()| "its driver has given it up and taken it again".to_owned())
                }
                Step::Rescan => {
                    let d = device.clone();
                    let done = blocking(&ladder, move |l| l.rescan(&d)).await;
                    done.map(|()| "it was taken off its bus and found again".to_owned())
                }
                Step::Reboot => {
                    let why = format!("device {} of engine {engine} is lost: {words}", device.address);
                    let done = blocking(&ladder, move |l| l.reboot(&why)).await;
                    done.map(|()| "the board restarts".to_owned())
                }
                Step::GiveUp => Ok(match reboots {
                    0 => "nothing more can be done for it".to_owned(),
                    n => {
                        format!(
                            "nothing more can be done for it: {n} restarts of the board in 24 h are counted"
                        )
                    }
                }),
            };
            let helped = outcome.is_ok();
            let outcome = outcome.unwrap_or_else(|e| format!("could not be done: {e}"));
            if step != Step::GiveUp || !before.has_given_up() {
                self.told(&device, step, &words, outcome);
            }
            match step {
                Step::Restart => return true,
                Step::Rebind | Step::Rescan if helped => return true,
                Step::Rebind | Step::Rescan => {}
                Step::Reboot if helped => return false,
                Step::Reboot => {}
                Step::GiveUp => return false,
            }
        }
    }

    /// How many steps that is.
    pub fn steps_taken(&self) -> u64 {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// A number no other host of this daemon has.
    pub fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }
}

/// Asks the ladder where waiting delays nobody.
async fn blocking<T: Send + 'static>(
    ladder: &Arc<dyn Ladder>,
    f: impl FnOnce(&dyn Ladder) -> T + Send + 'static,
) -> T {
    let ladder = ladder.clone();
    match tokio::task::spawn_blocking(move || f(&*ladder)).await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}
