//! The layers a setting can come from, and the reader that takes each setting from the topmost one that has it.
//!
//! A setting is declared by the one call that reads it: its key, its default, its allowed values and its meaning stand
//! together there, so the reference in README.md, `--print-config` and the checks cannot disagree. A variable that is set to
//! nothing counts as not set: that is how compose files leave one out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// Prefix of the environment variables that are this program's own.
pub const ENV_PREFIX: &str = "INFERD_";

/// Where a value was found, the topmost layer first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An argument of the command line.
    Argument(&'static str),
    /// An environment variable.
    Environment(String),
    /// The configuration file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the value, from 1.
        line: usize,
    },
    /// Nothing was said.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(name) => write!(f, "argument {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value before it is understood.
#[derive(Clone, Debug, PartialEq)]
enum Raw {
    /// Text that may stand for anything: from the environment or the command line.
    Text(String),
    String(String),
    Integer(String),
    Boolean(bool),
    List(Vec<Raw>),
    /// `[[key]]`, at the top of the file.
    Tables(Vec<toml::Value>),
    /// A TOML type that no setting has.
    Other(&'static str),
}

impl Raw {
    fn from_toml(value: &toml::de::DeValue<'_>) -> Self {
        use toml::de::DeValue;
        match value {
            DeValue::String(s) => Self::String(s.to_string()),
            DeValue::Integer(i) => Self::Integer(match i.radix() {
                10 => i.as_str().to_owned(),
                radix => i64::from_str_radix(i.as_str(), radix)
                    .map_or_else(|_| i.as_str().to_owned(), |n| n.to_string()),
            }),
            DeValue::Boolean(b) => Self::Boolean(*b),
            DeValue::Array(items) => Self::List(items.iter().map(|v| Self::from_toml(v.get_ref())).collect()),
            other => Self::Other(other.type_str()),
        }
    }

    /// As the operator wrote it, for messages.
    fn shown(&self) -> String {
        match self {
            Self::Text(s) | Self::String(s) => format!("{s:?}"),
            Self::Integer(s) => s.clone(),
            Self::Boolean(b) => b.to_string(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(Self::shown).collect::<Vec<_>>().join(", "))
            }
            Self::Tables(tables) => format!("{} tables", tables.len()),
            Self::Other(kind) => format!("a TOML {kind}"),
        }
    }
}

/// The configuration file, taken apart but not understood.
#[derive(Debug, Default)]
pub struct FileLayer {
    path: PathBuf,
    /// `section.key` to its value and line.
    values: BTreeMap<String, (Raw, usize)>,
}

impl FileLayer {
    /// Takes a configuration file apart.
    ///
    /// # Errors
    /// When the text is not TOML: one sentence with file and line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let line_at =
            |offset: usize| text.as_bytes()[..offset.min(text.len())].split(|b| *b == b'\n').count();
        let table = toml::de::DeTable::parse(text).map_err(|e| {
            let line = e.span().map_or(1, |s| line_at(s.start));
            format!("{}:{line}: this is not TOML: {}.", path.display(), e.message())
        })?;
        let mut values = BTreeMap::new();
        for (section, content) in table.get_ref() {
            let Some(keys) = content.get_ref().as_table() else {
                let raw = tables(text, section.get_ref());
                values.insert(
                    section.get_ref().to_string(),
                    (raw.unwrap_or_else(|| Raw::from_toml(content.get_ref())), line_at(section.span().start)),
                );
                continue;
            };
            for (key, value) in keys {
                values.insert(
                    format!("{}.{}", section.get_ref(), key.get_ref()),
                    (Raw::from_toml(value.get_ref()), line_at(key.span().start)),
                );
            }
        }
        Ok(Self { path: path.to_owned(), values })
    }
}

/// The tables of an array of tables at the top of a file.
fn tables(text: &str, key: &str) -> Option<Raw> {
    let toml::Value::Array(items) = toml::from_str::<toml::Table>(text).ok()?.remove(key)? else {
        return None;
    };
    items.iter().all(toml::Value::is_table).then_some(Raw::Tables(items))
}

/// What a list holds.
fn items(raw: &Raw) -> Option<Vec<String>> {
    match raw {
        Raw::Text(s) => {
            Some(s.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect())
        }
        Raw::String(s) => Some(vec![s.clone()]),
        Raw::List(items) => items
            .iter()
            .map(|i| match i {
                Raw::String(s) | Raw::Text(s) => Some(s.clone()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// 16 to 256 printable characters.
fn good_secret(s: &str) -> bool {
    s.len() >= 16 && s.len() <= 256 && s.bytes().all(|b| b.is_ascii_graphic())
}

/// One setting as it came out.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `section.key`.
    pub key: &'static str,
    /// The value in TOML, `"(set)"` for a secret.
    pub value: String,
    /// Where it came from.
    pub source: Source,
    /// The default in TOML.
    pub default: String,
    /// Which values are allowed, in words.
    pub allowed: String,
    /// What it does.
    pub meaning: &'static str,
    /// Whether its value is never shown.
    pub secret: bool,
}

impl Entry {
    /// The environment variable of this setting: `INFERD_SECTION_KEY`.
    #[must_use]
    pub fn env(&self) -> String {
        env_name(self.key)
    }
}

/// The environment variable of a key: `INFERD_SECTION_KEY`.
#[must_use]
pub fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('.', "_"))
}

/// Takes settings from the layers and remembers what it saw.
#[derive(Debug, Default)]
pub struct Reader {
    arguments: BTreeMap<&'static str, (&'static str, Vec<String>)>,
    environment: BTreeMap<String, String>,
    /// Values under other names than `INFERD_*`, already translated: key to (text, name of the variable).
    translated: BTreeMap<&'static str, (String, String)>,
    file: FileLayer,
    entries: Vec<Entry>,
    problems: Vec<String>,
}

impl Reader {
    /// A reader over these layers; `environment` holds every variable of the process.
    #[must_use]
    pub fn new(
        arguments: BTreeMap<&'static str, (&'static str, Vec<String>)>,
        environment: BTreeMap<String, String>,
        translated: BTreeMap<&'static str, (String, String)>,
        file: FileLayer,
    ) -> Self {
        Self { arguments, environment, translated, file, ..Self::default() }
    }

    /// A whole number within a range.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        meaning: &'static str,
    ) -> u64 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.setting(key, default, allowed, meaning, u64::to_string, |raw| {
            let digits = match raw {
                Raw::Text(s) => s.trim(),
                Raw::Integer(s) => s.as_str(),
                _ => return None,
            };
            digits.parse().ok().filter(|n| range.contains(n))
        })
    }

    /// Yes or no.
    pub fn boolean(&mut self, key: &'static str, default: bool, meaning: &'static str) -> bool {
        self.setting(key, default, "true or false".into(), meaning, bool::to_string, |raw| match raw {
            Raw::Boolean(b) => Some(*b),
            Raw::Text(s) => match s.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        })
    }

    /// One of a few words, in any case of letters.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&'static str, T)],
        meaning: &'static str,
    ) -> T {
        let allowed = words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
        let show = |value: &T| {
            let word = words.iter().find(|(_, v)| v == value).map_or("", |(w, _)| *w);
            quoted(word)
        };
        self.setting(key, default, format!("one of {allowed}"), meaning, show, |raw| {
            let (Raw::Text(s) | Raw::String(s)) = raw else { return None };
            let word = s.trim().to_ascii_lowercase();
            words.iter().find(|(w, _)| *w == word).map(|(_, v)| *v)
        })
    }

    /// Text that `parse` accepts; empty text means "not set" and never reaches `parse`.
    pub fn text<T>(
        &mut self,
        key: &'static str,
        default: &str,
        allowed: &str,
        meaning: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.setting(
            key,
            default.to_owned(),
            format!("{allowed}, or empty"),
            meaning,
            |s| quoted(s),
            |raw| match raw {
                Raw::Text(s) | Raw::String(s) if s.is_empty() || parse(s).is_some() => Some(s.clone()),
                _ => None,
            },
        );
        if text.is_empty() { None } else { parse(&text) }
    }

    /// Like [`Reader::text`], but never shown: neither in messages, nor in the printed configuration, nor in its hash.
    pub fn secret(&mut self, key: &'static str, allowed: &str, meaning: &'static str) -> Option<String> {
        let show = |s: &String| quoted(if s.is_empty() { "" } else { "(set)" });
        let text =
            self.never_shown(key, String::new(), format!("{allowed}, or empty"), meaning, show, |raw| {
                match raw {
                    Raw::Text(s) | Raw::String(s) if s.is_empty() || good_secret(s) => Some(s.clone()),
                    _ => None,
                }
            });
        if text.is_empty() { None } else { Some(text) }
    }

    /// A list of secrets that `good` accepts, none of them ever shown. In the environment they are separated by commas.
    pub fn secrets(
        &mut self,
        key: &'static str,
        allowed: &str,
        meaning: &'static str,
        good: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let show = |items: &Vec<String>| format!("[{}]", vec![quoted("(set)"); items.len()].join(", "));
        self.never_shown(key, Vec::new(), allowed.to_owned(), meaning, show, |raw| {
            let items = items(raw)?;
            items.iter().all(|s| good_secret(s) && !s.contains(',') && good(s)).then_some(items)
        })
    }

    /// A setting whose value no message repeats.
    fn never_shown<T>(
        &mut self,
        key: &'static str,
        default: T,
        allowed: String,
        meaning: &'static str,
        show: impl Fn(&T) -> String,
        parse: impl Fn(&Raw) -> Option<T>,
    ) -> T {
        let problems = self.problems.len();
        let value = self.setting(key, default, allowed.clone(), meaning, show, parse);
        if let Some(entry) = self.entries.last_mut() {
            entry.secret = true;
        }
        if let Some(problem) = self.problems.get_mut(problems) {
            let source = self.entries.last().map(|e| e.source.to_string()).unwrap_or_default();
            *problem = format!("{key} from {source} is not allowed: {allowed}.");
        }
        value
    }

    /// A list of at least so many items; in the environment they are separated by commas.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        at_least: usize,
        default: &[&str],
        allowed: &str,
        meaning: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let items = self.setting(
            key,
            default.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
            allowed.to_owned(),
            meaning,
            |items| format!("[{}]", items.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ")),
            |raw| {
                let items = items(raw)?;
                (items.len() >= at_least && items.iter().all(|s| parse(s).is_some())).then_some(items)
            },
        );
        items.iter().filter_map(|s| parse(s)).collect()
    }

    /// Tables of one form each, none where nothing is said; `parse` says what is wrong with one. In the environment they are an array of inline
    /// tables.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        most: usize,
        allowed: &str,
        meaning: &'static str,
        parse: impl Fn(&toml::Value) -> Result<T, String>,
    ) -> Vec<T> {
        let (raw, source) = self.find(key);
        let found = match raw {
            None => Some(Vec::new()),
            Some(Raw::Tables(found)) => Some(found),
            Some(Raw::List(none)) if none.is_empty() => Some(Vec::new()),
            Some(Raw::Text(text)) => match tables(&format!("{key} = {text}"), key) {
                Some(Raw::Tables(found)) => Some(found),
                _ => None,
            },
            Some(_) => None,
        };
        let found = found.filter(|found| found.len() <= most).unwrap_or_else(|| {
            self.problems.push(format!("{key} (from {source}): allowed is {allowed}."));
            Vec::new()
        });
        let mut values = Vec::new();
        for (i, table) in found.iter().enumerate() {
            match parse(table) {
                Ok(value) => values.push(value),
                Err(why) => self.problems.push(format!("{key}[{i}] (from {source}): {why}.")),
            }
        }
        self.entries.push(Entry {
            key,
            value: toml::Value::Array(found).to_string(),
            source,
            default: "[]".to_owned(),
            allowed: allowed.to_owned(),
            meaning,
            secret: false,
        });
        values
    }

    /// Something that no single value shows.
    pub fn problem(&mut self, sentence: String) {
        self.problems.push(sentence);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every value that is not allowed, one sentence each.
    pub fn finish(self) -> Result<(Vec<Entry>, Vec<String>), Vec<String>> {
        if self.problems.is_empty() {
            let unknown = self.unknown();
            Ok((self.entries, unknown))
        } else {
            Err(self.problems)
        }
    }

    /// What stands in a layer and is no setting, one sentence each.
    fn unknown(&self) -> Vec<String> {
        let keys: BTreeSet<&str> = self.entries.iter().map(|e| e.key).collect();
        let names: BTreeSet<String> = self.entries.iter().map(Entry::env).collect();
        // The sections of the first boot are not the daemon's.
        let elsewhere = |key: &str| {
            key.split('.').next().is_some_and(|section| inferd_provision::SECTIONS.contains(&section))
        };
        let strange =
            self.file.values.iter().filter(|(key, _)| !keys.contains(key.as_str()) && !elsewhere(key));
        let in_file = strange.map(|(key, (_, line))| {
            let hint = nearest(key, keys.iter().copied());
            format!("{}:{line}{UNKNOWN}{key} is ignored{hint}", self.file.path.display())
        });
        let in_environment = self
            .environment
            .keys()
            .filter(|name| {
                name.starts_with(ENV_PREFIX) && !names.contains(*name) && !ELSEWHERE.contains(&name.as_str())
            })
            .map(|name| {
                let hint = nearest(name, names.iter().map(String::as_str));
                format!("environment: unknown variable {name} is ignored{hint}")
            });
        in_file.chain(in_environment).collect()
    }

    fn find(&self, key: &'static str) -> (Option<Raw>, Source) {
        if let Some((name, values)) = self.arguments.get(key) {
            let mut items: Vec<Raw> = values.iter().cloned().map(Raw::String).collect();
            // One value may stand for a list or for itself.
            let raw = if items.len() == 1 { items.remove(0) } else { Raw::List(items) };
            return (Some(raw), Source::Argument(name));
        }
        let name = env_name(key);
        if let Some(text) = self.environment.get(&name).filter(|text| !text.trim().is_empty()) {
            return (Some(Raw::Text(text.clone())), Source::Environment(name));
        }
        if let Some((text, name)) = self.translated.get(key) {
            return (Some(Raw::Text(text.clone())), Source::Environment(name.clone()));
        }
        if let Some((raw, line)) = self.file.values.get(key) {
            return (Some(raw.clone()), Source::File { path: self.file.path.clone(), line: *line });
        }
        (None, Source::Default)
    }

    fn setting<T>(
        &mut self,
        key: &'static str,
        default: T,
        allowed: String,
        meaning: &'static str,
        show: impl Fn(&T) -> String,
        parse: impl Fn(&Raw) -> Option<T>,
    ) -> T {
        let (raw, source) = self.find(key);
        let default_shown = show(&default);
        let value = match raw {
            None => default,
            Some(raw) => match parse(&raw) {
                Some(value) => value,
                None => {
                    self.problems
                        .push(format!("{key} is {} (from {source}), allowed is {allowed}.", raw.shown()));
                    default
                }
            },
        };
        self.entries.push(Entry {
            key,
            value: show(&value),
            source,
            default: default_shown,
            allowed,
            meaning,
            secret: false,
        });
        value
    }
}

/// Variables with our prefix that are read before the configuration (the first), that the keeper gives its daemon (the next two), or that are
/// read by `inferctl` or by what stands in scripts/ and tests/: a shell that has them set is no mistake.
const ELSEWHERE: [&str; 13] = [
    "INFERD_CONFIG",
    inferd_watch::ask::SOCKET_VARIABLE,
    inferd_watch::journal::VARIABLE,
    "INFERD_URL",
    "INFERD_API_KEY",
    "INFERD_BIN",
    "INFERD_BUILD_ID",
    "INFERD_CACHE",
    "INFERD_DEBIAN_MIRROR",
    "INFERD_IMAGE_ID",
    "INFERD_IMAGE_VERSION",
    "INFERD_NO_RUSTUP",
    "INFERD_TEST_BOARD",
];

/// The end of the sentence: `; did you mean X?` when something is near, else a full stop.
fn nearest<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> String {
    let tail = |s: &str| s.rsplit('.').next().unwrap_or(s).to_owned();
    among
        .map(|candidate| {
            let whole = strsim::damerau_levenshtein(name, candidate);
            // A key that stands in the wrong section is as near as its own name.
            let moved = 1 + strsim::damerau_levenshtein(&tail(name), &tail(candidate));
            (whole.min(moved), candidate)
        })
        .min()
        // Of a short name no more than half may differ, or it is near to everything.
        .filter(|(distance, _)| *distance <= 3.min(tail(name).len() / 2))
        .map_or_else(|| ".".to_owned(), |(_, candidate)| format!("; did you mean {candidate}?"))
}

/// Text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Before the name, in the sentence about one that nobody knows.
const UNKNOWN: &str = ": unknown key ";

/// The key that such a sentence is about.
pub fn unknown_key(said: &str) -> Option<&str> {
    said.split_once(UNKNOWN)?.1.split(' ').next()
}
