//! LED and button of this daemon: what the LED shows, and what becomes of a press.

use crate::config::{BOARD_PAGE, Config, PanelKind};
use inferd_api::{App, Pressed};
use inferd_watch::{
    ask::{self, Answer, Ask},
    panel::{Panel, Rooms, Wanted, Wish},
};
use serde::Deserialize;
use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tracing::{error, info, warn};

/// Where the kernel shows its LEDs.
const LEDS: &str = "/sys/class/leds";

/// Starts the configured panel. Without one, or where it cannot be had, everything else is the same.
pub fn start(app: &Arc<App>, config: &Config) -> Option<Panel> {
    let c = &config.panel;
    let (kind, wanted) = match c.kind {
        PanelKind::Off => return None,
        PanelKind::Board => of_this_board()?,
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

/// What a `board.toml` says of LED and button; `scripts/lib/board.py` says what may stand there.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Page {
    panel: Facts,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Facts {
    led: String,
    led_gpio: u8,
    button_gpio: u8,
}

/// The panel that the image's board has. A machine without such a page has none.
fn of_this_board() -> Option<(&'static str, Wanted)> {
    match fs::read_to_string(BOARD_PAGE) {
        Ok(text) => of_board(&text).unwrap_or_else(|e| {
            warn!("no status LED and no button: {BOARD_PAGE}: {e}");
            None
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            warn!("no status LED and no button: {BOARD_PAGE}: {e}");
            None
        }
    }
}

/// The panel of the board with this page.
fn of_board(text: &str) -> Result<Option<(&'static str, Wanted)>, toml::de::Error> {
    let Facts { led, led_gpio, button_gpio } = toml::from_str::<Page>(text)?.panel;
    let line = |n: u8| (n > 0).then_some(n);
    Ok(match (line(led_gpio), line(button_gpio)) {
        (None, None) if led.is_empty() => None,
        (None, None) => Some(("led", Wanted::LedClass { root: LEDS.into(), name: led })),
        (led, button) => Some(("gpio", Wanted::Gpio { led, button })),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn each_board_of_this_repository_has_the_panel_of_its_page() {
        let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../board");
        let panel = |board: &str| {
            of_board(&fs::read_to_string(boards.join(board).join("board.toml")).unwrap()).unwrap()
        };
        let act = Wanted::LedClass { root: LEDS.into(), name: "ACT".into() };
        for (board, expected) in [
            ("rpi4", Some(("led", act.clone()))),
            ("rpi5-hailo8", Some(("led", act))),
            ("qemu-aarch64", None),
            ("qemu-x86_64", None),
            ("jetson-orin-nano", None),
        ] {
            assert_eq!(panel(board), expected, "{board}");
        }
    }

    #[test]
    fn lines_of_the_header_are_a_panel_with_or_without_a_button() {
        let panel = |text: &str| of_board(text).unwrap().unwrap().1;
        assert_eq!(
            panel("[panel]\nled-gpio = 17\nbutton-gpio = 27"),
            Wanted::Gpio { led: Some(17), button: Some(27) }
        );
        assert_eq!(panel("[panel]\nbutton-gpio = 27"), Wanted::Gpio { led: None, button: Some(27) });
        assert!(of_board("[panel]\nled-gpio = \"17\"").is_err());
    }
}
