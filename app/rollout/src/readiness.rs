//! What the models have against keeping a system: those that do not serve, and those that serve on less than under the system before.

use inferd_hosts::{EngineInfo, Hosts, Served, State};
use inferd_model::{EngineKind, Rung};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What ONNX Runtime computes with, the best first, as `inferd-engine` names its providers.
const PROVIDERS: [&str; 3] = ["tensorrt", "cuda", "cpu"];

/// What serves on a system, and on what: told before another system is tried, so that the other one can be held against it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serves {
    /// Models by name.
    #[serde(default)]
    pub models: BTreeMap<String, On>,
    /// Names and directories of models that could not be loaded.
    #[serde(default)]
    pub failed: BTreeSet<String>,
    /// The configuration that is in force, where it is not the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
}

/// A configuration that somebody gave the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Where it lies.
    pub file: String,
    /// Names in it that the daemon does not know and ignores.
    #[serde(default)]
    pub unknown: BTreeSet<String>,
}

impl Configuration {
    /// What keeps a system that was started with `now` from being kept where `before` was in force under the one before. `refusal` says why it
    /// is not in force here.
    #[must_use]
    pub fn against(
        before: &Self,
        now: Option<&Self>,
        refusal: impl FnOnce(&str) -> String,
    ) -> Option<String> {
        let file = &before.file;
        let Some(now) = now.filter(|now| now.file == *file) else {
            return Some(format!(
                "the configuration {file}, in force under the system before, is not in force on this one: {}",
                refusal(file)
            ));
        };
        let lost: Vec<&str> = now.unknown.difference(&before.unknown).map(String::as_str).collect();
        (!lost.is_empty()).then(|| {
            format!(
                "this system does not know what the system before knew of the configuration {file}: {}",
                lost.join(", ")
            )
        })
    }
}

/// What a model serves on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct On {
    /// The rung of its ladder.
    pub rung: String,
    /// What computes there, where an engine has more than one way to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

impl On {
    fn of(engine: &EngineInfo) -> Option<Self> {
        let rung = engine.rung?;
        let provider = (rung.engine == EngineKind::Ort).then(|| engine.device.clone());
        Some(Self { rung: rung.to_string(), provider })
    }

    fn provider(&self) -> Option<usize> {
        PROVIDERS.iter().position(|known| self.provider.as_deref() == Some(known))
    }

    /// As people read it.
    fn words(&self, other: &Self) -> String {
        match &self.provider {
            Some(provider) if self.rung == other.rung => format!("{} ({provider})", self.rung),
            _ => self.rung.clone(),
        }
    }

    /// Whether it is further down a ladder than `before`. What the ladder does not name cannot be compared.
    fn is_less_than(&self, before: &Self, ladder: &[Rung]) -> bool {
        let at = |on: &Self| ladder.iter().position(|rung| rung.to_string() == on.rung);
        let (Some(now), Some(was)) = (at(self), at(before)) else { return false };
        now > was || (now == was && self.provider() > before.provider() && before.provider().is_some())
    }
}

impl Serves {
    /// What serves now. A model that is just being started again still counts with what `before` says of it.
    #[must_use]
    pub fn now(hosts: &Hosts, before: &Self) -> Self {
        let mut models = BTreeMap::new();
        for served in hosts.list() {
            let name = served.manifest().name.to_string();
            let on = match served.state() {
                State::Ready => On::of(&served.engine()),
                _ => before.models.get(&name).cloned(),
            };
            models.extend(on.map(|on| (name, on)));
        }
        let failed = hosts.load_errors().into_iter().map(|(what, _)| what).collect();
        Self { models, failed, configuration: None }
    }
}

/// The reasons of the models. `before`: what served under the system before, where this one is on trial; what could not be loaded there
/// is no reason here.
#[must_use]
pub fn against(hosts: &Hosts, before: Option<&Serves>) -> Vec<String> {
    let mut reasons = Vec::new();
    if hosts.loading() {
        reasons.push("models are being loaded".to_owned());
    }
    let models = hosts.list();
    for (what, why) in hosts.load_errors() {
        let known = before.is_some_and(|before| before.failed.contains(&what));
        if !known && !models.iter().any(|served| goes_on(served, &what)) {
            reasons.push(format!("a model was not loaded: {why}"));
        }
    }
    for served in &models {
        let manifest = served.manifest();
        if served.state() != State::Ready {
            reasons.push(format!("model {} does not serve", manifest.name));
            continue;
        }
        let engine = served.engine();
        let was = before.and_then(|before| before.models.get(manifest.name.as_str()));
        if let (Some(was), Some(now)) = (was, On::of(&engine))
            && now.is_less_than(was, &manifest.engines)
        {
            let why = served.fallback().map(|fallback| fallback.reason).or(engine.remark);
            let why = why.unwrap_or_else(|| "this system does not have what it takes".to_owned());
            let (name, on, was) = (&manifest.name, now.words(was), was.words(&now));
            reasons.push(format!("model {name} serves on {on}, and under the system before on {was}: {why}"));
        }
    }
    reasons
}

/// Whether a model serves whose replacement, by hand, is what failed: what should serve does.
fn goes_on(served: &Served, what: &str) -> bool {
    let at_home = || served.origin().directory().is_some_and(|dir| dir.display().to_string() == what);
    served.state() == State::Ready && (served.manifest().name.as_str() == what || at_home())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(rung: &str, provider: Option<&str>) -> On {
        On { rung: rung.to_owned(), provider: provider.map(str::to_owned) }
    }

    fn ladder(rungs: &[&str]) -> Vec<Rung> {
        rungs.iter().map(|rung| rung.parse().unwrap()).collect()
    }

    #[test]
    fn only_onnx_runtime_has_more_than_one_way_to_compute() {
        let of = |rung: Option<&str>| {
            On::of(&EngineInfo {
                rung: rung.map(|rung| rung.parse().unwrap()),
                kind: "",
                version: String::new(),
                device: "cuda".into(),
                library: None,
                remark: None,
            })
        };
        assert_eq!(of(Some("ort")), Some(on("ort", Some("cuda"))));
        assert_eq!(of(Some("hailo")), Some(on("hailo", None)));
        assert_eq!(of(None), None, "nothing serves yet");
    }

    #[test]
    fn a_rung_further_down_is_less_and_one_that_the_ladder_does_not_have_is_not_compared() {
        let ladder = ladder(&["hailo", "ort-int8", "cpu"]);
        let less = |now, was| on(now, None).is_less_than(&on(was, None), &ladder);
        assert!(less("cpu", "hailo") && less("cpu", "ort-int8") && less("ort-int8", "hailo"));
        assert!(!less("hailo", "cpu") && !less("cpu", "cpu"), "better, or the same");
        assert!(!less("cpu", "tensorrt") && !less("ort", "hailo"), "another edition's ladder");
    }

    #[test]
    fn onnx_runtime_without_its_gpu_is_less_on_the_same_rung() {
        let ladder = ladder(&["ort", "cpu"]);
        let less = |now, was| on("ort", now).is_less_than(&on("ort", was), &ladder);
        assert!(less(Some("cpu"), Some("tensorrt")) && less(Some("cuda"), Some("tensorrt")));
        assert!(!less(Some("tensorrt"), Some("cpu")) && !less(Some("cpu"), Some("cpu")));
        assert!(!less(Some("cpu"), None) && !less(Some("cpu"), Some("of a later version")));
        assert!(
            !on("ort", Some("cpu")).is_less_than(&on("cpu", None), &ladder),
            "a better rung, whatever computes it"
        );
    }

    #[test]
    fn what_serves_is_read_as_it_was_told_and_a_word_of_a_later_version_too() {
        let models =
            BTreeMap::from([("m".to_owned(), on("ort", Some("cuda"))), ("n".to_owned(), on("cpu", None))]);
        let serves = Serves { models, failed: BTreeSet::from(["/models/x".to_owned()]), configuration: None };
        let text = serde_json::to_string(&serves).unwrap();
        assert_eq!(serde_json::from_str::<Serves>(&text).unwrap(), serves);
        let later = r#"{"models": {"m": {"rung": "cpu", "new": 1}}, "more": []}"#;
        assert_eq!(serde_json::from_str::<Serves>(later).unwrap().models["m"], on("cpu", None));
    }

    #[test]
    fn a_configuration_has_to_be_in_force_on_the_new_system_with_every_setting_that_the_old_one_knew() {
        let of = |file: &str, unknown: &[&str]| Configuration {
            file: file.to_owned(),
            unknown: unknown.iter().map(|&key| key.to_owned()).collect(),
        };
        let why = |file: &str| format!("because of {file}");
        let before = of("/run/boot.toml", &["server.typo"]);
        assert_eq!(Configuration::against(&before, Some(&before), why), None);
        assert_eq!(
            Configuration::against(&before, Some(&of("/run/boot.toml", &[])), why),
            None,
            "one more is known"
        );
        let removed = of("/run/boot.toml", &["server.gone", "server.typo"]);
        assert!(
            Configuration::against(&before, Some(&removed), why)
                .unwrap()
                .ends_with("/run/boot.toml: server.gone")
        );
        for now in [None, Some(of("/data/inferd.toml", &[]))] {
            let said = Configuration::against(&before, now.as_ref(), why).unwrap();
            assert!(said.contains("is not in force on this one: because of /run/boot.toml"), "{said}");
        }
    }
}
