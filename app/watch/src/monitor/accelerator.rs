//! Accelerators, as far as they tell how they are.

use super::{Roots, files, parse};
use serde::Serialize;
use std::path::PathBuf;

/// How an accelerator is. What it does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AcceleratorReading {
    /// `gpu`.
    pub name: String,
    /// How busy it is, in percent.
    pub load_percent: Option<f64>,
    /// How warm it is.
    pub celsius: Option<f64>,
    /// Its clock.
    pub frequency_hz: Option<u64>,
    /// Memory of its own that is in use.
    pub memory_used_bytes: Option<u64>,
    /// Memory of its own.
    pub memory_total_bytes: Option<u64>,
}

/// One accelerator. A device that is asked through its vendor's library implements this in the room that owns the library.
pub trait Accelerator: Send + Sync {
    /// A name that stays the same: `gpu`, `hailo0`.
    fn name(&self) -> String;
    /// How it is. May take long or hang: it is called on a thread that is given up then.
    fn read(&self) -> AcceleratorReading;
}

/// The integrated GPU of a Jetson: it shares the board's memory and tells load and clock in sysfs.
#[derive(Clone, Debug)]
pub struct JetsonGpu {
    load: PathBuf,
    clock: Option<PathBuf>,
    zone: Option<PathBuf>,
}

impl JetsonGpu {
    /// The GPU, where there is one. The names are those of L4T 35 and 36.
    #[must_use]
    pub fn find(roots: &Roots) -> Option<Self> {
        let platform = roots.sys.join("devices/platform");
        let load = ["gpu.0/load", "bus@0/17000000.gpu/load", "17000000.gpu/load", "17000000.ga10b/load"]
            .iter()
            .map(|name| platform.join(name))
            .find(|path| path.is_file())?;
        let clock = files::names(&roots.sys.join("class/devfreq"))
            .into_iter()
            .find(|name| name.ends_with(".gpu") || name.ends_with(".ga10b"))
            .map(|name| roots.sys.join("class/devfreq").join(name).join("cur_freq"));
        let thermal = roots.sys.join("class/thermal");
        let zone = files::names(&thermal)
            .into_iter()
            .filter(|name| name.starts_with("thermal_zone"))
            .map(|name| thermal.join(name))
            .find(|zone| {
                files::read(&zone.join("type"))
                    .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("gpu"))
            });
        Some(Self { load, clock, zone })
    }
}

impl Accelerator for JetsonGpu {
    fn name(&self) -> String {
        "gpu".to_owned()
    }

    fn read(&self) -> AcceleratorReading {
        let permille = files::read(&self.load).and_then(|t| t.trim().parse::<u16>().ok());
        AcceleratorReading {
            name: self.name(),
            load_percent: permille.filter(|p| *p <= 1000).map(|p| f64::from(p) / 10.0),
            // While the GPU sleeps, its sensor answers EAGAIN: then there is no temperature.
            celsius: self.zone.as_ref().and_then(|z| parse::celsius(&files::read(&z.join("temp"))?)),
            frequency_hz: self.clock.as_ref().and_then(|c| files::read(c)?.trim().parse().ok()),
            ..AcceleratorReading::default()
        }
    }
}
