//! `[[sources]]`: where live input comes from.

use super::layers::Reader;
use inferd_api::{GateSettings, SourceConfig};
use inferd_model::ModelName;
use inferd_sources::live::{Kind, SerialForm, Spec, SpecLimits};
use inferd_sources::motion;
use inferd_sources::synthetic::{self, Conditions, Script};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

const ALLOWED: &str = "up to 8 tables of name, kind (synthetic, recording, serial, push) and the keys of their kind, see app/api/README.md";

/// A table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    kind: Word,
    model: Option<String>,
    hop: Option<usize>,
    channels: Option<usize>,
    rate_hz: Option<f64>,
    path: Option<PathBuf>,
    baud: Option<u32>,
    format: Option<Format>,
    scale: Option<f32>,
    r#loop: Option<bool>,
    seed: Option<u32>,
    gesture: Option<String>,
    hard: Option<bool>,
    motion: Option<String>,
    gate: Option<GateTable>,
}

/// When what is recognised may be acted on.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GateTable {
    confidence: Option<f32>,
    keep: Option<f32>,
    agree: Option<usize>,
    of: Option<usize>,
    hold_ms: Option<u32>,
    rest_rms: Option<f32>,
    rest_ms: Option<u32>,
    safe: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Synthetic,
    Recording,
    Serial,
    Push,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    Framed,
    Legacy,
    LegacyResync,
}

pub(super) fn read(r: &mut Reader) -> Vec<SourceConfig> {
    let meaning =
        "Where live input comes from; each of another name. Nothing is read before a source is named here.";
    let sources = r.tables("sources", SpecLimits::SOURCES, ALLOWED, meaning, source);
    let twice = |i: usize| sources[..i].iter().any(|s: &SourceConfig| s.spec.name == sources[i].spec.name);
    if let Some(i) = (1..sources.len()).find(|i| twice(*i)) {
        r.problem(format!("sources: {:?} is the name of two.", sources[i].spec.name));
    }
    // Two readers of one port would get half of the bytes each.
    let port = |i: usize| match &sources[i].spec.kind {
        Kind::Serial { path, .. } => Some(path),
        _ => None,
    };
    if let Some(i) = (1..sources.len()).find(|&i| port(i).is_some() && (0..i).any(|j| port(j) == port(i))) {
        r.problem(format!(
            "sources: the serial port of {:?} is that of another one too.",
            sources[i].spec.name
        ));
    }
    sources
}

fn source(table: &toml::Value) -> Result<SourceConfig, String> {
    let t: Table = table.clone().try_into().map_err(|e: toml::de::Error| e.message().to_owned())?;
    let foreign = |there: bool, key: &str, of: &str| {
        if there { Err(format!("{key}: only a {of} source has one")) } else { Ok(()) }
    };
    if !matches!(t.kind, Word::Serial) {
        foreign(t.baud.is_some(), "baud", "serial")?;
        foreign(t.format.is_some(), "format", "serial")?;
        foreign(t.scale.is_some(), "scale", "serial")?;
    }
    if !matches!(t.kind, Word::Serial | Word::Recording) {
        foreign(t.path.is_some(), "path", "serial or recording")?;
    }
    if !matches!(t.kind, Word::Recording) {
        foreign(t.r#loop.is_some(), "loop", "recording")?;
    }
    if !matches!(t.kind, Word::Synthetic) {
        foreign(t.seed.is_some(), "seed", "synthetic")?;
        foreign(t.gesture.is_some(), "gesture", "synthetic")?;
        foreign(t.hard.is_some(), "hard", "synthetic")?;
        foreign(t.motion.is_some(), "motion", "synthetic")?;
    }
    if t.motion.is_some() {
        let of_windows = [t.gesture.is_some(), t.model.is_some(), t.hop.is_some(), t.gate.is_some()];
        let named = ["gesture", "model", "hop", "gate"].into_iter().zip(of_windows).find(|(_, there)| *there);
        if let Some((key, _)) = named {
            return Err(format!("{key}: a source of muscle signals has one, this one has motion"));
        }
    }
    let path = || t.path.clone().ok_or("path: it is needed");
    let kind = match t.kind {
        Word::Push => Kind::Push,
        Word::Recording => Kind::Recording { path: path()?, looped: t.r#loop.unwrap_or(true) },
        Word::Serial => Kind::Serial {
            path: path()?,
            baud: t.baud.unwrap_or(921_600),
            form: match t.format {
                None | Some(Format::Framed) => SerialForm::Framed,
                Some(Format::Legacy) => SerialForm::Legacy { resynchronise: false },
                Some(Format::LegacyResync) => SerialForm::Legacy { resynchronise: true },
            },
            scale: t.scale.unwrap_or(1.0),
        },
        Word::Synthetic if t.motion.is_some() => Kind::Motion {
            motion: t.motion.as_deref().unwrap_or_default().parse().map_err(|e| format!("motion: {e}"))?,
            seed: t.seed.unwrap_or(1).into(),
            conditions: if t.hard.unwrap_or(false) {
                motion::Conditions::Hard
            } else {
                motion::Conditions::Usual
            },
        },
        Word::Synthetic => Kind::Synthetic {
            script: match &t.gesture {
                None => Script::USUAL,
                Some(name) => Script::Hold(name.parse().map_err(|e| format!("gesture: {e}"))?),
            },
            seed: t.seed.unwrap_or(1).into(),
            conditions: if t.hard.unwrap_or(false) { Conditions::HARD } else { Conditions::USUAL },
        },
    };
    let usual = if t.motion.is_some() {
        (motion::CHANNELS, motion::RATE_HZ)
    } else {
        (synthetic::CHANNELS, synthetic::RATE_HZ)
    };
    let (channels, rate_hz) = (t.channels.unwrap_or(usual.0), t.rate_hz.unwrap_or(usual.1));
    let spec = Spec::try_new(&t.name, kind, channels, rate_hz).map_err(|e| e.to_string())?;
    let model = t.model.as_deref().map(ModelName::new).transpose().map_err(|e| format!("model: {e}"))?;
    if t.hop.is_some_and(|hop| !(1..=100_000).contains(&hop)) {
        return Err("hop: 1 to 100000 samples".to_owned());
    }
    let gate = gate(t.gate.unwrap_or_default()).map_err(|e| format!("gate: {e}"))?;
    Ok(SourceConfig { spec, model: model.map(|m| m.to_string()), hop: t.hop, gate })
}

fn gate(t: GateTable) -> Result<GateSettings, String> {
    let usual = GateSettings::default();
    let ms = |ms: Option<u32>, usual| ms.map_or(usual, |ms| Duration::from_millis(ms.into()));
    let confidence = t.confidence.unwrap_or(usual.confidence);
    let of = t.of.unwrap_or(usual.of);
    let settings = GateSettings {
        confidence,
        keep: t.keep.unwrap_or(usual.keep.min(confidence)),
        // Of another number four fifths again, rounded up.
        agree: t.agree.unwrap_or((of * usual.agree).div_ceil(usual.of)),
        of,
        hold: ms(t.hold_ms, usual.hold),
        rest_rms: t.rest_rms.unwrap_or(usual.rest_rms),
        rest: ms(t.rest_ms, usual.rest),
        safe: t.safe,
    };
    settings.check().map_err(|e| e.to_string())?;
    Ok(settings)
}
