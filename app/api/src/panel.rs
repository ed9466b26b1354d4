//! LED and button over HTTP: what the LED shows stands in `/status`, and a short press is an event `status` for everybody who listens
//! to `/api/v1/alerts/events`.

use crate::App;
use arc_swap::ArcSwapOption;
use inferd_hosts::State;
use inferd_watch::alerts::Severity;
use inferd_watch::panel::Look;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;

/// The panel, as the endpoint knows it; of a device that has none nothing is ever told.
#[derive(Default)]
pub struct Front {
    shown: ArcSwapOption<Shown>,
    pressed: watch::Sender<Option<Arc<Pressed>>>,
}

#[derive(Clone, Copy)]
struct Shown {
    kind: &'static str,
    look: Look,
}

/// How the device is when its button is pressed.
#[derive(Clone, Debug, Serialize)]
pub struct Pressed {
    /// What the LED would show.
    pub look: &'static str,
    /// Each model, and whether it answers.
    pub models: Vec<Answers>,
    /// The names of the alerts that are raised.
    pub alerts: Vec<&'static str>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
}

/// A model, and whether it answers.
#[derive(Clone, Debug, Serialize)]
pub struct Answers {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub ready: bool,
}

impl Front {
    /// The LED of a panel of this kind (`panel.kind`) shows this from now on.
    pub fn show(&self, kind: &'static str, look: Look) {
        self.shown.store(Some(Arc::new(Shown { kind, look })));
    }

    /// A short press: whoever listens is told. One who reads slowly gets the newest only.
    pub fn press(&self, status: Pressed) {
        self.pressed.send_replace(Some(Arc::new(status)));
    }

    /// Presses from now on.
    pub(crate) fn presses(&self) -> watch::Receiver<Option<Arc<Pressed>>> {
        self.pressed.subscribe()
    }

    /// What `/status` says; null where there is no panel.
    pub(crate) fn view(&self) -> Value {
        let shown = self.shown.load();
        json!(shown.as_deref().map(|s| json!({ "kind": s.kind, "shows": s.look.word() })))
    }
}

impl Pressed {
    /// As it is now.
    #[must_use]
    pub fn now(app: &App) -> Self {
        let of = |m: &Arc<inferd_hosts::Served>| Answers {
            name: m.manifest().name.to_string(),
            ready: m.state() == State::Ready,
        };
        let view = app.monitor.get().map(|m| m.view().borrow().clone()).unwrap_or_default();
        Self {
            look: look(app).word(),
            models: app.hosts.list().iter().map(of).collect(),
            alerts: view.active.iter().map(|a| a.alert.name()).collect(),
            uptime_s: app.started.elapsed().as_secs(),
        }
    }

    /// The event.
    pub(crate) fn event(&self) -> String {
        format!("event: status\ndata: {}\n\n", json!(self))
    }
}

/// How the appliance is, the most urgent first.
#[must_use]
pub fn look(app: &App) -> Look {
    if app.alive.in_safe_mode().is_some() {
        return Look::SafeMode;
    }
    if let crate::Updates::On(desk) = &**app.updates.load() {
        let status = desk.updater.status();
        let status = status.borrow();
        if status.install.is_some() || status.trial.is_some() {
            return Look::Updating;
        }
    }
    if app.hosts.loading() {
        return Look::Booting;
    }
    let critical = app
        .monitor
        .get()
        .is_some_and(|m| m.view().borrow().active.iter().any(|alert| alert.severity == Severity::Critical));
    match app.default_model() {
        Some(model) if model.state() == State::Ready && !critical => Look::Healthy,
        _ => Look::Degraded,
    }
}
