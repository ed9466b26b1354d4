//! What a device may be called, what comes next when somebody else is called so, and what it says of itself.

use crate::wire::encode;

/// The longest label, in bytes.
const MAX_LABEL: usize = 63;
/// The longest property, in bytes.
const MAX_PROPERTY: usize = 255;
/// All properties together with their lengths, in bytes: what RFC 6763 (section 6.2) calls small.
pub const MAX_PROPERTIES: usize = 400;
/// The first part of a host name without one.
const NO_NAME: &str = "inferd";

/// What is to be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name people see, as they wrote it.
    pub name: String,
    /// The host name of this machine.
    pub host: String,
    /// Where the service listens.
    pub port: u16,
    /// What it says of itself.
    pub properties: Properties,
}

/// Keys and values of the TXT record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(Vec<u8>);

impl Properties {
    /// The most important first: what has no place any more is left out, and so is what is too long or holds control characters.
    #[must_use]
    pub fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in pairs {
            let pair = format!("{key}={value}");
            let fits = pair.len() <= MAX_PROPERTY && bytes.len() + 1 + pair.len() <= MAX_PROPERTIES;
            if let (Ok(length), true) = (u8::try_from(pair.len()), fits && !pair.contains(char::is_control)) {
                bytes.push(length);
                bytes.extend(pair.bytes());
            }
        }
        Self(bytes)
    }

    /// As the TXT record has them; one empty one where there are none.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        if self.0.is_empty() { &[0] } else { &self.0 }
    }
}

/// At most this many bytes of it, cut between two characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What HOST is called in `HOST.local`: the first part of the host name, of letters, digits and hyphens.
#[must_use]
pub fn host_label(hostname: &str) -> String {
    let first = hostname.split('.').next().unwrap_or_default();
    let allowed: String = first.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    match cut(allowed.trim_matches('-'), MAX_LABEL) {
        "" => NO_NAME.to_owned(),
        label => label.to_owned(),
    }
}

/// What people see: as it was written, without control characters.
fn instance_label(name: &str) -> String {
    let printable: String = name.chars().filter(|c| !c.is_control()).collect();
    match cut(printable.trim(), MAX_LABEL).trim_end() {
        "" => NO_NAME.to_owned(),
        label => label.to_owned(),
    }
}

/// A name that may have to give way: the first is as wanted, others have a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    base: String,
    number: u32,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `Name (2)`
    Instance,
    /// `name-2`
    Host,
}

impl Claim {
    /// On the name people see.
    #[must_use]
    pub fn instance(wanted: &str) -> Self {
        Self { base: instance_label(wanted), number: 1, form: Form::Instance }
    }

    /// On a host name.
    #[must_use]
    pub fn host(wanted: &str) -> Self {
        Self { base: host_label(wanted), number: 1, form: Form::Host }
    }

    /// Somebody else is called so.
    pub fn give_way(&mut self) {
        self.number = if self.number >= 9999 { 2 } else { self.number + 1 };
    }

    /// Whether it is the one that was wanted.
    #[must_use]
    pub fn is_first_choice(&self) -> bool {
        self.number == 1
    }

    /// The name.
    #[must_use]
    pub fn label(&self) -> String {
        let number = match (self.number, self.form) {
            (1, _) => return self.base.clone(),
            (n, Form::Instance) => format!(" ({n})"),
            (n, Form::Host) => format!("-{n}"),
        };
        format!("{}{number}", cut(&self.base, MAX_LABEL - number.len()))
    }
}

/// `LABEL.rest` as the wire has it.
pub(crate) fn under(label: &str, rest: &[&str]) -> Vec<u8> {
    let labels: Vec<&[u8]> = std::iter::once(label).chain(rest.iter().copied()).map(str::as_bytes).collect();
    encode(&labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_what_the_domain_name_system_takes() {
        assert_eq!(host_label("inferd-a1b2c3"), "inferd-a1b2c3");
        assert_eq!(host_label("bench.lab.example"), "bench");
        assert_eq!(host_label("-Küche_1-"), "Kche1");
        assert_eq!(host_label(""), "inferd");
        assert_eq!(host_label(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn a_name_that_gives_way_gets_a_number_and_stays_within_its_length() {
        let mut claim = Claim::instance("Küche\n");
        assert_eq!(claim.label(), "Küche");
        claim.give_way();
        assert_eq!((claim.label(), claim.is_first_choice()), ("Küche (2)".into(), false));
        let mut long = Claim::instance(&"ü".repeat(40));
        assert_eq!(long.label().len(), 62);
        (0..20).for_each(|_| long.give_way());
        assert!(long.label().ends_with("ü (21)") && long.label().len() <= 63, "{}", long.label());
        let mut host = Claim::host("bench");
        host.give_way();
        assert_eq!(host.label(), "bench-2");
        (0..9998).for_each(|_| host.give_way());
        assert_eq!(host.label(), "bench-2", "numbers do not grow for ever");
    }

    #[test]
    fn properties_are_small_whatever_a_device_is_called() {
        let long = "x".repeat(300);
        let middle = "y".repeat(250);
        let properties = Properties::of([
            ("health", "ready"),
            ("id", &long),
            ("a", &middle),
            ("b", &middle),
            ("c", "\n"),
            ("d", "1"),
        ]);
        assert!(properties.bytes().len() <= MAX_PROPERTIES);
        assert_eq!(properties.bytes()[..13], *b"\x0chealth=ready");
        assert!(properties.bytes().ends_with(b"\x03d=1"), "what fits is there");
        assert_eq!(properties.bytes().len(), 13 + 253 + 4);
        assert_eq!(Properties::default().bytes(), [0]);
    }
}
