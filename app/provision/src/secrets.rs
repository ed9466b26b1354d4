//! Where keys and passphrases stand in a file, and what stands there once the device has them.

use crate::{Problem, decode::Text, file};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What stands in a file in place of a secret that the device keeps. Shorter than any secret may be, with its quotes.
pub const KEPT: &str = "(kept)";
/// This room's own secrets; the daemon's settings bring theirs.
pub const OWN: [&str; 1] = ["network.wifi.passphrase"];
/// A secret that is only the digest of one stays where it is.
const DIGEST: &str = "sha256:";

/// One value of a file that is a secret, or stands for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// `section.key`.
    pub key: String,
    /// Where its value stands in the text.
    pub span: Range<usize>,
    /// Whether it only stands for what the device keeps.
    pub kept: bool,
    /// Whether it is a list.
    list: bool,
}

/// Every secret of a file, in its order. `keys` are the names of settings that hold one.
///
/// # Errors
/// When the text is not TOML.
pub fn find(text: &str, keys: &[&str]) -> Result<Vec<Secret>, Problem> {
    let table = file::table(text)?;
    let mut found = Vec::new();
    look(table.get_ref(), "", keys, &mut found);
    found.sort_by_key(|secret: &Secret| secret.span.start);
    Ok(found)
}

fn look(table: &DeTable<'_>, before: &str, keys: &[&str], found: &mut Vec<Secret>) {
    for (name, value) in table {
        let key = if before.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{before}.{}", name.get_ref())
        };
        if let Some(inner) = value.get_ref().as_table() {
            look(inner, &key, keys, found);
        } else if keys.contains(&key.as_str()) || OWN.contains(&key.as_str()) {
            found.extend(secret(key, value));
        }
    }
}

fn secret(key: String, value: &Spanned<DeValue<'_>>) -> Option<Secret> {
    let (texts, list): (Vec<&str>, bool) = match value.get_ref() {
        DeValue::String(text) => (vec![text], false),
        DeValue::Array(items) => (items.iter().filter_map(|item| item.get_ref().as_str()).collect(), true),
        _ => return None,
    };
    if texts.iter().all(|text| text.is_empty() || text.starts_with(DIGEST)) {
        return None;
    }
    let kept = texts.iter().all(|text| *text == KEPT);
    Some(Secret { key, span: value.span(), kept, list })
}

/// A file in which what stands for a secret is what the device has kept; keys of what it has not, beside it. Those are as if empty.
///
/// # Errors
/// When the text is not TOML.
pub fn filled(text: &str, before: Option<&str>, keys: &[&str]) -> Result<(String, Vec<String>), Problem> {
    let had = before.and_then(|text| Some((text, find(text, keys).ok()?)));
    let (mut whole, mut lost) = (text.to_owned(), Vec::new());
    for secret in find(text, keys)?.iter().rev().filter(|secret| secret.kept) {
        let kept = had.as_ref().and_then(|(text, secrets)| {
            secrets.iter().find(|s| s.key == secret.key && !s.kept).map(|s| &text[s.span.clone()])
        });
        match kept {
            Some(literal) => whole.replace_range(secret.span.clone(), literal),
            None => {
                whole.replace_range(secret.span.clone(), if secret.list { "[]" } else { "\"\"" });
                lost.push(secret.key.clone());
            }
        }
    }
    lost.reverse();
    Ok((whole, lost))
}

/// A file with something that every secret may be in place of each that is kept, and the keys of those.
///
/// # Errors
/// When the text is not TOML.
pub fn as_if_kept(text: &str, keys: &[&str]) -> Result<(String, Vec<String>), Problem> {
    const ANY: &str = "\"0123456789abcdef0123456789abcdef\"";
    let (mut whole, mut kept) = (text.to_owned(), Vec::new());
    for secret in find(text, keys)?.into_iter().rev().filter(|secret| secret.kept) {
        let any = if secret.list { format!("[{ANY}]") } else { ANY.to_owned() };
        whole.replace_range(secret.span, &any);
        kept.push(secret.key);
    }
    kept.reverse();
    Ok((whole, kept))
}

/// Bytes of a file that change in place.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Patch {
    /// Where.
    pub at: usize,
    /// What stands there.
    pub was: Vec<u8>,
    /// What shall stand there, as many bytes.
    pub is: Vec<u8>,
}

/// What takes the secrets out of a file as it was written, without moving anything else.
///
/// # Errors
/// When it is not TOML, or a secret has less room than what shall stand for it.
pub fn patches(text: &Text, bytes: &[u8], keys: &[&str]) -> Result<Vec<Patch>, Problem> {
    let mut patches = Vec::new();
    for secret in find(&text.text, keys)?.iter().filter(|secret| !secret.kept) {
        let place = text.bytes_of(secret.span.clone());
        let literal = if secret.list { format!("[\"{KEPT}\"]") } else { format!("\"{KEPT}\"") };
        let (mut is, blank) = (text.encode(&literal), text.encode(" "));
        let was = bytes.get(place.clone()).unwrap_or_default().to_vec();
        if is.len() > was.len() {
            let line = file::line_of(&text.text, secret.span.start);
            return Err(Problem::at(line, format!("{} is shorter than a secret can be.", secret.key)));
        }
        while is.len() < was.len() {
            is.extend(&blank);
        }
        // A letter beyond ASCII may leave a piece of a blank over; such a secret was never allowed.
        is.truncate(was.len());
        patches.push(Patch { at: place.start, was, is });
    }
    Ok(patches)
}
