//! The documents of hawkBit's Direct Device Integration API, v1: what is read of them and what is sent.

use crate::header::hours_minutes_seconds;
use crate::url::Url;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Href {
    /// Where it leads.
    pub href: String,
}

/// What the server answers to a poll.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Base {
    #[serde(default)]
    config: Config,
    /// What there is to do.
    #[serde(default, rename = "_links")]
    pub links: Links,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Config {
    #[serde(default)]
    polling: Polling,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Polling {
    #[serde(default)]
    sleep: String,
}

/// What there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Links {
    /// The server wants the device's attributes.
    pub config_data: Option<Href>,
    /// An update.
    pub deployment_base: Option<Href>,
    /// An update is to be given up.
    pub cancel_action: Option<Href>,
    /// Somebody is to agree to an update.
    pub confirmation_base: Option<Href>,
}

impl Base {
    /// How long to wait until the next poll, as the server wishes.
    #[must_use]
    pub fn sleep(&self) -> Option<Duration> {
        hours_minutes_seconds(&self.config.polling.sleep)
    }
}

/// How a part of an update is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handling {
    /// Not yet.
    Skip,
    /// When it suits; there is nobody on this device to ask, so: now.
    Attempt,
    /// Now.
    Forced,
}

/// Whether the maintenance window is open. A word this version does not know is a closed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// Open.
    Available,
    /// Not open.
    #[serde(other)]
    Unavailable,
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Deployment {
    /// The action's id.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// What to do.
    pub deployment: Plan,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Whether to download.
    pub download: Handling,
    /// Whether to install.
    pub update: Handling,
    /// Whether now; absent: always.
    pub maintenance_window: Option<Window>,
    #[serde(default)]
    chunks: Vec<Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Chunk {
    #[serde(default)]
    artifacts: Vec<Artifact>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Artifact {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    hashes: Hashes,
    #[serde(default, rename = "_links")]
    links: BTreeMap<String, Href>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

/// The bundle of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Where it is.
    pub url: String,
    /// Its SHA-256, if the server says.
    pub sha256: Option<String>,
}

impl Plan {
    /// Whether the trial may begin.
    #[must_use]
    pub fn may_update(&self) -> bool {
        self.update != Handling::Skip && self.maintenance_window != Some(Window::Unavailable)
    }

    /// The one bundle in it; a code and a sentence when it is not one.
    pub fn choose(&self, base: &Url) -> Result<Chosen, (&'static str, String)> {
        let mut bundles = self
            .chunks
            .iter()
            .flat_map(|chunk| &chunk.artifacts)
            .filter(|artifact| artifact.filename.to_ascii_lowercase().ends_with(".imb"));
        let Some(one) = bundles.next() else {
            return Err(("no-bundle", "the distribution set has no artifact named *.imb".to_owned()));
        };
        if bundles.next().is_some() {
            let sentence = "the distribution set has several *.imb artifacts: put all models into one bundle";
            return Err(("several-bundles", sentence.to_owned()));
        }
        let links = ["download-http", "download"].into_iter().filter_map(|name| one.links.get(name));
        let mut why = ("no-link", "the bundle has no download link".to_owned());
        for link in links {
            match base.join(&link.href) {
                Ok(url) => {
                    let sha256 = one.hashes.sha256.clone().filter(|hash| hash.trim().len() == 64);
                    return Ok(Chosen { url: url.to_string(), sha256 });
                }
                Err(e @ crate::FetchError::HttpsUnsupported(_)) => why = ("https-unsupported", e.to_string()),
                Err(e) => why = ("bad-url", e.to_string()),
            }
        }
        Err(why)
    }
}

/// An update is to be given up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancel {
    /// The id of this wish.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// Which action.
    pub cancel_action: Stop,
}

/// Which action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// Its id.
    #[serde(deserialize_with = "id")]
    pub stop_id: String,
}

/// Somebody is to agree to an update.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Confirmation {
    /// The action's id.
    #[serde(deserialize_with = "id")]
    pub id: String,
}

/// An action's id: a short text, or a number.
fn id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(u64),
    }
    let text = match Id::deserialize(from)? {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    };
    let good = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if good { Ok(text) } else { Err(serde::de::Error::custom("not an action's id")) }
}

/// What the device says an action is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Execution {
    /// Over, well or not.
    Closed,
    /// Worked on.
    Proceeding,
    /// A wish to cancel cannot be met.
    Rejected,
    /// The download begins.
    Download,
    /// The download is complete.
    Downloaded,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finished {
    /// Well.
    Success,
    /// Not well.
    Failure,
    /// It has not.
    None,
}

/// Longest detail that is sent, in characters: the server's column has 512.
const LONGEST_DETAIL: usize = 500;

/// The body of a feedback.
#[must_use]
pub fn feedback(id: &str, execution: Execution, finished: Finished, details: &[String]) -> Vec<u8> {
    let details: Vec<String> =
        details.iter().map(|text| text.chars().take(LONGEST_DETAIL).collect()).collect();
    serde_json::json!({
        "id": id,
        "status": { "execution": execution, "result": { "finished": finished }, "details": details },
    })
    .to_string()
    .into_bytes()
}

/// The body of the device's attributes.
#[must_use]
pub fn config_data(attributes: &BTreeMap<String, String>) -> Vec<u8> {
    // The server's columns: keys of 32 (older) to 128 characters, values of 128.
    let data: BTreeMap<String, String> = attributes
        .iter()
        .map(|(key, value)| (key.chars().take(32).collect(), value.chars().take(128).collect()))
        .collect();
    serde_json::json!({ "mode": "replace", "data": data }).to_string().into_bytes()
}

/// The body of an agreement.
#[must_use]
pub fn confirmed() -> Vec<u8> {
    serde_json::json!({ "confirmation": "confirmed", "code": 1, "details": [] }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(chunks: serde_json::Value) -> Plan {
        serde_json::from_value(json!({ "download": "forced", "update": "attempt", "chunks": chunks }))
            .unwrap()
    }

    fn artifact(name: &str, links: serde_json::Value) -> serde_json::Value {
        json!({ "filename": name, "size": 5_000_000_000u64, "hashes": { "sha256": "a".repeat(64) }, "_links": links })
    }

    #[test]
    fn the_one_bundle_of_an_update_is_chosen() {
        let base = Url::parse("http://fleet/DEFAULT/controller/v1/a/deploymentBase/1").unwrap();
        let good = artifact(
            "M.IMB",
            json!({ "download": { "href": "https://x/m" }, "download-http": { "href": "http://x/m" } }),
        );
        let other = artifact("readme.txt", json!({}));
        let chosen =
            plan(json!([{ "part": "a", "artifacts": [other] }, { "part": "b", "artifacts": [good] }]))
                .choose(&base);
        assert_eq!(chosen, Ok(Chosen { url: "http://x/m".into(), sha256: Some("a".repeat(64)) }));
        for (artifacts, code) in [
            (json!([other]), "no-bundle"),
            (json!([good, good]), "several-bundles"),
            (json!([artifact("m.imb", json!({}))]), "no-link"),
            (
                json!([artifact("m.imb", json!({ "download": { "href": "https://x/m" } }))]),
                "https-unsupported",
            ),
            (json!([artifact("m.imb", json!({ "download": { "href": "ftp://x/m" } }))]), "bad-url"),
        ] {
            assert_eq!(plan(json!([{ "artifacts": artifacts }])).choose(&base).unwrap_err().0, code);
        }
    }

    #[test]
    fn an_update_waits_for_its_window() {
        for (update, window, may) in [
            ("attempt", None, true),
            ("forced", Some("available"), true),
            ("forced", Some("unavailable"), false),
            ("forced", Some("perhaps"), false),
            ("skip", None, false),
            ("skip", Some("available"), false),
        ] {
            let mut document = json!({ "download": "forced", "update": update });
            if let Some(window) = window {
                document["maintenanceWindow"] = json!(window);
            }
            let plan: Plan = serde_json::from_value(document).unwrap();
            assert_eq!(plan.may_update(), may, "{update} {window:?}");
        }
    }

    #[test]
    fn ids_are_short_words_or_numbers() {
        let id = |value: serde_json::Value| {
            serde_json::from_value::<Confirmation>(json!({ "id": value })).map(|document| document.id).ok()
        };
        assert_eq!(id(json!("12")), Some("12".into()));
        assert_eq!(id(json!(12)), Some("12".into()));
        for bad in [json!(""), json!("../x"), json!("a b"), json!(-1), json!(null), json!("a".repeat(65))] {
            assert_eq!(id(bad), None);
        }
    }

    #[test]
    fn a_poll_without_anything_is_no_mistake() {
        let base: Base = serde_json::from_str("{}").unwrap();
        assert_eq!((base.sleep(), base.links), (None, Links::default()));
    }

    #[test]
    fn details_fit_the_servers_columns() {
        let body = feedback("1", Execution::Closed, Finished::Failure, &["\u{e4}".repeat(900)]);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["status"]["details"][0].as_str().unwrap().chars().count(), 500);
        assert_eq!(body["status"]["result"]["finished"], "failure");
    }
}
