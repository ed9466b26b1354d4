//! What strangers send to the group of Multicast DNS.

use inferd_announce::names::{Properties, Wanted};
use inferd_announce::responder::{LinkId, PORT, Place, Responder};
use inferd_announce::wire::{MAX_MESSAGE, Message};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const LINK: LinkId = LinkId { interface: 2, v6: false };

fn ip(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

/// A device that hears datagrams, each behind a byte of how it came, one of the tenths of a second since the last one, and its length in two
/// (big-endian).
/// How: 1 from the port of Multicast DNS, 2 from far away, 4 from the device's own address.
pub fn mdns(data: &[u8]) {
    let mut now = Instant::now();
    let properties = Properties::of([("health", "ready")]);
    let wanted = Wanted { name: "Door 7".into(), host: "door-7".into(), port: 9000, properties };
    let mut device = Responder::new(wanted, 7);
    let place = Place { id: LINK, name: "eth0".into(), addresses: vec![ip(1)], near: vec![(ip(0), 24)] };
    device.set_places(vec![place], vec![ip(1)], now);
    let mut rest = data;
    while let Some((&[how, tenths, high, low], behind)) = rest.split_first_chunk() {
        let (datagram, after) =
            behind.split_at(behind.len().min(usize::from(u16::from_be_bytes([high, low]))));
        rest = after;
        now += Duration::from_millis(100) * u32::from(tenths);
        let from = match how {
            _ if how & 4 != 0 => ip(1),
            _ if how & 2 != 0 => Ipv4Addr::new(203, 0, 113, 9).into(),
            _ => ip(2),
        };
        let from = SocketAddr::new(from, if how & 1 != 0 { PORT } else { 40_000 });
        let mut out = device.tick(now);
        out.extend(device.receive(LINK, from, datagram, now));
        assert!(out.len() <= 16, "a datagram is answered by a few");
        for one in &out {
            assert!(one.bytes.len() <= MAX_MESSAGE);
            let message = Message::read(&one.bytes).expect("what is sent is a message");
            assert!(message.records().count() + message.questions().count() > 0);
            assert!(
                one.to.is_none_or(|to| to == from && how & 6 != 2),
                "only who asked from near is answered alone"
            );
        }
        if let Some(message) = Message::read(datagram) {
            for record in message.records() {
                assert!(record.data().len() <= datagram.len());
                let plain = record.plain().map_or(0, |plain| plain.len());
                assert!(plain <= datagram.len() + 2 * 256, "names are of a bounded length");
            }
        }
        let standing = device.standing();
        assert!(standing.name.len() <= 63 && standing.host.len() <= 63 + ".local".len());
        assert!(device.next().is_none_or(|next| next + Duration::from_secs(60) > now), "it is not asleep");
    }
}
