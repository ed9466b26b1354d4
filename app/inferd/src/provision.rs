//! `inferd provision`: what the boot script runs as root before the daemon. It takes `inferd.toml` of the boot partition over, makes the
//! device's identity, lays out what the other scripts go by, and writes the report back. What is decided is decided in the
//! provision room; here are the files. What lies in the daemon's directory is done as its owner ([`owner`]).
//!
//! | written | for |
//! |---|---|
//! | `DATA/provision/record` | itself: what was taken over, secrets included, root's only |
//! | `DATA/provision/address` | the report: the address the device had last |
//! | `DATA/identity/id` | 128 random bits, drawn once |
//! | `DATA/inferd/tls/` | the daemon: the device's own key and certificate, made once |
//! | `RUN/boot.toml` | the daemon and its keeper: the configuration without this room's secrets |
//! | `RUN/closed.toml` | them, where a configuration cannot be had or used: the image's own, with reading and inference for keys only |
//! | `RUN/provisioned` | the scripts: names and servers as variables of a shell |
//! | `RUN/net/NAME` | `network`: the fixed address of an interface; `wired` is the first one |
//! | `RUN/refused` | itself, by the boot script: why the daemon does not start with `RUN/boot.toml` |
//! | `RUN/overruled` | itself, by the boot script: the file that the daemon starts with in place of it |
//! | `RUN/closed` | the boot script: that the device is closed, and no other configuration is to be taken |
//! | `RUN/unforgotten` | itself: what a factory reset before could not forget |
//! | `RUN/wpa.conf`, `RUN/ssh/authorized_keys` | wpa_supplicant, the SSH server |
//! | `RUN/wifi` | itself, by `network`: why the wireless network is not joined, for the report |

use crate::config::{self, Arguments, Loaded};
use crate::{owner, tls};
use clap::Parser;
use inferd_provision::decode::{Encoding, Text};
use inferd_provision::file::{self, Interface, Provision, Wifi};
use inferd_provision::report::{Device, REPORT, report};
use inferd_provision::settle::{Card, FILE, NOTHING, Settled, State, Store, judged, settle};
use inferd_provision::{MAX_BYTES, Problem, SECTIONS, secrets};
use inferd_slots::{Found, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Where programs are looked for that an image may have or not.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Why the daemon does not start with what was taken over: the boot script has asked it.
const REFUSED: &str = "refused";
/// What the daemon starts with in its place, where there is another file: the boot script, too.
const OVERRULED: &str = "overruled";
/// An identity that is waited for longer is worth a line.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the daemon's user has for its certificate, and for forgetting. Entropy is there by then.
const MAKING: Duration = Duration::from_secs(60);
/// Less than the watchdog waits for a start, so that what took longer is told.
const FORGETTING: Duration = Duration::from_secs(40);
/// How long files are overwritten before they are taken away, and the bytes of one write.
const BLANKING: Duration = Duration::from_secs(20);
const PIECE: usize = 1 << 16;
/// Who asks for a factory reset leaves it here, below the data partition: `1` or [`EVERYTHING`], and behind it how often it was begun.
const MARK: &str = "keeper/factory-reset";
/// The same on the boot partition, for the boot script.
const ASKS_FOR_RESET: [&str; 2] = ["factory-reset", "factory-reset.txt"];
const EVERYTHING: &str = "everything";
/// Starts that may begin the same reset.
const BEGINNINGS: u32 = 3;
/// Below RUN: what a factory reset could not forget, one sentence.
const UNFORGOTTEN: &str = "unforgotten";
/// What a reset of everything passes over: what it goes by, why the board restarts, that the file system is still to grow, folders that stay.
const STAYS: [&str; 5] = [MARK, "keeper/intent", ".growing", "keeper", "lost+found"];
/// What it overwrites first.
const SECRET: [&str; 5] = ["provision", "inferd.toml", "identity", "inferd/tls", "inferd/trust"];
/// What a factory reset leaves of the daemon's directory: the record of the slots, whose keys it believes, its own key.
const OUTLIVES_RESET: [&str; 5] = ["state", "lock", "trust", "tls", "device-id"];

/// Takes over what inferd.toml on the boot partition says.
#[derive(Debug, Parser)]
#[command(
    name = "inferd provision",
    bin_name = "inferd provision",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 something failed and was said, 2 wrong arguments, or a file that --check finds something wrong with."
)]
struct Cli {
    /// Where the boot partition is mounted, read-only; without it what was taken over earlier is laid out again
    #[arg(long, value_name = "DIR")]
    card: Option<PathBuf>,
    /// The data partition; without it nothing is kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the scripts look
    #[arg(long, value_name = "DIR", default_value = "/run/inferd")]
    run: PathBuf,
    /// The device's host name where none is given
    #[arg(long, default_value = "inferd")]
    name: String,
    /// Only tell the report this address
    #[arg(long)]
    address: Option<IpAddr>,
    /// Only write the report anew: what the start has found out since may belong into it
    #[arg(long)]
    report: bool,
    /// Do not set the host name
    #[arg(long)]
    keep_hostname: bool,
    /// Instead, on any machine: judge an inferd.toml for a boot partition as the device will, and end
    #[arg(long, value_name = "FILE", exclusive = true)]
    check: Option<PathBuf>,
    /// Instead: grow the data partition, the last one of this block device, to its end
    #[arg(long, requires = "data", value_name = "DEVICE")]
    grow: Option<PathBuf>,
    /// Instead: the factory reset that a mark on the data partition asks for; without one, forget what was configured and installed, but the
    /// identity, the keys of bundles and the committed model
    #[arg(long, requires = "data", value_name = "DIR WITH THE SLOTS")]
    factory_reset: Option<PathBuf>,
    /// Of a factory reset, what is done in the daemon's directory, as its owner
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR WITH THE SLOTS", "DIR"])]
    forget_in: Option<Vec<PathBuf>>,
    /// Make the device's certificate in the daemon's directory, as its owner; the configuration is read from standard input
    #[arg(long, hide = true, value_name = "DIR")]
    certificate_in: Option<PathBuf>,
}

/// The program in this role.
pub fn main() -> ExitCode {
    let arguments = std::env::args_os().enumerate().filter(|(i, _)| *i != 1).map(|(_, a)| a);
    let cli = Cli::parse_from(arguments);
    if let (Some(disk), Some(data)) = (&cli.grow, &cli.data) {
        return grow(disk, data);
    }
    if let Some(file) = &cli.check {
        return check(file);
    }
    let outcome = match (&cli.factory_reset, &cli.data, cli.forget_in.as_deref(), &cli.certificate_in) {
        (Some(slots), Some(data), _, _) => reset(slots, data, &cli.run),
        (_, _, Some([slots, own]), _) => forget(slots, own),
        (_, _, _, Some(own)) => certificate(own),
        _ => provision(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("provision: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The rest of the medium for the data partition.
fn grow(disk: &Path, data: &Path) -> ExitCode {
    match inferd_provision::grow::grow(disk, data, "data") {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some((partition, files))) => {
            println!(
                "the data partition has grown to {} MiB, the end of the medium, and its file system to {} MiB",
                partition >> 20,
                files >> 20
            );
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("the data partition stays as it is: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with the sections of the first boot in a configuration file, one sentence each.
pub fn own_sections(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let problems = file::parse(&text).err().unwrap_or_default();
    problems.iter().map(|problem| format!("{}: {problem}", file.display())).collect()
}

/// Whether a file looks as if it were for a boot partition, which `inferd --check` does not judge.
pub fn for_a_card(path: &Path) -> bool {
    let bytes = config::regular(path, MAX_BYTES as u64 + 1).ok().flatten().unwrap_or_default();
    let written = Text::of(&bytes);
    let text = written.as_ref().map(|written| written.text.as_str()).unwrap_or_default();
    let own = || {
        file::table(text).is_ok_and(|table| SECTIONS.iter().any(|name| table.get_ref().contains_key(*name)))
    };
    written.as_ref().is_ok_and(|written| written.encoding != Encoding::Utf8)
        || text.contains(secrets::KEPT)
        || own()
}

/// What the device will say of a file, apart from what only it can know: what it has kept, and whether what is named is there.
fn check(path: &Path) -> ExitCode {
    let name = path.display();
    let judged = match config::regular(path, MAX_BYTES as u64 + 1) {
        Ok(Some(bytes)) => judged(&bytes, &config::secrets(), &judge),
        Ok(None) => Err(vec![Problem::at(0, "there is no such file.")]),
        Err(why) => Err(vec![Problem::at(0, format!("it cannot be read: {why}."))]),
    };
    match judged {
        Ok((encoding, kept)) => {
            for key in kept {
                println!(
                    "note: {key} is \"{}\": for a device that has it, else write the value",
                    secrets::KEPT
                );
            }
            if path.file_name().is_none_or(|name| !name.eq_ignore_ascii_case(FILE)) {
                println!("note: on the boot partition it must be called {FILE}");
            }
            println!("{name}: a device takes this, read as {encoding}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in problems {
                println!("problem: {name}: {problem}");
            }
            ExitCode::from(crate::EXIT_USAGE)
        }
    }
}

fn provision(cli: &Cli) -> io::Result<()> {
    let mut card = cli.card.as_deref().map(OnCard::at);
    let mut store = match cli.data.as_deref() {
        Some(data) => InStore::in_dir(&data.join("provision"))
            .inspect_err(|why| println!("provision: the data partition cannot be used: {why}"))
            .ok(),
        None => None,
    };
    let keys = config::secrets();
    let mut settled = settle(
        card.as_mut().map(|card| card as &mut dyn Card),
        store.as_mut().map(|store| store as &mut dyn Store),
        &keys,
        &judge,
    );
    if settled.taken_now {
        println!("provision: {FILE} is taken over");
    }
    if let State::Refused(problems) = &settled.state {
        for problem in problems.iter().take(8) {
            println!("provision: /boot/{FILE} is not used: {problem}");
        }
    }
    if let State::Unread(why) = &settled.state {
        println!("provision: /boot/{FILE} is not used: {why}");
    }
    if let Some(closed) = &settled.closed {
        println!(
            "provision: CLOSED: {}; reading and inference need a key at this start, {REPORT} says more",
            closed.why
        );
    }
    for key in &settled.lost {
        println!("provision: {key} is not on this device; write it into {FILE} again");
    }
    let has = |name: &str| PROGRAMS.iter().any(|dir| Path::new(dir).join(name).exists());
    settled.notes.extend(missing(&settled.provision, has));
    let wifi = fs::read_to_string(cli.run.join("wifi")).unwrap_or_default();
    settled.notes.extend(wifi.lines().take(1).map(|why| format!("[network.wifi]: {why}")));
    settled.notes.extend(unforgotten(cli));
    for note in &settled.notes {
        println!("provision: {note}");
    }
    let name = settled.provision.hostname.clone().unwrap_or_else(|| cli.name.clone());
    if cli.address.is_none() && !cli.report {
        if !cli.keep_hostname
            && let Err(why) = fs::write("/proc/sys/kernel/hostname", &name)
        {
            println!("provision: the host name cannot be set: {why}");
        }
        lay_out(&cli.run, cli.data.as_deref(), &settled)?;
    }
    let device = device(cli, &settled, name)?;
    match card.map(|mut card| card.put(REPORT, &report(&device, &settled))) {
        Some(Err(why)) => Err(io::Error::new(why.kind(), format!("{REPORT} cannot be written: {why}"))),
        _ => Ok(()),
    }
}

/// What the daemon finds wrong with a file.
fn judge(text: &str) -> Vec<Problem> {
    let from = format!("{FILE}:");
    let problem = |sentence: &str| {
        // The daemon names the file where the report names the line.
        let (before, behind) = sentence.split_once(&from).unwrap_or((sentence, ""));
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        let line = behind[..digits].parse().unwrap_or(0);
        let before = before.trim_end_matches(" (from ").trim_end_matches(" from ");
        let behind = behind[digits..].trim_start_matches([')', ':']);
        let says = format!("{before}{behind}");
        Problem::at(
            line,
            says.trim().replace("unknown key", "there is no setting").replace(" is ignored", ""),
        )
    };
    let path = Path::new(FILE);
    match Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((path, text))) {
        Ok(loaded) => {
            let mut problems: Vec<Problem> = loaded.unknown.iter().map(|s| problem(s)).collect();
            // Whether the files are there is seen when they are needed.
            if let Err(why @ (tls::CertificateError::Half { .. } | tls::CertificateError::Both)) =
                tls::check(&loaded.config)
            {
                problems.push(Problem::at(0, format!("{why}.")));
            }
            problems
        }
        // That it is no TOML the room has said already.
        Err(_) if file::table(text).is_err() => Vec::new(),
        Err(e) => e.0.iter().map(|sentence| problem(sentence)).collect(),
    }
}

/// What a file asks for and this image does not have.
fn missing(provision: &Provision, has: impl Fn(&str) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    if provision.wifi.is_some() && !has("wpa_supplicant") {
        notes.push("[network.wifi] is left out: this image has no wpa_supplicant.".to_owned());
    }
    if provision.wifi.as_ref().is_some_and(|wifi| wifi.passphrase_lost) {
        notes.push("[network.wifi] is left out: its passphrase is missing.".to_owned());
    }
    let (ssh, time) = (!provision.ssh_keys.is_empty(), !provision.time_servers.is_empty());
    if ssh && !has("dropbear") && !has("sshd") {
        notes.push("[ssh] is left out: this image has no SSH server.".to_owned());
    }
    if time && !has("chronyd") && !has("ntpd") {
        notes.push("[time] is left out: this image has neither chronyd nor ntpd.".to_owned());
    }
    let there = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let there: BTreeSet<String> =
        there.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    notes.extend(not_there(provision, &there));
    notes
}

/// Interfaces that a file names and that were not there at this start.
fn not_there(provision: &Provision, there: &BTreeSet<String>) -> Option<String> {
    let names: Vec<String> = provision
        .interfaces
        .keys()
        .filter(|name| !there.contains(*name))
        .map(|name| format!("[network.{name}]"))
        .collect();
    let here: Vec<&str> = there.iter().map(String::as_str).filter(|name| *name != "lo").collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} waits for an interface of that name; at this start there were: {}. The first wired one is [network].",
            names.join(", "),
            if here.is_empty() { "none".to_owned() } else { here.join(", ") }
        )
    })
}

/// What a factory reset could not do.
fn unforgotten(cli: &Cli) -> Vec<String> {
    let mut notes: Vec<String> = fs::read_to_string(cli.run.join(UNFORGOTTEN)).into_iter().collect();
    let asked = |card: &PathBuf| ASKS_FOR_RESET.iter().any(|name| card.join(name).is_file());
    if cli.data.is_none() && cli.card.as_ref().is_some_and(asked) {
        notes.push(
            "no factory reset: there is no data partition at this start. One that is broken is mended on another machine (e2fsck), or with \
             a medium flashed anew; a good inferd.toml here is used meanwhile."
                .to_owned(),
        );
    }
    notes
}

/// The address for the report: this one, else the last one. It is kept only when it is another one.
fn last_address(cli: &Cli) -> io::Result<Option<String>> {
    let Some(data) = &cli.data else { return Ok(cli.address.map(|ip| ip.to_string())) };
    let kept = data.join("provision/address");
    let before =
        fs::read_to_string(&kept).ok().map(|text| text.trim().to_owned()).filter(|text| text.len() < 64);
    match cli.address.map(|ip| ip.to_string()) {
        Some(now) if before.as_ref() != Some(&now) => {
            inferd_slots::replace(&kept, format!("{now}\n").as_bytes())?;
            Ok(Some(now))
        }
        _ => Ok(before),
    }
}

/// Who the device is, made where it was nobody yet.
fn device(cli: &Cli, settled: &Settled, name: String) -> io::Result<Device> {
    let text = settled.text.as_deref().unwrap_or_default();
    let path = Path::new(FILE);
    let config = Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((path, text)))
        .or_else(|_| Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None))
        .map_err(io::Error::other)?
        .config;
    let board = fs::read_to_string("/etc/inferd/board").unwrap_or_default();
    let mut device = Device {
        name,
        firmware: format!("inferd {} on {}", env!("CARGO_PKG_VERSION"), board.trim()),
        address: last_address(cli)?,
        tls: tls::wanted(&config),
        port: config.server.listen.first().map_or(9000, std::net::SocketAddr::port),
        unused: fs::read_to_string(cli.run.join(REFUSED)).ok().map(|why| why.trim().to_owned()),
        overruled: fs::read_to_string(cli.run.join(OVERRULED)).ok().map(|by| by.trim().to_owned()),
        ..Device::default()
    };
    if let Some(fixed) = settled.provision.wired.address {
        device.address = Some(fixed.ip.to_string());
    }
    let Some(data) = &cli.data else { return Ok(device) };
    let began = Instant::now();
    let id = identity(&data.join("identity"))?;
    let own = data.join("inferd");
    let arguments = [OsStr::new("--certificate-in"), own.as_os_str()];
    match owner::does(&own, &arguments, &without_own_secrets(text), MAKING) {
        Ok(fingerprint) => device.fingerprint = Some(fingerprint.trim().chars().take(128).collect()),
        Err(why) => println!("provision: there is no certificate: {why}"),
    }
    let waited = began.elapsed();
    if waited > PATIENCE {
        println!(
            "provision: the identity took {:.1} s: the kernel gathers entropy first",
            waited.as_secs_f32()
        );
    }
    device.id = Some(id);
    Ok(device)
}

/// The device's own certificate in the daemon's directory: says its fingerprint.
fn certificate(own: &Path) -> io::Result<()> {
    let mut text = String::new();
    io::stdin().take(MAX_BYTES as u64).read_to_string(&mut text)?;
    let mut config =
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((Path::new(FILE), &text)))
            .or_else(|_| Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None))
            .map_err(io::Error::other)?
            .config;
    config.updates.data_dir = own.to_owned();
    println!("{}", tls::own(&config).map_err(io::Error::other)?.fingerprint);
    Ok(())
}

/// 128 random bits, drawn once. The kernel keeps whoever asks waiting until it has entropy.
fn identity(dir: &Path) -> io::Result<String> {
    let file = dir.join("id");
    match fs::read_to_string(&file) {
        Ok(id) if id.trim().len() == 32 && id.trim().bytes().all(|b| b.is_ascii_hexdigit()) => {
            return Ok(id.trim().to_owned());
        }
        _ => fs::create_dir_all(dir)?,
    }
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(io::Error::other)?;
    let id = bits.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    inferd_slots::replace(&file, format!("{id}\n").as_bytes())?;
    println!("provision: this device is {id} from now on");
    Ok(id)
}

/// What the scripts, the daemon and the programs beside it go by. Only words that the room has judged get into a shell.
fn lay_out(run: &Path, data: Option<&Path>, settled: &Settled) -> io::Result<()> {
    let provision = &settled.provision;
    let mut shell = String::new();
    let mut set = |name: &str, value: &str| {
        let _ = writeln!(shell, "{name}='{value}'");
    };
    set("TIMEZONE", provision.timezone.as_deref().unwrap_or_default());
    set("TIME_SERVERS", &provision.time_servers.join(" "));
    set("INTERFACES", &provision.interfaces.keys().cloned().collect::<Vec<_>>().join(" "));
    let net = run.join("net");
    fs::create_dir_all(&net)?;
    fs::write(net.join("wired"), words(&provision.wired))?;
    for (name, interface) in &provision.interfaces {
        fs::write(net.join(name), words(interface))?;
    }
    if let Some(wifi) = provision.wifi.as_ref().filter(|wifi| !wifi.passphrase_lost) {
        fs::write(net.join("wifi"), words(&wifi.interface))?;
        secret(&run.join("wpa.conf"), wpa(wifi).as_bytes())?;
    }
    if !provision.ssh_keys.is_empty() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(run.join("ssh"))?;
        secret(&run.join("ssh/authorized_keys"), format!("{}\n", provision.ssh_keys.join("\n")).as_bytes())?;
    }
    // The daemon reads them, too; nobody else, for its keys are in there. Without a data partition it has only its directory below RUN.
    let owner = fs::symlink_metadata(run.join("daemon")).ok();
    let owner = owner.or_else(|| data.and_then(|data| fs::symlink_metadata(data.join("inferd")).ok()));
    let leave = |name: &str, text: &str| -> io::Result<()> {
        let file = run.join(name);
        secret(&file, text.as_bytes())?;
        if let Some(owner) = &owner {
            std::os::unix::fs::chown(&file, None, Some(owner.gid()))?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
        }
        Ok(())
    };
    let closed = closed(fs::read_to_string(config::DEFAULT_FILE).ok().as_deref().unwrap_or_default());
    leave("closed.toml", &closed)?;
    match &settled.closed {
        Some(closed) => fs::write(run.join("closed"), format!("{}\n", closed.why))?,
        None => gone(&run.join("closed"))?,
    }
    match &settled.text {
        Some(text) => leave("boot.toml", &without_own_secrets(text))?,
        None if settled.closed.is_some() => leave("boot.toml", &closed)?,
        None => {}
    }
    fs::write(run.join("provisioned"), shell)
}

/// The image's own configuration, in which reading and inference need a key. With none of a role only this machine counts; health probes are
/// answered all the same.
fn closed(own: &str) -> String {
    let mut table: toml::Table = own.parse().unwrap_or_default();
    let security = table.entry("security").or_insert_with(|| toml::Table::new().into());
    if !security.is_table() {
        *security = toml::Table::new().into();
    }
    for door in ["open_reads", "open_inference"] {
        security.as_table_mut().map(|keys| keys.insert(door.to_owned(), false.into()));
    }
    table.to_string()
}

/// The configuration as the daemon may read it.
fn without_own_secrets(text: &str) -> String {
    let whole = || {
        let written = Text::of(text.as_bytes()).ok()?;
        let mut bytes = text.as_bytes().to_vec();
        for patch in secrets::patches(&written, text.as_bytes(), &[]).ok()? {
            bytes[patch.at..patch.at + patch.is.len()].copy_from_slice(&patch.is);
        }
        String::from_utf8(bytes).ok()
    };
    whole().unwrap_or_default()
}

/// An interface as variables of a shell.
fn words(interface: &Interface) -> String {
    let dns: Vec<String> = interface.dns.iter().map(ToString::to_string).collect();
    let (address, gateway) = match interface.address {
        Some(fixed) => (
            format!("{}/{}", fixed.ip, fixed.prefix),
            fixed.gateway.map(|ip| ip.to_string()).unwrap_or_default(),
        ),
        None => (String::new(), String::new()),
    };
    format!("ADDRESS='{address}'\nGATEWAY='{gateway}'\nDNS='{}'\n", dns.join(" "))
}

/// The configuration of wpa_supplicant. A name in hex needs no quotes, whatever its letters are. With a passphrase the device speaks WPA2 and WPA3
/// (SAE, by either way to its element); one that is a key already is WPA2's.
fn wpa(wifi: &Wifi) -> String {
    let country = wifi.country.as_ref().map(|country| format!("country={country}\n")).unwrap_or_default();
    let ssid = wifi.ssid.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let (ways, key) = match &wifi.passphrase {
        None => ("", "key_mgmt=NONE".to_owned()),
        Some(key) if key.len() == 64 => ("", format!("psk={key}")),
        Some(key) => ("sae_pwe=2\n", format!("key_mgmt=WPA-PSK SAE\n    ieee80211w=1\n    psk=\"{key}\"")),
    };
    format!("{country}{ways}network={{\n    ssid={ssid}\n    scan_ssid=1\n    {key}\n}}\n")
}

/// A file for root's eyes only, from its first byte on.
fn secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let _ = fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

/// The mounted boot partition. It is mounted read-only until something is written.
struct OnCard {
    dir: PathBuf,
    writable: bool,
}

impl OnCard {
    fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), writable: false }
    }

    fn open_up(&mut self) -> io::Result<()> {
        let mounted = fs::read_to_string("/proc/self/mounts")?;
        let here = mounted.lines().rfind(|line| line.split(' ').nth(1) == self.dir.to_str());
        let read_only =
            here.is_some_and(|line| line.split(' ').nth(3).is_some_and(|o| o.split(',').any(|o| o == "ro")));
        if !self.writable && read_only {
            let done = Command::new("mount").args(["-o", "remount,rw"]).arg(&self.dir).output()?;
            if !done.status.success() {
                return Err(io::Error::other("the boot partition takes no writes"));
            }
        }
        self.writable = true;
        Ok(())
    }

    /// A file of this content. One that is as long is written over where it stands; one that is the same is not written.
    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let there = self.read(name)?;
        if there.as_deref() == Some(bytes) {
            return Ok(());
        }
        if there.is_some_and(|there| there.len() == bytes.len()) {
            return self.patch(name, 0, bytes);
        }
        self.open_up()?;
        let file = File::create(self.dir.join(name))?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }
}

impl Card for OnCard {
    fn names(&mut self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        config::regular(&self.dir.join(name), MAX_BYTES as u64 + 1)
    }

    fn patch(&mut self, name: &str, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.open_up()?;
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.write_all_at(bytes, at as u64)?;
        file.sync_all()
    }
}

/// What was taken over, in a directory of root's.
struct InStore(PathBuf);

impl InStore {
    fn in_dir(dir: &Path) -> io::Result<Self> {
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self(dir.join("record")))
    }
}

impl Store for InStore {
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.0) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = OpenOptions::new().write(true).open(&self.0);
        inferd_slots::replace(&self.0, bytes)?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600))?;
        // Its blocks are free now, and would be readable in the raw medium. That the new one is kept does not hang on it.
        let _ = before.and_then(|before| blank(&before));
        Ok(())
    }
}

/// Overwrites what a file holds. Copies that the flash itself keeps aside are out of reach.
fn blank(file: &File) -> io::Result<()> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    file.write_all_at(&vec![0; length], 0)?;
    file.sync_all()
}

/// What a mark in the keeper's directory asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    everything: bool,
    /// Starts that have begun it.
    begun: u32,
}

impl Wish {
    /// A word, and behind it how often it was begun. Whatever else stands there, a reset was asked for.
    fn of(mark: &str) -> Self {
        let mut words = mark.split_whitespace();
        let everything = words.next() == Some(EVERYTHING);
        Self { everything, begun: words.next().and_then(|word| word.parse().ok()).unwrap_or(0) }
    }

    fn mark(&self) -> String {
        format!("{} {}\n", if self.everything { EVERYTHING } else { "1" }, self.begun)
    }
}

/// A factory reset, as the mark asks for it; without one, that of what was configured. The mark goes when all is forgotten. A start that begins
/// it is counted first, so that one which hangs, or ends the board, does not do so for ever: the last of them leaves the mark, which says so.
fn reset(slots: &Path, data: &Path, run: &Path) -> io::Result<()> {
    let mark = data.join(MARK);
    let mut wish = match fs::read(&mark) {
        Ok(mark) => Some(Wish::of(&String::from_utf8_lossy(&mark))),
        Err(why) if why.kind() == io::ErrorKind::NotFound => None,
        Err(why) => return Err(why),
    };
    let tell = |sentence: String| {
        let _ = fs::write(run.join(UNFORGOTTEN), &sentence);
        Err::<(), _>(io::Error::other(sentence))
    };
    let outcome = match &mut wish {
        Some(wish) if wish.begun >= BEGINNINGS => {
            return tell(format!(
                "factory reset: NOT everything was forgotten in {BEGINNINGS} starts, and it is not tried again: ask for it once more, or flash the medium anew."
            ));
        }
        Some(wish) => {
            wish.begun += 1;
            inferd_slots::replace(&mark, wish.mark().as_bytes())
                .and_then(|()| obey(wish.everything, slots, data))
        }
        None => obey(false, slots, data),
    };
    let done = outcome.and_then(|()| {
        gone(&mark)?;
        mark.parent().filter(|dir| dir.is_dir()).map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    });
    match (done, wish) {
        (Ok(()), _) => Ok(()),
        (Err(why), Some(wish)) if wish.begun < BEGINNINGS => tell(format!(
            "factory reset: NOT everything was forgotten: {why}. The next start goes on with it."
        )),
        (Err(why), _) => tell(format!("factory reset: NOT everything was forgotten: {why}.")),
    }
}

fn obey(everything: bool, slots: &Path, data: &Path) -> io::Result<()> {
    if everything {
        println!("factory reset: forgetting everything");
        return forget_everything(slots, data);
    }
    println!("factory reset: forgetting what was configured and installed");
    forget_configured(slots, data)
}

/// Forgets what was configured and installed. What names the device, whose bundles it believes, how old a bundle may be and the committed
/// model stay. Cut anywhere, it can be begun again.
fn forget_configured(slots: &Path, data: &Path) -> io::Result<()> {
    let own = data.join("inferd");
    let mut failed = None;
    if own.is_dir() {
        let arguments = [OsStr::new("--forget-in"), slots.as_os_str(), own.as_os_str()];
        match owner::does(&own, &arguments, "", FORGETTING) {
            Ok(said) => said.lines().for_each(|line| println!("{line}")),
            Err(why) => failed = Some(why),
        }
    }
    let mut blanking = Blanking::until(Instant::now() + BLANKING);
    for path in ["inferd.toml", "provision"].map(|name| data.join(name)) {
        // Passphrases and keys are in there.
        failed = blanking.all(&path).err().or(failed);
        failed = gone(&path).err().or(failed);
    }
    nothing_is_configured(data, failed)
}

/// That nothing is configured is known from now on: it is not lost.
fn nothing_is_configured(data: &Path, failed: Option<io::Error>) -> io::Result<()> {
    let told = InStore::in_dir(&data.join("provision")).and_then(|mut store| store.replace(NOTHING));
    told.err().or(failed).map_or(Ok(()), Err)
}

/// Leaves nothing of what the device was: who it was, its keys, whom it believed, floors, both slots' bundles, its history. Cut anywhere, it can be
/// begun again. Root does it in the daemon's directory, too: nobody else runs yet, and nothing that is no plain file or folder is followed.
fn forget_everything(slots: &Path, data: &Path) -> io::Result<()> {
    let mut failed = None;
    let mut note = |outcome: io::Result<()>| failed = outcome.err().or(failed.take());
    // Without their beginnings the slots hold no bundle. With them the daemon would take them for what a lost record had told of.
    for letter in ["a", "b"] {
        let emptied = OpenOptions::new().write(true).open(slots.join(letter)).and_then(|slot| {
            slot.write_all_at(&[0; 4096], 0)?;
            slot.sync_all()
        });
        note(match emptied {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                Err(io::Error::other(format!("the model slot {letter}: {why}")))
            }
            _ => Ok(()),
        });
    }
    let entries = |dir: &Path| -> io::Result<Vec<PathBuf>> {
        let stays = STAYS.map(|name| data.join(name));
        Ok(fs::read_dir(dir)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| !stays.contains(path))
            .collect())
    };
    let mut all = entries(data)?;
    for dir in ["keeper", "lost+found"] {
        all.extend(entries(&data.join(dir)).unwrap_or_default());
    }
    // Secrets come first, should the time not do for captured windows. Their blocks are free afterwards, and can be read in the raw medium.
    let mut blanking = Blanking::until(Instant::now() + BLANKING);
    for name in SECRET {
        note(blanking.all(&data.join(name)));
    }
    for path in &all {
        note(blanking.all(path));
    }
    if blanking.left > 0 {
        println!(
            "factory reset: {} files are taken away without being overwritten: there are too many",
            blanking.left
        );
    }
    for path in &all {
        note(gone(path));
    }
    nothing_is_configured(data, failed)
}

/// Overwrites what files hold. Copies that the flash itself keeps aside, and what a file held earlier elsewhere, are out of reach.
struct Blanking {
    end: Instant,
    /// Files that had to be left.
    left: u64,
}

impl Blanking {
    fn until(end: Instant) -> Self {
        Self { end, left: 0 }
    }

    /// A file, or every file of a folder. Nothing is followed or waited for.
    fn all(&mut self, path: &Path) -> io::Result<()> {
        let there = match fs::symlink_metadata(path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
            there => there?,
        };
        if there.is_dir() {
            let mut failed = None;
            for entry in fs::read_dir(path)?.flatten() {
                failed = self.all(&entry.path()).err().or(failed);
            }
            return failed.map_or(Ok(()), Err);
        }
        if !there.is_file() {
            return Ok(());
        }
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        // Of a file with holes no more than it takes of the medium.
        let length = file.metadata()?.len().min(there.blocks().saturating_mul(512));
        let zeros = vec![0; PIECE];
        let mut at = 0;
        while at < length && Instant::now() < self.end {
            let piece = usize::try_from(length - at).map_or(PIECE, |left| left.min(PIECE));
            file.write_all_at(&zeros[..piece], at)?;
            at += piece as u64;
        }
        self.left += u64::from(at < length);
        // Before its blocks are free: afterwards nobody would write them.
        file.sync_data()
    }
}

/// What is forgotten in the daemon's directory.
fn forget(slots: &Path, own: &Path) -> io::Result<()> {
    if own.join("state").exists() {
        match only_the_committed(slots, own) {
            Ok(Some(kept)) => println!("provision: factory reset: the model slot {kept} stays"),
            Ok(None) => println!("provision: factory reset: no model was committed; the image's own serve"),
            Err(why) => println!("provision: factory reset: the model slots stay as they are: {why}"),
        }
    }
    let mut failed = None;
    for entry in fs::read_dir(own)?.flatten() {
        if OUTLIVES_RESET.iter().all(|name| entry.file_name() != *name) {
            failed = gone(&entry.path()).err().or(failed);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn gone(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if there.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Ends a trial and forgets the slot that does not serve. Which one serves.
fn only_the_committed(slots: &Path, own: &Path) -> Result<Option<char>, inferd_slots::SlotError> {
    let at = inferd_slots::Config {
        slots: [slots.join("a"), slots.join("b")],
        data: own.to_owned(),
        capacity: u64::MAX,
    };
    let store = inferd_slots::Store::at(&at)?;
    if store.found() != Found::Kept {
        return Ok(None);
    }
    let mut state = store.state();
    if state.trial.is_some() {
        state = store.step(&Step::Return { bad: false })?;
    }
    for slot in [inferd_slots::SlotId::A, inferd_slots::SlotId::B] {
        let erasable =
            state.active != Some(slot) && state.slot(slot).status != inferd_slots::SlotStatus::Empty;
        if erasable {
            store.step(&Step::Erase { slot })?;
        }
    }
    Ok(state.active.map(inferd_slots::SlotId::letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_told_with_those_that_are() {
        let provision = file::parse("[network.eth0]\ndhcp = true\n[network.lan]\ndhcp = true\n").unwrap();
        let there = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let told = not_there(&provision, &there(&["eth0", "lo", "wlan0"])).unwrap();
        assert!(
            told.starts_with("[network.lan] waits") && told.contains("there were: eth0, wlan0."),
            "{told}"
        );
        assert!(not_there(&provision, &there(&["lo"])).unwrap().contains("[network.eth0], [network.lan]"));
        assert_eq!(not_there(&provision, &there(&["eth0", "lan"])), None);
    }

    #[test]
    fn a_mark_says_what_shall_be_forgotten_and_how_often_that_was_begun() {
        for (mark, everything, begun) in [
            ("", false, 0),
            ("1\n", false, 0),
            ("everything\n", true, 0),
            ("everything 2\n", true, 2),
            ("1 3", false, 3),
        ] {
            let wish = Wish::of(mark);
            assert_eq!((wish.everything, wish.begun), (everything, begun), "{mark}");
            assert_eq!(Wish::of(&wish.mark()), wish);
        }
    }

    #[test]
    fn what_is_asked_for_and_not_in_the_image_is_said_and_one_of_two_programs_is_enough() {
        let asks = |text: &str| file::parse(text).unwrap();
        let provision = asks("[network.wifi]\nssid = \"lab\"\n[time]\nservers = [\"10.0.0.1\"]\n");
        let said =
            |there: &'static [&'static str]| missing(&provision, |name| there.contains(&name)).join(" ");
        assert!(said(&[]).contains("no wpa_supplicant") && said(&[]).contains("neither chronyd nor ntpd"));
        assert_eq!(said(&["wpa_supplicant", "ntpd"]), "");
        assert_eq!(said(&["wpa_supplicant", "chronyd"]), "");
        assert!(missing(&asks(""), |_| false).is_empty());
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3cQq8x me@desk";
        let ssh = asks(&format!("[ssh]\nauthorized_keys = [\"{key}\"]\n"));
        assert!(missing(&ssh, |_| false)[0].contains("no SSH server"));
        assert!(
            missing(&ssh, |name| name == "sshd").is_empty()
                && missing(&ssh, |name| name == "dropbear").is_empty()
        );
    }

    #[test]
    fn a_passphrase_is_for_both_kinds_of_network_a_key_for_one_and_an_open_one_has_neither() {
        let wifi = |lines: &str| {
            let text = format!("[network.wifi]\nssid = \"La \\\"b\\\" #1\"\n{lines}");
            wpa(&file::parse(&text).unwrap().wifi.unwrap())
        };
        let name = "4c6120226222202331";
        assert_eq!(
            wifi(""),
            format!("network={{\n    ssid={name}\n    scan_ssid=1\n    key_mgmt=NONE\n}}\n")
        );
        let both = wifi("passphrase = 'a \"b\" # c\\ '\ncountry = \"DE\"\n");
        assert!(both.starts_with("country=DE\nsae_pwe=2\nnetwork={\n"), "{both}");
        assert!(
            both.contains("\n    key_mgmt=WPA-PSK SAE\n    ieee80211w=1\n    psk=\"a \"b\" # c\\ \"\n"),
            "{both}"
        );
        let key = "0123456789abcdef".repeat(4);
        let one = wifi(&format!("passphrase = \"{key}\"\n"));
        assert!(
            one.contains(&format!("\n    psk={key}\n")) && !one.contains("SAE") && !one.contains("sae"),
            "{one}"
        );
    }

    #[test]
    fn what_is_closed_is_the_images_own_configuration_without_an_open_door() {
        let key = "a-key-of-this-test-0123456789";
        let own = format!("[server]\nthreads = 2\n[security]\napi_key = \"{key}\"\nopen_reads = true\n");
        for (own, keys, threads) in
            [(own.as_str(), 1, 2), ("", 0, 1), ("security = 3\n", 0, 1), ("this is [not TOML", 0, 1)]
        {
            let text = closed(own);
            let file = Some((Path::new(FILE), text.as_str()));
            let config = Loaded::from_layers(&Arguments::default(), BTreeMap::new(), file).unwrap().config;
            assert!(!config.security.open_reads && !config.security.open_inference, "{text}");
            assert_eq!((config.security.keys().len(), config.server.threads), (keys, threads), "{text}");
        }
    }
}
