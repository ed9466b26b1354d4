//! The sections `[device]`, `[network]`, `[ssh]` and `[time]`: what they may hold, and every mistake with its line and key.

use crate::{Problem, nearest, secrets::KEPT};
use std::{collections::BTreeMap, net::Ipv4Addr};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The first wired interface, as the kernel calls it where there is one.
const FIRST: &str = "eth0";
/// What the scripts call it.
const FIRST_IN_WORDS: &str = "wired";
/// Sections that others have for what is `[network.wifi]` here.
const WIRELESS: [&str; 4] = ["wifi", "wlan", "wireless", "wlan0"];
/// Servers, keys and interfaces that a file may name of each.
const MOST: usize = 16;
/// Bytes of a name that a message repeats.
const SHOWN: usize = 48;
/// POSIX rules of the places of the tz database (2025b), `PLACE RULE` a line: there is no database on the device.
const ZONES: &str = include_str!("zones.txt");

/// What a file says of this room's sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provision {
    /// `device.hostname`; absent: the device's own name.
    pub hostname: Option<String>,
    /// `device.timezone` as a POSIX rule for `TZ`.
    pub timezone: Option<String>,
    /// `[network]`: the first wired interface.
    pub wired: Interface,
    /// `[network.NAME]`: further ones by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// `[network.wifi]`.
    pub wifi: Option<Wifi>,
    /// `ssh.authorized_keys`; without one no SSH server is started.
    pub ssh_keys: Vec<String>,
    /// `time.servers`.
    pub time_servers: Vec<String>,
}

/// How an interface comes to its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its address; absent: DHCP.
    pub address: Option<Address>,
    /// Name servers, asked instead of those that DHCP names.
    pub dns: Vec<Ipv4Addr>,
}

/// A fixed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's own.
    pub ip: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// Where everything else is.
    pub gateway: Option<Ipv4Addr>,
}

/// A wireless network.
#[derive(Clone, PartialEq, Eq)]
pub struct Wifi {
    /// Its name, 1 to 32 bytes.
    pub ssid: String,
    /// 8 to 63 printable characters, or 64 hex digits; absent: an open network.
    pub passphrase: Option<String>,
    /// The passphrase stayed in another device, or was forgotten: this network cannot be joined.
    pub passphrase_lost: bool,
    /// ISO 3166: which frequencies are allowed.
    pub country: Option<String>,
    /// How it comes to its address.
    pub interface: Interface,
}

/// Without the passphrase.
impl std::fmt::Debug for Wifi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wifi").field("ssid", &self.ssid).finish_non_exhaustive()
    }
}

/// Reads this room's sections; the others are not looked at.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn parse(text: &str) -> Result<Provision, Vec<Problem>> {
    let table = table(text).map_err(|problem| vec![problem])?;
    let mut reader = Reader { text, problems: Vec::new() };
    let mut found = Provision::default();
    for (name, value) in table.get_ref() {
        let section: &str = name.get_ref();
        if WIRELESS.contains(&section.to_ascii_lowercase().as_str()) {
            let says = format!("there is no section {section}; a wireless network is [network.wifi].");
            reader.problem(name.span().start, says);
        }
        if !crate::SECTIONS.contains(&section) {
            continue;
        }
        let Some(keys) = value.get_ref().as_table() else {
            reader.problem(
                name.span().start,
                format!("{section} is a section: write [{section}] on a line of its own."),
            );
            continue;
        };
        match section {
            "device" => reader.device(keys, &mut found),
            "network" => reader.network(keys, &mut found),
            "ssh" => reader.ssh(keys, &mut found),
            _ => reader.time(keys, &mut found),
        }
    }
    reader.problems.sort_by_key(|problem| problem.line);
    if reader.problems.is_empty() { Ok(found) } else { Err(reader.problems) }
}

/// A file taken apart.
///
/// # Errors
/// When it is not TOML.
pub fn table(text: &str) -> Result<Spanned<DeTable<'_>>, Problem> {
    DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(1, |span| line_of(text, span.start));
        Problem::at(line, format!("this is not TOML: {}.", e.message().replace('\n', " ")))
    })
}

/// The line of a place, from 1.
#[must_use]
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].split(|b| *b == b'\n').count()
}

/// What other programs call what is meant: keys of a section of one kind, with what to write.
const OTHER_WORDS: [(&str, &[&str], &str); 10] = [
    ("network", &["netmask", "mask", "subnet", "subnet_mask", "cidr"], "prefix"),
    ("network", &["ip", "ipv4", "ip_address", "ipaddress", "static_ip"], "address"),
    ("network", &["router", "gw", "default_gateway", "route"], "gateway"),
    ("network", &["nameserver", "nameservers", "dns_servers", "resolver"], "dns"),
    ("wifi", &["password", "psk", "key", "wpa_psk", "secret", "pass"], "passphrase"),
    ("wifi", &["name", "essid", "network"], "ssid"),
    ("wifi", &["region", "regdomain", "country_code"], "country"),
    ("device", &["name", "host", "host_name"], "hostname"),
    ("device", &["tz", "zone", "time_zone"], "timezone"),
    ("ssh", &["key", "keys", "public_key", "public_keys"], "authorized_keys"),
];

struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn problem(&mut self, at: usize, says: String) {
        self.problems.push(Problem::at(line_of(self.text, at), says));
    }

    fn unknown(&mut self, section: &str, key: &Spanned<std::borrow::Cow<'_, str>>, known: &[&str]) {
        let name: &str = key.get_ref();
        let kind =
            if known.contains(&"ssid") { "wifi" } else { section.split('.').next().unwrap_or(section) };
        let lower = name.to_ascii_lowercase().replace('-', "_");
        let word = |kind: &str| {
            let meant =
                |(of, words, _): &&(&str, &[&str], &str)| *of == kind && words.contains(&lower.as_str());
            OTHER_WORDS.iter().find(meant).map(|(_, _, word)| *word).filter(|word| known.contains(word))
        };
        let exact = known.iter().find(|known| **known == lower).copied();
        let wireless = !known.contains(&"ssid")
            && kind == "network"
            && (["ssid", "passphrase", "psk", "password", "essid", "country"].contains(&lower.as_str()));
        let hint = match exact.or_else(|| word(kind)).or_else(|| word("network")) {
            Some(word) if word == name => format!("; it is written once, as [{section}.{word}]."),
            Some(word) => format!("; did you mean {word}?"),
            None if wireless => "; a wireless network is [network.wifi] with ssid and passphrase.".to_owned(),
            None => nearest(name, known.iter().copied()),
        };
        self.problem(key.span().start, format!("there is no setting {section}.{}{hint}", shown(name)));
    }

    /// A text that `read` accepts; it says what is allowed.
    fn text<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let found = value.get_ref().as_str().and_then(read);
        if found.is_none() {
            let was = match value.get_ref().as_str() {
                Some(text) => format!("\"{}\"", shown(text)),
                None => format!("a TOML {}", value.get_ref().type_str()),
            };
            self.problem(value.span().start, format!("{key} is {was}; allowed is {allowed}."));
        }
        found
    }

    /// A list of texts that `read` accepts, each named by its own line.
    fn list<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let items: Vec<&Value<'_>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        if items.len() > MOST {
            self.problem(
                value.span().start,
                format!("{key} has {} entries; at most {MOST} are read.", items.len()),
            );
            return Vec::new();
        }
        items.into_iter().filter_map(|item| self.text(key, item, allowed, &read)).collect()
    }

    fn device(&mut self, keys: &DeTable<'_>, found: &mut Provision) {
        for (key, value) in keys {
            match &**key.get_ref() {
                "hostname" => {
                    let allowed =
                        "1 to 63 letters, digits and hyphens, no hyphen first or last, and not localhost";
                    found.hostname = self.text("device.hostname", value, allowed, |s| {
                        (label(s) && !s.eq_ignore_ascii_case("localhost")).then(|| s.to_owned())
                    });
                }
                "timezone" => {
                    let allowed =
                        "a place such as Europe/Berlin, or a rule for TZ such as CET-1CEST,M3.5.0,M10.5.0/3";
                    found.timezone = self.text("device.timezone", value, allowed, timezone);
                }
                _ => self.unknown("device", key, &["hostname", "timezone"]),
            }
        }
    }

    fn network(&mut self, keys: &DeTable<'_>, found: &mut Provision) {
        let (mut wired, mut named) = (Fixed::default(), None);
        for (key, value) in keys {
            let name: &str = key.get_ref();
            if wired.take(self, "network", name, value) {
                named.get_or_insert(key.span().start);
                continue;
            }
            let Some(table) = value.get_ref().as_table() else {
                self.unknown("network", key, &[&Fixed::KEYS[..], &["wifi"]].concat());
                continue;
            };
            if name == "wifi" {
                found.wifi = self.wifi(table, key.span().start);
                continue;
            }
            if name == FIRST_IN_WORDS {
                let says = format!("the first wired interface is [network], not [network.{name}].");
                self.problem(key.span().start, says);
                continue;
            }
            if !interface(name) {
                let said = format!("network.{} is no name of an interface, such as eth1.", shown(name));
                self.problem(key.span().start, said);
                continue;
            }
            if found.interfaces.len() == MOST {
                self.problem(key.span().start, format!("at most {MOST} interfaces are configured."));
                continue;
            }
            let section = format!("network.{name}");
            let mut fixed = Fixed::default();
            for (key, value) in table {
                if !fixed.take(self, &section, key.get_ref(), value) {
                    self.unknown(&section, key, &Fixed::KEYS);
                }
            }
            let interface = fixed.interface(self, &section);
            found.interfaces.insert(name.to_owned(), interface);
        }
        found.wired = wired.interface(self, "network");
        // On a board that has one the kernel calls its first wired interface so.
        if let Some(at) = named.filter(|_| keys.contains_key(FIRST)) {
            let says = format!(
                "[network] is about the first wired interface, and so is [network.{FIRST}]: say it in one of them."
            );
            self.problem(at, says);
        }
    }

    fn wifi(&mut self, keys: &DeTable<'_>, at: usize) -> Option<Wifi> {
        let section = "network.wifi";
        let (mut fixed, mut ssid, mut passphrase, mut country) = (Fixed::default(), None, None, None);
        let (mut lost, mut wrong) = (false, false);
        for (key, value) in keys {
            let name: &str = key.get_ref();
            if fixed.take(self, section, name, value) {
                continue;
            }
            match name {
                "ssid" => {
                    let read = |s: &str| {
                        ((1..=32).contains(&s.len()) && !s.chars().any(char::is_control))
                            .then(|| s.to_owned())
                    };
                    ssid = self.text(
                        "network.wifi.ssid",
                        value,
                        "1 to 32 bytes without control characters",
                        read,
                    );
                    wrong |= ssid.is_none();
                }
                "passphrase" => match value.get_ref().as_str() {
                    Some(KEPT | "") => lost = true,
                    Some(text) if good_passphrase(text) => passphrase = Some(text.to_owned()),
                    _ => {
                        // Never repeated: this goes to a file that everybody with the card reads.
                        let allowed = "8 to 63 printable ASCII characters, or 64 hex digits";
                        self.problem(
                            value.span().start,
                            format!("network.wifi.passphrase is not allowed: {allowed}."),
                        );
                    }
                },
                "country" => {
                    let read = |s: &str| {
                        (s.len() == 2 && s.bytes().all(|b| b.is_ascii_uppercase())).then(|| s.to_owned())
                    };
                    country =
                        self.text("network.wifi.country", value, "two capital letters such as DE", read);
                }
                _ => self.unknown(
                    section,
                    key,
                    &[&Fixed::KEYS[..], &["ssid", "passphrase", "country"]].concat(),
                ),
            }
        }
        let interface = fixed.interface(self, section);
        if ssid.is_none() && !wrong {
            self.problem(at, "network.wifi.ssid is missing: the name of the wireless network.".to_owned());
        }
        Some(Wifi { ssid: ssid?, passphrase, passphrase_lost: lost, country, interface })
    }

    fn ssh(&mut self, keys: &DeTable<'_>, found: &mut Provision) {
        for (key, value) in keys {
            match &**key.get_ref() {
                "authorized_keys" => {
                    let allowed = "a public key as it stands in id_ed25519.pub, without options before it";
                    found.ssh_keys = self.list("ssh.authorized_keys", value, allowed, ssh_key);
                }
                _ => self.unknown("ssh", key, &["authorized_keys"]),
            }
        }
    }

    fn time(&mut self, keys: &DeTable<'_>, found: &mut Provision) {
        for (key, value) in keys {
            match &**key.get_ref() {
                "servers" => {
                    found.time_servers = self.list("time.servers", value, "a host name or an address", |s| {
                        (s.parse::<std::net::IpAddr>().is_ok() || host(s)).then(|| s.to_owned())
                    });
                }
                _ => self.unknown("time", key, &["servers"]),
            }
        }
    }
}

/// The keys of an interface as they come, before they are judged together.
#[derive(Default)]
struct Fixed {
    dhcp: Option<bool>,
    address: Option<(Ipv4Addr, Option<u8>, usize)>,
    /// What was said; 0 for what was refused.
    prefix: Option<u8>,
    gateway: Option<(Ipv4Addr, usize)>,
    dns: Vec<Ipv4Addr>,
}

impl Fixed {
    const KEYS: [&str; 5] = ["dhcp", "address", "prefix", "gateway", "dns"];

    /// Whether the key is one of an interface; takes it then.
    fn take(&mut self, r: &mut Reader<'_>, section: &str, name: &str, value: &Value<'_>) -> bool {
        let key = format!("{section}.{name}");
        let at = value.span().start;
        match name {
            "dhcp" => match value.get_ref().as_bool() {
                Some(dhcp) => self.dhcp = Some(dhcp),
                None => r.problem(at, format!("{key} is true or false, without quotes.")),
            },
            "address" => {
                let allowed = match value.get_ref().as_str().and_then(|s| s.split_once('/')) {
                    Some((ip, bits)) if ip.parse::<Ipv4Addr>().is_ok() => match netmask(bits) {
                        Some(bits) => format!("the bits of the network: \"{ip}/{bits}\""),
                        None => format!("1 to 31 bits of the network behind the /, such as \"{ip}/24\""),
                    },
                    _ => "an IPv4 address such as 192.168.1.20/24".to_owned(),
                };
                let read = |s: &str| match s.split_once('/') {
                    None => Some((s.parse().ok()?, None)),
                    Some((ip, bits)) => Some((ip.parse().ok()?, Some(prefix(bits.parse().ok()?)?))),
                };
                self.address = r.text(&key, value, &allowed, read).map(|(ip, bits)| (ip, bits, at));
            }
            "prefix" => {
                let bits =
                    value.get_ref().as_integer().and_then(|i| i.as_str().parse().ok()).and_then(prefix);
                match bits {
                    Some(bits) => self.prefix = Some(bits),
                    None => {
                        let bits = value.get_ref().as_str().and_then(netmask);
                        let hint = bits.map(|bits| format!("; this one is {bits}")).unwrap_or_default();
                        r.problem(at, format!("{key} is a whole number from 1 to 31, without quotes{hint}."));
                        self.prefix = Some(0);
                    }
                }
            }
            "gateway" => {
                self.gateway = r.text(&key, value, "an IPv4 address", |s| s.parse().ok()).map(|ip| (ip, at));
            }
            "dns" => {
                let allowed = "IPv4 addresses of other machines";
                self.dns = r.list(&key, value, allowed, |s| s.parse().ok().filter(one_device));
            }
            _ => return false,
        }
        true
    }

    /// The interface, where the keys go together.
    fn interface(self, r: &mut Reader<'_>, section: &str) -> Interface {
        let before = r.problems.len();
        let Some((ip, bits, at)) = self.address else {
            if let Some((_, at)) = self.gateway {
                r.problem(at, format!("{section}.gateway needs an address beside it; with DHCP the server names the gateway."));
            }
            return Interface { address: None, dns: self.dns };
        };
        if self.dhcp == Some(true) {
            r.problem(at, format!("{section}.address and dhcp = true exclude each other."));
        }
        if self.prefix == Some(0) {
            return Interface::default();
        }
        let Some(prefix) = bits.or(self.prefix) else {
            let said = format!(
                "{section}.address needs the bits of its network: \"{ip}/24\", or prefix = 24 beside it."
            );
            r.problem(at, said);
            return Interface::default();
        };
        if bits.is_some_and(|bits| self.prefix.is_some_and(|other| other != bits)) {
            r.problem(at, format!("{section}.address and {section}.prefix disagree."));
        }
        if !one_device(&ip) {
            r.problem(at, format!("{section}.address {ip} is no address of one device."));
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        let hosts = u32::from(ip) & !mask;
        if prefix < 31 && (hosts == 0 || hosts == !mask) {
            let what = if hosts == 0 { "the network itself" } else { "the network's broadcast address" };
            r.problem(at, format!("{section}.address {ip}/{prefix} is {what}, no address of one device."));
        }
        if let Some((gateway, at)) = self.gateway {
            if gateway == ip {
                r.problem(at, format!("{section}.gateway is the device's own address."));
            } else if u32::from(gateway) & mask != u32::from(ip) & mask {
                r.problem(at, format!("{section}.gateway {gateway} is not in the network of {ip}/{prefix}."));
            } else if prefix < 31 && [0, !mask].contains(&(u32::from(gateway) & !mask)) {
                let what = if u32::from(gateway) & !mask == 0 {
                    "the network itself"
                } else {
                    "the network's broadcast address"
                };
                r.problem(
                    at,
                    format!(
                        "{section}.gateway {gateway} is {what} of {ip}/{prefix}, no address of one device."
                    ),
                );
            }
        }
        if r.problems.len() > before {
            return Interface::default();
        }
        Interface {
            address: Some(Address { ip, prefix, gateway: self.gateway.map(|(ip, _)| ip) }),
            dns: self.dns,
        }
    }
}

/// A piece of what was written, short and in one line.
#[must_use]
pub fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN { format!("{short}...") } else { short }
}

/// Whether it can be the address of one device in a network.
fn one_device(ip: &Ipv4Addr) -> bool {
    !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240)
}

/// The bits of a network mask such as 255.255.255.0.
fn netmask(text: &str) -> Option<u8> {
    let mask = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let bits = mask.leading_ones();
    (mask.count_ones() == bits).then(|| u8::try_from(bits).ok().and_then(prefix)).flatten()
}

fn prefix(bits: u8) -> Option<u8> {
    (1..=31).contains(&bits).then_some(bits)
}

/// A label of RFC 1123.
fn label(s: &str) -> bool {
    (1..=63).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
}

fn host(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(label)
}

/// A name that the kernel gives interfaces, and that a shell takes for one word. `lo` leads to no network.
fn interface(s: &str) -> bool {
    s != "lo"
        && (1..=15).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && s.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn good_passphrase(s: &str) -> bool {
    let printable = s.bytes().all(|b| (b' '..=b'~').contains(&b));
    (8..=63).contains(&s.len()) && printable || s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The rule of a place, or a rule itself.
fn timezone(s: &str) -> Option<String> {
    let place = ZONES
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(place, _)| place.eq_ignore_ascii_case(s));
    if let Some((_, rule)) = place {
        return Some(rule.to_owned());
    }
    if s == "UTC" {
        Some("UTC0".to_owned())
    } else {
        (s.len() <= 64 && rule(s).is_some()).then(|| s.to_owned())
    }
}

/// A rule for `TZ` as POSIX writes it: `std offset [dst [offset] [, start [/ time], end [/ time]]]`.
fn rule(s: &str) -> Option<()> {
    let rest = offset(zone(s)?, 24)?;
    if rest.is_empty() {
        return Some(());
    }
    let rest = zone(rest)?;
    let rest = if rest.starts_with(',') || rest.is_empty() { rest } else { offset(rest, 24)? };
    if rest.is_empty() {
        return Some(());
    }
    day(day(rest)?)?.is_empty().then_some(())
}

/// What is behind the name of a zone: three letters and more, or anything of letters, digits and signs between < and >.
fn zone(s: &str) -> Option<&str> {
    if let Some(quoted) = s.strip_prefix('<') {
        let (name, rest) = quoted.split_once('>')?;
        let good = name.len() >= 3 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-".contains(&b));
        return good.then_some(rest);
    }
    let letters = s.bytes().take_while(u8::is_ascii_alphabetic).count();
    (letters >= 3).then(|| &s[letters..])
}

/// What is behind `[+-]hh[:mm[:ss]]`, of at most so many hours.
fn offset(s: &str, hours: u16) -> Option<&str> {
    let mut rest = number(s.strip_prefix(['+', '-']).unwrap_or(s), 0, hours)?;
    for _ in 0..2 {
        let Some(more) = rest.strip_prefix(':') else { break };
        rest = number(more, 0, 59)?;
    }
    Some(rest)
}

/// What is behind `,Mm.w.d`, `,Jn` or `,n`, with or without a time of at most 167 hours (RFC 9636).
fn day(s: &str) -> Option<&str> {
    let s = s.strip_prefix(',')?;
    let rest = if let Some(s) = s.strip_prefix('M') {
        let week = number(s, 1, 12)?.strip_prefix('.')?;
        let weekday = number(week, 1, 5)?.strip_prefix('.')?;
        number(weekday, 0, 6)?
    } else if let Some(s) = s.strip_prefix('J') {
        number(s, 1, 365)?
    } else {
        number(s, 0, 365)?
    };
    match rest.strip_prefix('/') {
        Some(time) => offset(time, 167),
        None => Some(rest),
    }
}

/// What is behind a number of one to three digits between two others.
fn number(s: &str, least: u16, most: u16) -> Option<&str> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let value = s.get(..digits).filter(|_| (1..=3).contains(&digits))?.parse().ok()?;
    (least..=most).contains(&value).then(|| &s[digits..])
}

/// A public key in one line; its blob must be of the kind that stands before it, and whole (RFC 4253, 6.6: fields with their lengths).
#[must_use]
pub fn ssh_key(s: &str) -> Option<String> {
    let line = s.trim();
    let mut words = line.splitn(3, ' ');
    let (kind, blob) = (words.next()?, words.next()?);
    let known = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let bytes = base64(blob)?;
    let (mut rest, mut fields) = (bytes.as_slice(), Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        fields.push(behind.get(..length)?);
        rest = &behind[length..];
    }
    // What stands for a key in somebody's example is one letter again and again.
    let drawn = |field: &&&[u8]| field.iter().skip(1).any(|byte| *byte != field[field.len() - 1]);
    let good = known.contains(&kind)
        && line.len() <= 4096
        && !line.chars().any(char::is_control)
        && rest.is_empty()
        && fields.first() == Some(&kind.as_bytes())
        && fields.get(1..)?.iter().any(|field| field.len() >= 32 && drawn(&field))
        && (kind != "ssh-ed25519" || fields.len() == 2 && fields[1].len() == 32);
    good.then(|| line.to_owned())
}

/// The bytes of a text in base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0u32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}
