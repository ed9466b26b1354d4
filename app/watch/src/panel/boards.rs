//! What an LED and a button can be made of.
//!
//! * **gpio**: lines of a Raspberry Pi's 40-pin header, by the `rppal` crate, which is pure Rust. The LED is lit by a high level; the
//!   button connects its line to ground, the pull-up is switched on. It needs read and write access to `/dev/gpiomem*` and
//!   `/dev/gpiochip*` (on Raspberry Pi OS the group `gpio`). Never run on the hardware so far.
//! * **led**: an LED the kernel drives, `/sys/class/leds/NAME/brightness`. No button.
//! * **simulated**: a Unix socket. Whoever connects reads `led 1` and `led 0`, and may write `press` and `release`.

use super::{Led, Message};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::Duration,
};

/// How long a level must hold to count.
const DEBOUNCE: Duration = Duration::from_millis(30);
/// Listeners of the simulated panel.
const LISTENERS: usize = 4;
/// The longest line a simulated button sends.
const LINE: u64 = 16;

/// Which panel there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Lines of a Raspberry Pi's header, by their BCM numbers.
    Gpio {
        /// Of the LED.
        led: Option<u8>,
        /// Of the button.
        button: Option<u8>,
    },
    /// An LED of the kernel's.
    LedClass {
        /// `/sys/class/leds`
        root: PathBuf,
        /// `ACT`
        name: String,
    },
    /// A Unix socket.
    Simulated(PathBuf),
}

/// Why there is no panel; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The board's lines cannot be had.
    #[error("the lines of the header cannot be had: {0}")]
    Gpio(#[from] rppal::gpio::Error),
    /// The LED cannot be had.
    #[error("the LED {0} cannot be had: {1}")]
    LedClass(String, io::Error),
    /// A socket or a thread cannot be had.
    #[error("the panel cannot be had: {0}")]
    System(io::Error),
}

/// Opens the LED; the button's edges go to `tell`.
///
/// # Errors
/// [`OpenError`].
pub fn open(wanted: &Wanted, tell: &Sender<Message>) -> Result<Box<dyn Led>, OpenError> {
    Ok(match wanted {
        Wanted::Gpio { led, button } => Box::new(Header::open(*led, *button, tell.clone())?),
        Wanted::LedClass { root, name } => Box::new(LedClass::open(root, name)?),
        Wanted::Simulated(path) => Box::new(Simulated::open(path, tell.clone()).map_err(OpenError::System)?),
    })
}

/// Lines of the header. The kernel takes them back when these are dropped.
struct Header {
    led: Option<rppal::gpio::OutputPin>,
    _button: Option<rppal::gpio::InputPin>,
}

impl Header {
    fn open(led: Option<u8>, button: Option<u8>, tell: Sender<Message>) -> Result<Self, OpenError> {
        use rppal::gpio::{Gpio, Trigger};
        let gpio = Gpio::new()?;
        let led = led.map(|n| gpio.get(n)).transpose()?.map(rppal::gpio::Pin::into_output_low);
        let mut button = button.map(|n| gpio.get(n)).transpose()?.map(rppal::gpio::Pin::into_input_pullup);
        if let Some(button) = &mut button {
            button.set_async_interrupt(Trigger::Both, Some(DEBOUNCE), move |event| {
                // Pressed is low. Nobody listens any more when the panel ends.
                let _ = tell.send(Message::Button(event.trigger == Trigger::FallingEdge));
            })?;
        }
        Ok(Self { led, _button: button })
    }
}

impl Led for Header {
    fn set(&mut self, on: bool) -> io::Result<()> {
        if let Some(led) = &mut self.led {
            if on { led.set_high() } else { led.set_low() }
        }
        Ok(())
    }
}

/// An LED of the kernel's.
struct LedClass {
    brightness: PathBuf,
    most: String,
}

impl LedClass {
    fn open(root: &Path, name: &str) -> Result<Self, OpenError> {
        let cannot = |e| OpenError::LedClass(name.to_owned(), e);
        let dir = root.join(name);
        // What the kernel showed with it so far.
        fs::write(dir.join("trigger"), "none").map_err(cannot)?;
        let most = fs::read_to_string(dir.join("max_brightness")).map_err(cannot)?.trim().to_owned();
        Ok(Self { brightness: dir.join("brightness"), most })
    }
}

impl Led for LedClass {
    fn set(&mut self, on: bool) -> io::Result<()> {
        fs::write(&self.brightness, if on { self.most.as_str() } else { "0" })
    }
}

/// A socket that shows the LED and takes the button.
struct Simulated {
    shown: Arc<Mutex<Shown>>,
    path: PathBuf,
}

struct Shown {
    lit: bool,
    listeners: Vec<UnixStream>,
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    // A flag and a list: whole after any panic.
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn level(lit: bool) -> &'static [u8] {
    if lit { b"led 1\n" } else { b"led 0\n" }
}

impl Simulated {
    fn open(path: &Path, tell: Sender<Message>) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let shown = Arc::new(Mutex::new(Shown { lit: false, listeners: Vec::new() }));
        let shared = Arc::downgrade(&shown);
        std::thread::Builder::new().name("panel-sim".into()).spawn(move || {
            for stream in listener.incoming() {
                let Some(shown) = shared.upgrade() else { return };
                let Ok(stream) = stream else { continue };
                let _ = admit(&shown, stream, &tell);
            }
        })?;
        Ok(Self { shown, path: path.to_owned() })
    }
}

/// Lets somebody look and press.
fn admit(shown: &Mutex<Shown>, stream: UnixStream, tell: &Sender<Message>) -> io::Result<()> {
    let mut writing = stream.try_clone()?;
    {
        let mut shown = lock(shown);
        if shown.listeners.len() >= LISTENERS {
            return Ok(());
        }
        writing.set_write_timeout(Some(Duration::from_millis(10)))?;
        writing.write_all(level(shown.lit))?;
        shown.listeners.push(writing);
    }
    let tell = tell.clone();
    std::thread::Builder::new().name("panel-sim".into()).spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while matches!((&mut reader).take(LINE).read_line(&mut line), Ok(n) if n > 0) {
            let edge = match line.trim() {
                "press" => Some(true),
                "release" => Some(false),
                _ => None,
            };
            if edge.is_some_and(|down| tell.send(Message::Button(down)).is_err()) {
                return;
            }
            line.clear();
        }
    })?;
    Ok(())
}

impl Led for Simulated {
    fn set(&mut self, on: bool) -> io::Result<()> {
        let mut shown = lock(&self.shown);
        shown.lit = on;
        shown.listeners.retain_mut(|stream| stream.write_all(level(on)).is_ok());
        Ok(())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn an_led_of_the_kernel_is_switched_between_none_and_its_most() {
        let root = tempfile::tempdir().unwrap();
        let led = root.path().join("ACT");
        fs::create_dir(&led).unwrap();
        for (file, text) in [("trigger", "[mmc0] none"), ("max_brightness", "255\n"), ("brightness", "0")] {
            fs::write(led.join(file), text).unwrap();
        }
        let wanted = Wanted::LedClass { root: root.path().to_owned(), name: "ACT".into() };
        let mut opened = open(&wanted, &channel().0).unwrap();
        assert_eq!(fs::read_to_string(led.join("trigger")).unwrap(), "none");
        for (on, text) in [(true, "255"), (false, "0")] {
            opened.set(on).unwrap();
            assert_eq!(fs::read_to_string(led.join("brightness")).unwrap(), text);
        }
        let absent = Wanted::LedClass { root: root.path().to_owned(), name: "none".into() };
        assert!(matches!(open(&absent, &channel().0), Err(OpenError::LedClass(..))));
    }

    #[test]
    fn where_there_is_no_header_it_is_said() {
        let wanted = Wanted::Gpio { led: Some(17), button: Some(27) };
        if !Path::new("/dev/gpiomem").exists() && !Path::new("/dev/gpiomem0").exists() {
            assert!(matches!(open(&wanted, &channel().0), Err(OpenError::Gpio(_))));
        }
    }
}
