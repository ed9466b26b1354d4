//! LED and button of this daemon: what the LED shows, and what becomes of a press.

use crate::config::{Config, PanelKind};
use inferd_api::{App, Updates};
use inferd_hosts::State;
use inferd_watch::{
    alerts::Severity,
    ask::{self, Answer, Ask},
    panel::{Look, Panel, Rooms, Wanted, Wish},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use tracing::{error, info, warn};

/// Where the kernel shows its LEDs.
const LEDS: &str = "/sys/class/leds";

/// Starts the configured panel. Without one, or where it cannot be had, everything else is the same.
pub fn start(app: &Arc<App>, config: &Config) -> Option<Panel> {
    let c = &config.panel;
    let wanted = match c.kind {
        PanelKind::Off => return None,
        PanelKind::Gpio => Wanted::Gpio { led: c.led_gpio, button: c.button_gpio },
        PanelKind::Led => Wanted::LedClass { root: LEDS.into(), name: c.led_name.clone()? },
        PanelKind::Simulated => Wanted::Simulated(c.socket.clone()?),
    };
    let (shown, pressed) = (Arc::clone(app), Arc::clone(app));
    let asking = Arc::new(AtomicBool::new(false));
    let rooms = Rooms {
        look: Box::new(move || look(&shown)),
        wish: Box::new(move |wish| match wish {
            Wish::Status => status(&pressed),
            Wish::FactoryReset => reset(&pressed, &asking),
        }),
    };
    match Panel::start(&wanted, rooms) {
        Ok(panel) => Some(panel),
        Err(e) => {
            warn!("no status LED and no button: {e}");
            None
        }
    }
}

/// How the appliance is, the most urgent first.
fn look(app: &App) -> Look {
    if app.alive.in_safe_mode().is_some() {
        return Look::SafeMode;
    }
    if let Updates::On(desk) = &**app.updates.load() {
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

/// A short press: the log says how it is, at every level that lets warnings through.
fn status(app: &App) {
    let models: Vec<String> = app
        .hosts
        .list()
        .iter()
        .map(|m| {
            format!(
                "{}: {}",
                m.manifest().name,
                if m.state() == State::Ready { "ready" } else { "not ready" }
            )
        })
        .collect();
    let alerts: Vec<&str> = app
        .monitor
        .get()
        .map(|m| m.view().borrow().active.iter().map(|a| a.alert.name()).collect())
        .unwrap_or_default();
    let uptime_s = app.started.elapsed().as_secs();
    warn!(look = look(app).word(), ?models, ?alerts, uptime_s, "the button was pressed: this is the status");
}

/// A long press: the keeper is asked, by a thread of its own, since it may take its time; one at a time.
fn reset(app: &App, asking: &Arc<AtomicBool>) {
    if asking.swap(true, SeqCst) {
        return;
    }
    warn!("the button was held for ten seconds: a factory reset is asked for");
    let (socket, done) = (app.alive.keeper.socket.clone(), Arc::clone(asking));
    let ask = move || {
        let why = "the button was held for ten seconds".to_owned();
        match ask::ask_at(&socket, &Ask::FactoryReset { why }) {
            Ok(Answer::Done) => info!("the factory reset has begun"),
            Ok(Answer::Refused { why }) => error!("no factory reset: {why}"),
            Err(e) => error!("no factory reset: {e}"),
        }
        done.store(false, SeqCst);
    };
    if let Err(e) = std::thread::Builder::new().name("factory-reset".into()).spawn(ask) {
        asking.store(false, SeqCst);
        error!("no factory reset: {e}");
    }
}
