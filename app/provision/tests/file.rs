//! What may stand in the sections of the first boot, and what is said of everything else.
#![allow(clippy::unwrap_used)]

use inferd_provision::file::{Interface, parse};
use inferd_provision::report::{Device, UNIT, report};
use inferd_provision::settle::{Settled, State};
use inferd_provision::{Problem, file::Provision};

fn said(text: &str) -> Vec<String> {
    parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_with_everything_says_everything() {
    let file = parse(
        "[device]\nhostname = \"Door-7\"\ntimezone = \"europe/berlin\"\n\
         [network]\naddress = \"192.168.7.20/24\"\ngateway = \"192.168.7.1\"\ndns = [\"192.168.7.1\", \"9.9.9.9\"]\n\
         [network.eth1]\naddress = \"10.0.0.2\"\nprefix = 31\n\
         [network.wifi]\nssid = \"Büro\"\npassphrase = \"a b c d e\"\ncountry = \"DE\"\ndhcp = true\n\
         [ssh]\nauthorized_keys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3cQq8x me@desk\"]\n\
         [time]\nservers = [\"pool.ntp.org\", \"fd00::1\"]\n[server]\nthreads = 2\n",
    )
    .unwrap();
    assert_eq!(file.hostname.as_deref(), Some("Door-7"));
    assert_eq!(file.timezone.as_deref(), Some("CET-1CEST,M3.5.0,M10.5.0/3"));
    let address = file.wired.address.unwrap();
    assert_eq!(
        (address.ip.octets(), address.prefix, address.gateway.unwrap().octets()),
        ([192, 168, 7, 20], 24, [192, 168, 7, 1])
    );
    assert_eq!(file.wired.dns.len(), 2);
    assert_eq!(file.interfaces["eth1"].address.unwrap().prefix, 31);
    let wifi = file.wifi.unwrap();
    assert_eq!(
        (wifi.ssid.as_str(), wifi.passphrase.as_deref(), wifi.interface),
        ("Büro", Some("a b c d e"), Interface::default())
    );
    assert_eq!((file.ssh_keys.len(), file.time_servers.len()), (1, 2));
    assert_eq!(parse("").unwrap(), Provision::default());
    assert_eq!(parse("[device]\ntimezone = \"<+03>-3\"").unwrap().timezone.as_deref(), Some("<+03>-3"));
}

#[test]
fn every_mistake_is_told_with_its_line_and_key_at_once() {
    assert_eq!(
        said(
            "[device]\nhostname = \"door_7\"\ntimezone = \"Europa/Berlin\"\n[network]\naddress = \"192.168.7.0/24\"\ngatway = \"x\"\n\
             gateway = \"192.168.8.1\"\ndns = [\"9.9.9.9\",\n \"nine\"]\n[time]\nservers = [\"a b\"]\n[ssh]\nauthorized_keys = [\"ssh-rsa AAAA\"]"
        ),
        [
            "line 2: device.hostname is \"door_7\"; allowed is 1 to 63 letters, digits and hyphens, no hyphen first or last, and not localhost.",
            "line 3: device.timezone is \"Europa/Berlin\"; allowed is a place such as Europe/Berlin, or a rule for TZ such as \
             CET-1CEST,M3.5.0,M10.5.0/3.",
            "line 5: network.address 192.168.7.0/24 is the network itself, no address of one device.",
            "line 6: there is no setting network.gatway; did you mean gateway?",
            "line 7: network.gateway 192.168.8.1 is not in the network of 192.168.7.0/24.",
            "line 9: network.dns is \"nine\"; allowed is IPv4 addresses of other machines.",
            "line 11: time.servers is \"a b\"; allowed is a host name or an address.",
            "line 13: ssh.authorized_keys is \"ssh-rsa AAAA\"; allowed is a public key as it stands in id_ed25519.pub, without options \
             before it.",
        ]
    );
    for (text, word) in [
        ("[network]\naddress = \"192.168.7.2\"", "needs the bits of its network"),
        ("[network]\naddress = \"192.168.7.2/24\"\ndhcp = true", "exclude each other"),
        ("[network]\naddress = \"192.168.7.2/24\"\nprefix = 16", "disagree"),
        ("[network]\naddress = \"fd00::2/64\"", "an IPv4 address such as"),
        ("[network]\naddress = \"224.0.0.1/24\"", "no address of one device"),
        ("[network]\ngateway = \"192.168.7.1\"", "needs an address beside it"),
        ("[network]\ndhcp = \"yes\"", "true or false, without quotes"),
        ("[network.\"eth0;reboot\"]", "no name of an interface"),
        ("[network.wifi]\npassphrase = \"long enough\"", "network.wifi.ssid is missing"),
        ("device = 3", "device is a section"),
        ("[device\n", "this is not TOML"),
        ("[device]\nhostname = \"a\"\n[device]", "duplicate"),
        ("[device]\nhostname = 7", "is a TOML integer"),
        ("[ssh]\nauthorized_keys = [\"command=\\\"reboot\\\" ssh-rsa AAAA\"]", "without options"),
        ("[device]\nhostname = \"$(reboot)\"", "letters, digits and hyphens"),
        ("[device]\ntimezone = \"x;reboot\"", "a place such as"),
        ("[device]\nhostname = \"localhost\"", "not localhost"),
        ("[network.lo]", "no name of an interface"),
        ("[network]\ndns = [\"0.0.0.0\"]", "other machines"),
        ("[network]\ndns = [\"127.0.0.53\"]", "other machines"),
        ("[time]\nservers = [\"-q\"]", "a host name or an address"),
    ] {
        let said = said(text);
        assert!(said.len() == 1 && said[0].contains(word), "{text}: {said:?}");
    }
}

#[test]
fn a_time_zone_is_a_place_or_a_whole_rule() {
    for line in include_str!("../src/zones.txt").lines() {
        let (place, rule) = line.split_once(' ').unwrap();
        for said in [place, rule] {
            let file = parse(&format!("[device]\ntimezone = \"{said}\"")).unwrap();
            assert_eq!(file.timezone.as_deref(), Some(rule), "{said}");
        }
    }
    for rule in [
        "UTC0",
        "AAA5BBB",
        "EST+5EDT4,M3.2.0,M11.1.0/2:30:15",
        "<-0330>3:30<-0230>,M3.2.0/-1,M11.1.0/167",
        "AEST-10AEDT,J91,300/3",
    ] {
        let file = parse(&format!("[device]\ntimezone = \"{rule}\"")).unwrap();
        assert_eq!(file.timezone.as_deref(), Some(rule));
    }
    for rule in [
        "M13",
        "ABC",
        "CE-1",
        "CET-25",
        "CET-1:60",
        "<C>-1",
        "<CET-1",
        "CET-1CEST,M3.5.0",
        "CET-1CEST,M13.5.0,M10.5.0",
        "CET-1CEST,M3.6.0,M10.5.0",
        "CET-1CEST,M3.5.7,M10.5.0",
        "CET-1CEST,J0,J365",
        "CET-1CEST,366,0",
        "CET-1CEST,M3.5.0,M10.5.0/168",
        "CET-1CEST,M3.5.0,M10.5.0,",
        "CET-1,M3.5.0,M10.5.0",
    ] {
        let said = said(&format!("[device]\ntimezone = \"{rule}\""));
        assert!(said.len() == 1 && said[0].contains("a rule for TZ"), "{rule}: {said:?}");
    }
}

#[test]
fn what_does_not_fit_into_its_network_is_told_and_so_is_which_mask_is_how_many_bits() {
    for (text, says) in [
        ("address = \"10.1.2.255/24\"", "network.address 10.1.2.255/24 is the network's broadcast address"),
        (
            "address = \"10.1.2.3/24\"\ngateway = \"10.1.2.0\"",
            "network.gateway 10.1.2.0 is the network itself of 10.1.2.3/24",
        ),
        (
            "address = \"10.1.2.3/24\"\ngateway = \"10.1.2.255\"",
            "network.gateway 10.1.2.255 is the network's broadcast address",
        ),
        (
            "address = \"10.1.2.3/24\"\ngateway = \"10.1.3.1\"",
            "network.gateway 10.1.3.1 is not in the network of 10.1.2.3/24",
        ),
        ("address = \"10.1.2.3/24\"\ngateway = \"10.1.2.3\"", "network.gateway is the device's own address"),
        (
            "address = \"10.1.2.3/32\"",
            "allowed is 1 to 31 bits of the network behind the /, such as \"10.1.2.3/24\"",
        ),
        ("address = \"10.1.2.3/0\"", "allowed is 1 to 31 bits of the network behind the /"),
        ("address = \"10.1.2.3/\"", "allowed is 1 to 31 bits of the network behind the /"),
        ("address = \"/24\"", "allowed is an IPv4 address such as 192.168.1.20/24"),
        ("address = \"10.1.2.3/255.255.255.0\"", "allowed is the bits of the network: \"10.1.2.3/24\""),
        ("address = \"10.1.2.3/255.0.255.0\"", "allowed is 1 to 31 bits"),
        ("address = \"10.1.2.3\"\nprefix = \"255.255.0.0\"", "from 1 to 31, without quotes; this one is 16."),
    ] {
        let said = said(&format!("[network]\n{text}"));
        assert!(said[0].contains(says), "{text}: {said:?}");
    }
    let point_to_point = parse("[network]\naddress = \"10.0.0.2/31\"\ngateway = \"10.0.0.3\"").unwrap();
    assert_eq!(point_to_point.wired.address.unwrap().prefix, 31);
}

#[test]
fn the_first_interface_is_spoken_of_once() {
    let both = "[network]\ndns = [\"9.9.9.9\"]\n[network.eth0]\naddress = \"10.0.0.2/24\"\n";
    let once =
        "[network] is about the first wired interface, and so is [network.eth0]: say it in one of them.";
    assert_eq!(said(both), [format!("line 2: {once}")]);
    // Under its name among the scripts it would take the place of the section's own settings.
    let wired = both.replace("eth0", "wired");
    assert_eq!(said(&wired), ["line 3: the first wired interface is [network], not [network.wired]."]);
    for good in [both.replace("eth0", "eth1"), both.replace("dns = [\"9.9.9.9\"]\n", "")] {
        assert!(parse(&good).is_ok(), "{good}");
    }
}

#[test]
fn what_other_programs_call_it_is_answered_with_what_it_is_called_here() {
    for (section, key, meant) in [
        ("network", "netmask", "did you mean prefix?"),
        ("network", "IP", "did you mean address?"),
        ("network.eth1", "default-gateway", "did you mean gateway?"),
        ("network", "nameservers", "did you mean dns?"),
        ("network", "Gateway", "did you mean gateway?"),
        ("network", "ssid", "a wireless network is [network.wifi] with ssid and passphrase."),
        ("network.wlan0", "psk", "a wireless network is [network.wifi] with ssid and passphrase."),
        ("network.wifi", "password", "did you mean passphrase?"),
        ("network.wifi", "psk", "did you mean passphrase?"),
        ("network.wifi", "SSID", "did you mean ssid?"),
        ("network.wifi", "netmask", "did you mean prefix?"),
        ("device", "name", "did you mean hostname?"),
        ("device", "time_zone", "did you mean timezone?"),
        ("ssh", "key", "did you mean authorized_keys?"),
        ("time", "server", "did you mean servers?"),
    ] {
        let others = if section == "network.wifi" { "ssid = \"x\"\n" } else { "" };
        let said = said(&format!("[{section}]\n{others}{key} = \"x\"\n"));
        assert!(
            said.len() == 1 && said[0].ends_with(&format!("there is no setting {section}.{key}; {meant}")),
            "{said:?}"
        );
    }
    let wifi = said("[wifi]\nssid = \"x\"\n");
    assert_eq!(wifi, ["line 1: there is no section wifi; a wireless network is [network.wifi]."]);
}

#[test]
fn only_a_whole_public_key_is_one() {
    let said_of = |key: &str| parse(&format!("[ssh]\nauthorized_keys = [\"{key}\"]\n"));
    for good in [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3cQq8x",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A= me",
    ] {
        said_of(good).unwrap();
    }
    let zeros = format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{} you@desk", "A".repeat(43));
    for placeholder in [
        "ssh-ed25519 AAAA... you@desk",
        "ssh-ed25519 AAAA you@desk",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 you@desk",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3c me@desk",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3cQq8xAAAA me@desk",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fIA== 33 bytes",
        &zeros,
    ] {
        let said = said_of(placeholder).unwrap_err();
        assert!(
            said.len() == 1 && said[0].says.contains("a public key as it stands"),
            "{placeholder}: {said:?}"
        );
    }
}

#[test]
fn a_passphrase_is_never_repeated_and_hostile_text_stays_short() {
    let said_of = said("[network.wifi]\nssid = \"a\"\npassphrase = \"geheim\"");
    assert!(said_of[0].starts_with("line 3: network.wifi.passphrase") && !said_of[0].contains("geheim"));
    let many = format!("[time]\nservers = [{}]", "\"a\",".repeat(5000));
    assert_eq!(said(&many), ["line 2: time.servers has 5000 entries; at most 16 are read."]);
    let long = said(&format!(
        "[device]\nhostname = \"{}\"\n\"\\u001b[2J{}\" = 1",
        "x".repeat(9000),
        "k".repeat(9000)
    ));
    assert!(long.iter().all(|line| line.len() < 220 && !line.contains('\u{1b}')), "{long:?}");
    let deep = format!("a = {}", "[".repeat(200_000));
    assert!(said(&deep)[0].contains("not TOML"));
}

#[test]
fn the_report_is_ascii_with_crlf_names_what_is_wrong_and_always_fills_its_place() {
    let problems = (1..100).map(|line| Problem::at(line, "wrong \u{1b} ü.")).collect();
    let settled = Settled {
        state: State::Refused(problems),
        taken_now: false,
        text: None,
        provision: Provision::default(),
        lost: vec!["security.api_key".to_owned()],
        notes: Vec::new(),
        configured: Some(false),
        closed: None,
    };
    let device = Device { name: "inferd-123456".to_owned(), port: 9000, ..Device::default() };
    let bytes = report(&device, &settled);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.len().is_multiple_of(UNIT) && text.is_ascii() && !text.contains('\u{1b}'));
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    for part in [
        "NOT taken",
        "line 1: wrong ? ?.",
        "and 59 more",
        "MISSING: security.api_key",
        "the address of inferd-123456 at your router",
        "Mend inferd.toml",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("line 41:"));
}
