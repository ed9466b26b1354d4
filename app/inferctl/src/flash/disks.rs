//! Which disks there are, what they are called, and what uses them: from /sys and /proc, with no ioctl.
//!
//! A disk is in use when it, a partition of it, anything that is made of those (LVM, dm, md, bcache: `holders`, to the end), or a
//! loop device over a file that lies on them is mounted or swapped to.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, Metadata},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// Where the system itself lives. What is mounted at or below one of these (below `/` nothing is meant but `/`) is never written to.
const SYSTEM: [&str; 8] = ["/boot", "/efi", "/usr", "/var", "/etc", "/opt", "/srv", "/nix"];
/// Where people live: it and a home of its own are the system's, what a person mounts further down is not.
const HOMES: &str = "/home";
/// Below [`SYSTEM`], but anybody's.
const ANYBODYS: &str = "/var/tmp";
/// Bytes of a sector in /sys, whatever the device's own are.
const SECTOR: u64 = 512;

/// What tells one medium from another.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Identity {
    /// Major and minor number, as `st_rdev` has them.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    pub model: String,
    pub serial: String,
    /// Counts every medium that the kernel saw (Linux 5.15).
    pub sequence: Option<u64>,
}

/// A partition.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Partition {
    pub name: String,
    pub size: u64,
    pub mounted: Vec<PathBuf>,
}

/// How the system uses a disk, worst first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "use", content = "what")]
pub enum Use {
    /// The system runs from it: never written to.
    System(String),
    /// Something is made of it (LVM, dm, md), a loop device shows a file of it, or it is swapped to.
    Held(String),
    /// Mounted at these places, the newest last: can be unmounted.
    Mounted(Vec<PathBuf>),
    /// Nothing uses it.
    Free,
}

/// A whole disk.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Disk {
    pub device: PathBuf,
    #[serde(flatten)]
    pub identity: Identity,
    /// usb, mmc, nvme, sata, virtio, loop, or "".
    pub transport: &'static str,
    /// The kernel says that its medium can be taken out. A USB disk with its own case says that it cannot, and may hold years of work.
    pub removable: bool,
    pub read_only: bool,
    pub partitions: Vec<Partition>,
    #[serde(flatten)]
    pub used: Use,
}

impl Disk {
    /// What the kernel calls it.
    pub fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it is written to only when it was named, and then named again: neither a card nor what stands for one in tests.
    pub fn is_fixed(&self) -> bool {
        !self.removable && self.transport != "loop"
    }

    /// Whether a card is meant when nobody names a device: it can be taken out, has a medium, and the system is not on it.
    pub fn is_offered(&self) -> bool {
        self.removable && !matches!(self.used, Use::System(_)) && self.identity.size > 0
    }
}

/// A mount: what it shows and where.
struct Mount {
    number: u64,
    source: PathBuf,
    at: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    /// By the number, and by the name that a mount says it is of (btrfs has numbers of its own).
    fn is_of(&self, devices: &[u64]) -> bool {
        devices.contains(&self.number)
            || special(&self.source).is_some_and(|number| devices.contains(&number))
    }
}

/// Where the kernel tells: other folders in tests.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub sys: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// Everything that is asked about block devices at one moment.
pub struct Seen {
    kernel: Kernel,
    /// Number of a device to its name: `sda1`.
    names: BTreeMap<u64, String>,
    mounts: Vec<Mount>,
    swaps: Vec<PathBuf>,
}

impl Seen {
    /// Looks.
    pub fn now(kernel: &Kernel) -> Self {
        let class = kernel.sys.join("class/block");
        let names = list(&class)
            .into_iter()
            .filter_map(|name| Some((number(&text(&class.join(&name).join("dev")))?, name)))
            .collect();
        let mounts = fs::read_to_string(kernel.proc.join("self/mountinfo")).unwrap_or_default();
        let mounts = mounts.lines().filter_map(mount).collect();
        let swaps = fs::read_to_string(kernel.proc.join("swaps")).unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let swaps = swaps.map(|path| unescaped(path).into()).collect();
        Self { kernel: kernel.clone(), names, mounts, swaps }
    }

    /// All disks, by name; without those that only stand for others or for memory.
    pub fn disks(&self) -> Vec<Disk> {
        let names = list(&self.kernel.sys.join("block"));
        let made = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];
        names
            .iter()
            .filter(|name| !made.iter().any(|prefix| name.starts_with(prefix)))
            .filter(|name| !name.contains("boot") && !name.contains("rpmb"))
            .filter_map(|name| self.disk(name))
            .filter(|disk| disk.identity.size > 0)
            .collect()
    }

    /// The disk with this name in /sys/block.
    pub fn disk(&self, name: &str) -> Option<Disk> {
        let folder = self.kernel.sys.join("block").join(name);
        let number = number(&text(&folder.join("dev")))?;
        let partitions = self.partitions(name);
        let transport = transport(&folder, name);
        Some(Disk {
            device: self.kernel.dev.join(name.replace('!', "/")),
            identity: Identity {
                number,
                size: sectors(&folder),
                model: model(&folder),
                serial: serial(&folder),
                sequence: text(&folder.join("diskseq")).parse().ok(),
            },
            // A card in a reader of the board itself (mmc) is no removable disk to the kernel; soldered memory says MMC, a card SD.
            removable: text(&folder.join("removable")) == "1"
                || (transport == "mmc" && text(&folder.join("device/type")) == "SD"),
            transport,
            read_only: text(&folder.join("ro")) == "1",
            used: self.used(name, &partitions),
            partitions: partitions
                .into_iter()
                .map(|part| {
                    let own = self.number_of(&part);
                    Partition {
                        size: sectors(&self.kernel.sys.join("class/block").join(&part)),
                        mounted: own.map(|own| self.mounted(&[own])).unwrap_or_default(),
                        name: part,
                    }
                })
                .collect(),
        })
    }

    /// The name of a device with this number, and of the disk that it is a partition of.
    pub fn named(&self, number: u64) -> Option<(String, Option<String>)> {
        let name = self.names.get(&number)?;
        let folder = self.kernel.sys.join("class/block").join(name);
        if !folder.join("partition").exists() {
            return Some((name.clone(), None));
        }
        let whole = fs::canonicalize(folder).ok()?.parent()?.file_name()?.to_string_lossy().into_owned();
        Some((name.clone(), Some(whole)))
    }

    fn number_of(&self, name: &str) -> Option<u64> {
        number(&text(&self.kernel.sys.join("class/block").join(name).join("dev")))
    }

    fn partitions(&self, disk: &str) -> Vec<String> {
        let folder = self.kernel.sys.join("block").join(disk);
        list(&folder).into_iter().filter(|name| folder.join(name).join("partition").exists()).collect()
    }

    /// The newest mount of a disk or its partitions, and whether something else is mounted over it.
    pub fn newest_mount(&self, disk: &str) -> Option<(PathBuf, bool)> {
        let mut members = self.partitions(disk);
        members.push(disk.to_owned());
        let own: Vec<u64> = members.iter().filter_map(|name| self.number_of(name)).collect();
        let newest = self.mounts.iter().rposition(|mount| mount.is_of(&own))?;
        let at = &self.mounts[newest].at;
        Some((at.clone(), self.mounts[newest + 1..].iter().any(|mount| &mount.at == at)))
    }

    /// Where devices are mounted, in the kernel's order: what was mounted last is last.
    fn mounted(&self, own: &[u64]) -> Vec<PathBuf> {
        self.mounts.iter().filter(|mount| mount.is_of(own)).map(|mount| mount.at.clone()).collect()
    }

    /// The file that a loop device shows.
    pub fn backing(&self, name: &str) -> Option<PathBuf> {
        self.behind(name, "loop/backing_file")
    }

    /// The loop device that shows a file.
    pub fn showing(&self, file: &Metadata) -> Option<String> {
        let loops = list(&self.kernel.sys.join("block")).into_iter().filter(|name| name.starts_with("loop"));
        loops.into_iter().find(|name| {
            let shown = self.backing(name).and_then(|path| fs::metadata(path).ok());
            shown.is_some_and(|shown| (shown.dev(), shown.ino()) == (file.dev(), file.ino()))
        })
    }

    fn behind(&self, name: &str, file: &str) -> Option<PathBuf> {
        let bytes = fs::read(self.kernel.sys.join("block").join(name).join(file)).ok()?;
        let path = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let path = PathBuf::from(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)));
        path.is_absolute().then_some(path)
    }

    fn used(&self, disk: &str, partitions: &[String]) -> Use {
        let mut members: Vec<String> = vec![disk.to_owned()];
        members.extend(partitions.iter().cloned());
        let own: BTreeSet<String> = members.iter().cloned().collect();
        let (mut held, mut numbers) = (None, Vec::new());
        let below_root = self.below_root();
        let mut next = 0;
        while let Some(name) = members.get(next).cloned() {
            next += 1;
            let Some(number) = self.number_of(&name) else { continue };
            if let Some(at) = self.mounted(&[number]).iter().find(|at| is_system(at)) {
                return Use::System(format!("{} is mounted from {name}", at.display()));
            }
            if below_root.contains(&number) {
                return Use::System(format!("a layer of / lies on {name}"));
            }
            for swap in &self.swaps {
                if special(swap) == Some(number) || file_on(swap) == Some(number) {
                    return Use::System(format!("{} is swapped to", swap.display()));
                }
            }
            let folder = self.kernel.sys.join("class/block").join(&name);
            let mut made = list(&folder.join("holders"));
            made.extend(self.shown_by(number));
            for other in made {
                if !own.contains(&other) {
                    held.get_or_insert(format!("{other} is made of {name}"));
                }
                if !members.contains(&other) {
                    members.extend(self.partitions(&other));
                    members.push(other);
                }
            }
            numbers.push(number);
        }
        let mounted = self.mounted(&numbers);
        match held {
            Some(what) => Use::Held(what),
            None if mounted.is_empty() => Use::Free,
            None => Use::Mounted(mounted),
        }
    }

    /// Loop devices and zrams whose bytes lie on this device.
    fn shown_by(&self, number: u64) -> Vec<String> {
        let block = self.kernel.sys.join("block");
        list(&block)
            .into_iter()
            .filter(|name| {
                ["loop/backing_file", "backing_dev"].iter().any(|file| {
                    let path = self.behind(name, file);
                    path.is_some_and(|path| special(&path) == Some(number) || file_on(&path) == Some(number))
                })
            })
            .collect()
    }

    /// What a root of several layers lies on.
    fn below_root(&self) -> BTreeSet<u64> {
        let root = self.mounts.iter().filter(|m| m.at == Path::new("/") && m.kind == "overlay");
        let layers = root.flat_map(|m| m.options.split(',')).filter_map(|option| {
            ["lowerdir=", "upperdir=", "workdir="].iter().find_map(|name| option.strip_prefix(name))
        });
        layers
            .flat_map(|folders| folders.split(':'))
            .filter_map(|folder| file_on(Path::new(folder)))
            .collect()
    }
}

fn is_system(at: &Path) -> bool {
    at == Path::new("/")
        || SYSTEM.iter().any(|folder| at.starts_with(folder)) && !at.starts_with(ANYBODYS)
        || at.strip_prefix(HOMES).is_ok_and(|below| below.components().count() <= 1)
}

fn list(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// A file's text, letters only: what a device says of itself reaches a terminal.
fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(256).collect()
}

fn sectors(folder: &Path) -> u64 {
    text(&folder.join("size")).parse::<u64>().unwrap_or(0).saturating_mul(SECTOR)
}

/// `8:17` as `st_rdev` has it.
fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The number of a block device's node.
fn special(path: &Path) -> Option<u64> {
    use std::os::unix::fs::FileTypeExt as _;
    let status = path.is_absolute().then(|| fs::metadata(path).ok())??;
    status.file_type().is_block_device().then(|| status.rdev())
}

/// The number of the device that a file lies on.
fn file_on(path: &Path) -> Option<u64> {
    let status = fs::metadata(path).ok()?;
    Some(status.dev())
}

fn model(folder: &Path) -> String {
    let vendor = text(&folder.join("device/vendor"));
    let model = text(&folder.join("device/model"));
    let name = if model.is_empty() { text(&folder.join("device/name")) } else { model };
    // A PCI device's vendor is a number.
    if vendor.is_empty() || vendor.starts_with("0x") { name } else { format!("{vendor} {name}") }
}

/// The serial of the disk, else that of the USB device which it is behind.
fn serial(folder: &Path) -> String {
    for file in ["device/serial", "device/cid", "serial", "device/wwid", "wwid"] {
        let serial = text(&folder.join(file));
        if !serial.is_empty() {
            return serial;
        }
    }
    let real = fs::canonicalize(folder).unwrap_or_default();
    let above = real.ancestors().take_while(|at| at.file_name().is_some_and(|name| name != "devices"));
    above.map(|at| text(&at.join("serial"))).find(|serial| !serial.is_empty()).unwrap_or_default()
}

fn transport(folder: &Path, name: &str) -> &'static str {
    let real = fs::canonicalize(folder).unwrap_or_default();
    let path = real.to_string_lossy().into_owned();
    let table =
        [("/usb", "usb"), ("/mmc", "mmc"), ("/nvme", "nvme"), ("/ata", "sata"), ("/virtio", "virtio")];
    if name.starts_with("loop") {
        return "loop";
    }
    table.iter().find(|(part, _)| path.contains(part)).map_or("", |(_, transport)| transport)
}

/// A line of mountinfo: `22 27 0:21 / /proc rw shared:1 - proc proc rw,x`.
fn mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(2);
    let number = number(head.next()?)?;
    let at = unescaped(head.nth(1)?);
    let mut tail = tail.splitn(3, ' ');
    let (kind, source) = (tail.next()?.to_owned(), unescaped(tail.next()?));
    Some(Mount {
        number,
        source: source.into(),
        at: at.into(),
        kind,
        options: tail.next().unwrap_or_default().into(),
    })
}

/// `\040` and the like are characters.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A kernel made of files.
    pub struct Double {
        pub folder: tempfile::TempDir,
        pub kernel: Kernel,
    }

    impl Double {
        pub fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            let kernel = Kernel { sys: at("sys"), proc: at("proc"), dev: at("dev") };
            for made in ["sys/block", "sys/class/block", "proc/self", "dev"] {
                fs::create_dir_all(at(made)).unwrap();
            }
            Self { folder, kernel }
        }

        pub fn put(&self, path: &str, text: &str) {
            let path = self.kernel.sys.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A disk at a place below /sys/devices, with partitions of 1 MiB; numbers count from `major`:0.
        pub fn disk(&self, place: &str, name: &str, major: u64, mib: u64, partitions: u64) {
            let folder = format!("devices/{place}/block/{name}");
            self.put(&format!("{folder}/size"), &(mib * 2048).to_string());
            self.put(&format!("{folder}/dev"), &format!("{major}:0\n"));
            self.put(&format!("{folder}/ro"), "0\n");
            let sys = fs::canonicalize(&self.kernel.sys).unwrap();
            symlink(sys.join(&folder), sys.join("block").join(name)).unwrap();
            symlink(sys.join(&folder), sys.join("class/block").join(name)).unwrap();
            for n in 1..=partitions {
                let own = format!("{name}{}{n}", if name.ends_with(char::is_numeric) { "p" } else { "" });
                self.put(&format!("{folder}/{own}/partition"), &n.to_string());
                self.put(&format!("{folder}/{own}/size"), "2048");
                self.put(&format!("{folder}/{own}/dev"), &format!("{major}:{n}"));
                symlink(sys.join(&folder).join(&own), sys.join("class/block").join(&own)).unwrap();
            }
        }

        pub fn mounts(&self, lines: &[&str]) {
            fs::write(self.kernel.proc.join("self/mountinfo"), lines.join("\n")).unwrap();
        }

        pub fn used(&self, name: &str) -> Use {
            Seen::now(&self.kernel).disk(name).unwrap().used
        }
    }

    #[test]
    fn a_card_in_a_reader_is_offered_and_the_disk_of_the_system_is_not() {
        let double = Double::new();
        double.disk("pci0/usb1/1-2/1-2:1.0/host0/target0/0:0:0:0", "sda", 8, 100, 2);
        double.put("devices/pci0/usb1/1-2/serial", "ABC123\n");
        double.put(
            "devices/pci0/usb1/1-2/1-2:1.0/host0/target0/0:0:0:0/block/sda/device/model",
            "Reader\x1b[31m \n",
        );
        double.put("devices/pci0/usb1/1-2/1-2:1.0/host0/target0/0:0:0:0/block/sda/removable", "1\n");
        double.disk("pci0/usb1/1-3/1-3:1.0/host1/target1/1:0:0:0", "sdb", 65, 4_000_000, 1);
        double.put("devices/pci0/usb1/1-3/1-3:1.0/host1/target1/1:0:0:0/block/sdb/removable", "0\n");
        double.disk("pci0/nvme/nvme0", "nvme0n1", 259, 1000, 3);
        double.disk("platform/mmc_host/mmc0", "mmcblk0", 179, 50, 1);
        double.put("devices/platform/mmc_host/mmc0/block/mmcblk0/device/type", "SD");
        double.disk("platform/mmc_host/mmc1", "mmcblk1", 180, 50, 1);
        double.put("devices/platform/mmc_host/mmc1/block/mmcblk1/device/type", "MMC");
        double.mounts(&[
            "1 0 259:2 / / rw - ext4 /dev/root rw",
            "2 1 259:1 / /boot/efi rw shared:1 - vfat x rw",
            "3 1 8:1 / /media/me/MY\\040CARD rw - vfat y rw",
        ]);
        let disks = Seen::now(&double.kernel).disks();
        let offered: Vec<_> = disks.iter().filter(|d| d.is_offered()).map(|d| d.device.clone()).collect();
        assert_eq!(
            offered,
            [double.kernel.dev.join("mmcblk0"), double.kernel.dev.join("sda")],
            "no USB disk"
        );
        let card = disks.iter().find(|d| d.device.ends_with("sda")).unwrap();
        assert_eq!((card.identity.serial.as_str(), card.transport), ("ABC123", "usb"));
        assert_eq!(card.identity.model, "Reader [31m", "no escape sequence reaches a terminal");
        assert_eq!(card.used, Use::Mounted(vec!["/media/me/MY CARD".into()]));
        assert!(matches!(double.used("nvme0n1"), Use::System(_)));
    }

    #[test]
    fn a_system_on_lvm_on_raid_on_a_partition_is_found_through_all_holders() {
        let double = Double::new();
        double.disk("pci0/usb1/1-1/a", "sdb", 8, 100, 2);
        double.disk("virtual", "md0", 9, 90, 0);
        double.disk("virtual", "dm-0", 253, 80, 0);
        double.put("devices/pci0/usb1/1-1/a/block/sdb/sdb2/holders/md0", "");
        double.put("devices/virtual/block/md0/holders/dm-0", "");
        double.mounts(&["1 0 0:5 / /proc rw - proc proc rw"]);
        assert_eq!(double.used("sdb"), Use::Held("md0 is made of sdb2".into()));
        double.mounts(&["1 0 253:0 / / rw - ext4 /dev/mapper/root rw"]);
        assert_eq!(double.used("sdb"), Use::System("/ is mounted from dm-0".into()));
    }

    #[test]
    fn a_disk_that_is_swapped_to_or_whose_file_a_loop_device_shows_is_in_use() {
        let double = Double::new();
        double.disk("pci0/usb1/1-1/a", "sdb", 8, 100, 1);
        let file = double.folder.path().join("on disk");
        fs::write(&file, "").unwrap();
        let here = fs::metadata(&file).unwrap().dev();
        // The partition gets the number of the file system that the tests run on.
        let own = format!("{}:{}", nix::sys::stat::major(here), nix::sys::stat::minor(here));
        double.put("devices/pci0/usb1/1-1/a/block/sdb/sdb1/dev", &own);
        double.mounts(&["1 0 0:5 / /proc rw - proc proc rw"]);
        assert_eq!(double.used("sdb"), Use::Free);
        double.disk("virtual", "loop9", 7, 10, 0);
        double.put("devices/virtual/block/loop9/loop/backing_file", file.to_str().unwrap());
        assert_eq!(double.used("sdb"), Use::Held("loop9 is made of sdb1".into()));
        double.mounts(&[&format!(
            "1 0 0:9 / / rw - overlay overlay rw,lowerdir={}",
            double.folder.path().display()
        )]);
        assert!(matches!(double.used("sdb"), Use::System(_)), "a live system's root lies in the loop");
        double.mounts(&[]);
        let swap = file.to_str().unwrap().replace(' ', "\\040");
        fs::write(double.kernel.proc.join("swaps"), format!("Filename Type\n{swap} file 1 0 -2\n")).unwrap();
        assert!(matches!(double.used("sdb"), Use::System(_)));
    }

    #[test]
    fn what_a_person_mounts_is_not_the_systems() {
        for system in ["/", "/boot/efi", "/home", "/home/me", "/var", "/var/lib/docker", "/usr/local"] {
            assert!(is_system(Path::new(system)), "{system}");
        }
        for other in ["/mnt", "/media/me/card", "/home/me/mnt", "/var/tmp/x/mnt", "/homes/me", "/tmp/boot"] {
            assert!(!is_system(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn mounts_are_told_in_the_order_that_undoes_them_and_one_that_is_covered_is_known() {
        let double = Double::new();
        double.disk("pci0/usb1/1-1/a", "sdb", 8, 100, 2);
        let mounts = [
            "1 0 8:2 / /mnt/b rw - ext4 x rw",
            "2 1 8:1 / /mnt/b/a rw - ext4 x rw",
            "3 0 8:2 / /mnt/a rw - ext4 x rw",
            "4 3 8:2 / /mnt/a rw - ext4 x rw",
            "5 4 0:9 / /mnt/a rw - tmpfs x rw",
        ];
        double.mounts(&mounts);
        let places = ["/mnt/b", "/mnt/b/a", "/mnt/a", "/mnt/a"].map(PathBuf::from);
        assert_eq!(double.used("sdb"), Use::Mounted(places.into()));
        assert_eq!(Seen::now(&double.kernel).newest_mount("sdb"), Some(("/mnt/a".into(), true)));
        double.mounts(&mounts[..2]);
        assert_eq!(Seen::now(&double.kernel).newest_mount("sdb"), Some(("/mnt/b/a".into(), false)));
    }

    #[test]
    fn a_partition_is_told_from_a_disk() {
        let double = Double::new();
        double.disk("pci0/usb1/1-1/a", "sdb", 8, 100, 1);
        let seen = Seen::now(&double.kernel);
        let number = |minor| nix::sys::stat::makedev(8, minor);
        assert_eq!(seen.named(number(0)), Some(("sdb".into(), None)));
        assert_eq!(seen.named(number(1)), Some(("sdb1".into(), Some("sdb".into()))));
        assert_eq!(seen.named(number(9)), None);
    }
}
