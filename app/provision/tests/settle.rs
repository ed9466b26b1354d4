//! A file is taken over once, wholly or not at all, and a power cut at any write of it changes nothing about that.
#![allow(clippy::unwrap_used)]

use inferd_provision::report::{self, REPORT, report};
use inferd_provision::settle::{Card, FILE, NOTHING, Settled, State, Store, judged, settle};
use inferd_provision::{Problem, secrets};
use std::io;

const KEYS: [&str; 2] = ["security.api_key", "security.admin_keys"];
const API_KEY: &str = "0123456789abcdefghijklmn";

/// A card and a data partition whose power ends with a certain write, in the middle of it or right behind it.
#[derive(Clone, Default)]
struct Device {
    file: Option<Vec<u8>>,
    /// Names beside it.
    beside: Vec<&'static str>,
    /// Something else has the name of the file.
    folder: bool,
    report: Option<Vec<u8>>,
    kept: Option<Vec<u8>>,
    /// The data partition cannot be mounted.
    volatile: bool,
    writes: usize,
    /// The write that is the last one, and how many of its bytes arrive.
    cut: Option<(usize, usize)>,
    read_only: bool,
}

struct OnCard<'a>(&'a std::cell::RefCell<Device>);
struct InStore<'a>(&'a std::cell::RefCell<Device>);

impl Device {
    /// How many bytes of this write arrive, and whether there is power afterwards.
    fn write(&mut self, length: usize) -> (usize, io::Result<()>) {
        self.writes += 1;
        match self.cut {
            Some((last, _)) if self.writes > last => (0, Err(io::Error::other("no power"))),
            Some((last, arrives)) if self.writes == last => {
                (arrives.min(length), Err(io::Error::other("no power")))
            }
            _ => (length, Ok(())),
        }
    }

    fn has(&self, secret: &str) -> bool {
        self.file.as_ref().unwrap().windows(secret.len()).any(|bytes| bytes == secret.as_bytes())
    }
}

impl Card for OnCard<'_> {
    fn names(&mut self) -> io::Result<Vec<String>> {
        let own = self.0.borrow().file.is_some().then_some(FILE);
        Ok(self.0.borrow().beside.iter().copied().chain(own).map(str::to_owned).collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        if name == REPORT {
            return Ok(self.0.borrow().report.clone());
        }
        assert_eq!(name, FILE);
        if self.0.borrow().folder {
            return Err(io::Error::other("it is a folder, not a file"));
        }
        Ok(self.0.borrow().file.clone())
    }

    fn patch(&mut self, _: &str, at: usize, bytes: &[u8]) -> io::Result<()> {
        let mut device = self.0.borrow_mut();
        if device.read_only {
            return Err(io::Error::other("read-only file system"));
        }
        let (arrives, power) = device.write(bytes.len());
        device.file.as_mut().unwrap()[at..at + arrives].copy_from_slice(&bytes[..arrives]);
        power
    }
}

impl Store for InStore<'_> {
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().kept.clone())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut device = self.0.borrow_mut();
        let (arrives, power) = device.write(bytes.len());
        if arrives == bytes.len() {
            device.kept = Some(bytes.to_vec());
        }
        power
    }
}

/// What the daemon would say: an API key has 16 letters or more.
fn judge(text: &str) -> Vec<Problem> {
    let short = text.lines().position(|line| line.starts_with("api_key = \"short"));
    short.map(|line| Problem::at(line + 1, "security.api_key is not allowed.")).into_iter().collect()
}

/// Starts the device once.
fn start(device: &mut Device) -> Settled {
    let cell = std::cell::RefCell::new(std::mem::take(device));
    let mut store = (!cell.borrow().volatile).then_some(InStore(&cell));
    let store = store.as_mut().map(|store| store as &mut dyn Store);
    let settled = settle(Some(&mut OnCard(&cell)), store, &KEYS, &judge);
    *device = cell.into_inner();
    device.report = Some(report(&report::Device::default(), &settled));
    settled
}

/// What the report on the card says.
fn told(device: &Device) -> String {
    String::from_utf8(device.report.clone().unwrap()).unwrap()
}

fn with(text: impl AsRef<[u8]>) -> Device {
    Device { file: Some(text.as_ref().to_vec()), ..Device::default() }
}

fn good() -> String {
    format!(
        "[device]\r\nhostname = \"door\"\r\n[network.wifi]\r\nssid = \"lab\"\r\npassphrase = \"correct horse\" # ours\r\n\
         [security]\r\nadmin_keys = [\"{API_KEY}\",\r\n  \"another one of 24 bytes!\"]\r\napi_key = \"{API_KEY}\"\r\n"
    )
}

#[test]
fn a_good_file_is_taken_once_and_its_secrets_leave_the_card_where_they_stood() {
    let mut device = with(good());
    let settled = start(&mut device);
    assert_eq!(settled.state, State::InUse { encoding: "UTF-8".to_owned() });
    assert!(settled.taken_now && settled.notes.is_empty() && settled.lost.is_empty(), "{settled:?}");
    assert_eq!(settled.text.as_deref(), Some(good().as_str()));
    assert_eq!(settled.provision.hostname.as_deref(), Some("door"));
    assert_eq!(settled.provision.wifi.as_ref().unwrap().passphrase.as_deref(), Some("correct horse"));
    let file = String::from_utf8(device.file.clone().unwrap()).unwrap();
    assert_eq!(file.len(), good().len());
    assert!(file.contains("passphrase = \"(kept)\"        # ours"), "{file}");
    assert!(!device.has(API_KEY) && !device.has("another one") && !device.has("correct"), "{file}");
    // The next start writes nothing, and goes by the same.
    let writes = device.writes;
    let again = start(&mut device);
    assert_eq!((again.state, again.text, again.provision), (settled.state, settled.text, settled.provision));
    assert!(!again.taken_now);
    assert_eq!(device.writes, writes);
}

#[test]
fn a_power_cut_at_any_byte_of_any_write_leaves_what_the_next_start_completes() {
    let mut whole = with(good());
    start(&mut whole);
    let (mut states, mut cuts) = (std::collections::HashSet::new(), 0);
    for last in 1..=whole.writes {
        for arrives in 0..=good().len() {
            let mut device = with(good());
            device.cut = Some((last, arrives));
            start(&mut device);
            cuts += 1;
            if !states.insert((device.file.clone(), device.kept.clone())) {
                continue;
            }
            device.cut = None;
            let settled = start(&mut device);
            assert_eq!(
                settled.text.as_deref(),
                Some(good().as_str()),
                "cut in write {last} after {arrives} bytes"
            );
            assert!(settled.lost.is_empty() && settled.notes.is_empty(), "{settled:?}");
            assert_eq!(device.file, whole.file, "cut in write {last} after {arrives} bytes");
        }
    }
    assert!(states.len() > 60, "{} states of {cuts} cuts: the cuts must have met the writes", states.len());
}

#[test]
fn a_cut_among_sectors_that_arrive_in_any_order_is_completed_too() {
    // The secret lies across the border of two sectors, of which only the second arrived.
    let text = format!("{}\n[security]\napi_key = \"{API_KEY}\"\n", "#".repeat(500 - 11));
    let mut whole = with(&text);
    start(&mut whole);
    let mut device = with(&text);
    device.cut = Some((2, 0));
    start(&mut device);
    assert!(device.has(API_KEY));
    device.file.as_mut().unwrap()[512..].copy_from_slice(&whole.file.as_ref().unwrap()[512..]);
    device.cut = None;
    let settled = start(&mut device);
    assert!(settled.text.unwrap().contains(API_KEY));
    assert_eq!(device.file, whole.file);
}

#[test]
fn a_bad_file_is_refused_whole_and_what_was_taken_before_stays() {
    let mut device = with(good());
    start(&mut device);
    let bad = "[device]\nhostnme = \"a\"\n[security]\napi_key = \"short\"\n";
    device.file = Some(bad.into());
    let settled = start(&mut device);
    let State::Refused(problems) = &settled.state else { panic!("{settled:?}") };
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "line 2: there is no setting device.hostnme; did you mean hostname?",
            "line 4: security.api_key is not allowed."
        ]
    );
    assert_eq!(settled.text.as_deref(), Some(good().as_str()));
    assert_eq!(device.file.as_deref(), Some(bad.as_bytes()), "a file that is not taken is not touched");
    device.file = None;
    assert_eq!(
        start(&mut device).text.as_deref(),
        Some(good().as_str()),
        "nor does one that is gone change anything"
    );
}

#[test]
fn what_stands_for_a_secret_is_the_kept_one_another_one_replaces_it_and_a_line_less_forgets_it() {
    let mut device = with(good());
    start(&mut device);
    let edited = String::from_utf8(device.file.clone().unwrap()).unwrap().replace("door", "gate");
    device.file = Some(edited.clone().into());
    let settled = start(&mut device);
    assert!(settled.taken_now);
    assert!(
        settled.text.as_ref().unwrap().contains(API_KEY)
            && settled.provision.hostname.as_deref() == Some("gate")
    );
    let other = edited.replace("passphrase = \"(kept)\"", "passphrase = \"battery staple\"");
    device.file = Some(other.into());
    let settled = start(&mut device);
    assert_eq!(settled.provision.wifi.unwrap().passphrase.as_deref(), Some("battery staple"));
    assert!(settled.text.unwrap().contains(API_KEY) && !device.has("battery"));
    device.file = Some(b"[device]\nhostname = \"gate\"\n".to_vec());
    assert!(!start(&mut device).text.unwrap().contains(API_KEY));
}

#[test]
fn a_card_that_gave_its_secrets_to_another_device_says_which_are_missing() {
    let mut first = with(good());
    start(&mut first);
    let mut second = with(first.file.clone().unwrap());
    let settled = start(&mut second);
    assert_eq!(settled.lost, ["network.wifi.passphrase", "security.admin_keys", "security.api_key"]);
    let wifi = settled.provision.wifi.unwrap();
    assert!(wifi.passphrase_lost && wifi.passphrase.is_none(), "an open network of that name is not joined");
    assert!(settled.text.unwrap().contains("api_key = \"\""));
    assert_eq!(start(&mut second).lost.len(), 3, "and says so at every start");
    // The file as it was first written does there what it did here.
    second.file = Some(good().into());
    assert_eq!(start(&mut second).text.as_deref(), Some(good().as_str()));
    assert_eq!(second.file, first.file);
}

#[test]
fn where_nothing_can_be_kept_the_file_is_used_and_left_alone() {
    let cell = std::cell::RefCell::new(with(good()));
    let settled = settle(Some(&mut OnCard(&cell)), None, &KEYS, &judge);
    assert!(
        matches!(settled.state, State::NotKept { .. }) && settled.text.as_deref() == Some(good().as_str())
    );
    assert!(settled.notes[0].contains("there is no data partition"), "{:?}", settled.notes);
    assert!(cell.into_inner().has(API_KEY), "or nobody would have the key");
    // Nor is a card that takes no writes a reason not to use it.
    let mut device = Device { read_only: true, ..with(good()) };
    let settled = start(&mut device);
    assert!(settled.notes[0].contains("cannot be taken off the card: read-only"), "{:?}", settled.notes);
    assert_eq!(settled.text.as_deref(), Some(good().as_str()));
}

#[test]
fn secrets_leave_a_file_of_any_encoding_and_digests_of_keys_stay() {
    let text = format!(
        "# Tür\r\n[security]\r\napi_key = \"{API_KEY}\"\r\nadmin_keys = [\"sha256:{}\"]\r\n",
        "0".repeat(64)
    );
    let utf16: Vec<u8> =
        [vec![0xff, 0xfe], text.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat();
    let latin: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    for bytes in [utf16, latin] {
        let mut device = with(&bytes);
        let settled = start(&mut device);
        assert_eq!(settled.text.as_deref(), Some(text.as_str()));
        let read = inferd_provision::decode::Text::of(device.file.as_ref().unwrap()).unwrap().text;
        assert!(!read.contains(API_KEY) && read.contains("# Tür") && read.contains("sha256:000"), "{read}");
        assert_eq!(secrets::find(&read, &KEYS).unwrap().len(), 1);
        assert!(!start(&mut device).taken_now);
    }
}

#[test]
fn what_was_configured_and_cannot_be_had_closes_the_device_and_says_so() {
    let mut configured = with(good());
    start(&mut configured);
    configured.file = None;
    let settled = start(&mut configured);
    assert!(settled.closed.is_none() && settled.text.is_some(), "{settled:?}");
    // The data partition is not there once: whether or not the report was thrown away.
    for report in [configured.report.clone(), None] {
        let mut device = Device { volatile: true, report, ..configured.clone() };
        let settled = start(&mut device);
        assert!(settled.text.is_none() && settled.closed.is_some(), "{settled:?}");
        assert!(told(&device).contains("The device runs CLOSED"), "{}", told(&device));
        assert!(start(&mut device).closed.is_some(), "and so at the next start");
        device.volatile = false;
        let settled = start(&mut device);
        assert!(settled.closed.is_none() && settled.text.as_deref() == Some(good().as_str()), "{settled:?}");
    }
    // It is lost, or cannot be read.
    for kept in [None, Some(b"{\"text\":".to_vec())] {
        let mut device = Device { kept, ..configured.clone() };
        assert!(start(&mut device).closed.is_some());
        assert!(told(&device).contains("CLOSED: ") && told(&device).contains("Configured:   yes"));
        assert!(start(&mut device).closed.is_some(), "and so at the next start");
        // A file opens it again, and so does a factory reset.
        let settled = start(&mut Device { file: Some(good().into()), ..device.clone() });
        assert!(settled.closed.is_none() && settled.text.is_some(), "{settled:?}");
        device.kept = Some(NOTHING.to_vec());
        assert!(start(&mut device).closed.is_none());
        assert!(
            told(&device).contains("Configured:   no") && told(&device).contains("runs with its defaults")
        );
        assert!(start(&mut device).closed.is_none());
    }
    // Nor does a bad file open it, or one that cannot be read.
    let mut device =
        Device { volatile: true, file: Some(b"[device]\nhostnme = 1\n".to_vec()), ..configured.clone() };
    assert!(start(&mut device).closed.is_some());
    device.folder = true;
    assert!(start(&mut device).closed.is_some());
    assert!(
        told(&device).contains("inferd.toml was NOT taken, it cannot be read: it is a folder, not a file.")
    );
}

#[test]
fn a_refused_file_whose_secrets_nobody_has_closes_the_device() {
    let mut device =
        with("[security]\nadmin_keys = [\"(kept)\"]\nopen_reads = false\n[device]\nhostnme = \"a\"\n");
    assert!(start(&mut device).closed.is_some());
    // Without it the device is as new as it was.
    device.file = None;
    assert!(start(&mut device).closed.is_none());
}

/// Keys and shut doors, and one mistake anywhere: in a name, in the TOML, in the section's own name, in the encoding.
#[test]
fn a_first_file_that_means_to_shut_doors_and_is_refused_closes_the_device() {
    let doors = |section: &str, before: &str| {
        format!(
            "{before}[{section}]\nopen_reads = false\nopen_inference = false\nadmin_keys = [\"{API_KEY}\"]\n"
        )
    };
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let mut broken = doors("security", "").into_bytes();
    broken.extend(b"\0\0\x01");
    for file in [
        doors("security", "[device]\nhostnme = \"a\"\n").into_bytes(),
        doors("security", "[device\nhostname = \"a\"\n").into_bytes(),
        utf16(&doors("security", "[device]\nhostnme = \"a\"\n")),
        b"[secruity]\nreads = false\n[device]\nhostnme = 1\n".to_vec(),
        doors("access", "[device]\nhostnme = 1\n").into_bytes(),
        format!("api_kye = \"{API_KEY}\"\n[device]\nhostnme = 1\n").into_bytes(),
        b"[TLS]\nself_signed = true\n[device]\nhostnme = 1\n".to_vec(),
        b"[server]\nlisten = [\"127.0.0.1:9000\"]\nthreads = many\n".to_vec(),
        broken,
        vec![b' '; inferd_provision::MAX_BYTES + 1],
    ] {
        for kept in [None, Some(NOTHING.to_vec())] {
            let mut device = Device { kept, ..with(&file) };
            let what = String::from_utf8_lossy(&file[..file.len().min(200)]).into_owned();
            let settled = start(&mut device);
            assert!(matches!(settled.state, State::Refused(_)) && settled.text.is_none(), "{what}");
            assert!(settled.closed.as_ref().is_some_and(|closed| closed.by_file), "{what}: {settled:?}");
            let report = told(&device);
            assert!(report.contains("The device runs CLOSED") && !report.contains(API_KEY), "{report}");
            assert!(report.contains("Mend inferd.toml, or take it off this partition"), "{report}");
            assert!(start(&mut device).closed.is_some(), "and so at the next start");
            // What it offers works.
            device.file = None;
            assert!(start(&mut device).closed.is_none(), "{what}");
        }
    }
    // One that cannot be read may say anything.
    let mut device = Device { folder: true, ..Device::default() };
    assert!(start(&mut device).closed.is_some());
    assert!(told(&device).contains("CLOSED: inferd.toml cannot be read."), "{}", told(&device));
    device.folder = false;
    assert!(start(&mut device).closed.is_none());
    // What is about something else shuts nothing, and neither does what is commented out.
    let mut device = with("# [security]\n#open_reads = false\n[device]\nhostnme = \"a\"\n");
    assert!(start(&mut device).closed.is_none());
    // What was taken before stays as it was: with open doors, too.
    let mut device = with("[device]\nhostname = \"a\"\n");
    start(&mut device);
    device.file = Some(doors("security", "[device]\nhostnme = \"a\"\n").into_bytes());
    let settled = start(&mut device);
    assert!(settled.closed.is_none() && settled.text.is_some());
}

#[test]
fn a_device_that_was_never_configured_is_open_at_its_first_start_and_without_its_data_partition_too() {
    let mut device = Device::default();
    let settled = start(&mut device);
    assert!(settled.closed.is_none() && settled.text.is_none() && settled.configured == Some(false));
    assert!(told(&device).contains("The device runs with its defaults"));
    device.volatile = true;
    assert!(start(&mut device).closed.is_none(), "its report says that there was nothing to lose");
    let mut device = with("[device]\nhostnme = 1\n");
    assert!(start(&mut device).closed.is_none(), "a first file that is bad takes nothing away");
    // Whether it is its first start nobody can say where neither report nor data partition is there.
    let mut device = Device { volatile: true, ..Device::default() };
    assert!(start(&mut device).closed.is_some() && told(&device).contains("Configured:   unknown"));
    device.volatile = false;
    assert!(start(&mut device).closed.is_none(), "it was");
}

#[test]
fn a_file_of_nearly_the_right_name_is_said_to_be_passed_over() {
    let beside = vec![
        "inferd.toml.txt",
        "inferd.toml.toml",
        "Inferd.toml",
        "inferd.tml",
        "inferd.toml.example",
        "inferd-report.txt",
        "INFERD-REPORT.TXT",
        "config.txt",
        "._inferd.toml",
        "cmdline.txt",
    ];
    let mut device = Device { beside, ..Device::default() };
    let notes = start(&mut device).notes;
    let names: Vec<&str> = notes.iter().filter_map(|note| note.split('"').nth(1)).collect();
    assert_eq!(names, ["Inferd.toml", "inferd.tml", "inferd.toml.toml", "inferd.toml.txt"]);
    assert!(told(&device).contains("NOTE: \"inferd.toml.txt\" is passed over"), "{}", told(&device));
    // Beside a good file, too; and a FAT finds that under any letters.
    let mut device = Device { beside: vec!["INFERD.TOML", "inferd.toml.bak"], ..with(good()) };
    let notes = start(&mut device).notes;
    assert!(notes.len() == 1 && notes[0].contains("inferd.toml.bak"), "{notes:?}");
    let mut device = Device { beside: vec!["inferd.toml.txt"; 100], ..Device::default() };
    assert_eq!(start(&mut device).notes.last().unwrap(), "96 more such files are passed over.");
}

#[test]
fn on_a_laptop_a_file_is_judged_as_on_a_device_that_has_what_is_kept() {
    let mut device = with(good());
    start(&mut device);
    let without_key = |text: &str| match text.contains("api_key = \"\"") {
        true => vec![Problem::at(0, "it has no key.")],
        false => judge(text),
    };
    let (encoding, kept) = judged(&device.file.unwrap(), &KEYS, &without_key).unwrap();
    assert_eq!(encoding, "UTF-8");
    assert_eq!(kept, ["network.wifi.passphrase", "security.admin_keys", "security.api_key"]);
    let utf16: Vec<u8> = "[device]\r\nhostnme = 1\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let said = judged(&utf16, &KEYS, &judge).unwrap_err();
    assert_eq!(said[0].to_string(), "line 2: there is no setting device.hostnme; did you mean hostname?");
    assert!(judged(b"[security]\napi_key = \"short\"\n", &KEYS, &judge).is_err());
    assert!(judged(b"\0\0\0", &KEYS, &judge).is_err());
}
