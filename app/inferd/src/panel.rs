//! LED and button of this daemon: what the LED shows, and what becomes of a press.

use crate::config::{Config, PanelKind};
use inferd_api::{App, Pressed};
use inferd_watch::{
    ask::{self, Answer, Ask},
    panel::{Panel, Rooms, Wanted, Wish},
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
    let (kind, wanted) = match c.kind {
        PanelKind::Off => return None,
        PanelKind::Gpio => ("gpio", Wanted::Gpio { led: c.led_gpio, button: c.button_gpio }),
        PanelKind::Led => ("led", Wanted::LedClass { root: LEDS.into(), name: c.led_name.clone()? }),
        PanelKind::Simulated => ("simulated", Wanted::Simulated(c.socket.clone()?)),
    };
    let (asked, shown, pressed) = (Arc::clone(app), Arc::clone(app), Arc::clone(app));
    let asking = Arc::new(AtomicBool::new(false));
    let rooms = Rooms {
        look: Box::new(move || inferd_api::look(&asked)),
        shows: Box::new(move |look| shown.panel.show(kind, look)),
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

/// A short press: who listens is told how it is, and the log, at every level that lets warnings through.
fn status(app: &App) {
    let now = Pressed::now(app);
    let models =
        now.models.iter().map(|m| format!("{}: {}", m.name, if m.ready { "ready" } else { "not ready" }));
    let (models, alerts) = (models.collect::<Vec<_>>(), &now.alerts);
    warn!(look = now.look, ?models, ?alerts, now.uptime_s, "the button was pressed: this is the status");
    app.panel.press(now);
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
        match ask::ask_at(&socket, &Ask::FactoryReset { why, everything: false }) {
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
