//! `[[actuators]]`: what is moved by what is recognised.

use super::Config;
use super::layers::Reader;
use inferd_actuators::{Pose, Spec, SpecLimits};
use inferd_api::{ActuatorConfig, SourceConfig};
use inferd_model::ModelName;
use inferd_sources::live::Kind;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ALLOWED: &str = "up to 4 tables of name, path, neutral, poses and more, see app/actuators/README.md";

/// A table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    path: PathBuf,
    neutral: Vec<u16>,
    #[serde(default)]
    poses: BTreeMap<String, Vec<u16>>,
    source: Option<String>,
    model: Option<String>,
    baud: Option<u32>,
    rate_hz: Option<u32>,
    velocity_us_s: Option<f64>,
    acceleration_us_s2: Option<f64>,
    autostart: Option<bool>,
}

pub(super) fn read(r: &mut Reader, sources: &[SourceConfig]) -> Vec<ActuatorConfig> {
    let followed = |s: &&SourceConfig| !s.spec.is_motion();
    let meaning = "What is moved by what is recognised; each of another name and port. Nothing moves before it is named here.";
    let all = r.tables("actuators", SpecLimits::ACTUATORS, ALLOWED, meaning, actuator);
    for (i, one) in all.iter().enumerate() {
        let name = &one.spec.name;
        let before = &all[..i];
        if before.iter().any(|b| b.spec.name == *name) {
            r.problem(format!("actuators: {name:?} is the name of two."));
        }
        let path = &one.spec.path;
        if before.iter().any(|b| b.spec.path == *path) || sources.iter().any(|s| port(s) == Some(path)) {
            r.problem(format!("actuators: the serial port of {name:?} is that of another one too."));
        }
        match &one.source {
            Some(source) if sources.iter().filter(followed).all(|s| s.spec.name != *source) => {
                r.problem(format!("actuators: {name:?} follows source {source:?}, which there is not."));
            }
            None if !sources.iter().any(|s| followed(&s)) => {
                r.problem(format!("actuators: {name:?} has no source to follow."));
            }
            _ => {}
        }
    }
    all
}

/// Who pushes samples moves what follows their source: nothing does while anybody in the network may.
pub(super) fn check_access(r: &mut Reader, config: &Config) {
    if !config.security.open_inference {
        return;
    }
    for one in &config.actuators {
        let follows = |s: &&SourceConfig| {
            !s.spec.is_motion() && one.source.as_ref().is_none_or(|source| s.spec.name == *source)
        };
        let Some(source) = config.sources.iter().find(follows) else { continue };
        if matches!(source.spec.kind, Kind::Push) {
            let (name, source) = (&one.spec.name, &source.spec.name);
            r.problem(format!(
                "actuators: {name:?} would be moved by anybody in the network, for its source {source:?} takes what is pushed; \
                 security.open_inference = false lets only an operator push."
            ));
        }
    }
}

fn port(source: &SourceConfig) -> Option<&Path> {
    match &source.spec.kind {
        Kind::Serial { path, .. } => Some(path),
        _ => None,
    }
}

fn actuator(table: &toml::Value) -> Result<ActuatorConfig, String> {
    let t: Table = table.clone().try_into().map_err(|e: toml::de::Error| e.message().to_owned())?;
    let spec = Spec {
        name: t.name,
        path: t.path,
        baud: t.baud.unwrap_or(115_200),
        rate_hz: t.rate_hz.unwrap_or(50),
        neutral: t.neutral,
        poses: t.poses.into_iter().map(|(gesture, widths)| Pose { gesture, widths }).collect(),
        velocity: t.velocity_us_s.unwrap_or(500.0),
        acceleration: t.acceleration_us_s2.unwrap_or(2000.0),
        autostart: t.autostart.unwrap_or(false),
    };
    spec.check().map_err(|e| e.to_string())?;
    let model = t.model.as_deref().map(ModelName::new).transpose().map_err(|e| format!("model: {e}"))?;
    Ok(ActuatorConfig { spec, source: t.source, model: model.map(|m| m.to_string()) })
}
