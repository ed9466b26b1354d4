//! Puts the updater together from the configuration.

use crate::alive::KeeperEvidence;
use crate::config::{self, BOARD_FILE, Config, Enabled};
use inferd_api::Who;
use inferd_hosts::EngineHere;
use inferd_rollout::{Engine, Probation, SystemEvidence, UpdaterConfig};
use inferd_watch::state::KeeperState;
use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::{info, warn};

/// Where the name of a device that has none of its own is kept.
const DEVICE_FILE: &str = "device-id";
/// The longest device name that is read, in bytes.
const MAX_DEVICE_BYTES: u64 = 128;

/// What the updater is made from, and what others need to know of it.
pub struct Plan {
    /// Its settings.
    pub config: UpdaterConfig,
    /// This device's name in permits.
    pub device: String,
}

/// What the configuration asks for.
pub enum Wanted {
    /// No updates: they are off, or `auto` found no slots.
    Off,
    /// These.
    On(Box<Plan>),
    /// Some, but they cannot be had.
    Broken(String),
}

/// Decides whether there are updates, and makes what they need. Blocking.
pub fn plan(
    config: &Config,
    factory: Vec<PathBuf>,
    keeper: Option<KeeperState>,
    engines: impl Fn() -> Arc<Vec<EngineHere>> + Send + Sync + 'static,
) -> Wanted {
    let c = &config.updates;
    let slots = [&c.slot_a, &c.slot_b];
    match c.enabled {
        Enabled::Off => return Wanted::Off,
        Enabled::Auto if !slots.iter().all(|s| s.exists()) => {
            // An image makes their directory before it looks for them: there they are missing, not absent by design.
            if let Some(dir) = c.slot_a.parent().filter(|dir| !dir.as_os_str().is_empty() && dir.exists()) {
                return Wanted::Broken(format!(
                    "there are no model slots in {}: the data partition or a slot's partition is missing or damaged",
                    dir.display()
                ));
            }
            info!("no model slots here: bundles are not taken (updates.enabled is auto)");
            return Wanted::Off;
        }
        Enabled::Auto | Enabled::On => {}
    }
    let prepared = prepare(c).and_then(|()| device(c));
    let device = match prepared {
        Ok(device) => device,
        Err(e) => {
            return Wanted::Broken(format!("updates.data_dir {}: {e}", c.data_dir.display()));
        }
    };
    let (roots, absent): (Vec<PathBuf>, Vec<PathBuf>) = c.roots.iter().cloned().partition(|r| r.exists());
    for root in absent {
        warn!("updates.root: {} does not exist", root.display());
    }
    let set = |n: u32| (n > 0).then_some(n);
    let mut to = UpdaterConfig::new(slots.map(Clone::clone), c.data_dir.clone());
    to.slot_bytes = c.slot_bytes;
    to.roots = roots;
    to.allow_dev = c.allow_dev;
    to.board = board(c);
    to.device = device.clone();
    to.version = env!("CARGO_PKG_VERSION").to_owned();
    let engine = |e: &EngineHere| Engine {
        name: e.engine.name().to_owned(),
        version: e.version.clone().unwrap_or_default(),
    };
    to.engines = Arc::new(move || {
        let engines = engines();
        engines.iter().filter(|e| e.problem.is_none()).map(engine).collect()
    });
    to.memory_limit = c.memory_limit;
    to.factory = factory;
    to.probation = Probation { seconds: set(c.probation_s), requests: set(c.probation_requests) };
    to.scrub_bytes_per_s = c.scrub_bytes_per_s;
    to.try_systems = c.try_systems;
    let system = SystemEvidence::new(c.run_dir.clone());
    to.evidence = Arc::new(KeeperEvidence::new(system, keeper));
    Wanted::On(Box::new(Plan { config: to, device }))
}

/// Directories that files are made in. On an image they are there.
fn prepare(c: &config::Updates) -> io::Result<()> {
    fs::create_dir_all(&c.data_dir)?;
    for slot in [&c.slot_a, &c.slot_b] {
        if let Some(parent) = slot.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
    }
    Ok(())
}

/// The board's name; empty where nobody says it.
pub fn board(c: &config::Updates) -> String {
    let said = c.board.clone().or_else(|| first_word(Path::new(BOARD_FILE)));
    said.unwrap_or_default()
}

/// This device's name in permits, where it has one already: what the image says, else what was drawn.
fn known(c: &config::Updates) -> Option<String> {
    c.device_file.as_deref().and_then(first_word).or_else(|| first_word(&c.data_dir.join(DEVICE_FILE)))
}

/// Which device this is, as far as it is known by now. `inferd provision` draws the identity, beside the daemon's data: only root can
/// make another one.
pub fn who(config: &Config) -> Who {
    let c = &config.updates;
    let drawn = c.data_dir.parent().and_then(|data| first_word(&data.join("identity/id")));
    Who { id: drawn.or_else(|| known(c)), hostname: first_word(Path::new("/proc/sys/kernel/hostname")) }
}

/// This device's name: what the image says, else 128 random bits that are drawn once and kept.
fn device(c: &config::Updates) -> io::Result<String> {
    if let Some(name) = known(c) {
        return Ok(name);
    }
    let file = c.data_dir.join(DEVICE_FILE);
    let mut bits = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bits)?;
    let name: String = bits.iter().map(|b| format!("{b:02x}")).collect();
    // A name that a power cut leaves half written would be another device's.
    inferd_slots::replace(&file, format!("{name}\n").as_bytes())?;
    Ok(name)
}

/// The first word of a small file, if it is a usable name.
fn first_word(file: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(file).ok()?.take(MAX_DEVICE_BYTES).read_to_string(&mut text).ok()?;
    let word = text.split_whitespace().next()?;
    word.bytes().all(|b| b.is_ascii_graphic()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Arguments, Loaded};
    use std::collections::BTreeMap;

    fn configured(dir: &Path, extra: &str) -> Config {
        let arguments = Arguments { updates: Some(dir.to_owned()), ..Arguments::default() };
        let file = format!("[updates]\ndevice_file = \"{}/name\"\n{extra}", dir.display());
        Loaded::from_layers(&arguments, BTreeMap::new(), Some((Path::new("test.toml"), &file)))
            .unwrap()
            .config
    }

    fn on(config: &Config) -> Box<Plan> {
        match plan(config, Vec::new(), None, Arc::default) {
            Wanted::On(plan) => plan,
            Wanted::Off => panic!("off"),
            Wanted::Broken(why) => panic!("{why}"),
        }
    }

    #[test]
    fn a_device_without_a_name_draws_one_and_keeps_it() {
        let dir = std::env::temp_dir().join(format!("inferd-device-{}", std::process::id()));
        let config = configured(&dir, "");
        let drawn = on(&config).device;
        let again = on(&config).device;
        fs::write(dir.join("name"), "serial-0815\n").unwrap();
        let named = on(&config).device;
        fs::remove_dir_all(&dir).unwrap();
        assert!(drawn.len() == 32 && drawn.bytes().all(|b| b.is_ascii_hexdigit()), "{drawn}");
        assert_eq!(again, drawn);
        assert_eq!(named, "serial-0815", "the image's own name goes first");
    }

    #[test]
    fn a_device_is_its_identity_and_without_one_its_name_in_permits() {
        let dir = tempfile::tempdir().unwrap();
        let config = configured(dir.path(), "");
        assert_eq!(who(&config).id, None, "nothing is drawn by asking");
        fs::write(dir.path().join("name"), "serial-0815\n").unwrap();
        assert_eq!(who(&config).id.as_deref(), Some("serial-0815"));
        fs::create_dir(dir.path().join("identity")).unwrap();
        fs::write(dir.path().join("identity/id"), "00ff\n").unwrap();
        assert_eq!(who(&config).id.as_deref(), Some("00ff"));
    }

    #[test]
    fn without_slots_auto_is_off() {
        let loaded = Loaded::from_layers(
            &Arguments::default(),
            BTreeMap::from([("INFERD_UPDATES_SLOT_A".to_owned(), "/nowhere/a".to_owned())]),
            None,
        )
        .unwrap();
        assert!(matches!(plan(&loaded.config, Vec::new(), None, Arc::default), Wanted::Off));
    }

    #[test]
    fn a_length_of_probation_that_is_not_said_is_the_bundles() {
        let dir = std::env::temp_dir().join(format!("inferd-probation-{}", std::process::id()));
        let bundles_own = on(&configured(&dir, "")).config.probation;
        let seconds = on(&configured(&dir, "probation_s = 3\n")).config.probation;
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(bundles_own, Probation::default());
        assert_eq!(seconds, Probation { seconds: Some(3), requests: None });
    }
}
