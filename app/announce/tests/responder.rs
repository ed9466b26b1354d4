//! Devices on a LAN that exists in this file only: every datagram of one reaches all others, and time is what a test says it is.

use inferd_announce::names::{Properties, Wanted};
use inferd_announce::responder::{DEFEND, LinkId, Outgoing, PORT, PROPERTIES_EVERY, Place, Responder};
use inferd_announce::wire::{IN, Message, Plain, Section, TOP, Writer, encode, kind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const LINK: LinkId = LinkId { interface: 2, v6: false };
const LAN: &str = "_inferd._tcp.local";

fn name(text: &str) -> Vec<u8> {
    encode(&text.split('.').map(str::as_bytes).collect::<Vec<_>>())
}

fn wanted(name: &str, host: &str, health: &str) -> Wanted {
    let properties = Properties::of([("health", health)]);
    Wanted { name: name.to_owned(), host: host.to_owned(), port: 9000, properties }
}

fn ip(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

struct Device {
    responder: Responder,
    at: IpAddr,
    said: Vec<(Duration, Outgoing)>,
}

struct Lan {
    now: Instant,
    begin: Instant,
    devices: Vec<Device>,
}

impl Lan {
    fn new() -> Self {
        let now = Instant::now();
        Self { now, begin: now, devices: Vec::new() }
    }

    /// Its number.
    fn add(&mut self, wanted: Wanted) -> usize {
        let n = u8::try_from(self.devices.len() + 1).expect("they are few");
        let mut responder = Responder::new(wanted, u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        responder.set_places(vec![place(n)], vec![ip(n)], self.now);
        self.devices.push(Device { responder, at: ip(n), said: Vec::new() });
        self.devices.len() - 1
    }

    fn deliver(&mut self, from: usize, out: Vec<Outgoing>) {
        for one in out {
            self.devices[from].said.push((self.now - self.begin, one.clone()));
            if one.to.is_some() {
                continue;
            }
            let source = SocketAddr::new(self.devices[from].at, PORT);
            // The sender hears itself, as the kernel has it.
            for to in 0..self.devices.len() {
                let reply = self.devices[to].responder.receive(LINK, source, &one.bytes, self.now);
                self.deliver(to, reply);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(5);
            for n in 0..self.devices.len() {
                let out = self.devices[n].responder.tick(self.now);
                self.deliver(n, out);
            }
        }
    }

    /// Somebody else says this to everybody; what one device answers at once.
    fn hear(&mut self, n: usize, from: SocketAddr, bytes: &[u8]) -> Vec<Outgoing> {
        let out = self.devices[n].responder.receive(LINK, from, bytes, self.now);
        self.deliver(n, out.clone());
        out
    }

    fn name(&self, n: usize) -> String {
        self.devices[n].responder.standing().name
    }

    fn is_up(&self, n: usize) -> bool {
        !self.devices[n].responder.standing().interfaces.is_empty()
    }

    /// To everybody, since a time.
    fn said_since(&self, n: usize, since: Instant) -> Vec<&[u8]> {
        let since = since - self.begin;
        let said = self.devices[n].said.iter().filter(|(at, one)| *at > since && one.to.is_none());
        said.map(|(_, one)| &one.bytes[..]).collect()
    }
}

fn place(n: u8) -> Place {
    Place { id: LINK, name: "eth0".to_owned(), addresses: vec![ip(n)], near: vec![(ip(n), 24)] }
}

fn up(wanted: Wanted) -> Lan {
    let mut lan = Lan::new();
    lan.add(wanted);
    lan.run(Duration::from_secs(4));
    assert!(lan.is_up(0));
    lan
}

fn question(text: &str, asked: u16, class: u16) -> Vec<u8> {
    let mut writer = Writer::query();
    writer.question(&name(text), asked, class);
    writer.finish()
}

/// Type and time to live of every record.
fn records(bytes: &[u8]) -> Vec<(Section, u16, u32)> {
    let message = Message::read(bytes).expect("it is one");
    message.records().map(|r| (r.section, r.kind, r.ttl)).collect()
}

fn neighbour() -> SocketAddr {
    SocketAddr::new(ip(77), PORT)
}

fn claim(text: &str, kind: u16, data: Vec<u8>) -> Vec<u8> {
    let mut writer = Writer::response(0);
    let record = Plain { name: name(text), kind, unique: true, ttl: 120, data };
    writer.record(Section::Answer, &record, true, 120);
    writer.finish()
}

fn service(port: u16, host: &str) -> Vec<u8> {
    [&[0; 4][..], &port.to_be_bytes(), &name(host)].concat()
}

#[test]
fn a_device_asks_three_times_whether_its_names_are_free_and_tells_everybody_twice() {
    let lan = up(wanted("Bench", "bench", "ready"));
    let said = lan.said_since(0, lan.begin);
    let is_probe: Vec<bool> = said.iter().map(|bytes| Message::read(bytes).unwrap().is_probe()).collect();
    assert_eq!(is_probe, [true, true, true, false, false]);
    let kinds: Vec<_> = records(said[3]).iter().map(|(_, kind, _)| *kind).collect();
    assert_eq!(kinds, [kind::PTR, kind::PTR, kind::SRV, kind::TXT, kind::A, kind::NSEC]);
    assert!(said.iter().all(|bytes| bytes.len() < 512), "far below what a datagram holds");
}

#[test]
fn of_two_devices_with_one_name_the_later_one_gives_way() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    lan.add(wanted("Bench", "bench", "ready"));
    lan.run(Duration::from_secs(6));
    let names = |lan: &Lan, n: usize| {
        let standing = lan.devices[n].responder.standing();
        (standing.name, standing.host)
    };
    assert_eq!(names(&lan, 0), ("Bench".into(), "bench.local".into()));
    assert_eq!(names(&lan, 1), ("Bench (2)".into(), "bench-2.local".into()));
    assert!(lan.is_up(0) && lan.is_up(1));
}

#[test]
fn devices_that_are_switched_on_together_agree_on_who_is_called_what() {
    let mut lan = Lan::new();
    for _ in 0..5 {
        lan.add(wanted("Bench", "bench", "ready"));
    }
    lan.run(Duration::from_secs(40));
    let mut names: Vec<String> = (0..5).map(|n| lan.name(n)).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!((0..5).all(|n| lan.is_up(n)));
}

#[test]
fn of_two_who_ask_for_one_name_at_the_same_moment_the_one_with_the_later_records_goes_first() {
    let probes_after = |port: u16| {
        let mut lan = Lan::new();
        lan.add(wanted("Bench", "bench", "ready"));
        while lan.devices[0].said.is_empty() {
            lan.run(Duration::from_millis(5));
        }
        let asked = lan.now;
        // Properties as ours: the ports decide.
        let instance = name(&format!("Bench.{LAN}"));
        let record = |kind, data| Plain { name: instance.clone(), kind, unique: true, ttl: 120, data };
        let mut probe = Writer::query();
        probe.question(&instance, kind::ANY, IN);
        for record in
            [record(kind::TXT, b"\x0chealth=ready".to_vec()), record(kind::SRV, service(port, "bench.local"))]
        {
            probe.record(Section::Authority, &record, false, 120);
        }
        lan.hear(0, neighbour(), &probe.finish());
        lan.run(Duration::from_millis(900));
        lan.said_since(0, asked)
            .into_iter()
            .filter(|b| Message::read(b).expect("a message").is_probe())
            .count()
    };
    assert_eq!(probes_after(9001), 0, "it waits a second");
    assert_eq!(probes_after(8999), 2);
    assert_eq!(probes_after(9000), 2, "the same, perhaps its own from another link");
}

#[test]
fn two_lans_that_are_joined_find_that_they_have_one_name_twice() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    // Another device has had the name for long; it says so, and defends it.
    let theirs = claim(&format!("Bench.{LAN}"), kind::SRV, service(9000, "other.local"));
    lan.hear(0, neighbour(), &theirs);
    let before = lan.now;
    while lan.name(0) == "Bench" && lan.now < before + Duration::from_secs(10) {
        lan.run(Duration::from_millis(50));
        let probed = lan.said_since(0, before).iter().any(|bytes| Message::read(bytes).unwrap().is_probe());
        if probed {
            lan.hear(0, neighbour(), &theirs);
        }
    }
    lan.run(Duration::from_secs(4));
    assert_eq!(lan.name(0), "Bench (2)");
    assert!(lan.is_up(0));
}

#[test]
fn a_stranger_who_claims_the_name_all_the_time_and_never_defends_it_changes_nothing() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let theirs = claim(&format!("Bench.{LAN}"), kind::SRV, service(9, "evil.local"));
    let before = lan.now;
    lan.hear(0, neighbour(), &theirs);
    lan.run(Duration::from_secs(3));
    for _ in 0..1000 {
        lan.hear(0, neighbour(), &theirs);
        lan.run(Duration::from_millis(5));
    }
    assert!(lan.is_up(0) && lan.name(0) == "Bench");
    let probes =
        lan.said_since(0, before).into_iter().filter(|b| Message::read(b).unwrap().is_probe()).count();
    assert_eq!(probes, 3, "once in {DEFEND:?}");
}

#[test]
fn a_stranger_who_takes_every_name_makes_a_device_careful_not_busy() {
    let mut lan = Lan::new();
    lan.add(wanted("Bench", "bench", "ready"));
    for _ in 0..60 * 200 {
        lan.run(Duration::from_millis(5));
        let theirs = claim(&format!("{}.{LAN}", lan.name(0)), kind::SRV, service(9, "evil.local"));
        lan.hear(0, neighbour(), &theirs);
    }
    assert!(!lan.is_up(0));
    // Two in the length of a probe, of the crowd and of what it waits between two.
    let said = lan.devices[0].said.len();
    assert!(said < 300, "{said} datagrams in a minute");
    lan.run(Duration::from_secs(10));
    assert!(lan.is_up(0), "it is there when that is over");
}

#[test]
fn what_is_this_machines_own_is_no_conflict() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let other = IpAddr::from([10, 0, 0, 5]);
    lan.devices[0].responder.set_places(vec![place(1)], vec![ip(1), other], lan.now);
    for own in [ip(1), other] {
        let IpAddr::V4(own) = own else { unreachable!("they are of version 4") };
        // Of avahi, which has the same host name, or repeated from another link.
        lan.hear(0, neighbour(), &claim("bench.local", kind::A, own.octets().to_vec()));
    }
    // A reflector repeats an older announcement of ours, with the health from before.
    lan.hear(0, neighbour(), &claim(&format!("Bench.{LAN}"), kind::TXT, b"\x10health=not-ready".to_vec()));
    assert!(lan.is_up(0));
    assert_eq!(lan.devices[0].responder.standing().conflicts, 0);
    lan.hear(0, neighbour(), &claim("bench.local", kind::A, vec![192, 0, 2, 99]));
    assert_eq!(lan.devices[0].responder.standing().conflicts, 1, "this one is a stranger's");
}

#[test]
fn properties_are_announced_when_they_change_and_at_most_every_five_seconds() {
    let mut lan = up(wanted("Bench", "bench", "not-ready"));
    let begin = lan.now;
    let set = |lan: &mut Lan, health: &str| {
        let out = lan.devices[0].responder.set_wanted(wanted("Bench", "bench", health), lan.now);
        assert!(out.is_empty());
    };
    set(&mut lan, "ready");
    lan.run(Duration::from_millis(100));
    let said = lan.said_since(0, begin);
    assert_eq!(said.len(), 1);
    assert_eq!(records(said[0]), [(Section::Answer, kind::TXT, 4500)]);
    assert!(said[0].ends_with(b"health=ready"));
    for _ in 0..10 {
        set(&mut lan, "degraded");
        lan.run(Duration::from_millis(100));
        set(&mut lan, "not-ready");
        lan.run(Duration::from_millis(100));
    }
    lan.run(PROPERTIES_EVERY * 3);
    let when: Vec<Duration> = lan.devices[0].said.iter().map(|(at, _)| *at).collect();
    let [.., third, _] = when[..] else { unreachable!("four at least") };
    assert!(third >= begin - lan.begin + PROPERTIES_EVERY, "{third:?}");
    let changes: Vec<&[u8]> = lan.said_since(0, begin);
    assert_eq!(changes.len(), 4, "two changes, each told twice");
    assert!(changes[2..].iter().all(|bytes| bytes.ends_with(b"health=not-ready")), "the newest");
}

#[test]
fn a_goodbye_takes_back_the_service_and_leaves_the_machine() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let out = lan.devices[0].responder.goodbye();
    assert_eq!(out.len(), 1);
    let taken: Vec<_> = records(&out[0].bytes).iter().map(|(_, kind, ttl)| (*kind, *ttl)).collect();
    assert_eq!(taken, [(kind::PTR, 0), (kind::SRV, 0), (kind::TXT, 0)]);
    let mut early = Lan::new();
    early.add(wanted("Bench", "bench", "ready"));
    assert!(early.devices[0].responder.goodbye().is_empty(), "what was never said is not taken back");
}

#[test]
fn a_question_to_everybody_is_answered_to_everybody_once_for_all_who_ask() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let before = lan.now;
    for n in 100..120 {
        assert!(lan.hear(0, SocketAddr::new(ip(n), PORT), &question(LAN, kind::PTR, IN)).is_empty());
    }
    lan.run(Duration::from_secs(2));
    let said = lan.said_since(0, before);
    assert_eq!(said.len(), 1);
    let kinds: Vec<_> = records(said[0]).iter().map(|(section, kind, _)| (*section, *kind)).collect();
    let more = |kind| (Section::Additional, kind);
    let brings = [kind::SRV, kind::TXT, kind::A, kind::NSEC].map(more);
    assert_eq!(kinds, [&[(Section::Answer, kind::PTR)][..], &brings].concat());
}

#[test]
fn who_knows_the_answer_gets_none() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let before = lan.now;
    let asks = |ttl| {
        let mut writer = Writer::query();
        writer.question(&name(LAN), kind::PTR, IN);
        let data = name(&format!("Bench.{LAN}"));
        writer.record(
            Section::Answer,
            &Plain { name: name(LAN), kind: kind::PTR, unique: false, ttl, data },
            false,
            ttl,
        );
        writer.finish()
    };
    lan.hear(0, neighbour(), &asks(4000));
    lan.run(Duration::from_secs(1));
    assert!(lan.said_since(0, before).is_empty());
    lan.hear(0, neighbour(), &asks(2000));
    lan.run(Duration::from_secs(1));
    assert_eq!(lan.said_since(0, before).len(), 1, "what it knows is about to end");
}

#[test]
fn who_speaks_no_multicast_dns_gets_an_answer_of_its_own_that_does_not_last() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let mut asked = question("BENCH.local", kind::A, IN);
    asked[..2].copy_from_slice(&[0x12, 0x34]);
    let from = SocketAddr::new(ip(77), 40_000);
    let out = lan.hear(0, from, &asked);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].to, Some(from));
    let message = Message::read(&out[0].bytes).unwrap();
    assert_eq!((message.id(), message.questions().count()), (0x1234, 1));
    let told = records(&out[0].bytes);
    assert_eq!(told, [(Section::Answer, kind::A, 10), (Section::Additional, kind::NSEC, 10)]);
    assert!(!out[0].bytes.windows(2).any(|two| two == [0x80, 1]), "nobody is to forget anything");
    let strangers: usize = (0..500).map(|_| lan.hear(0, from, &asked).len()).sum();
    assert_eq!(strangers, 49, "fifty a second");
}

#[test]
fn who_asks_for_itself_is_answered_alone_and_a_probe_for_our_name_is_answered_to_everybody() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let instance = format!("Bench.{LAN}");
    let out = lan.hear(0, neighbour(), &question(&instance, kind::SRV, IN | TOP));
    assert_eq!(out.iter().map(|one| one.to).collect::<Vec<_>>(), [Some(neighbour())]);
    let before = lan.now;
    let mut probe = Writer::query();
    probe.question(&name(&instance), kind::ANY, IN | TOP);
    let data = service(1, "other.local");
    probe.record(
        Section::Authority,
        &Plain { name: name(&instance), kind: kind::SRV, unique: true, ttl: 120, data },
        false,
        120,
    );
    assert!(lan.hear(0, neighbour(), &probe.finish()).is_empty());
    lan.run(Duration::from_millis(10));
    assert_eq!(lan.said_since(0, before).len(), 1, "in less than the time between two probes");
}

#[test]
fn an_address_of_a_kind_that_there_is_not_is_denied_at_once() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let out = lan.hear(0, neighbour(), &question("bench.local", kind::AAAA, IN | TOP));
    assert_eq!(records(&out[0].bytes)[0], (Section::Answer, kind::NSEC, 120));
    assert_eq!(records(&out[0].bytes)[1], (Section::Additional, kind::A, 120));
}

#[test]
fn who_is_not_on_the_link_is_not_heard() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let far = SocketAddr::from(([203, 0, 113, 9], PORT));
    assert!(lan.hear(0, far, &question("bench.local", kind::A, IN | TOP)).is_empty());
    lan.hear(0, far, &claim("bench.local", kind::A, vec![203, 0, 113, 9]));
    assert_eq!(lan.devices[0].responder.standing().conflicts, 0);
}

#[test]
fn somebody_elses_goodbye_for_our_record_is_taken_back() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let before = lan.now;
    let mut writer = Writer::response(0);
    let data = vec![192, 0, 2, 1];
    let record = Plain { name: name("bench.local"), kind: kind::A, unique: true, ttl: 0, data };
    writer.record(Section::Answer, &record, true, 0);
    let forged = writer.finish();
    for _ in 0..300 {
        lan.hear(0, neighbour(), &forged);
        lan.run(Duration::from_millis(10));
    }
    let said = lan.said_since(0, before).len();
    assert!((2..=4).contains(&said), "once a second: {said}");
}

#[test]
fn an_interface_that_comes_back_is_probed_anew_and_another_name_is_too() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    lan.devices[0].responder.set_places(Vec::new(), Vec::new(), lan.now);
    assert!(!lan.is_up(0) && lan.devices[0].responder.next().is_none());
    lan.devices[0].responder.set_places(vec![place(1)], vec![ip(1)], lan.now);
    lan.run(Duration::from_secs(3));
    assert!(lan.is_up(0));
    let goodbye = lan.devices[0].responder.set_wanted(wanted("Desk", "desk", "ready"), lan.now);
    assert_eq!(records(&goodbye[0].bytes)[0], (Section::Answer, kind::PTR, 0));
    assert!(!lan.is_up(0));
    lan.run(Duration::from_secs(3));
    assert!(lan.is_up(0) && lan.name(0) == "Desk");
}

#[test]
fn whatever_comes_a_device_goes_on_and_what_it_holds_stays_as_small() {
    let mut lan = up(wanted("Bench", "bench", "ready"));
    let mut seeds = vec![
        question(LAN, kind::PTR, IN),
        question(&format!("Bench.{LAN}"), kind::ANY, IN | TOP),
        claim(&format!("Bench.{LAN}"), kind::SRV, service(9000, "bench.local")),
    ];
    seeds.extend(lan.said_since(0, lan.begin).iter().map(|b| b.to_vec()));
    let asked_often = |lan: &mut Lan| {
        for _ in 0..100 {
            lan.hear(0, neighbour(), &question(LAN, kind::PTR, IN));
            lan.run(Duration::from_millis(1200));
        }
        // Its whole state, as text: names, one link, a ring of 64 numbers.
        format!("{:?}", lan.devices[0].responder).len()
    };
    let before = asked_often(&mut lan);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..100_000_usize {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=round % 3 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let [a, b, value, ..] = state.to_le_bytes();
            let at = usize::from(u16::from_le_bytes([a, b])) % bytes.len();
            bytes[at] = value;
        }
        let out = lan.devices[0].responder.receive(LINK, neighbour(), &bytes, lan.now);
        assert!(out.iter().all(|one| one.bytes.len() < 1024));
        if round % 100 == 0 {
            lan.now += Duration::from_millis(10);
            let out = lan.devices[0].responder.tick(lan.now);
            assert!(out.iter().all(|one| one.bytes.len() < 1024));
        }
    }
    lan.run(Duration::from_secs(20));
    assert!(lan.is_up(0));
    let held = asked_often(&mut lan);
    assert!(held < before + 256, "{before} {held}");
}
