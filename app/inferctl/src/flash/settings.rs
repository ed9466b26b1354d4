//! What is put on the card for the first boot: a file as it is, or one made of what the command line says.

use super::{error::FlashError, provision::MAX};
use crate::{files, key};
use inferd_provision::{Problem, file::shown, secrets::KEPT};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::{Spanned, Table, Value, de::DeValue};

/// What the command line says of the device's configuration.
#[derive(Debug, Default)]
pub struct Settings<'a> {
    /// A whole file.
    pub file: Option<&'a Path>,
    pub hostname: Option<&'a str>,
    /// Files of public keys.
    pub ssh_keys: &'a [PathBuf],
    /// A key of the HTTP interface; its digest is put on the card.
    pub api_key: Option<&'a str>,
}

impl Settings<'_> {
    /// The configuration, checked; `None` where nothing was said. A file alone stays as it is, to the byte.
    ///
    /// # Errors
    /// [`FlashError::Provision`].
    pub fn compose(&self) -> Result<Option<Vec<u8>>, FlashError> {
        let path = self.file.unwrap_or(Path::new("inferd.toml"));
        let failed = |why: String| FlashError::Provision { path: path.to_owned(), why };
        let bytes =
            self.file.map(|file| files::read(file, MAX).map_err(|e| failed(e.to_string()))).transpose()?;
        let given = self.given().map_err(failed)?;
        let mut text = bytes.as_deref().map(decoded).transpose().map_err(failed)?.unwrap_or_default();
        if bytes.is_none() && given.is_empty() {
            return Ok(None);
        }
        check(&text).map_err(failed)?;
        if given.is_empty() {
            return Ok(bytes);
        }
        let mut table: Table = text.parse().map_err(|e| failed(format!("it is not TOML: {e}")))?;
        for (section, name, value) in given {
            let section_of = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(keys) = section_of else {
                return Err(failed(format!(
                    "{section} is a section: write [{section}] on a line of its own"
                )));
            };
            if keys.insert(name.to_owned(), value).is_some() {
                return Err(failed(format!("it says {section}.{name} itself; say it once")));
            }
        }
        text = table.to_string();
        check(&text).map_err(failed)?;
        Ok(Some(text.into_bytes()))
    }

    fn given(&self) -> Result<Vec<(&'static str, &'static str, Value)>, String> {
        let mut given = Vec::new();
        if let Some(name) = self.hostname {
            given.push(("device", "hostname", name.into()));
        }
        let mut keys = Vec::new();
        for file in self.ssh_keys {
            let bytes = files::read(file, MAX).map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if text.contains("PRIVATE KEY") {
                return Err(format!(
                    "{} is a private key: name the .pub beside it, and keep this one",
                    file.display()
                ));
            }
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            for line in lines {
                // Not shown: who names a wrong file may have named one with secrets.
                if inferd_provision::file::ssh_key(line).is_none() {
                    return Err(format!(
                        "{} holds something else than public keys of SSH: name a .pub, as ssh-keygen makes it",
                        file.display()
                    ));
                }
                keys.push(Value::from(line.to_owned()));
            }
        }
        if !self.ssh_keys.is_empty() {
            given.push(("ssh", "authorized_keys", keys.into()));
        }
        if let Some(key) = self.api_key {
            given.push(("security", "api_key", key::stored(key)?.into()));
        }
        Ok(given)
    }
}

fn decoded(bytes: &[u8]) -> Result<String, String> {
    inferd_provision::decode::Text::of(bytes).map(|text| text.text)
}

/// The daemon's settings with their defaults, as every image has them.
const REFERENCE: &str = include_str!("../../../../rootfs-overlay/etc/inferd/inferd.toml");

/// What the device would refuse of it: all of its own sections, and of the daemon's a section or a key that does not exist. What their
/// values mean is judged by the device, which says it on the FAT.
fn check(text: &str) -> Result<(), String> {
    let mut problems = inferd_provision::file::parse(text).err().unwrap_or_default();
    if let Ok(table) = inferd_provision::file::table(text) {
        let at = |span: Range<usize>| inferd_provision::file::line_of(text, span.start);
        let known = reference();
        for (name, value) in table.get_ref() {
            let section: &str = name.get_ref();
            if let Some(place) = kept(value) {
                let says = format!(
                    "{KEPT} is what a device keeps, and a card that is flashed has nothing to keep: write the value"
                );
                problems.push(Problem::at(at(place), says));
            }
            if inferd_provision::SECTIONS.contains(&section) {
                continue;
            }
            if section == "security" {
                for (place, why) in bad_keys(value) {
                    problems.push(Problem::at(at(place), why));
                }
            }
            let Some(keys) = known.get(section) else {
                let all = known.keys().copied().chain(inferd_provision::SECTIONS);
                let hint = inferd_provision::nearest(section, all);
                problems.push(Problem::at(
                    at(name.span()),
                    format!("there is no section {}{hint}", shown(section)),
                ));
                continue;
            };
            for (key, _) in value
                .get_ref()
                .as_table()
                .into_iter()
                .filter(|_| !keys.is_empty())
                .flat_map(|table| table.iter())
            {
                let key_name: &str = key.get_ref();
                if !keys.contains(key_name) {
                    let hint = inferd_provision::nearest(key_name, keys.iter().copied());
                    let says = format!("there is no setting {section}.{}{hint}", shown(key_name));
                    problems.push(Problem::at(at(key.span()), says));
                }
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.sort_by_key(|problem| problem.line);
    let all: Vec<String> =
        problems.iter().map(|problem| problem.to_string().trim_end_matches('.').to_owned()).collect();
    Err(all.join("; "))
}

/// Sections of the reference with their keys. What stands before the first section has none: tables of any keys.
fn reference() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let (mut known, mut section) = (BTreeMap::<_, BTreeSet<_>>::new(), None);
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = Some(name);
            known.entry(name).or_default();
        }
        let key = line.strip_prefix('#').and_then(|line| line.split_once(" = ")).map(|(key, _)| key);
        let Some(key) =
            key.filter(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        else {
            continue;
        };
        match section {
            Some(section) => _ = known.entry(section).or_default().insert(key),
            None => _ = known.entry(key).or_default(),
        }
    }
    known
}

/// API keys that no device takes, as an example's dots: the one mistake in values that would leave a device without its owner.
fn bad_keys(section: &Spanned<DeValue<'_>>) -> Vec<(Range<usize>, String)> {
    let texts = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::String(text) => vec![(value.span(), text.to_string())],
        DeValue::Array(items) => {
            items.iter().filter_map(|item| Some((item.span(), item.get_ref().as_str()?.to_owned()))).collect()
        }
        _ => Vec::new(),
    };
    let named = |name: &str| name == "api_key" || name.ends_with("_keys");
    section
        .get_ref()
        .as_table()
        .into_iter()
        .flat_map(|table| table.iter())
        .filter(|(name, _)| named(name.get_ref()))
        .flat_map(|(_, value)| texts(value))
        .filter(|(_, text)| !text.is_empty() && text != KEPT)
        .filter_map(|(place, text)| {
            let why = key::stored(&text).err()?;
            Some((place, format!("{why}; `inferctl key new` draws one")))
        })
        .collect()
}

/// Where something is said to be kept.
fn kept(value: &Spanned<DeValue<'_>>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::String(text) => (text == KEPT).then(|| value.span()),
        DeValue::Array(items) => items.iter().find_map(kept),
        DeValue::Table(table) => table.iter().find_map(|(_, value)| kept(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composed(settings: &Settings<'_>) -> Result<String, String> {
        let bytes = settings.compose().map_err(|e| e.to_string())?;
        Ok(String::from_utf8(bytes.unwrap_or_default()).unwrap())
    }

    #[test]
    fn what_the_command_line_says_stands_beside_what_the_file_says_and_never_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (file, key) = (folder.path().join("a.toml"), folder.path().join("id.pub"));
        std::fs::write(&file, "# as it is\n[device]\ntimezone = \"Europe/Berlin\"\n").unwrap();
        let public =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBESExQVFhcYGRobHB0eHyAhIiMkJSYnKCkqKywtLi8w me@laptop";
        std::fs::write(&key, format!("\n{public}\n")).unwrap();
        let mut settings = Settings { file: Some(&file), ..Settings::default() };
        assert_eq!(composed(&settings).unwrap(), std::fs::read_to_string(&file).unwrap(), "to the byte");
        let keys = [key.clone()];
        settings.ssh_keys = &keys;
        settings.hostname = Some("collar");
        settings.api_key = Some("0123456789abcdef");
        let table: Table = composed(&settings).unwrap().parse().unwrap();
        assert_eq!(table["device"]["hostname"].as_str(), Some("collar"));
        assert_eq!(table["device"]["timezone"].as_str(), Some("Europe/Berlin"));
        assert_eq!(table["ssh"]["authorized_keys"][0].as_str(), Some(public));
        let stored = table["security"]["api_key"].as_str().unwrap();
        assert!(stored.starts_with("sha256:") && !stored.contains("0123456789abcdef"), "{stored}");
        std::fs::write(&file, "[device]\nhostname = \"other\"\n").unwrap();
        assert!(composed(&settings).unwrap_err().contains("say it once"));
        std::fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        let settings = Settings { ssh_keys: &keys, ..Settings::default() };
        assert!(composed(&settings).unwrap_err().contains("private key"));
    }

    #[test]
    fn sections_and_keys_of_the_daemon_are_known_and_nothing_is_kept_on_a_new_card() {
        let open: String = REFERENCE
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line).to_owned() + "\n"
            })
            .collect();
        assert!(open.contains("\nself_signed = false\n"), "{open}");
        check(&open).unwrap();
        check("[[sources]]\nname = \"arm\"\nkind = \"push\"\n[device]\nhostname = \"x\"\n").unwrap();
        for (text, says) in [
            (
                "\n[secuirty]\napi_key = \"x\"\n",
                "line 2: there is no section secuirty; did you mean security?",
            ),
            ("[Device]\n", "there is no section Device; did you mean device?"),
            ("hostname = \"x\"\n", "line 1: there is no section hostname"),
            (
                "[tls]\nself_singed = true\n",
                "line 2: there is no setting tls.self_singed; did you mean self_signed?",
            ),
            ("[security]\nadmin_keys = [\"(kept)\"]\n", "line 2: (kept) is what a device keeps"),
            (
                "[security]\nadmin_keys = [\"...\"]\n",
                "line 2: a key is 16 to 256 printable characters; `inferctl key new`",
            ),
            ("[security]\n\napi_key = \"short\"\n", "line 3: a key is"),
            ("[network.wifi]\nssid = \"x\"\npassphrase = \"(kept)\"\n", "line 3: (kept)"),
        ] {
            let said = check(text).unwrap_err();
            assert!(said.contains(says), "{text} -> {said}");
        }
    }

    #[test]
    fn what_the_device_would_refuse_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        let settings = Settings { file: Some(&file), ..Settings::default() };
        std::fs::write(&file, "[device]\nhostnam = \"x\"\n").unwrap();
        let said = composed(&settings).unwrap_err();
        assert!(said.contains("line 2") && said.contains("hostname"), "{said}");
        std::fs::write(&file, b"# B\xfcro\r\n[device]\r\nhostname = \"x\"\r\n").unwrap();
        settings.compose().unwrap().unwrap();
    }

    #[test]
    fn nothing_said_is_nothing_on_the_card_and_a_short_key_is_none() {
        assert_eq!(Settings::default().compose().unwrap(), None);
        assert!(composed(&Settings { api_key: Some("short"), ..Settings::default() }).is_err());
    }
}
