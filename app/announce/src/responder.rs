//! The protocol (RFC 6762), for one service on any number of links. No clock, no socket: whoever has them says what came and what time it is.
//!
//! | a link | until |
//! |---|---|
//! | probes: asks three times whether the names are free | nobody answered for 250 ms after the third |
//! | is up: told everybody twice, then answers | its addresses change, or the names do |
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | another's record of our name while it probes | that name gets the next number, all links probe again |
//! | the same while it is up | that link probes again, once in [`DEFEND`]; whoever is there then keeps the name |
//! | another's probe of our name while we probe | whose records are the later ones keeps it, the other one waits a second |
//! | another's goodbye for a record of ours | we announce it again |
//! | everything else that is no question for us | nothing |
//!
//! Two links of one machine, and a machine whose avahi has the same host name, are no conflict: an address of this machine is ours, and
//! datagrams that we sent are known again. Of TXT records only the owner's can differ for a while, so they are no conflict either.

use crate::names::{Claim, Wanted, under};
use crate::wire::{IN, Message, Name, Plain, Record, Section, TOP, Writer, encode, kind};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The port of Multicast DNS.
pub const PORT: u16 = 5353;
/// The kind of service, as its labels.
pub const SERVICE: [&str; 3] = ["_inferd", "_tcp", "local"];
/// Seconds that records with a host name in them are good for, and all others (RFC 6762, section 10).
const HOST_TTL: u32 = 120;
const OTHER_TTL: u32 = 4500;
/// The most for those who speak no Multicast DNS (section 6.7).
const PLAIN_TTL: u32 = 10;
const PROBES: u8 = 3;
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// Who asked at the same moment and has the later records goes first (section 8.2).
const YIELD: Duration = Duration::from_secs(1);
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// A record is sent to everybody once in this time at most, and to defend a name once in the other (section 6).
const SPARE: Duration = Duration::from_secs(1);
const SPARE_PROBE: Duration = Duration::from_millis(250);
/// How long an answer waits that others may have too, in milliseconds; and when the asker has more to say.
const SHARED: (u64, u64) = (20, 120);
const MORE: (u64, u64) = (400, 500);
/// This many conflicts in [`CROWD_IN`] make every next one wait for [`CROWD_WAIT`] (section 8.1).
const CROWD: u32 = 15;
const CROWD_IN: Duration = Duration::from_secs(10);
const CROWD_WAIT: Duration = Duration::from_secs(5);
/// How often a name that we have is put to the test again.
pub const DEFEND: Duration = Duration::from_secs(10);
/// How often the properties may change; the newest are announced then.
pub const PROPERTIES_EVERY: Duration = Duration::from_secs(5);
/// Answers to one asker alone, a second.
const REPLIES: u32 = 50;
/// Datagrams of ours that are known again.
const REMEMBERED: usize = 64;
/// Addresses of one link that are announced.
pub const MAX_ADDRESSES: usize = 8;

/// A link: an interface, and one of the two protocols on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// Which protocol.
    pub v6: bool,
}

/// What is known of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub id: LinkId,
    /// The interface's name.
    pub name: String,
    /// Where the service answers on this interface, of both protocols.
    pub addresses: Vec<IpAddr>,
    /// What is on this link: networks with the length of their prefix.
    pub near: Vec<(IpAddr, u8)>,
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// On which link.
    pub link: LinkId,
    /// To whom; `None`: to everybody.
    pub to: Option<SocketAddr>,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Which records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u8);

impl Set {
    /// There are services of this kind.
    const META: Self = Self(1);
    /// This is one of them.
    const POINTER: Self = Self(2);
    const SERVICE: Self = Self(4);
    const PROPERTIES: Self = Self(8);
    /// Of both protocols.
    const ADDRESSES: Self = Self(16);
    /// Which kinds of addresses there are.
    const KINDS: Self = Self(32);
    const EACH: [Self; 6] =
        [Self::META, Self::POINTER, Self::SERVICE, Self::PROPERTIES, Self::ADDRESSES, Self::KINDS];

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn each(self) -> impl Iterator<Item = (usize, Self)> {
        Self::EACH.into_iter().enumerate().filter(move |(_, one)| self.has(*one))
    }
}

const ALL: Set =
    Set::META.and(Set::POINTER).and(Set::SERVICE).and(Set::PROPERTIES).and(Set::ADDRESSES).and(Set::KINDS);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Probing { sent: u8, next: Instant },
    Up,
}

#[derive(Clone, Copy, Debug)]
struct Announcing {
    what: Set,
    left: u8,
    next: Instant,
}

#[derive(Debug)]
struct Link {
    place: Place,
    phase: Phase,
    announcing: Option<Announcing>,
    /// Answers to everybody that wait.
    pending: Set,
    due: Option<Instant>,
    /// When each was sent to everybody.
    sent: [Option<Instant>; Set::EACH.len()],
}

/// The names as they are now, on the wire.
#[derive(Debug)]
struct Names {
    meta: Vec<u8>,
    service: Vec<u8>,
    instance: Vec<u8>,
    host: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Instance,
    Host,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The name people see.
    pub name: String,
    /// `HOST.local`
    pub host: String,
    /// Interfaces on which both are announced.
    pub interfaces: Vec<String>,
    /// How often somebody else was called so.
    pub conflicts: u64,
}

/// One service on all links.
#[derive(Debug)]
pub struct Responder {
    wanted: Wanted,
    instance: Claim,
    host: Claim,
    names: Names,
    links: Vec<Link>,
    /// All addresses of this machine: they are no stranger's.
    own: Vec<IpAddr>,
    remembered: VecDeque<u64>,
    conflicts: u64,
    crowd: (Option<Instant>, u32),
    defended: Option<Instant>,
    changed: Option<Instant>,
    next_properties: Option<Wanted>,
    replies: (Option<Instant>, u32),
    random: u64,
}

impl Responder {
    /// On no link yet. `seed` is any number that other devices do not have.
    #[must_use]
    pub fn new(wanted: Wanted, seed: u64) -> Self {
        let (instance, host) = (Claim::instance(&wanted.name), Claim::host(&wanted.host));
        Self {
            names: Names::of(&instance, &host),
            wanted,
            instance,
            host,
            links: Vec::new(),
            own: Vec::new(),
            remembered: VecDeque::with_capacity(REMEMBERED),
            conflicts: 0,
            crowd: (None, 0),
            defended: None,
            changed: None,
            next_properties: None,
            replies: (None, 0),
            random: seed | 1,
        }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let up = self.links.iter().filter(|link| link.phase == Phase::Up && link.announcing_once());
        let mut interfaces: Vec<_> = up.map(|link| link.place.name.clone()).collect();
        interfaces.sort();
        interfaces.dedup();
        Standing {
            name: self.instance.label(),
            host: format!("{}.local", self.host.label()),
            interfaces,
            conflicts: self.conflicts,
        }
    }

    /// Links as they are now, and all addresses of this machine. A link that is new or has other addresses probes.
    pub fn set_places(&mut self, places: Vec<Place>, own: Vec<IpAddr>, now: Instant) {
        self.own = own;
        self.links.retain(|link| places.contains(&link.place));
        for place in places {
            if !self.links.iter().any(|link| link.place == place) {
                let next = now + self.wait(0, 250);
                self.links.push(Link {
                    place,
                    phase: Phase::Probing { sent: 0, next },
                    announcing: None,
                    pending: Set::default(),
                    due: None,
                    sent: Default::default(),
                });
            }
        }
    }

    /// Something else is to be announced; what has to be said at once.
    pub fn set_wanted(&mut self, wanted: Wanted, now: Instant) -> Vec<Outgoing> {
        let before = &self.wanted;
        if (&wanted.name, &wanted.host) != (&before.name, &before.host) {
            let goodbye = self.goodbye();
            (self.instance, self.host) = (Claim::instance(&wanted.name), Claim::host(&wanted.host));
            self.wanted = wanted;
            self.next_properties = None;
            self.renamed(now);
            return goodbye;
        }
        if wanted.port != before.port {
            (self.changed, self.next_properties, self.wanted) = (Some(now), None, wanted);
            self.announce(ALL, now);
        } else if wanted.properties == before.properties {
            self.next_properties = None;
        } else {
            self.next_properties = Some(wanted);
            self.change_properties(now);
        }
        Vec::new()
    }

    fn change_properties(&mut self, now: Instant) {
        if self.changed.is_none_or(|at| now >= at + PROPERTIES_EVERY)
            && let Some(wanted) = self.next_properties.take()
        {
            (self.wanted, self.changed) = (wanted, Some(now));
            self.announce(Set::PROPERTIES, now);
        }
    }

    /// Tells everybody twice, on every link that is up; others will when they are.
    fn announce(&mut self, what: Set, now: Instant) {
        for link in self.links.iter_mut().filter(|link| link.phase == Phase::Up) {
            let what = link.announcing.map_or(what, |before| before.what.and(what));
            let next = link.spare(what, SPARE).map_or(now, |at| at.max(now));
            link.announcing = Some(Announcing { what, left: ANNOUNCEMENTS, next });
        }
    }

    /// Other names: on every link they are to be free.
    fn renamed(&mut self, now: Instant) {
        self.names = Names::of(&self.instance, &self.host);
        let crowd = self.crowd.1 > CROWD;
        for n in 0..self.links.len() {
            let wait = if crowd { CROWD_WAIT } else { self.wait(0, 250) };
            self.links[n].probe_again(now + wait);
        }
    }

    /// When something is to be done next; `None`: only when something comes.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let of = |link: &Link| {
            let phase = match link.phase {
                Phase::Probing { next, .. } => Some(next),
                Phase::Up => link.announcing.map(|a| a.next),
            };
            phase.into_iter().chain(link.due).min()
        };
        let properties = self.next_properties.as_ref().and(self.changed).map(|at| at + PROPERTIES_EVERY);
        self.links.iter().filter_map(of).chain(properties).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Outgoing> {
        self.change_properties(now);
        let mut out = Vec::new();
        for n in 0..self.links.len() {
            let id = self.links[n].place.id;
            if let Phase::Probing { sent, next } = self.links[n].phase
                && now >= next
            {
                if sent < PROBES {
                    out.push(Outgoing { link: id, to: None, bytes: self.probe(n) });
                    self.links[n].phase = Phase::Probing { sent: sent + 1, next: now + PROBE_EVERY };
                } else {
                    self.links[n].phase = Phase::Up;
                    self.links[n].announcing = Some(Announcing { what: ALL, left: ANNOUNCEMENTS, next: now });
                }
            }
            if let (Phase::Up, Some(announcing)) = (self.links[n].phase, self.links[n].announcing)
                && now >= announcing.next
            {
                out.push(self.broadcast(n, announcing.what, now));
                let left = announcing.left - 1;
                let more = Announcing { left, next: now + ANNOUNCE_EVERY, ..announcing };
                self.links[n].announcing = (left > 0).then_some(more);
            }
            if self.links[n].due.is_some_and(|due| now >= due) {
                let pending = std::mem::take(&mut self.links[n].pending);
                self.links[n].due = None;
                out.push(self.broadcast(n, pending, now));
            }
        }
        self.remember(&out);
        out
    }

    /// What has to be said when the service ends. Addresses are the machine's, which goes on.
    pub fn goodbye(&mut self) -> Vec<Outgoing> {
        let mut out = Vec::new();
        for link in self.links.iter().filter(|link| link.phase == Phase::Up) {
            let mut writer = Writer::response(0);
            for record in self.records(link, Set::POINTER.and(Set::SERVICE).and(Set::PROPERTIES)) {
                writer.record(Section::Answer, &record, true, 0);
            }
            out.push(Outgoing { link: link.place.id, to: None, bytes: writer.finish() });
        }
        self.remember(&out);
        out
    }

    /// A datagram came; what has to be said at once.
    pub fn receive(&mut self, link: LinkId, from: SocketAddr, bytes: &[u8], now: Instant) -> Vec<Outgoing> {
        let Some(n) = self.links.iter().position(|l| l.place.id == link) else { return Vec::new() };
        let Some(message) = Message::read(bytes) else { return Vec::new() };
        if self.remembered.contains(&digest(bytes)) || !self.links[n].is_near(from.ip()) {
            return Vec::new();
        }
        if !message.is_response() {
            let out = self.answer(n, from, &message, now);
            return out.into_iter().collect();
        }
        if from.port() == PORT { self.hear(n, &message, now) } else { Vec::new() }
    }

    /// Somebody says what is so.
    fn hear(&mut self, n: usize, message: &Message<'_>, now: Instant) -> Vec<Outgoing> {
        for record in message.records() {
            let Some(which) = self.names.which(&record.name) else { continue };
            let (ours, what) = match (which, record.kind) {
                (Which::Instance, kind::SRV) => (self.is_our_service(&record), Set::SERVICE),
                (Which::Host, kind::A | kind::AAAA) => (self.is_our_address(&record), Set::ADDRESSES),
                _ => continue,
            };
            match (ours, record.ttl, self.links[n].phase) {
                (true, 0, Phase::Up) => self.answer_later(n, what, Duration::ZERO, SPARE, now),
                (true, ..) | (false, 0, _) => {}
                (false, _, Phase::Probing { .. }) => {
                    self.count_conflict(now);
                    // Other links may have told it already.
                    let goodbye = self.goodbye();
                    match which {
                        Which::Instance => self.instance.give_way(),
                        Which::Host => self.host.give_way(),
                    }
                    self.renamed(now);
                    return goodbye;
                }
                (false, _, Phase::Up) => {
                    if self.defended.is_none_or(|at| now >= at + DEFEND) {
                        self.defended = Some(now);
                        self.count_conflict(now);
                        self.links[n].probe_again(now);
                    }
                    break;
                }
            }
        }
        Vec::new()
    }

    fn count_conflict(&mut self, now: Instant) {
        self.conflicts += 1;
        match self.crowd {
            (Some(since), count) if now < since + CROWD_IN => {
                self.crowd = (Some(since), count.saturating_add(1))
            }
            // Who was crowded out stays careful for as long as it goes on.
            (Some(_), count) if count > CROWD => self.crowd = (Some(now), CROWD + 1),
            _ => self.crowd = (Some(now), 1),
        }
    }

    fn is_our_service(&self, record: &Record<'_>) -> bool {
        record.plain().is_some_and(|plain| plain == self.service_data())
    }

    fn is_our_address(&self, record: &Record<'_>) -> bool {
        let ours = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => record.kind == kind::A && ip.octets() == record.data(),
            IpAddr::V6(ip) => record.kind == kind::AAAA && ip.octets() == record.data(),
        };
        self.own.iter().any(ours)
    }

    /// Somebody asks. What is for one asker alone comes back at once, everything else is told by [`Responder::tick`].
    fn answer(
        &mut self,
        n: usize,
        from: SocketAddr,
        message: &Message<'_>,
        now: Instant,
    ) -> Option<Outgoing> {
        let link = &self.links[n];
        if let Phase::Probing { .. } = link.phase {
            if message.is_probe() && self.has_to_yield(n, message) {
                self.links[n].phase = Phase::Probing { sent: 0, next: now + YIELD };
            }
            return None;
        }
        let mut wanted = Set::default();
        let mut alone = true;
        for question in message.questions() {
            let asked = self.asked(&question.name, question.kind, link);
            alone &= asked.is_empty() || question.unicast;
            wanted = wanted.and(asked);
        }
        let wanted = wanted.without(self.known(message));
        if wanted.is_empty() {
            return None;
        }
        let plain = from.port() != PORT;
        if plain || (alone && !message.is_probe()) {
            if !self.may_reply(now) {
                return None;
            }
            let mut writer = Writer::response(if plain { message.id() } else { 0 });
            if plain {
                for question in message.questions().take(4) {
                    if let Some(name) = self.names.known(&question.name) {
                        writer.question(name, question.kind, question.class & !TOP);
                    }
                }
            }
            let bytes = self.write(writer, n, wanted, plain);
            return Some(Outgoing { link: self.links[n].place.id, to: Some(from), bytes });
        }
        let (wait, spare) = if message.is_probe() {
            (Duration::ZERO, SPARE_PROBE)
        } else if message.is_truncated() {
            (self.wait(MORE.0, MORE.1), SPARE)
        } else if wanted.has(Set::POINTER.and(Set::META)) {
            (self.wait(SHARED.0, SHARED.1), SPARE)
        } else {
            (Duration::ZERO, SPARE)
        };
        self.answer_later(n, wanted, wait, spare, now);
        None
    }

    fn answer_later(&mut self, n: usize, what: Set, wait: Duration, spare: Duration, now: Instant) {
        let link = &mut self.links[n];
        let allowed = link.spare(what, spare).unwrap_or(now).max(now + wait);
        // Who waits already waits no longer, but for a record that may not be sent yet.
        link.due = Some(link.due.map_or(allowed, |due| due.max(link.spare(what, spare).unwrap_or(due))));
        link.pending = link.pending.and(what);
    }

    fn asked(&self, name: &Name<'_>, asked: u16, link: &Link) -> Set {
        let is = |kind| asked == kind || asked == kind::ANY;
        let when = |yes: bool, set: Set| if yes { set } else { Set::default() };
        if name.is(&self.names.service) {
            return when(is(kind::PTR), Set::POINTER);
        }
        if name.is(&self.names.meta) {
            return when(is(kind::PTR), Set::META);
        }
        match self.names.which(name) {
            Some(Which::Instance) => {
                when(is(kind::SRV), Set::SERVICE).and(when(is(kind::TXT), Set::PROPERTIES))
            }
            Some(Which::Host) => {
                let there = |v6| link.place.addresses.iter().any(|a| a.is_ipv6() == v6);
                let found = (is(kind::A) && there(false)) || (is(kind::AAAA) && there(true));
                when(found, Set::ADDRESSES).and(when(!found, Set::KINDS))
            }
            None => Set::default(),
        }
    }

    /// What the asker knows already.
    fn known(&self, message: &Message<'_>) -> Set {
        let mut known = Set::default();
        for record in message.records().filter(|r| r.section == Section::Answer) {
            let says = |data: &[u8]| record.plain().is_some_and(|plain| plain == data);
            let lasts = |ttl| record.ttl >= ttl / 2;
            let set = match record.kind {
                kind::PTR if record.name.is(&self.names.service) && says(&self.names.instance) => {
                    (lasts(OTHER_TTL), Set::POINTER)
                }
                kind::PTR if record.name.is(&self.names.meta) && says(&self.names.service) => {
                    (lasts(OTHER_TTL), Set::META)
                }
                kind::SRV if record.name.is(&self.names.instance) && says(&self.service_data()) => {
                    (lasts(HOST_TTL), Set::SERVICE)
                }
                kind::TXT if record.name.is(&self.names.instance) && says(self.wanted.properties.bytes()) => {
                    (lasts(OTHER_TTL), Set::PROPERTIES)
                }
                _ => continue,
            };
            if set.0 {
                known = known.and(set.1);
            }
        }
        known
    }

    /// Whether somebody who asks for one of our names at the same moment goes first.
    fn has_to_yield(&self, n: usize, message: &Message<'_>) -> bool {
        let key = |kind: u16, data: Vec<u8>| (kind, data);
        let all = self.records(&self.links[n], PROBED);
        [&self.names.instance, &self.names.host].into_iter().any(|name| {
            let of_them = message.records().filter(|r| r.section == Section::Authority && r.name.is(name));
            let mut theirs: Vec<_> = of_them.filter_map(|r| Some(key(r.kind, r.plain()?))).collect();
            let mut ours: Vec<_> =
                all.iter().filter(|r| r.name == *name).map(|r| key(r.kind, r.data.clone())).collect();
            theirs.sort();
            ours.sort();
            !theirs.is_empty() && theirs > ours
        })
    }

    fn may_reply(&mut self, now: Instant) -> bool {
        if self.replies.0.is_none_or(|since| now >= since + Duration::from_secs(1)) {
            self.replies = (Some(now), 0);
        }
        self.replies.1 += 1;
        self.replies.1 <= REPLIES
    }

    fn broadcast(&mut self, n: usize, what: Set, now: Instant) -> Outgoing {
        for (k, _) in what.each() {
            self.links[n].sent[k] = Some(now);
        }
        let bytes = self.write(Writer::response(0), n, what, false);
        Outgoing { link: self.links[n].place.id, to: None, bytes }
    }

    /// These, and what is going to be asked next. `plain`: to somebody who speaks no Multicast DNS.
    fn write(&self, mut writer: Writer, n: usize, what: Set, plain: bool) -> Vec<u8> {
        let link = &self.links[n];
        let ttl = |record: &Plain| if plain { record.ttl.min(PLAIN_TTL) } else { record.ttl };
        for record in self.records(link, what) {
            writer.record(Section::Answer, &record, !plain, ttl(&record));
        }
        let next = |has: Set, brings: Set| if what.has(has) { brings } else { Set::default() };
        let more = next(Set::POINTER, ALL.without(Set::META))
            .and(next(Set::SERVICE.and(Set::KINDS), Set::ADDRESSES.and(Set::KINDS)))
            .and(next(Set::ADDRESSES, Set::KINDS))
            .without(what);
        for record in self.records(link, more) {
            writer.record(Section::Additional, &record, !plain, ttl(&record));
        }
        writer.finish()
    }

    fn probe(&self, n: usize) -> Vec<u8> {
        let mut writer = Writer::query();
        // Answers are to go to everybody: nothing that is sent to this machine alone is ever seen.
        for name in [&self.names.instance, &self.names.host] {
            writer.question(name, kind::ANY, IN);
        }
        for record in self.records(&self.links[n], PROBED) {
            writer.record(Section::Authority, &record, false, record.ttl);
        }
        writer.finish()
    }

    fn service_data(&self) -> Vec<u8> {
        [&[0; 4][..], &self.wanted.port.to_be_bytes(), &self.names.host].concat()
    }

    fn records(&self, link: &Link, what: Set) -> Vec<Plain> {
        let names = &self.names;
        let record =
            |name: &Vec<u8>, kind, unique, ttl, data| Plain { name: name.clone(), kind, unique, ttl, data };
        let mut records = Vec::new();
        for (_, one) in what.each() {
            match one {
                Set::META => {
                    records.push(record(&names.meta, kind::PTR, false, OTHER_TTL, names.service.clone()))
                }
                Set::POINTER => {
                    records.push(record(&names.service, kind::PTR, false, OTHER_TTL, names.instance.clone()));
                }
                Set::SERVICE => {
                    records.push(record(&names.instance, kind::SRV, true, HOST_TTL, self.service_data()));
                }
                Set::PROPERTIES => {
                    let data = self.wanted.properties.bytes().to_vec();
                    records.push(record(&names.instance, kind::TXT, true, OTHER_TTL, data));
                }
                Set::ADDRESSES => records.extend(link.place.addresses.iter().take(MAX_ADDRESSES).map(|ip| {
                    let (kind, data) = match ip {
                        IpAddr::V4(ip) => (kind::A, ip.octets().to_vec()),
                        IpAddr::V6(ip) => (kind::AAAA, ip.octets().to_vec()),
                    };
                    record(&names.host, kind, true, HOST_TTL, data)
                })),
                _ => records.push(record(&names.host, kind::NSEC, true, HOST_TTL, self.kinds(link))),
            }
        }
        records
    }

    /// Which kinds of addresses there are (RFC 6762, section 6.1).
    fn kinds(&self, link: &Link) -> Vec<u8> {
        let there = |v6| link.place.addresses.iter().any(|a| a.is_ipv6() == v6);
        let v4 = if there(false) { 0x40 } else { 0 };
        let bits: &[u8] = if there(true) { &[0, 4, v4, 0, 0, 0x08] } else { &[0, 1, v4] };
        [&self.names.host, bits].concat()
    }

    fn remember(&mut self, sent: &[Outgoing]) {
        for out in sent.iter().filter(|out| out.to.is_none()) {
            if self.remembered.len() == REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(digest(&out.bytes));
        }
    }

    /// So many milliseconds, that devices which were switched on together do not speak together.
    fn wait(&mut self, from: u64, to: u64) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_millis(from + self.random % (to - from))
    }
}

const PROBED: Set = Set::SERVICE.and(Set::PROPERTIES).and(Set::ADDRESSES);

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Names {
    fn of(instance: &Claim, host: &Claim) -> Self {
        let labels = |labels: &[&str]| encode(&labels.iter().map(|l| l.as_bytes()).collect::<Vec<_>>());
        Self {
            meta: labels(&["_services", "_dns-sd", "_udp", "local"]),
            service: labels(&SERVICE),
            instance: under(&instance.label(), &SERVICE),
            host: under(&host.label(), &["local"]),
        }
    }

    fn which(&self, name: &Name<'_>) -> Option<Which> {
        if name.is(&self.instance) {
            return Some(Which::Instance);
        }
        name.is(&self.host).then_some(Which::Host)
    }

    /// This name, as we write it, when it is one of ours.
    fn known(&self, name: &Name<'_>) -> Option<&[u8]> {
        let all = [&self.meta, &self.service, &self.instance, &self.host];
        all.into_iter().find(|ours| name.is(ours)).map(Vec::as_slice)
    }
}

impl Link {
    fn probe_again(&mut self, next: Instant) {
        self.phase = Phase::Probing { sent: 0, next };
        (self.announcing, self.pending, self.due) = (None, Set::default(), None);
    }

    /// Whether everybody was told at least once.
    fn announcing_once(&self) -> bool {
        self.announcing.is_none_or(|a| a.left < ANNOUNCEMENTS || a.what != ALL)
    }

    /// When all of these may be sent to everybody.
    fn spare(&self, what: Set, spare: Duration) -> Option<Instant> {
        what.each().filter_map(|(k, _)| self.sent[k]).max().map(|at| at + spare)
    }

    /// Whether this address is on this link: nobody else may ask (RFC 6762, section 11).
    fn is_near(&self, from: IpAddr) -> bool {
        let within = |(net, length): &(IpAddr, u8)| match (net, from) {
            (IpAddr::V4(net), IpAddr::V4(from)) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - (*length).min(32))).unwrap_or(0);
                (net.to_bits() ^ from.to_bits()) & mask == 0
            }
            (IpAddr::V6(net), IpAddr::V6(from)) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - (*length).min(128))).unwrap_or(0);
                (net.to_bits() ^ from.to_bits()) & mask == 0
            }
            _ => false,
        };
        let link_local = match from {
            IpAddr::V6(from) => from.is_unicast_link_local(),
            IpAddr::V4(from) => from.is_link_local(),
        };
        link_local || self.place.near.iter().any(within)
    }
}
