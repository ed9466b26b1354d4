//! The life of a device whose power goes at any operation of an update of its system: what starts is the old system or the new one, whole and
//! signed, and the update can be gone on with to its end.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // clippy.toml allows it in tests; 64-bit machines test

use inferd_bundle::build::{BundleSpec, Content, FileSource, build};
use inferd_bundle::{Role, RoleKeys, Root, RootKey, SigningKey, Trust, keys};
use inferd_model::ModelName;
use inferd_slots::{BLOCK, Medium};
use inferd_system::record::{PLACES, Record, newest};
use inferd_system::state::{
    About, Ended, MAX_FAILURES, MAX_INTERRUPTIONS, Outcome, Phase, Reason, Start, State,
};
use inferd_system::{
    Backend, BootError, Facts, Folder, Image, Keep, Now, Parts, Refused, Restart, SECTOR, Sectors, Slot,
    Systems, Uboot,
};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

const PART: usize = 96 << 10;
const BOARD: &str = "qemu-aarch64";

// === The bundles ===

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// Key 1 signs roots and models, key 2 systems.
fn trust() -> Trust {
    let role = |role, n| RoleKeys { role, threshold: 1, keys: vec![key(n).id()] };
    let mut keys: Vec<RootKey> =
        [1, 2].iter().map(|&n| RootKey { public: key(n).public(), note: String::new() }).collect();
    keys.sort_by_key(|k| k.public.id());
    let roles = vec![role(Role::Root, 1), role(Role::ModelRelease, 1), role(Role::SystemRelease, 2)];
    let envelope = keys::sign_root(Root { version: 1, keys, roles }, &[&key(1)]).unwrap();
    Trust::new(Root::from_envelope(&envelope).unwrap(), false)
}

/// A file of a version: noise, which tells where it belongs.
fn content(name: &str, version: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let seed = name.bytes().fold(version, |seed, byte| seed * 31 + u64::from(byte));
    Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn rootfs(version: u64) -> Vec<u8> {
    content("rootfs", version, 70_000 + version as usize)
}

fn boot(version: u64, slot: Slot) -> Vec<u8> {
    content(&format!("boot-{slot}"), version, 30_000)
}

fn file(name: &str, bytes: Vec<u8>) -> FileSource {
    FileSource { name: name.to_owned(), content: Content::Bytes(bytes) }
}

fn spec(version: u64) -> BundleSpec {
    let files = vec![
        file("rootfs", rootfs(version)),
        file("boot-a", boot(version, Slot::A)),
        file("boot-b", boot(version, Slot::B)),
    ];
    BundleSpec::system(ModelName::new("os").unwrap(), version, vec![BOARD.to_owned()], files)
}

fn signed(spec: &BundleSpec, by: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(spec, &[&key(by)], &mut bytes).unwrap();
    bytes
}

fn bundle(version: u64) -> Vec<u8> {
    signed(&spec(version), 2)
}

// === The device ===

/// What a medium does with one operation, and goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Nothing, and it says so.
    Fails,
    /// It comes to the medium, and an error comes back.
    LandsAndFails,
    /// Nothing, and it says that it was done; the system's files are not on such a medium.
    Swallows,
}

struct Inner {
    /// Operations until the power goes.
    left: Option<usize>,
    done: usize,
    /// What goes wrong with the operation of this number.
    fault: Option<(usize, Fault)>,
    /// `rootfs` and `boot` of a and b: as they are seen, and what would outlive a cut.
    seen: [[Vec<u8>; 2]; 2],
    durable: [[Vec<u8>; 2]; 2],
    /// Slot, part, place, bytes.
    pending: Vec<(usize, usize, usize, Vec<u8>)>,
    files: BTreeMap<String, Vec<u8>>,
    bootstate: BTreeMap<u64, [u8; SECTOR]>,
    boot: u64,
}

#[derive(Clone)]
struct World(Arc<Mutex<Inner>>);

/// A partition that begins with this.
fn part(bytes: Vec<u8>) -> Vec<u8> {
    let mut part = vec![0xee; PART];
    part[..bytes.len()].copy_from_slice(&bytes);
    part
}

impl World {
    /// With version 1 in slot a, as it left the factory.
    fn new() -> Self {
        let a = [part(rootfs(1)), part(boot(1, Slot::A))];
        let seen = [a, [vec![0xee; PART], vec![0xee; PART]]];
        Self(Arc::new(Mutex::new(Inner {
            left: None,
            done: 0,
            fault: None,
            durable: seen.clone(),
            seen,
            pending: Vec::new(),
            files: BTreeMap::new(),
            bootstate: BTreeMap::new(),
            boot: 1,
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// One operation on a medium; none when the power is gone.
    fn spend(&self, act: impl FnOnce(&mut Inner)) -> io::Result<()> {
        self.with(|w| {
            match &mut w.left {
                Some(0) => return Err(io::Error::other("the power is gone")),
                Some(left) => *left -= 1,
                None => {}
            }
            let fault = w.fault.take_if(|(n, _)| *n == w.done).map(|(_, fault)| fault);
            w.done += 1;
            if matches!(fault, None | Some(Fault::LandsAndFails)) {
                act(w);
            }
            match fault {
                None | Some(Fault::Swallows) => Ok(()),
                Some(_) => Err(io::Error::other("the disk is unsure")),
            }
        })
    }

    /// The power goes: of what was not synced each sector survives or not.
    fn cut(&self, survives: &mut dyn FnMut() -> bool) {
        self.with(|w| {
            for (slot, part, at, bytes) in std::mem::take(&mut w.pending) {
                for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                    if survives() {
                        let at = at + n * SECTOR;
                        w.durable[slot][part][at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            w.seen = w.durable.clone();
            w.left = None;
        });
    }

    fn parts(&self) -> [Parts<Part>; 2] {
        [0, 1].map(|slot| Parts {
            rootfs: Part { world: self.clone(), slot, part: 0 },
            boot: Some(Part { world: self.clone(), slot, part: 1 }),
        })
    }

    fn systems(&self, cmdline: &str) -> Result<Systems<Part>, Reason> {
        let backend = Uboot::new(Bootstate(self.clone()), cmdline, None);
        Systems::open(Box::new(backend), self.parts(), Box::new(self.clone()), self.with(|w| w.boot))
    }

    /// The board starts: U-Boot's script takes a try out and starts it, or what is chosen. The kernel's command line.
    fn starts(&self) -> Result<String, Reason> {
        let cmdline = self.starts_without_a_keeper()?;
        self.with(|w| w.boot += 1);
        Ok(cmdline)
    }

    /// The board starts, and is lost before its keeper counts that.
    fn starts_without_a_keeper(&self) -> Result<String, Reason> {
        let sectors = Bootstate(self.clone());
        let records = PLACES.map(|at| Record::decode(&sectors.sector(at)));
        let (at, record) =
            newest(records).unwrap_or((1, Record { generation: 0, chosen: Slot::A, tried: None }));
        let (slot, trial) = match record.tried {
            None => (record.chosen, ""),
            Some(slot) => {
                let done = Record { generation: record.generation + 1, tried: None, ..record };
                match sectors.write(PLACES[1 - at], &done.encode()) {
                    Ok(()) => (slot, " inferd.try=1"),
                    Err(e) if self.with(|w| w.left == Some(0)) => {
                        return Err(Reason { code: "cut".into(), sentence: e.to_string() });
                    }
                    // Its script then starts what is chosen.
                    Err(_) => (record.chosen, ""),
                }
            }
        };
        let version = self.version(slot);
        assert!(version.is_some(), "what starts is a whole system: {slot}{trial}");
        Ok(format!("inferd.slot={slot}{trial}"))
    }

    /// The version that lies whole in a slot.
    fn version(&self, slot: Slot) -> Option<u64> {
        self.with(|w| {
            let parts = &w.seen[usize::from(slot == Slot::B)];
            (1..9).find(|&v| parts[0].starts_with(&rootfs(v)) && parts[1].starts_with(&boot(v, slot)))
        })
    }
}

impl Keep for World {
    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.with(|w| w.files.get(name).cloned()))
    }
    fn save(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.with(|w| w.fault.is_some_and(|fault| fault == (w.done, Fault::Swallows))) {
            self.with(|w| w.fault = None);
        }
        self.spend(|w| {
            w.files.insert(name.to_owned(), bytes.to_vec());
        })
    }
}

struct Bootstate(World);

impl Bootstate {
    fn sector(&self, at: u64) -> [u8; SECTOR] {
        self.0.with(|w| w.bootstate.get(&at).copied().unwrap_or([0; SECTOR]))
    }
}

impl Sectors for Bootstate {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        into.copy_from_slice(&self.sector(at));
        Ok(())
    }
    fn write(&self, at: u64, sector: &[u8; SECTOR]) -> io::Result<()> {
        self.0.spend(|w| {
            w.bootstate.insert(at, *sector);
        })
    }
}

struct Part {
    world: World,
    slot: usize,
    part: usize,
}

impl Medium for Part {
    fn capacity(&self) -> u64 {
        PART as u64
    }
    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = at as usize;
        self.world.with(|w| into.copy_from_slice(&w.seen[self.slot][self.part][at..at + into.len()]));
        Ok(())
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(at, into)
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = at as usize;
        self.world.spend(|w| {
            w.seen[self.slot][self.part][at..at + bytes.len()].copy_from_slice(bytes);
            w.pending.push((self.slot, self.part, at, bytes.to_vec()));
        })
    }
    fn write_through(&self, at: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        let at = at as usize;
        self.world.spend(|w| {
            w.seen[self.slot][self.part][at..at + BLOCK].copy_from_slice(block);
            w.durable[self.slot][self.part][at..at + BLOCK].copy_from_slice(block);
        })
    }
    fn sync(&self) -> io::Result<()> {
        self.world.spend(|w| {
            w.pending.retain(|(slot, part, ..)| (*slot, *part) != (self.slot, self.part));
            w.durable[self.slot][self.part] = w.seen[self.slot][self.part].clone();
        })
    }
}

fn facts(trust: &Trust) -> Facts<'_> {
    Facts { trust: Some(trust), board: BOARD, version: "0.1.0", image: None }
}

/// From wherever the device stands to this version committed.
fn update(world: &World, version: u64, mut ended: Ended) -> Result<(), Reason> {
    let (bytes, trust) = (bundle(version), trust());
    for _ in 0..8 {
        let cmdline = world.starts()?;
        let mut systems = world.systems(&cmdline)?;
        let floor = systems.state().floor("os");
        match systems.start(ended)? {
            Start::Watch => {
                assert!(
                    world.version(runs(&cmdline)).unwrap() >= version,
                    "or a later one, which was on its way"
                );
                systems.commit()?;
                continue;
            }
            Start::Returned(why) | Start::Alone(why) => panic!("{why:?}"),
            Start::Unasked => panic!("a try that nobody watches"),
            Start::Nothing | Start::Committed | Start::Again(_) => {}
        }
        assert!(systems.state().floor("os") >= floor);
        if !cmdline.contains("try") {
            assert!(
                world.version(runs(&cmdline)).unwrap() >= systems.state().floor("os"),
                "what was committed is chosen"
            );
        }
        ended = Ended::Request;
        if systems.state().floor("os") >= version {
            assert!(
                world.version(runs(&cmdline)).unwrap() >= version,
                "or a later one, which was on its way"
            );
            return Ok(());
        }
        if !matches!(systems.state().phase, Phase::Staged { .. }) {
            systems.install(&mut bytes.as_slice(), &facts(&trust))?;
        }
        assert_eq!(systems.arm(Some(&trust))?, Restart::Plain);
    }
    panic!("it does not come to an end");
}

fn runs(cmdline: &str) -> Slot {
    cmdline.strip_prefix("inferd.slot=").unwrap()[..1].parse().unwrap()
}

// === Power cuts ===

#[test]
fn a_power_cut_at_any_operation_of_two_system_updates_leaves_a_whole_system_that_goes_on() {
    let whole = World::new();
    update(&whole, 2, Ended::Power).unwrap();
    update(&whole, 3, Ended::Power).unwrap();
    let operations = whole.with(|w| w.done);
    assert!(operations > 30, "{operations}");
    for n in 0..operations {
        for mode in 0..4 {
            let world = World::new();
            world.with(|w| w.left = Some(n));
            let cut = update(&world, 2, Ended::Power).and_then(|()| update(&world, 3, Ended::Power));
            assert!(cut.is_err(), "the power went at operation {n}");
            let mut random = Pcg64Mcg::seed_from_u64((n * 4 + mode) as u64);
            world.cut(&mut || match mode {
                0 => false,
                1 => true,
                _ => random.next_u32() % 2 == 0,
            });
            let mut ended = Ended::Power;
            if mode == 3 {
                // It goes again before a keeper came, which would have found that the boot before was asked to end.
                world.starts_without_a_keeper().unwrap();
                ended = Ended::Request;
            }
            for version in [2, 3] {
                update(&world, version, std::mem::replace(&mut ended, Ended::Power))
                    .unwrap_or_else(|e| panic!("cut at {n}, mode {mode}: {e:?}"));
            }
            assert_eq!(world.version(Slot::A), Some(3), "version 3 runs from slot a");
        }
    }
}

#[test]
fn an_operation_that_fails_leaves_a_whole_system_that_goes_on_whether_or_not_it_came_to_the_medium() {
    let whole = World::new();
    update(&whole, 2, Ended::Power).unwrap();
    let operations = whole.with(|w| w.done);
    let mut told = 0;
    for n in 0..operations {
        for fault in [Fault::Fails, Fault::LandsAndFails, Fault::Swallows] {
            let world = World::new();
            world.with(|w| w.fault = Some((n, fault)));
            // Whoever meets it says so, and the board is restarted.
            told += usize::from(update(&world, 2, Ended::Power).is_err());
            for version in [2, 3] {
                update(&world, version, Ended::Request).unwrap_or_else(|e| panic!("{fault:?} at {n}: {e:?}"));
            }
            assert_eq!(world.with(|w| w.fault), None);
            assert_eq!(world.starts().unwrap(), "inferd.slot=a", "{fault:?} at {n}");
            assert_eq!(world.version(Slot::A), Some(3));
        }
    }
    assert!(told > operations, "{told} of {operations} operations, which failed twice each, were told");
}

#[test]
fn a_slot_that_is_being_written_never_starts_whatever_a_cut_leaves() {
    // Version 3 comes to slot b, which holds version 2: a boot loader may fall back to it.
    let world = World::new();
    update(&world, 2, Ended::Power).unwrap();
    update(&world, 3, Ended::Power).unwrap();
    let before = world.with(|w| w.done);
    update(&world, 4, Ended::Power).unwrap();
    let operations = world.with(|w| w.done) - before;
    let mut unwritten = 0;
    for n in 0..operations {
        for survives in [true, false] {
            let world = World::new();
            update(&world, 2, Ended::Power).unwrap();
            update(&world, 3, Ended::Power).unwrap();
            world.with(|w| w.left = Some(n));
            assert!(update(&world, 4, Ended::Power).is_err());
            world.cut(&mut || survives);
            let begins = world.with(|w| [0, 1].map(|part| w.seen[1][part][..BLOCK].iter().any(|&b| b != 0)));
            let whole = world.version(Slot::B).is_some();
            assert!(whole || begins != [true, true], "cut at {n}: a slot that begins is whole");
            unwritten += usize::from(!whole);
        }
    }
    assert!(unwritten > 3, "{unwritten}");
}

// === What is refused ===

fn refusal(world: &World, bytes: &[u8]) -> String {
    let trust = trust();
    let before = world.with(|w| (w.seen.clone(), w.files.clone(), w.bootstate.clone()));
    let mut systems = world.systems("inferd.slot=a").unwrap();
    let why = systems.install(&mut &*bytes, &facts(&trust)).unwrap_err();
    assert!(
        before == world.with(|w| (w.seen.clone(), w.files.clone(), w.bootstate.clone())),
        "nothing was written"
    );
    why.code
}

#[test]
fn what_is_not_for_this_device_is_refused_before_a_byte_is_written() {
    let world = World::new();
    let code = |spec: &BundleSpec, by| refusal(&world, &signed(spec, by));
    assert_eq!(code(&spec(2), 1), "wrong-role", "keys of models");
    assert_eq!(code(&spec(2), 9), "unknown-keys");
    let mut unsigned = Vec::new();
    build(&spec(2), &[], &mut unsigned).unwrap();
    assert_eq!(refusal(&world, &unsigned), "unsigned");
    assert_eq!(code(&BundleSpec { targets: vec!["rpi4".into()], ..spec(2) }, 2), "wrong-board");
    assert_eq!(code(&BundleSpec { min_inferd: Some("9.0.0".into()), ..spec(2) }, 2), "inferd-too-old");
    let files = vec![file("rootfs", vec![1; PART + 1]), file("boot", vec![1; 10])];
    assert_eq!(code(&BundleSpec { system: files, ..spec(2) }, 2), "slot-too-small");
    for seconds in [0, 29, 3601] {
        let mut hasty = spec(2);
        hasty.policy.probation.seconds = seconds;
        assert_eq!(code(&hasty, 2), "probation", "{seconds}");
    }
    let files = vec![file("rootfs", vec![1; 10])];
    assert_eq!(code(&BundleSpec { system: files, ..spec(2) }, 2), "wrong-parts");
    assert_eq!(refusal(&world, b"nonsense"), "truncated");
    assert_eq!(refusal(&world, &[7; 8192]), "not-a-bundle");
}

#[test]
fn a_version_below_the_floor_is_refused_though_it_is_signed() {
    let world = World::new();
    update(&world, 5, Ended::Power).unwrap();
    let trust = trust();
    let mut systems = world.systems("inferd.slot=b").unwrap();
    let why = systems.install(&mut bundle(4).as_slice(), &facts(&trust)).unwrap_err();
    assert_eq!(why.code, "older-version");
    let mut other = spec(5);
    other.label = "another".into();
    let why = systems.install(&mut signed(&other, 2).as_slice(), &facts(&trust)).unwrap_err();
    assert_eq!(why.code, "same-version", "the floor's version with another content");
    systems.install(&mut bundle(5).as_slice(), &facts(&trust)).unwrap();
}

/// Installs on a device that was started so and whose image says that it is this version; else the code of the refusal.
fn install_on(world: &World, cmdline: &str, says: u64, bytes: &[u8]) -> Result<About, String> {
    let trust = trust();
    let image = Image { product: "os".into(), version: says };
    let facts = Facts { image: Some(&image), ..facts(&trust) };
    world.systems(cmdline).unwrap().install(&mut &*bytes, &facts).map_err(|why| why.code)
}

#[test]
fn a_card_that_was_flashed_takes_nothing_older_than_what_it_runs_though_it_has_committed_nothing() {
    let world = World::new();
    world.with(|w| {
        w.seen[0] = [part(rootfs(5)), part(boot(5, Slot::A))];
        w.durable = w.seen.clone();
    });
    let install = |bytes: Vec<u8>| install_on(&world, "inferd.slot=a", 5, &bytes);
    let refused = |bytes| {
        let before = world.with(|w| (w.seen.clone(), w.files.clone()));
        let code = install(bytes).unwrap_err();
        assert!(before == world.with(|w| (w.seen.clone(), w.files.clone())), "nothing was written");
        code
    };
    assert_eq!(refused(bundle(4)), "older-version");
    let other = BundleSpec { product: ModelName::new("other").unwrap(), ..spec(9) };
    assert_eq!(refused(signed(&other, 2)), "other-product");
    for file_of_another in ["rootfs", "boot-a"] {
        let mut other = spec(5);
        let place = other.system.iter().position(|file| file.name == file_of_another).unwrap();
        other.system[place] = file(file_of_another, content("other", 5, 30_000));
        assert_eq!(refused(signed(&other, 2)), "same-version", "another {file_of_another}");
    }
    install(bundle(5)).unwrap();
    install(bundle(6)).unwrap();
}

#[test]
fn what_was_committed_counts_beside_what_the_image_says_of_itself() {
    let world = World::new();
    update(&world, 5, Ended::Power).unwrap();
    // The same root filesystem may have been signed under a higher version than it says.
    for (says, refused) in [(1, 4), (5, 4), (7, 6)] {
        let admit = |bytes: Vec<u8>| install_on(&world, "inferd.slot=b", says, &bytes);
        assert_eq!(admit(bundle(refused)).unwrap_err(), "older-version", "it says {says}");
        if says <= 5 {
            let relabelled = BundleSpec { label: "another".into(), ..spec(5) };
            assert_eq!(admit(signed(&relabelled, 2)).unwrap_err(), "same-version", "it says {says}");
            admit(bundle(5)).unwrap();
        }
        admit(bundle(8)).unwrap();
    }
}

#[test]
fn a_system_that_is_not_the_chosen_one_and_not_on_trial_is_the_one_to_keep() {
    let (world, trust) = (World::new(), trust());
    update(&world, 2, Ended::Power).unwrap();
    // The chosen b cannot be started any more, and the boot loader fell back to a.
    let before = world.with(|w| w.done);
    let mut fallen = world.systems("inferd.slot=a").unwrap();
    fallen.install(&mut bundle(3).as_slice(), &facts(&trust)).unwrap();
    for n in 0..world.with(|w| w.done) - before {
        let cut = World::new();
        update(&cut, 2, Ended::Power).unwrap();
        cut.with(|w| w.left = Some(n));
        let mut fallen = cut.systems("inferd.slot=a").unwrap();
        assert!(fallen.install(&mut bundle(3).as_slice(), &facts(&trust)).is_err());
        cut.cut(&mut || true);
        cut.starts().unwrap();
    }
    assert_eq!(world.starts().unwrap(), "inferd.slot=a", "not the slot that was written, before its trial");
    assert_eq!(world.version(Slot::B), Some(3));
    fallen.arm(Some(&trust)).unwrap();
    let cmdline = world.starts().unwrap();
    let mut new = world.systems(&cmdline).unwrap();
    assert_eq!(new.start(Ended::Request).unwrap(), Start::Watch);
    new.commit().unwrap();
    assert_eq!((world.starts().unwrap().as_str(), new.state().floor("os")), ("inferd.slot=b", 3));
}

#[test]
fn a_medium_that_swallows_what_is_written_is_found_out_before_the_system_is_staged() {
    let trust = trust();
    let whole = World::new();
    whole.systems("inferd.slot=a").unwrap().install(&mut bundle(2).as_slice(), &facts(&trust)).unwrap();
    let mut found = 0;
    for n in 0..whole.with(|w| w.done) {
        let world = World::new();
        world.with(|w| w.fault = Some((n, Fault::Swallows)));
        let mut systems = world.systems("inferd.slot=a").unwrap();
        match systems.install(&mut bundle(2).as_slice(), &facts(&trust)) {
            Ok(_) => assert_eq!(world.version(Slot::B), Some(2), "nothing was lost of operation {n}"),
            Err(why) => {
                assert_eq!(why.code, "read-back-differs");
                assert!(matches!(systems.state().phase, Phase::Writing { .. }));
                found += 1;
            }
        }
    }
    assert!(found > 3, "{found}");
}

/// A boot loader whose board cannot be trusted with a try.
struct Untrusted(Uboot<Bootstate>);

impl Backend for Untrusted {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn preflight(&self) -> Result<(), Refused> {
        Err(Refused { code: "firmware-too-old", sentence: "it is of 2020".into() })
    }
    fn now(&self) -> Result<Now, BootError> {
        self.0.now()
    }
    fn restart(&self) -> Restart {
        self.0.restart()
    }
    fn arm(&self, slot: Slot) -> Result<Restart, BootError> {
        self.0.arm(slot)
    }
    fn disarm(&self) -> Result<(), BootError> {
        self.0.disarm()
    }
    fn commit(&self) -> Result<(), BootError> {
        self.0.commit()
    }
}

#[test]
fn a_board_that_cannot_be_trusted_with_a_try_is_asked_before_an_install_and_again_before_the_try() {
    let trust = trust();
    for world in [World::new(), staged()] {
        let backend = Untrusted(Uboot::new(Bootstate(world.clone()), "inferd.slot=a", None));
        let mut systems =
            Systems::open(Box::new(backend), world.parts(), Box::new(world.clone()), 1).unwrap();
        let before = world.with(|w| w.done);
        let why = systems.install(&mut bundle(3).as_slice(), &facts(&trust)).unwrap_err();
        assert_eq!(why.code, "firmware-too-old");
        if matches!(systems.state().phase, Phase::Staged { .. }) {
            assert_eq!(systems.arm(Some(&trust)).unwrap_err().code, "firmware-too-old");
        }
        assert_eq!(world.with(|w| w.done), before, "nothing was written");
    }
}

#[test]
fn a_seventeenth_product_is_refused_and_a_known_one_is_not() {
    let world = World::new();
    let floors: BTreeMap<String, u64> = (0..16).map(|n| (format!("os-{n}"), 1)).collect();
    let state = State { floors, ..State::default() };
    world.with(|w| w.files.insert("system.json".into(), serde_json::to_vec(&state).unwrap()));
    assert_eq!(refusal(&world, &bundle(2)), "too-many-products");
    let known = BundleSpec { product: ModelName::new("os-7").unwrap(), ..spec(2) };
    let trust = trust();
    world
        .systems("inferd.slot=a")
        .unwrap()
        .install(&mut signed(&known, 2).as_slice(), &facts(&trust))
        .unwrap();
}

#[test]
fn a_bundle_that_is_damaged_or_ends_early_is_not_staged_and_does_not_start() {
    let trust = trust();
    let whole = bundle(2);
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..middle], &flipped[..]] {
        let world = World::new();
        let mut systems = world.systems("inferd.slot=a").unwrap();
        let why = systems.install(&mut &*bytes, &facts(&trust)).unwrap_err();
        assert!(["truncated", "chunk-digest"].contains(&why.code.as_str()), "{why:?}");
        assert!(matches!(systems.state().phase, Phase::Writing { .. }));
        assert_eq!(systems.arm(Some(&trust)).unwrap_err().code, "nothing-staged");
        assert_eq!(world.version(Slot::B), None);
    }
}

#[test]
fn what_was_changed_behind_the_back_of_the_install_is_never_tried() {
    let trust = trust();
    let staged = || {
        let world = World::new();
        world.systems("inferd.slot=a").unwrap().install(&mut bundle(2).as_slice(), &facts(&trust)).unwrap();
        world
    };
    let refused = |world: &World| {
        let why = world.systems("inferd.slot=a").unwrap().arm(Some(&trust)).unwrap_err();
        assert!(world.with(|w| w.bootstate.is_empty()), "the boot loader was told nothing");
        why.code
    };
    for part in [0, 1] {
        let world = staged();
        world.with(|w| w.seen[1][part][20_000] ^= 1);
        assert_eq!(refused(&world), "read-back-differs");
    }
    let world = staged();
    let other = signed(&spec(3), 1);
    world.with(|w| w.files.insert("system.prefix".into(), other));
    assert_eq!(refused(&world), "other-bundle");
    let world = staged();
    let unsigned = {
        let mut bytes = Vec::new();
        build(&spec(2), &[], &mut bytes).unwrap();
        bytes
    };
    // The same content and so the same id, without a signature.
    world.with(|w| w.files.insert("system.prefix".into(), unsigned));
    assert_eq!(refused(&world), "unsigned");
    let world = staged();
    assert_eq!(world.systems("inferd.slot=a").unwrap().arm(None).unwrap_err().code, "no-root");
    world.systems("inferd.slot=a").unwrap().arm(Some(&trust)).unwrap();
}

// === Trials that come back ===

/// A device whose new system ends every try like this; the verdicts in the end, and how often it was tried.
fn tried(ended: Ended, act: impl Fn(&mut Systems<Part>)) -> (Vec<(Outcome, String)>, u32) {
    let (world, trust) = (World::new(), trust());
    let mut tries = 0;
    let mut before = Ended::Power;
    world.systems("inferd.slot=a").unwrap().install(&mut bundle(2).as_slice(), &facts(&trust)).unwrap();
    loop {
        let cmdline = world.starts().unwrap();
        let mut systems = world.systems(&cmdline).unwrap();
        let start = systems.start(before).unwrap();
        if start == Start::Watch {
            tries += 1;
            assert!(tries < 99, "it is tried for ever");
            act(&mut systems);
            before = ended;
            continue;
        }
        assert_eq!(runs(&cmdline), Slot::A, "the old system");
        match systems.state().phase {
            Phase::Staged { .. } => drop(systems.arm(Some(&trust)).unwrap()),
            Phase::Idle => {
                assert_eq!(systems.state().floor("os"), 0);
                let told = systems.state().verdicts.iter().map(|v| (v.outcome, v.reason.code.clone()));
                return (told.collect(), tries);
            }
            ref other => panic!("{other:?}"),
        }
        before = Ended::Request;
    }
}

#[test]
fn a_system_that_comes_back_says_why_and_is_tried_as_often_as_its_end_allows() {
    let (verdicts, tries) = tried(Ended::Watchdog, |_| {});
    assert_eq!(tries, MAX_FAILURES);
    let told = |outcome, code: &str| (outcome, code.to_owned());
    assert_eq!(
        verdicts,
        [told(Outcome::Interrupted, "watchdog-reset"), told(Outcome::Returned, "watchdog-reset")]
    );
    let (verdicts, tries) = tried(Ended::Panic, |_| {});
    assert_eq!((verdicts.last().unwrap().1.as_str(), tries), ("kernel-panic", MAX_FAILURES));
    let (verdicts, tries) = tried(Ended::Power, |_| {});
    assert_eq!(tries, MAX_INTERRUPTIONS + 1);
    assert_eq!(*verdicts.last().unwrap(), told(Outcome::Returned, "interrupted-too-often"));
    let why = || Reason { code: "not-ready".into(), sentence: "model x does not serve".into() };
    let (verdicts, tries) = tried(Ended::Request, |systems| systems.give_up(why()).unwrap());
    assert_eq!((verdicts, tries), (vec![told(Outcome::Returned, "not-ready")], 1));
}

#[test]
fn a_system_that_gave_itself_up_runs_on_where_the_old_one_cannot_be_started() {
    let (world, trust) = (staged(), trust());
    world.systems("inferd.slot=a").unwrap().arm(Some(&trust)).unwrap();
    let mut new = world.systems(&world.starts().unwrap()).unwrap();
    assert_eq!(new.start(Ended::Request).unwrap(), Start::Watch);
    // Meanwhile the FAT of the old one rots.
    new.give_up(Reason::new("not-ready", "model x does not serve")).unwrap();
    // U-Boot starts what is chosen, cannot load it, and starts the other one, which is no try.
    let falls_back = || {
        assert_eq!(world.starts().unwrap(), "inferd.slot=a");
        world.systems("inferd.slot=b").unwrap()
    };
    let mut fallen = falls_back();
    let start = fallen.start(Ended::Request).unwrap();
    assert!(matches!(&start, Start::Alone(why) if why.code == "old-not-started"), "{start:?}");
    let last = fallen.state().verdicts.last().unwrap();
    assert_eq!((last.outcome, last.reason.code.as_str()), (Outcome::Returned, "old-not-started"));
    assert_eq!(fallen.state().floor("os"), 0);
    for _ in 0..3 {
        assert_eq!(falls_back().start(Ended::Request).unwrap(), Start::Nothing);
    }
    // The next one is written over what cannot be started.
    let mut fallen = falls_back();
    fallen.install(&mut bundle(3).as_slice(), &facts(&trust)).unwrap();
    assert!(matches!(fallen.state().phase, Phase::Staged { slot: Slot::A, .. }));
    fallen.arm(Some(&trust)).unwrap();
    let mut new = world.systems(&world.starts().unwrap()).unwrap();
    assert_eq!(new.start(Ended::Request).unwrap(), Start::Watch);
    new.commit().unwrap();
    assert_eq!((new.state().floor("os"), world.starts().unwrap().as_str()), (3, "inferd.slot=a"));
}

#[test]
fn what_a_daemon_says_of_itself_never_makes_the_record_too_long_to_be_read() {
    let (world, trust) = (World::new(), trust());
    // As much as root reads of it; every character of it becomes two in JSON, or six.
    for words in ["\"", "\u{1}"] {
        let why = || Reason { code: "not-ready".into(), sentence: words.repeat(64 << 10) };
        for _ in 0..20 {
            let mut old = world.systems("inferd.slot=a").unwrap();
            old.install(&mut bundle(2).as_slice(), &facts(&trust)).unwrap();
            old.arm(Some(&trust)).unwrap();
            let mut new = world.systems(&world.starts().unwrap()).unwrap();
            new.give_up(why()).unwrap();
            let mut old = world.systems(&world.starts().unwrap()).unwrap();
            assert!(matches!(old.start(Ended::Request).unwrap(), Start::Returned(_)));
        }
        let bytes = world.with(|w| w.files["system.json"].len());
        assert!(bytes < 128 << 10, "{bytes} bytes");
        assert_eq!(world.systems("inferd.slot=a").unwrap().state().verdicts.len(), 16);
    }
}

#[test]
fn a_record_that_would_be_too_long_is_not_written_and_one_that_is_is_told() {
    let (world, trust) = (staged(), trust());
    let mut state = world.systems("inferd.slot=a").unwrap().state().clone();
    state.floors.insert("p".repeat(1 << 20), 1);
    world.with(|w| w.files.insert("system.json".into(), serde_json::to_vec(&state).unwrap()));
    let before = world.with(|w| w.files.clone());
    let why = world.systems("inferd.slot=a").unwrap().arm(Some(&trust)).unwrap_err();
    assert!(why.code == "medium-failed" && why.sentence.contains("1048576 at most"), "{why:?}");
    assert!(before == world.with(|w| w.files.clone()), "the old one stays");

    let folder = tempfile::tempdir().unwrap();
    let keep = Folder(folder.path().to_owned());
    let mut text = serde_json::to_vec(&State::default()).unwrap();
    text.resize(1 << 20, b' ');
    std::fs::write(folder.path().join("system.json"), &text).unwrap();
    assert_eq!(State::kept(&keep), Ok(State::default()), "as long as one may be");
    text.push(b' ');
    std::fs::write(folder.path().join("system.json"), &text).unwrap();
    let why = State::kept(&keep).unwrap_err();
    assert!(why.code == "state-lost" && why.sentence.contains("more than 1048576 bytes"), "{why:?}");
}

/// A device with version 2 in slot b, up to `Staged`.
fn staged() -> World {
    let world = World::new();
    world.systems("inferd.slot=a").unwrap().install(&mut bundle(2).as_slice(), &facts(&trust())).unwrap();
    world
}

#[test]
fn a_try_that_was_not_to_be_is_taken_out_of_the_boot_loaders_record() {
    let trust = trust();
    // Told, though the disk says that it was not.
    let world = staged();
    world.with(|w| w.fault = Some((w.done + 1, Fault::LandsAndFails)));
    let mut old = world.systems("inferd.slot=a").unwrap();
    assert_eq!(old.arm(Some(&trust)).unwrap_err().code, "boot-backend");
    assert!(matches!(old.state().phase, Phase::Staged { .. }));
    assert_eq!(world.starts().unwrap(), "inferd.slot=a", "what was not begun does not start");
    // Told, and nobody restarts the board.
    old.arm(Some(&trust)).unwrap();
    old.disarm().unwrap();
    assert!(matches!(old.state().phase, Phase::Staged { .. }));
    assert_eq!(world.starts().unwrap(), "inferd.slot=a");
    // Told, but U-Boot could not write and started what is chosen.
    old.arm(Some(&trust)).unwrap();
    world.with(|w| w.boot += 1);
    let back = world.systems("inferd.slot=a").unwrap().start(Ended::Request).unwrap();
    assert!(matches!(back, Start::Again(_) | Start::Returned(_)), "{back:?}");
    assert_eq!(world.starts().unwrap(), "inferd.slot=a");
    // It cannot be taken back: then it stays a trial, and is watched.
    let world = staged();
    let mut old = world.systems("inferd.slot=a").unwrap();
    old.arm(Some(&trust)).unwrap();
    world.with(|w| w.left = Some(0));
    assert_eq!(old.disarm().unwrap_err().code, "boot-backend");
    world.with(|w| w.left = None);
    let cmdline = world.starts().unwrap();
    assert_eq!(world.systems(&cmdline).unwrap().start(Ended::Power).unwrap(), Start::Watch);
}

#[test]
fn a_system_that_is_lost_before_its_keeper_comes_is_tried_again() {
    let (world, trust) = (staged(), trust());
    for n in 0..=MAX_INTERRUPTIONS {
        world.systems("inferd.slot=a").unwrap().arm(Some(&trust)).unwrap();
        assert_eq!(world.starts_without_a_keeper().unwrap(), "inferd.slot=b inferd.try=1");
        let cmdline = world.starts().unwrap();
        let start = world.systems(&cmdline).unwrap().start(Ended::Request).unwrap();
        match start {
            Start::Again(why) if n < MAX_INTERRUPTIONS => assert_eq!(why.code, "not-started"),
            Start::Returned(why) if n == MAX_INTERRUPTIONS => assert_eq!(why.code, "not-started"),
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[test]
fn a_system_that_is_tried_unasked_is_no_trial_and_says_so() {
    let world = staged();
    for (cmdline, want) in [
        ("inferd.slot=b inferd.try=1", Start::Unasked),
        ("inferd.slot=a inferd.try=1", Start::Nothing),
        ("inferd.slot=a", Start::Nothing),
        ("inferd.slot=b", Start::Nothing),
    ] {
        let mut systems = world.systems(cmdline).unwrap();
        assert_eq!(systems.start(Ended::Power).unwrap(), want, "{cmdline}");
        if want == Start::Unasked {
            let why = systems.install(&mut bundle(3).as_slice(), &facts(&trust())).unwrap_err();
            assert_eq!(why.code, "system-on-trial", "nor does it write over the one that comes back");
        }
    }
}

#[test]
fn only_the_system_on_trial_commits_or_gives_up() {
    let (world, trust) = (World::new(), trust());
    let mut old = world.systems("inferd.slot=a").unwrap();
    old.install(&mut bundle(2).as_slice(), &facts(&trust)).unwrap();
    assert_eq!(old.commit().unwrap_err().code, "no-trial");
    old.arm(Some(&trust)).unwrap();
    assert_eq!(old.commit().unwrap_err().code, "no-trial", "armed, and the old one runs");
    let why = Reason { code: "x".into(), sentence: "x".into() };
    assert_eq!(old.give_up(why).unwrap_err().code, "no-trial");
    assert_eq!(old.install(&mut bundle(3).as_slice(), &facts(&trust)).unwrap_err().code, "system-on-trial");
    let cmdline = world.starts().unwrap();
    let mut new = world.systems(&cmdline).unwrap();
    assert_eq!(new.install(&mut bundle(3).as_slice(), &facts(&trust)).unwrap_err().code, "system-on-trial");
    new.commit().unwrap();
    assert_eq!(new.state().floor("os"), 2);
}

#[test]
fn a_device_that_lost_its_record_refuses_rather_than_forgets_its_floors() {
    let world = World::new();
    world.with(|w| w.files.insert("system.json".into(), b"{".to_vec()));
    assert!(world.systems("inferd.slot=a").is_err_and(|why| why.code == "state-lost"));
}
