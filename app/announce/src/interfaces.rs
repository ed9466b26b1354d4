//! Where a device is announced: interfaces that are up and have an address at which the service answers.

use crate::responder::{LinkId, MAX_ADDRESSES, Place};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Links at most: two of each interface.
const MAX_LINKS: usize = 32;

/// On which interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Names of interfaces; none: all that can reach several others (not loopback, not point to point).
    pub names: Vec<String>,
    /// Where the service listens. Only an address at which it answers is announced.
    pub listens: Vec<SocketAddr>,
}

impl Choice {
    fn takes(&self, name: &str, flags: InterfaceFlags) -> bool {
        if !flags.contains(InterfaceFlags::IFF_UP) {
            return false;
        }
        if !self.names.is_empty() {
            return self.names.iter().any(|n| n == name);
        }
        let others = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
        flags.contains(InterfaceFlags::IFF_MULTICAST) && !flags.intersects(others)
    }

    /// Whether the service answers at this address.
    fn answers(&self, ip: IpAddr) -> bool {
        self.listens.iter().any(|at| match at.ip() {
            // A listener of all IPv6 addresses is one of all IPv4 addresses too, as Linux has it and the endpoint leaves it.
            any if any.is_unspecified() => any.is_ipv6() || ip.is_ipv4(),
            one => one == ip,
        })
    }
}

/// Whether one of these is more than this machine itself can reach.
#[must_use]
pub fn reachable(listens: &[SocketAddr]) -> bool {
    listens.iter().any(|at| !at.ip().to_canonical().is_loopback())
}

/// Links as they are now, and all addresses of this machine.
///
/// # Errors
/// What the system says.
pub fn places(choice: &Choice) -> io::Result<(Vec<Place>, Vec<IpAddr>)> {
    let mut own = Vec::new();
    let mut all: BTreeMap<u32, (String, Vec<(IpAddr, u8)>)> = BTreeMap::new();
    for found in getifaddrs()? {
        let Some(ip) = found.address.as_ref().and_then(ip) else { continue };
        own.push(ip);
        if !choice.takes(&found.interface_name, found.flags) {
            continue;
        }
        // One that went away a moment ago has no number any more.
        let Ok(number) = if_nametoindex(found.interface_name.as_str()) else { continue };
        let (_, near) = all.entry(number).or_insert_with(|| (found.interface_name.clone(), Vec::new()));
        near.push((ip, prefix(&found, ip)));
    }
    let mut places = Vec::new();
    for (interface, (name, near)) in all {
        let mut addresses: Vec<IpAddr> =
            near.iter().map(|(ip, _)| *ip).filter(|ip| choice.answers(*ip)).collect();
        addresses.sort();
        addresses.truncate(MAX_ADDRESSES);
        for v6 in [false, true] {
            if addresses.iter().any(|ip| ip.is_ipv6() == v6) {
                let id = LinkId { interface, v6 };
                places.push(Place {
                    id,
                    name: name.clone(),
                    addresses: addresses.clone(),
                    near: near.clone(),
                });
            }
        }
    }
    places.truncate(MAX_LINKS);
    Ok((places, own))
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

fn prefix(found: &InterfaceAddress, own: IpAddr) -> u8 {
    let length = match found.netmask.as_ref().and_then(ip) {
        Some(IpAddr::V4(mask)) => mask.to_bits().count_ones(),
        Some(IpAddr::V6(mask)) => mask.to_bits().count_ones(),
        None if own.is_ipv4() => 32,
        None => 128,
    };
    u8::try_from(length).unwrap_or(128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(names: &[&str], listens: &[&str]) -> Choice {
        Choice {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            listens: listens.iter().map(|at| at.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn loopback_and_point_to_point_are_left_out_unless_they_are_named() {
        let up = InterfaceFlags::IFF_UP;
        let (lan, lo) = (up | InterfaceFlags::IFF_MULTICAST, up | InterfaceFlags::IFF_LOOPBACK);
        let tunnel = lan | InterfaceFlags::IFF_POINTOPOINT;
        let all = choice(&[], &[]);
        assert!(all.takes("eth0", lan) && !all.takes("lo", lo) && !all.takes("wg0", tunnel));
        assert!(!all.takes("eth0", InterfaceFlags::IFF_MULTICAST), "it is down");
        let named = choice(&["lo", "wg0"], &[]);
        assert!(named.takes("lo", lo) && named.takes("wg0", tunnel) && !named.takes("eth0", lan));
        assert!(!named.takes("lo", InterfaceFlags::IFF_LOOPBACK));
    }

    #[test]
    fn only_an_address_at_which_the_service_answers_is_announced() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
        let all = choice(&[], &["0.0.0.0:9000"]);
        assert!(all.answers(v4) && !all.answers(v6));
        let both = choice(&[], &["[::]:9000"]);
        assert!(both.answers(v4) && both.answers(v6));
        let one = choice(&[], &["192.0.2.7:9000"]);
        assert!(one.answers(v4) && !one.answers("192.0.2.8".parse().unwrap()));
    }

    #[test]
    fn what_only_this_machine_reaches_is_not_reachable() {
        let at = |text: &str| reachable(&[text.parse().unwrap()]);
        assert!(!at("127.0.0.1:9000") && !at("[::1]:9000") && !at("[::ffff:127.0.0.1]:9000"));
        assert!(at("0.0.0.0:9000") && at("[::]:9000") && at("192.0.2.7:9000"));
        assert!(!reachable(&[]));
    }

    #[test]
    fn loopback_is_found_when_it_is_named() {
        let (places, own) = places(&choice(&["lo"], &["127.0.0.1:9000"])).unwrap();
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(own.contains(&loopback));
        assert_eq!(places.len(), 1);
        assert_eq!((&places[0].name[..], &places[0].addresses[..]), ("lo", &[loopback][..]));
        assert_eq!(places[0].near.iter().find(|(ip, _)| *ip == loopback), Some(&(loopback, 8)));
    }
}
