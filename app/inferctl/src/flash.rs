//! `inferctl flash`: an image onto a card, and nothing onto anything else.
//!
//! The way: [`image`] is opened and checked with what lies beside it ([`release`]: checksum, signature, board) → the configuration of
//! [`settings`] is put on a copy of its FAT in memory → [`disks`] says what there is and what uses it → a person confirms one disk →
//! [`medium`] opens exactly that one → [`copy`] probes it for a false size, writes what the [`bmap`] maps, and reads it back from the
//! medium → [`provision`] puts the configuration on it. What follows from the files and from what the kernel says of the disk is refused
//! before the first byte is written; that a card lies or fails, that an image changes meanwhile or is not what its map says, only shows
//! then. Linux only.

mod bmap;
mod copy;
mod disks;
mod error;
mod image;
mod medium;
mod provision;
mod release;
mod settings;

use crate::{fail::Failure, files, meter::Meter, show};
use disks::{Disk, Kernel, Seen, Use};
use error::FlashError;
use image::Image;
use medium::Target;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use settings::Settings;
use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest file of an API key.
const MAX_KEY: u64 = 4096;
/// What a card is that was begun.
const INCOMPLETE: &str = "the card was begun and is incomplete: flash it again";

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Flash {
    /// The image: .img or .img.zst; NAME.img.bmap, NAME.img.json, SHA256SUMS and SHA256SUMS.minisig beside it are used
    #[arg(required_unless_present = "list")]
    image: Option<PathBuf>,
    /// The whole disk, like /dev/sdb [default: asks which of the removable media]
    device: Option<PathBuf>,
    /// Show the disks that there are, and end
    #[arg(long, conflicts_with_all = ["device", "yes"])]
    list: bool,
    /// Ask nothing; without DEVICE only where exactly one removable medium is in
    #[arg(long)]
    yes: bool,
    /// With --yes: DEVICE may be a disk that is no removable medium, like a USB disk or one inside this machine
    #[arg(long, requires_all = ["device", "yes"])]
    fixed_disk: bool,
    /// Unmount what is mounted from the device
    #[arg(long)]
    unmount: bool,
    /// DEVICE is a file of a card's size, or a loop device
    #[arg(long, requires = "device")]
    file: bool,
    /// The block map, where it does not lie beside the image
    #[arg(long, value_name = "FILE")]
    bmap: Option<PathBuf>,
    /// Write every byte, whatever a block map says
    #[arg(long, conflicts_with = "bmap")]
    no_bmap: bool,
    /// Refuse an image that is for another board, or does not say
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
    /// The public key of who released it (of `inferctl keygen`, or minisign's): an image that it did not sign is refused
    #[arg(long = "pub", value_name = "FILE")]
    public: Option<PathBuf>,
    /// A configuration that the device takes at its first boot
    #[arg(long, value_name = "inferd.toml")]
    provision: Option<PathBuf>,
    /// The device's name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A public key that may log in by SSH, where an image has that; repeatable
    #[arg(long = "ssh-key", value_name = "id.pub")]
    ssh_keys: Vec<PathBuf>,
    /// A file with the API key that the card gets: unlike --api-key no other user sees it in the list of processes
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// What went wrong, and whether the card was written to before.
struct Failed {
    error: FlashError,
    touched: bool,
}

impl Failed {
    /// The sentence for people; programs are told.
    fn tell(&self, json: bool) -> String {
        let text =
            format!("{}; {}", self.error, if self.touched { INCOMPLETE } else { "nothing was written" });
        if json {
            show::json(
                &json!({"flashed": false, "code": self.error.code(), "touched": self.touched, "error": text}),
            );
        }
        text
    }
}

impl From<FlashError> for Failed {
    fn from(error: FlashError) -> Self {
        Self { error, touched: false }
    }
}

/// What DEVICE names.
enum Named {
    File(PathBuf),
    Disk(Disk),
}

/// What a write was.
struct Done {
    device: PathBuf,
    bytes: u64,
    writing: Duration,
    reading: Duration,
}

impl Flash {
    /// Flashes. `api_key` is one that the card gets.
    ///
    /// # Errors
    /// [`Failure::Flash`].
    pub fn run(&self, api_key: Option<&str>, json: bool) -> Result<(), Failure> {
        if self.list {
            list(json);
            return Ok(());
        }
        self.flash(api_key, json)
            .map_err(|failed| Failure::Flash { text: failed.tell(json), touched: failed.touched })
    }

    fn flash(&self, api_key: Option<&str>, json: bool) -> Result<(), Failed> {
        let path = self.image.as_deref().unwrap_or(Path::new(""));
        let key = self.api_key(api_key)?;
        let settings = Settings {
            file: self.provision.as_deref(),
            hostname: self.hostname.as_deref(),
            ssh_keys: &self.ssh_keys,
            api_key: key.as_deref(),
        };
        let config = settings.compose()?;
        let signed = self.public.is_some();
        let mut image = Image::open(path, self.bmap.as_deref(), self.no_bmap, self.public.as_deref())?;
        if let Some(wants) = &self.board {
            let (path, wants) = (path.into(), wants.clone());
            match image.board() {
                Some(has) if *has == wants => {}
                Some(has) => return Err(FlashError::Board { path, has: has.into(), wants }.into()),
                None => return Err(FlashError::NoBoard { path, wants }.into()),
            }
        }
        image.is_of_a_disk()?;
        if let Some(config) = &config {
            provision::rehearse(self.config_path(), &image, config)?;
        }
        self.look(&image)?;
        let mut meter = None;
        let checked = image.check(|now, total| {
            meter.get_or_insert_with(|| Meter::new("checking the image", 0, total, json)).at(now);
        })?;
        if let Some(mut meter) = meter {
            meter.end();
        }
        if !json {
            let sum = checked
                .as_ref()
                .map_or("no checksum beside it".into(), |by| format!("checksum right ({by})"));
            let map =
                if image.bmap.is_some() { "with block map" } else { "no block map: all of it is written" };
            let sign = if signed { "signature right" } else { "signature not asked for (--pub)" };
            show::line(&format!(
                "{}: {}, of which {} are written; {sum}, {sign}, {map}",
                path.display(),
                show::bytes(image.size),
                show::bytes(image.written())
            ));
        }
        let mut target = self.target(&image)?;
        let done = self.onto(&image, config.as_deref(), &mut target, json)?;
        let rate = |time: Duration| per_second(done.bytes, time);
        if json {
            show::json(&json!({
                "flashed": true, "device": done.device, "image": path, "board": image.board(), "image_bytes": image.size,
                "written_bytes": done.bytes, "bmap": image.bmap.is_some(), "checksum": checked, "signature": signed,
                "verified": true, "provisioned": config.is_some(),
                "write_seconds": done.writing.as_secs_f64(), "write_bytes_per_second": rate(done.writing),
                "verify_seconds": done.reading.as_secs_f64(), "verify_bytes_per_second": rate(done.reading),
            }));
        } else {
            show::line(&format!(
                "{}: {} written ({}/s) and read back the same ({}/s){}; it can be taken out",
                done.device.display(),
                show::bytes(done.bytes),
                show::bytes(rate(done.writing)),
                show::bytes(rate(done.reading)),
                if config.is_some() { ", inferd.toml is on it" } else { "" }
            ));
        }
        Ok(())
    }

    /// What stands against the medium is said before an image of gigabytes is read. All of it is asked again before the first byte.
    fn look(&self, image: &Image) -> Result<(), FlashError> {
        let kernel = Kernel::default();
        match &self.device {
            Some(named) => self.named(image, &kernel, named).map(|_| ()),
            None if Seen::now(&kernel).disks().iter().any(Disk::is_offered) => Ok(()),
            None => Err(FlashError::NoMedium),
        }
    }

    /// What DEVICE is, where nothing stands against writing to it.
    fn named(&self, image: &Image, kernel: &Kernel, named: &Path) -> Result<Named, FlashError> {
        let device = fs::canonicalize(named).map_err(|source| FlashError::Open {
            device: named.to_owned(),
            hint: if self.file && source.kind() == io::ErrorKind::NotFound {
                " (make a file of a card's size first: truncate -s 8G FILE)"
            } else {
                ""
            },
            source,
        })?;
        let status = fs::metadata(&device).map_err(|source| FlashError::Open {
            device: device.clone(),
            source,
            hint: "",
        })?;
        if status.is_file() && self.file {
            image.differs_from(&device, &status)?;
            if let Some(name) = Seen::now(kernel).showing(&status) {
                let why = format!(
                    "/dev/{name} shows it; `losetup -d /dev/{name}` ends that, or write to /dev/{name}"
                );
                return Err(FlashError::Refused { device, code: "in-use", why });
            }
            enough(image, &device, status.len())?;
            return Ok(Named::File(device));
        }
        if !status.file_type().is_block_device() {
            let why = "it is no disk (--file writes to a regular file)".to_owned();
            return Err(FlashError::Refused { device, code: "not-a-disk", why });
        }
        let seen = Seen::now(kernel);
        let disk = match seen.named(status.rdev()) {
            Some((_, Some(whole))) => {
                let why = format!("it is a partition; the whole disk is /dev/{whole}");
                return Err(FlashError::Refused { device, code: "partition", why });
            }
            Some((name, None)) => seen.disk(&name),
            None => None,
        };
        let Some(disk) = disk else {
            let why = "the system does not know it as a disk".to_owned();
            return Err(FlashError::Refused { device, code: "not-a-disk", why });
        };
        self.fits(image, kernel, &disk)?;
        Ok(Named::Disk(disk))
    }

    /// The one medium that may be written, opened.
    fn target(&self, image: &Image) -> Result<(PathBuf, Target), FlashError> {
        let kernel = Kernel::default();
        if let Some(named) = &self.device {
            return match self.named(image, &kernel, named)? {
                Named::File(device) => self.regular(device),
                Named::Disk(disk) => self.open(image, &kernel, &disk),
            };
        }
        let mut offered: Vec<Disk> =
            Seen::now(&kernel).disks().into_iter().filter(Disk::is_offered).collect();
        let disk = match offered.len() {
            0 => return Err(FlashError::NoMedium),
            1 => offered.remove(0),
            n if self.yes || !io::stdin().is_terminal() => {
                let names: Vec<String> = offered.iter().map(|d| d.device.display().to_string()).collect();
                return Err(FlashError::Several(n, names.join(", ")));
            }
            _ => {
                show::line(&table(&offered));
                let name = ask("Which one (its device, like /dev/sdb)? ")?;
                let chosen = offered.into_iter().find(|disk| disk.device == Path::new(&name));
                chosen.ok_or_else(|| FlashError::NotConfirmed(format!("{name:?} is none of these")))?
            }
        };
        self.open(image, &kernel, &disk)
    }

    fn regular(&self, device: PathBuf) -> Result<(PathBuf, Target), FlashError> {
        let target = Target::file(&device)?;
        if !self.yes {
            confirm(&format!("Everything in the file {} is replaced.", device.display()), "yes")?;
        }
        Ok((device, target))
    }

    /// What stands against writing to this disk.
    fn refuse(&self, disk: &Disk) -> Result<(), FlashError> {
        let refused = |code, why| Err(FlashError::Refused { device: disk.device.clone(), code, why });
        match &disk.used {
            Use::System(why) => {
                return refused("system-disk", format!("it is the system's disk: {why}"));
            }
            Use::Held(what) => return refused("in-use", format!("it is in use: {what}")),
            Use::Mounted(at) if !self.unmount => {
                let places: Vec<String> = at.iter().map(|at| at.display().to_string()).collect();
                let why = format!("it is mounted at {}; --unmount unmounts it", places.join(", "));
                return refused("mounted", why);
            }
            Use::Mounted(_) | Use::Free => {}
        }
        if disk.transport == "loop" && !self.file {
            return refused("not-a-disk", "it is a loop device; say --file when that is meant".into());
        }
        if disk.read_only {
            let why = "it is write-protected: move the switch at the card's edge, or take another adapter; a card that has worn out \
                       protects itself for good";
            return refused("write-protected", why.into());
        }
        if disk.is_fixed() && self.yes && !self.fixed_disk {
            let why = "it is no removable medium; leave --yes out to be asked, or add --fixed-disk when it is meant";
            return refused("fixed-disk", why.into());
        }
        Ok(())
    }

    /// What stands against writing this image to this disk.
    fn fits(&self, image: &Image, kernel: &Kernel, disk: &Disk) -> Result<(), FlashError> {
        self.refuse(disk)?;
        if let Some(Ok(shown)) = Seen::now(kernel).backing(&disk.name()).map(fs::metadata) {
            image.differs_from(&disk.device, &shown)?;
        }
        enough(image, &disk.device, disk.identity.size)
    }

    fn open(&self, image: &Image, kernel: &Kernel, disk: &Disk) -> Result<(PathBuf, Target), FlashError> {
        let (device, name) = (disk.device.clone(), disk.name());
        self.fits(image, kernel, disk)?;
        if !self.yes {
            show::line(&table(std::slice::from_ref(disk)));
            let lost = format!("Everything on {} is lost.", device.display());
            if disk.is_fixed() {
                let word = device.display().to_string();
                confirm(&format!("It is no removable medium, but a disk of its own. {lost}"), &word)?;
            } else {
                confirm(&lost, "yes")?;
            }
        }
        if self.unmount {
            unmount(kernel, &name, disk)?;
        }
        // All of it again, now that a person has thought about it.
        let seen = || Seen::now(kernel).disk(&name);
        if let Some(Disk { used: used @ (Use::System(_) | Use::Held(_) | Use::Mounted(_)), .. }) = seen() {
            let why = format!("it came into use meanwhile ({used:?})");
            return Err(FlashError::Swapped { device, why });
        }
        let target = Target::device(&device, &disk.identity, || seen().map(|disk| disk.identity))?;
        Ok((device, target))
    }

    /// Everything that changes the medium.
    fn onto(
        &self,
        image: &Image,
        config: Option<&[u8]>,
        (device, medium): &mut (PathBuf, Target),
        quiet: bool,
    ) -> Result<Done, Failed> {
        let touched = |error| Failed { error, touched: true };
        let interrupts = Interrupts::catch(quiet)?;
        let bytes = image.written();
        let seed =
            copy::seed().map_err(|source| FlashError::Read { path: "random numbers".into(), source })?;
        copy::probe(device, medium, seed).map_err(touched)?;
        let timed = |what: &str, act: &mut dyn FnMut(&mut Meter) -> Result<(), FlashError>| {
            let mut meter = Meter::new(what, 0, bytes, quiet).with_rest();
            let began = Instant::now();
            let outcome = act(&mut meter);
            meter.end();
            outcome.map(|()| began.elapsed()).map_err(touched)
        };
        let mut pieces = Vec::new();
        let writing = timed("writing", &mut |meter| {
            pieces = copy::write(device, image, medium, |now| meter.at(now))?;
            Ok(())
        })?;
        let reading =
            timed("reading back", &mut |meter| copy::verify(device, &pieces, medium, |now| meter.at(now)))?;
        if let Some(config) = config {
            provision::put(self.config_path(), medium, config).map_err(touched)?;
        }
        interrupts.let_go();
        Ok(Done { device: device.clone(), bytes, writing, reading })
    }

    /// The API key: typed, or of a file.
    fn api_key(&self, typed: Option<&str>) -> Result<Option<String>, FlashError> {
        let Some(file) = &self.api_key_file else { return Ok(typed.map(str::to_owned)) };
        let failed = |why: String| FlashError::Provision { path: self.config_path().to_owned(), why };
        if typed.is_some() {
            return Err(failed("--api-key and --api-key-file both name a key; say one".into()));
        }
        let bytes = files::read(file, MAX_KEY).map_err(|e| failed(e.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| failed(format!("{} is no text", file.display())))?;
        Ok(Some(text.trim().to_owned()))
    }

    /// What messages call the configuration.
    fn config_path(&self) -> &Path {
        self.provision.as_deref().unwrap_or(Path::new(provision::NAME))
    }
}

/// SIGINT, SIGTERM and SIGHUP, which leave word and the exit code of an incomplete card, until the card is whole.
struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    fn catch(json: bool) -> Result<Self, FlashError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().map_err(|e| FlashError::Read { path: "signals".into(), source: e.into() })?;
        let whole = Arc::new(AtomicBool::new(false));
        let seen = whole.clone();
        std::thread::spawn(move || {
            let signal = set.wait();
            if seen.load(Ordering::SeqCst) {
                std::process::exit(0);
            }
            let name = signal.map_or("a signal", Signal::as_str);
            let error = FlashError::Interrupted { signal: name };
            eprintln!("\ninferctl: {}", Failed { error, touched: true }.tell(json));
            std::process::exit(4);
        });
        Ok(Self(whole))
    }

    /// The card is whole.
    fn let_go(self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn enough(image: &Image, device: &Path, has: u64) -> Result<(), FlashError> {
    let needs = image.end();
    if has < needs { Err(FlashError::TooSmall { device: device.to_owned(), has, needs }) } else { Ok(()) }
}

/// Unmounts a confirmed disk, what was mounted last first. Each mount is looked up when it is its turn: a question may have stood for
/// an hour. Another medium is left alone; who opens it says so.
fn unmount(kernel: &Kernel, name: &str, confirmed: &Disk) -> Result<(), FlashError> {
    let refused = |at: &Path, why: &str| FlashError::Refused {
        device: confirmed.device.clone(),
        code: "mounted",
        why: format!("{} cannot be unmounted: {why}", at.display()),
    };
    loop {
        let seen = Seen::now(kernel);
        match seen.disk(name) {
            Some(Disk { identity, used: Use::Mounted(_), .. }) if identity == confirmed.identity => {}
            _ => return Ok(()),
        }
        let Some((at, covered)) = seen.newest_mount(name) else { return Ok(()) };
        if covered {
            return Err(refused(&at, "something else is mounted over it"));
        }
        nix::mount::umount2(&at, nix::mount::MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|e| refused(&at, e.desc()))?;
    }
}

fn list(json: bool) {
    let disks = Seen::now(&Kernel::default()).disks();
    if json {
        let row = |disk: &Disk| {
            let mut row = json!(disk);
            row["offered"] = disk.is_offered().into();
            row
        };
        let rows: Vec<Value> = disks.iter().map(row).collect();
        show::json(&rows);
    } else {
        show::line(&table(&disks));
    }
}

fn table(disks: &[Disk]) -> String {
    let heads = ["device", "size", "model", "serial", "by", "removable", "partitions", "use"];
    let rows: Vec<Vec<String>> = disks
        .iter()
        .map(|disk| {
            let parts: Vec<String> = disk
                .partitions
                .iter()
                .map(|part| format!("{} {}", part.name, show::bytes(part.size)))
                .collect();
            vec![
                disk.device.display().to_string(),
                show::bytes(disk.identity.size),
                disk.identity.model.clone(),
                disk.identity.serial.clone(),
                disk.transport.to_owned(),
                if disk.removable { "yes" } else { "no" }.to_owned(),
                parts.join(", "),
                match &disk.used {
                    Use::System(_) => "the system's, never written to".to_owned(),
                    Use::Held(what) => what.clone(),
                    Use::Mounted(at) => {
                        let at: Vec<String> = at.iter().map(|at| at.display().to_string()).collect();
                        format!("mounted at {}", at.join(", "))
                    }
                    Use::Free if disk.read_only => "write-protected".to_owned(),
                    Use::Free => String::new(),
                },
            ]
        })
        .collect();
    show::table(&heads, &rows)
}

fn ask(question: &str) -> Result<String, FlashError> {
    if !io::stdin().is_terminal() {
        return Err(FlashError::NotConfirmed("nobody can be asked here; --yes says that it is meant".into()));
    }
    let mut line = String::new();
    let mut out = io::stderr().lock();
    let asked = out.write_all(question.as_bytes()).and_then(|()| out.flush());
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut line))
        .map_err(|e| FlashError::NotConfirmed(e.to_string()))?;
    Ok(line.trim().to_owned())
}

fn confirm(what: &str, word: &str) -> Result<(), FlashError> {
    let answer = ask(&format!("{what} Write it? Type {word}: "))?;
    if answer == word { Ok(()) } else { Err(FlashError::NotConfirmed(format!("you did not say {word}"))) }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / time.as_micros().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use disks::tests::Double;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        flash: Flash,
    }

    #[test]
    fn a_disk_that_is_no_removable_medium_is_not_written_to_by_yes_alone() {
        let double = Double::new();
        double.disk("pci0/usb1/1-3/a", "sdb", 8, 4_000_000, 1);
        double.disk("pci0/ata1/a", "sdc", 9, 4_000_000, 1);
        double.disk("pci0/usb1/1-4/a", "sdd", 10, 8000, 1);
        double.put("devices/pci0/usb1/1-4/a/block/sdd/removable", "1\n");
        double.mounts(&["1 0 0:5 / / rw - overlay x rw"]);
        let seen = Seen::now(&double.kernel);
        let code = |name: &str, options: &[&str]| {
            let all = ["flash", "x.img", "/dev/x"].into_iter().chain(options.iter().copied());
            let flash = Cli::try_parse_from(all).unwrap().flash;
            flash.refuse(&seen.disk(name).unwrap()).err().map(|error| error.code())
        };
        for fixed in ["sdb", "sdc"] {
            assert_eq!(code(fixed, &["--yes"]), Some("fixed-disk"), "{fixed}");
            assert_eq!(code(fixed, &["--yes", "--fixed-disk"]), None, "{fixed}");
            assert_eq!(code(fixed, &[]), None, "{fixed} is asked about");
        }
        assert_eq!(code("sdd", &["--yes"]), None);
        assert!(
            Cli::try_parse_from(["flash", "x.img", "--yes", "--fixed-disk"]).is_err(),
            "it must be named"
        );
    }
}
