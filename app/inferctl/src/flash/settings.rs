//! What is put on the card for the first boot: a file as it is, or one made of what the command line says.

use super::{error::FlashError, provision::MAX};
use crate::{files, key};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

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
            keys.extend(lines.map(|line| Value::from(line.to_owned())));
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

/// What the device itself would say of its sections. What the daemon's settings mean is judged by the device, which says it on the FAT.
fn check(text: &str) -> Result<(), String> {
    inferd_provision::file::parse(text).map(|_| ()).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        all.join("; ")
    })
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
