//! Actuators: what moves by what is recognised.
//!
//! ```text
//! GET  /api/v1/actuators              each with its state, why, where its joints are, what it counted
//! POST /api/v1/actuators/{name}/stop  to the neutral pose, and stay there until /start; never limited by rate
//! POST /api/v1/actuators/{name}/start
//! ```
//!
//! An actuator (`app/actuators`) asks for every line what may be done. The answer is its source's gate (`gate.rs`) at that moment, and that
//! nobody knows once the task that looks after the source has not done so for [`VOUCHED`].
//!
//! A stop outlives the daemon: it is a file per stopped actuator, and only `/start` takes it away.

use crate::calibrations::Calibrations;
use crate::gate::Command;
use crate::metrics::live::Writer;
use crate::sources::{Live, called};
use crate::{App, Reply, Req};
use hyper::StatusCode;
use inferd_actuators::{Actuator, Ask, Spec, State, View};
use inferd_sources::live::State as SourceState;
use inferd_tasks::emg::gate::{Reason, State as Gate};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// A source that was not looked after for so long is one that nobody knows anything of. It is looked after every half a second.
const VOUCHED: Duration = Duration::from_secs(2);
/// An answer to an order waits so long for the next line, looked for this often.
const OBEYED: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(5);
/// Ports are opened, sources looked after and calibrations proven for the first time within this: until then nothing is an alert.
const STARTING: Duration = Duration::from_secs(10);

/// An actuator, and whom it follows.
#[derive(Clone, Debug, PartialEq)]
pub struct ActuatorConfig {
    /// What it is.
    pub spec: Spec,
    /// The source it follows; `None`: the first.
    pub source: Option<String>,
    /// It follows this model only; `None`: whichever the source has.
    pub model: Option<String>,
}

/// An actuator that runs, and its source.
#[derive(Debug)]
pub(crate) struct Driven {
    actuator: Actuator,
    live: Option<Arc<Live>>,
    model: Option<String>,
    /// Is there while it is stopped.
    marker: PathBuf,
    /// One order after the other: of a start and a stop at once the stop holds.
    orders: tokio::sync::Mutex<()>,
}

/// All actuators of a daemon.
pub(crate) type Actuators = Arc<OnceLock<Vec<Driven>>>;

/// Starts the actuators, after the sources. One that cannot be started is told in the log, and is not there. `folder` remembers which
/// of them somebody has stopped.
pub fn start_actuators(app: &Arc<App>, configs: &[ActuatorConfig], folder: &Path) {
    let sources = app.sources.get().map_or(&[][..], Vec::as_slice);
    let mut all = Vec::new();
    for config in configs {
        let named = |live: &&Arc<Live>| config.source.as_deref().is_none_or(|name| live.name() == name);
        let live = sources.iter().find(named).cloned();
        let asked = live.clone();
        let (model, ending) = (config.model.clone(), app.ending.subscribe());
        let weak = Arc::downgrade(app);
        let ask = move || {
            let Some(app) = weak.upgrade() else { return Ask::Safe("the daemon ends".to_owned()) };
            ask(asked.as_deref(), model.as_deref(), &ending, &app.calibrations)
        };
        let marker = folder.join(format!("{}.stopped", config.spec.name));
        let mut spec = config.spec.clone();
        if spec.autostart && was_stopped(&marker) {
            tracing::warn!(actuator = spec.name, "stopped: somebody stopped it before this start");
            spec.autostart = false;
        }
        match Actuator::start(spec, ask) {
            Ok(actuator) => {
                let (model, orders) = (config.model.clone(), tokio::sync::Mutex::default());
                all.push(Driven { actuator, live, model, marker, orders });
            }
            Err(why) => {
                tracing::error!(actuator = config.spec.name, error = %why, "no thread for an actuator");
            }
        }
    }
    // Set once, at the start.
    let _ = app.actuators.set(all);
}

/// The actuators that follow one of these sources.
pub(crate) fn following<'a>(app: &'a App, sources: &[&str]) -> Vec<&'a str> {
    let all = app.actuators.get().map_or(&[][..], Vec::as_slice);
    let follows = |d: &&Driven| d.live.as_deref().is_some_and(|live| sources.contains(&live.name()));
    all.iter().filter(follows).map(|d| d.actuator.spec().name.as_str()).collect()
}

/// Whether somebody stopped it and nobody has started it since. What cannot be read counts as stopped.
fn was_stopped(marker: &Path) -> bool {
    fs::symlink_metadata(marker).map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |_| true)
}

/// Writes down that it is stopped, or that it is not. Durable when it returns.
fn remember(marker: &Path, stopped: bool) -> io::Result<()> {
    let folder = marker.parent().unwrap_or(Path::new("."));
    if stopped {
        fs::create_dir_all(folder)?;
        return inferd_slots::replace(marker, b"");
    }
    match fs::remove_file(marker) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Err(_) => Ok(()),
        Ok(()) => fs::File::open(folder)?.sync_all(),
    }
}

/// Brings all of them to the neutral pose, and ends their lines; some seconds at the most.
pub fn end_actuators(app: &App) {
    let all = app.actuators.get().map_or(&[][..], Vec::as_slice);
    std::thread::scope(|scope| {
        for driven in all {
            scope.spawn(|| driven.actuator.end());
        }
    });
}

/// Whether one of them fails safe for another reason than that nothing is meant: its name and why.
pub fn failing_actuator(app: &App) -> Option<Option<String>> {
    let all = app.actuators.get().filter(|all| !all.is_empty())?;
    if app.started.elapsed() < STARTING {
        return None;
    }
    Some(all.iter().find_map(|driven| {
        Some(format!("{}: {}", driven.actuator.spec().name, driven.failing(&app.calibrations)?))
    }))
}

fn ask(
    live: Option<&Live>,
    model: Option<&str>,
    ending: &watch::Receiver<bool>,
    calibrations: &Calibrations,
) -> Ask {
    if *ending.borrow() {
        return Ask::Safe("the daemon ends".to_owned());
    }
    let Some(live) = live else { return Ask::Silent("its source could not be started".to_owned()) };
    if live.looked_after().is_none_or(|ago| ago > VOUCHED) {
        return Ask::Silent(format!("source {} is not looked after", live.name()));
    }
    if let Some(why) = other_model(live, model).or_else(|| uncalibrated(live, calibrations)) {
        return Ask::Safe(why);
    }
    let Command { view, label, .. } = live.command();
    match label.filter(|_| view.state != Gate::Released) {
        Some(label) => Ask::Gesture(label),
        None => Ask::Safe(format!("source {}: {}", live.name(), view.reason.name())),
    }
}

/// What is said of a source that does not go to the model that is followed.
fn other_model(live: &Live, model: Option<&str>) -> Option<String> {
    let wanted = model?;
    let goes = live.plan().is_some_and(|(manifest, _)| manifest.name.as_str() == wanted);
    (!goes).then(|| format!("source {} does not go to model {wanted}", live.name()))
}

/// What is said of a source whose model somebody calibrated, and that answers as it was shipped: those gestures are nobody's.
fn uncalibrated(live: &Live, calibrations: &Calibrations) -> Option<String> {
    let (manifest, _) = live.plan()?;
    calibrations.unsettled(&manifest).map(|why| format!("model {}: {why}", manifest.name))
}

/// Why an actuator is in its safe pose although somebody may mean something.
fn failing(
    view: View,
    live: Option<&Live>,
    model: Option<&str>,
    calibrations: &Calibrations,
) -> Option<String> {
    match view.state {
        State::Silent | State::Blocked | State::Unplugged => return Some(view.reason),
        State::Following | State::Stopped => return None,
        State::Safe => {}
    }
    let live = live?;
    if let Some(why) = other_model(live, model).or_else(|| uncalibrated(live, calibrations)) {
        return Some(why);
    }
    let command = live.command().view;
    let source = live.source.view();
    match command.reason {
        _ if command.state != Gate::Released => None,
        Reason::Source if source.state != SourceState::Over => {
            Some(format!("source {}: {}", live.name(), source.reason))
        }
        Reason::NoAnswer => Some(format!("source {}: {}", live.name(), live.problem())),
        _ => None,
    }
}

impl Driven {
    /// What could not be done is said.
    async fn carry_out(&self, stop: bool) -> Result<(), String> {
        let _alone = self.orders.lock().await;
        let name = &self.actuator.spec().name;
        if stop {
            self.actuator.stop();
            tracing::warn!(actuator = name, "stopped");
        }
        let marker = self.marker.clone();
        let kept = tokio::task::spawn_blocking(move || remember(&marker, stop)).await;
        let why = kept.map_err(|e| e.to_string()).and_then(|kept| kept.map_err(|e| e.to_string()));
        match (stop, why) {
            (true, Ok(())) => Ok(()),
            (true, Err(why)) => {
                Err(format!("it is stopped, but not beyond a restart: that cannot be written down: {why}"))
            }
            (false, Ok(())) => {
                self.actuator.begin();
                tracing::info!(actuator = name, "started");
                Ok(())
            }
            (false, Err(why)) => {
                Err(format!("it stays stopped: that it is started cannot be written down: {why}"))
            }
        }
    }

    fn failing(&self, calibrations: &Calibrations) -> Option<String> {
        failing(self.actuator.view(), self.live.as_deref(), self.model.as_deref(), calibrations)
    }

    fn describe(&self, calibrations: &Calibrations) -> Value {
        let (view, spec) = (self.actuator.view(), self.actuator.spec());
        let counts = view.counts;
        json!({
            "name": spec.name,
            "source": self.live.as_deref().map(Live::name),
            "model": self.model,
            "state": view.state.name(),
            "reason": view.reason,
            "failing": self.failing(calibrations),
            "stopped": view.stopped,
            "gesture": view.gesture,
            "widths_us": view.widths,
            "neutral": view.neutral,
            "poses": spec.poses.iter().map(|p| p.gesture.as_str()).collect::<Vec<_>>(),
            "rate_hz": spec.rate_hz,
            "lines": counts.lines,
            "dropped": counts.dropped,
            "opened": counts.opened,
            "stops": counts.stops,
            "fail_safes": counts.fail_safes,
        })
    }
}

pub(crate) fn list(app: &App) -> Reply {
    let all = app.actuators.get().map_or(&[][..], Vec::as_slice);
    let all: Vec<Value> = all.iter().map(|d| d.describe(&app.calibrations)).collect();
    Reply::json(StatusCode::OK, &json!({ "actuators": all }))
}

/// `stop` or `start`. A stop is carried out first and remembered then; a start is remembered first, so that none comes of what is not.
pub(crate) async fn order(app: &App, req: &Req, stop: bool) -> Reply {
    let name = req.path.rsplit('/').nth(1).unwrap_or_default();
    let all = app.actuators.get().map_or(&[][..], Vec::as_slice);
    let Some(at) = all.iter().position(|d| d.actuator.spec().name == name) else {
        let why = format!("there is no actuator {}", called(name));
        return Reply::refusal(StatusCode::NOT_FOUND, "not_found", &why, true);
    };
    if stop {
        all[at].actuator.stop();
    }
    // Whoever hangs up now has ordered it all the same.
    let actuators = Arc::clone(&app.actuators);
    let carried_out = tokio::spawn(async move {
        match actuators.get().and_then(|all| all.get(at)) {
            Some(driven) => driven.carry_out(stop).await,
            None => Ok(()),
        }
    });
    match carried_out.await.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(()) => {
            // What it does now is said by its thread with the next line.
            let obeyed = || (all[at].actuator.view().state == State::Stopped) == stop;
            for _ in 0..OBEYED.as_millis() / LOOK.as_millis() {
                if obeyed() || all[at].actuator.view().state == State::Unplugged {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
            Reply::json(StatusCode::OK, &all[at].describe(&app.calibrations))
        }
        Err(why) => Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "storage", &why, true),
    }
}

/// The numbers of actuators.
#[derive(Debug)]
pub(crate) struct Numbers(pub Actuators);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(all) = self.0.get() else { return Ok(()) };
        let views: Vec<_> =
            all.iter().map(|d| (d.actuator.spec().name.as_str(), d.actuator.view())).collect();
        let mut out = Writer { encoder: &mut encoder };
        let states = views.iter().flat_map(|(name, view)| {
            State::ALL.map(|s| {
                (vec![("actuator", *name), ("state", s.name())], f64::from(u8::from(s == view.state)))
            })
        });
        out.gauge("actuator_state", "1 for what an actuator does", states)?;
        type Count = fn(&inferd_actuators::Counts) -> u64;
        let counts: [(&str, &str, Count); 4] = [
            ("actuator_lines", "Lines that the port took", |c| c.lines),
            ("actuator_dropped_lines", "Lines that the port did not take in time", |c| c.dropped),
            ("actuator_stops", "Times that somebody stopped it", |c| c.stops),
            ("actuator_fail_safes", "Times that a gesture was let go for the neutral pose", |c| c.fail_safes),
        ];
        for (name, help, count) in counts {
            let samples = views.iter().map(|(actuator, v)| (vec![("actuator", *actuator)], count(&v.counts)));
            out.counter(name, help, samples)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::SourceConfig;
    use inferd_sources::live::{Kind, Spec};
    use inferd_tasks::emg::gate::Settings;
    use std::time::Instant;

    fn pushed() -> Live {
        let spec = Spec::try_new("phone", Kind::Push, 16, 2000.0).unwrap();
        Live::start(SourceConfig { spec, model: None, hop: None, gate: Settings::default() }, || ()).unwrap()
    }

    #[test]
    fn a_model_that_the_source_does_not_go_to_is_a_failure() {
        let (live, none) = (pushed(), Calibrations::default());
        let view = View {
            state: State::Safe,
            reason: String::new(),
            stopped: false,
            gesture: None,
            widths: vec![1500],
            neutral: true,
            counts: inferd_actuators::Counts::default(),
        };
        assert_eq!(failing(view.clone(), Some(&live), None, &none), None);
        let other = "source phone does not go to model collar";
        assert_eq!(failing(view.clone(), Some(&live), Some("collar"), &none).as_deref(), Some(other));
        let stopped = View { state: State::Stopped, ..view };
        assert_eq!(failing(stopped, Some(&live), Some("collar"), &none), None);
    }

    #[test]
    fn nobody_vouches_for_a_source_that_is_not_looked_after() {
        let (live, none) = (pushed(), Calibrations::default());
        let (end, ending) = watch::channel(false);
        let asked = |model| ask(Some(&live), model, &ending, &none);
        let unknown = Ask::Silent("source phone is not looked after".to_owned());
        assert_eq!(
            ask(None, None, &ending, &none),
            Ask::Silent("its source could not be started".to_owned())
        );
        assert_eq!(asked(None), unknown);
        // A minute from now, so that no machine is too slow for it.
        live.look_after(Instant::now() + Duration::from_secs(60));
        assert!(matches!(asked(None), Ask::Safe(why) if why.starts_with("source phone: ")));
        let other = "source phone does not go to model collar";
        assert_eq!(asked(Some("collar")), Ask::Safe(other.to_owned()));
        live.look_after(Instant::now().checked_sub(VOUCHED + Duration::from_millis(1)).unwrap());
        assert_eq!(asked(Some("collar")), unknown);
        end.send_replace(true);
        assert_eq!(asked(None), Ask::Safe("the daemon ends".to_owned()));
    }
}
