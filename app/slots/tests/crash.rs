//! Crash states, enumerated: whatever a power cut leaves of unflushed writes, the old or the new bundle is there, whole.
//!
//! A story of installs, commits, a return, a rollback and a condemned slot runs on disks that record every write and flush. Then, after
//! every single operation of it, the power goes: of what was not flushed any part may have reached the medium, in any order,
//! torn at 512 B or at 4 KiB. Each such state is opened as after a reboot and judged by [`Cut::judge`]: nothing is
//! memorised, every byte of every slot that claims to be complete is read and hashed again.
//!
//! A disk gives each pending sector any of its successive contents. That covers subsets, reordering and tearing of writes at once; the kinds
//! below say how the choice is made. A state is counted once per instant however often it is drawn.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::{Disk, Imb, Op, STATE, Shared, World, bundle, commit, disk_of, install};
use inferd_slots::{
    BLOCK, Found, Media, Medium, Phase, SlotError, SlotId, SlotStatus, State, Step, Store, record,
};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::sync::Arc;

const SECTOR: usize = 512;
const SLOT_LEN: usize = 256 * 1024;
/// Small, so that an install has several flushes.
const SETTLING: u64 = 24 * 1024;
/// States per pending sector that are drawn at each instant, per kind.
const DRAWS: usize = 98;
const THREADS: usize = 2;

// === What happened ===

/// A recorded run.
#[derive(Clone)]
struct Trace {
    /// What the disks held when it began.
    begin: [Vec<u8>; 3],
    ops: Vec<Op>,
    /// Every state that was recorded, by sequence.
    states: BTreeMap<u64, State>,
    /// The sequence that was durable when it began.
    acked: Option<u64>,
}

/// The bundles of the story.
struct Cast {
    imbs: Vec<Imb>,
}

impl Cast {
    fn new() -> Self {
        let lengths: [&[usize]; 6] = [
            &[9_000, 14_000, 5_000],
            &[9_500, 3_000, 15_000],
            &[20_000, 700],
            &[1_000, 2_000, 3_000, 12_000],
            &[17_000, 9_001],
            &[6_000, 6_000, 6_000],
        ];
        let imbs =
            lengths.iter().enumerate().map(|(n, lengths)| bundle("crash", n as u64 + 1, lengths)).collect();
        Self { imbs }
    }

    fn find(&self, state: &State, slot: SlotId) -> Option<&Imb> {
        self.imbs.iter().find(|imb| Some(imb.id()) == state.slot(slot).bundle)
    }
}

/// Runs something on recording disks.
fn record_run(world: World, acked: Option<u64>, run: impl FnOnce(&Shared)) -> Trace {
    let begin = world.disks.clone();
    let shared = Shared::new(World { log: Some(Vec::new()), fault: None, ..world });
    run(&shared);
    let ops = shared.lock().log.take().unwrap();
    let mut states = BTreeMap::new();
    for block in begin[STATE].as_chunks().0 {
        states.extend(record::decode(block).map(|state| (state.sequence, state)));
    }
    for op in &ops {
        if let Op::Write { disk: STATE, bytes, .. } = op {
            let state = record::decode((&**bytes).try_into().unwrap()).expect("it is a record");
            states.insert(state.sequence, state);
        }
    }
    Trace { begin, ops, states, acked }
}

/// Notes that a step has returned. An install's own steps are noted when it has.
fn acked(shared: &Shared, store: &Store<Disk>) {
    shared.note(Op::Acked(store.state().sequence));
}

/// Takes steps, each noted.
fn steps(shared: &Shared, store: &Store<Disk>, steps: &[Step]) {
    for step in steps {
        store.step(step).unwrap();
        acked(shared, store);
    }
}

fn trial(slot: SlotId) -> [Step; 3] {
    let boot_id = "2f7a3c1e-0000-4000-8000-123456789abc".to_owned();
    [
        Step::Try { slot, boot_id },
        Step::Advance { phase: Phase::Shadow },
        Step::Advance { phase: Phase::Probation },
    ]
}

/// A whole life of a device.
fn story(cast: &Cast) -> Trace {
    let [one, two, three, four, five, six] = &cast.imbs[..] else { panic!("six bundles") };
    let world = World::new(SLOT_LEN);
    record_run(world, None, |shared| {
        let store = shared.store(SETTLING).unwrap();
        let put = |store: &Store<Disk>, imb: &Imb| {
            let staged = install(store, imb).unwrap();
            acked(shared, store);
            staged.slot
        };
        steps(shared, &store, &[Step::Trust { root: 1, revocations: 0 }]);
        let slot = put(&store, one);
        steps(shared, &store, &trial(slot));
        steps(shared, &store, &[Step::Commit { permit: None }]);

        // The second is cut by a stop of the program, not of the machine, and goes on with what the disk's cache holds.
        let mut begun = store.begin_install(two.prefix()).unwrap();
        feed(&mut begun, two, 3);
        drop(begun);
        drop(store);
        // From here on an install has one sync for all it writes.
        let store = shared.store(u64::MAX).unwrap();
        let slot = put(&store, two);
        steps(shared, &store, &trial(slot));
        steps(shared, &store, &[Step::Trust { root: 2, revocations: 1 }, Step::Commit { permit: None }]);

        // The third is refused by a gate, the fourth takes its place in reverse order and is interrupted on trial.
        let slot = put(&store, three);
        steps(shared, &store, &trial(slot)[..1]);
        steps(shared, &store, &[Step::Return { bad: true }]);
        let slot = backwards(&store, four);
        acked(shared, &store);
        steps(shared, &store, &trial(slot)[..2]);
        steps(shared, &store, &[Step::Resume { boot_id: "another".to_owned() }]);
        steps(shared, &store, &[Step::Advance { phase: Phase::Probation }, Step::Commit { permit: None }]);

        // The operator goes back, a fifth is begun and given up for a sixth, then the active slot rots.
        steps(shared, &store, &[Step::Rollback, Step::Permit { nonce: 9 }]);
        let mut begun = store.begin_install(five.prefix()).unwrap();
        feed(&mut begun, five, 2);
        drop(begun);
        let slot = put(&store, six);
        steps(shared, &store, &trial(slot));
        steps(shared, &store, &[Step::Commit { permit: None }, Step::Condemn { slot }]);
        // What was active before is active again; the condemned slot is filled anew.
        let slot = put(&store, five);
        steps(shared, &store, &trial(slot));
        steps(shared, &store, &[Step::Commit { permit: None }, Step::Erase { slot: slot.other() }]);
    })
}

/// All pages and the first chunks.
fn feed(install: &mut inferd_slots::Install<Disk>, imb: &Imb, chunks: usize) {
    for page in 0..imb.parsed.pages() {
        install.page(page, part(imb, imb.parsed.page_range(page))).unwrap();
    }
    for chunk in install.missing_chunks(0).unwrap().into_iter().take(chunks) {
        install.chunk(&chunk, part(imb, chunk.range())).unwrap();
    }
}

/// Last chunk first, as a fetch of ranges may come.
fn backwards(store: &Store<Disk>, imb: &Imb) -> SlotId {
    let mut install = store.begin_install(imb.prefix()).unwrap();
    feed(&mut install, imb, 0);
    for chunk in install.missing_chunks(0).unwrap().into_iter().rev() {
        install.chunk(&chunk, part(imb, chunk.range())).unwrap();
    }
    install.finish().unwrap().slot
}

fn part(imb: &Imb, range: std::ops::Range<u64>) -> &[u8] {
    &imb.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

// === What a power cut may leave ===

/// A disk at one instant: what is durable, and every content a sector had since.
#[derive(Clone, Default)]
struct Pending {
    /// Writes that were not flushed: sectors of each, as places in `sectors`.
    writes: Vec<Vec<(usize, u16)>>,
    /// Number and successive contents.
    sectors: Vec<(usize, Vec<[u8; SECTOR]>)>,
    /// Place in `sectors` by number.
    places: Vec<Option<u32>>,
    /// What the disk's cache holds.
    latest: Vec<u8>,
}

impl Pending {
    fn new(disk: &[u8]) -> Self {
        let places = vec![None; disk.len() / SECTOR];
        Self { writes: Vec::new(), sectors: Vec::new(), places, latest: disk.to_vec() }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.latest[at..at + bytes.len()].copy_from_slice(bytes);
        let mut touched = Vec::new();
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let place = *self.places[sector].get_or_insert_with(|| {
                self.sectors.push((sector, Vec::new()));
                u32::try_from(self.sectors.len() - 1).unwrap()
            });
            let place = place as usize;
            let versions = &mut self.sectors[place].1;
            versions.push(self.latest[sector * SECTOR..][..SECTOR].try_into().unwrap());
            touched.push((place, u16::try_from(versions.len()).unwrap()));
        }
        self.writes.push(touched);
    }

    fn flush(&mut self) {
        let latest = std::mem::take(&mut self.latest);
        *self = Self { latest, ..Self::new(&[]) };
        self.places = vec![None; self.latest.len() / SECTOR];
    }
}

/// All disks when the power goes, and which content each pending sector has then: 0 is the durable one.
struct Cut<'a> {
    durable: &'a [Vec<u8>; 3],
    pending: &'a [Pending; 3],
    choice: [Vec<u16>; 3],
}

/// A disk of a [`Cut`]: it can be read.
struct CutDisk<'a> {
    durable: &'a [u8],
    pending: &'a Pending,
    choice: &'a [u16],
}

impl Medium for CutDisk<'_> {
    fn capacity(&self) -> u64 {
        self.durable.len() as u64
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.durable[at..at + into.len()]);
        if self.pending.sectors.is_empty() {
            return Ok(());
        }
        for sector in at / SECTOR..(at + into.len()).div_ceil(SECTOR) {
            let Some(place) = self.pending.places[sector] else { continue };
            let version = self.choice[place as usize];
            if version > 0 {
                let content = &self.pending.sectors[place as usize].1[usize::from(version) - 1];
                let from = (sector * SECTOR).max(at);
                let to = ((sector + 1) * SECTOR).min(at + into.len());
                into[from - at..to - at]
                    .copy_from_slice(&content[from - sector * SECTOR..to - sector * SECTOR]);
            }
        }
        Ok(())
    }

    fn read_back(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(at, into)
    }

    fn write(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        panic!("opening a store and reading it writes nothing")
    }

    fn write_through(&self, _at: u64, _block: &[u8; BLOCK]) -> io::Result<()> {
        panic!("opening a store and reading it writes nothing")
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Cut<'_> {
    fn disk(&self, disk: usize) -> CutDisk<'_> {
        let (durable, pending, choice) = (&self.durable[disk], &self.pending[disk], &self.choice[disk]);
        CutDisk { durable, pending, choice }
    }

    /// Opens it as after a reboot and says what is wrong.
    fn judge(&self, trace: &Trace, acked: Option<u64>) -> Result<(), String> {
        let media = Media { state: self.disk(STATE), slots: [self.disk(1), self.disk(2)] };
        let Ok(store) = Store::new(media) else { return Err("it cannot be opened".to_owned()) };
        let Some(acked) = acked.and_then(|sequence| trace.states.get(&sequence)) else {
            // Nothing was ever promised.
            return Ok(());
        };
        if store.found() != Found::Kept {
            return Err(format!("the state is {:?}", store.found()));
        }
        let state = store.state();
        // Old or new: what was promised last, or what was being recorded since.
        if state.sequence < acked.sequence {
            return Err(format!("went back from step {} to {}", acked.sequence, state.sequence));
        }
        match trace.states.get(&state.sequence) {
            Some(known) if *known == state => {}
            _ => return Err(format!("step {} was never taken", state.sequence)),
        }
        for (product, floor) in &acked.floors {
            if state.floor(product) < *floor {
                return Err(format!("the floor of {product} fell"));
            }
        }
        if acked.active.is_some() && state.active.is_none() {
            return Err("neither old nor new is active".to_owned());
        }
        // Everything that claims to be complete is, byte for byte.
        for slot in SlotId::BOTH {
            if state.slot(slot).is_complete() {
                let open = store.open(slot).map_err(|error| error.to_string())?;
                open.verify_all(&mut |_, _| {}).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// The disks as they are now, to go on with.
    fn world(&self) -> World {
        let mut world = World::new(0);
        for (number, bytes) in world.disks.iter_mut().enumerate() {
            *bytes = vec![0; self.durable[number].len()];
            self.disk(number).read(0, bytes).unwrap();
        }
        world
    }
}

/// How a state is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    /// Nothing of what is pending, or all.
    Boundary,
    /// The first writes, whole.
    Prefix,
    /// The first writes and the beginning of the next, cut at a sector or a block.
    TornPrefix,
    /// The state record: every subset of its sectors.
    Record,
    /// Any writes, whole, in order.
    Subset,
    /// Any writes, whole, in another order.
    Reordered,
    /// Any sectors of any writes.
    Torn512,
    /// Any blocks of any writes.
    Torn4096,
}

/// What was counted, and what was wrong.
#[derive(Default)]
struct Tally {
    states: BTreeMap<Kind, u64>,
    instants: u64,
    violations: Vec<String>,
    samples: Vec<(World, Option<u64>, usize)>,
}

impl Tally {
    fn total(&self) -> u64 {
        self.states.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (kind, count) in other.states {
            *self.states.entry(kind).or_default() += count;
        }
        self.instants += other.instants;
        self.violations.extend(other.violations);
        self.samples.extend(other.samples);
    }
}

/// How much to enumerate.
#[derive(Clone, Copy)]
struct Effort {
    draws: usize,
    /// One state in so many is kept to go on with.
    sample_every: u64,
    /// Stop at the first violation.
    stop: bool,
}

/// Every instant of a trace.
fn enumerate(trace: &Trace, effort: Effort) -> Tally {
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..THREADS).map(|worker| scope.spawn(move || enumerate_part(trace, effort, worker))).collect();
        for worker in workers {
            tally.add(worker.join().unwrap());
        }
    });
    tally
}

fn enumerate_part(trace: &Trace, effort: Effort, worker: usize) -> Tally {
    let mut tally = Tally::default();
    let mut durable = trace.begin.clone();
    let mut pending = [0, 1, 2].map(|disk| Pending::new(&durable[disk]));
    let mut acked = trace.acked;
    for (instant, op) in trace.ops.iter().enumerate() {
        match op {
            Op::Write { disk, at, bytes } => pending[*disk].write(*at, bytes),
            Op::Flush { disk } => {
                durable[*disk].clone_from(&pending[*disk].latest);
                pending[*disk].flush();
            }
            Op::Acked(sequence) => acked = Some(*sequence),
        }
        if instant % THREADS == worker {
            tally.instants += 1;
            draw(trace, &durable, &pending, acked, effort, instant, &mut tally);
        }
        if effort.stop && !tally.violations.is_empty() {
            break;
        }
    }
    tally
}

/// The states of one instant.
fn draw(
    trace: &Trace,
    durable: &[Vec<u8>; 3],
    pending: &[Pending; 3],
    acked: Option<u64>,
    effort: Effort,
    instant: usize,
    tally: &mut Tally,
) {
    let mut random = Pcg64Mcg::seed_from_u64(instant as u64);
    let mut seen = HashSet::new();
    let none = || [0, 1, 2].map(|disk: usize| vec![0_u16; pending[disk].sectors.len()]);
    let writes: Vec<(usize, &[(usize, u16)])> =
        (0..3).flat_map(|disk| pending[disk].writes.iter().map(move |write| (disk, &write[..]))).collect();
    let mut judge = |kind: Kind, choice: [Vec<u16>; 3], random: &mut Pcg64Mcg| {
        let mut hasher = DefaultHasher::new();
        choice.hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            return;
        }
        let cut = Cut { durable, pending, choice };
        *tally.states.entry(kind).or_default() += 1;
        if let Err(why) = cut.judge(trace, acked) {
            tally.violations.push(format!("after operation {instant}, {kind:?}: {why}"));
        }
        if random.next_u64().is_multiple_of(effort.sample_every) {
            tally.samples.push((cut.world(), acked, instant));
        }
    };
    let lay = |choice: &mut [Vec<u16>; 3], (disk, write): (usize, &[(usize, u16)])| {
        for &(place, version) in write {
            choice[disk][place] = version;
        }
    };
    let all = |upto: usize| {
        let mut choice = none();
        writes[..upto].iter().for_each(|&write| lay(&mut choice, write));
        choice
    };
    judge(Kind::Boundary, none(), &mut random);
    judge(Kind::Boundary, all(writes.len()), &mut random);
    for (upto, &(disk, next)) in writes.iter().enumerate() {
        judge(Kind::Prefix, all(upto), &mut random);
        for sectors in 1..next.len() {
            let mut choice = all(upto);
            lay(&mut choice, (disk, &next[..sectors]));
            judge(Kind::TornPrefix, choice, &mut random);
        }
    }
    let record = &pending[STATE].sectors;
    if record.len() == BLOCK / SECTOR {
        for subset in 0..1_u16 << record.len() {
            for slots in [false, true] {
                let mut choice = if slots { all(writes.len()) } else { none() };
                for (place, version) in choice[STATE].iter_mut().enumerate() {
                    *version = subset >> place & 1;
                }
                judge(Kind::Record, choice, &mut random);
            }
        }
    }
    let sectors: usize = pending.iter().map(|pending| pending.sectors.len()).sum();
    // A share of the sectors, so that nearly nothing, about half and nearly everything are all drawn.
    let chance = |random: &mut Pcg64Mcg| [1, 8, 32, 56, 63][usize::try_from(random.next_u32() % 5).unwrap()];
    for _ in 0..sectors * effort.draws {
        if writes.len() > 1 {
            let share = chance(&mut random);
            let mut chosen: Vec<_> =
                writes.iter().filter(|_| random.next_u32() % 64 < share).copied().collect();
            let mut choice = none();
            chosen.iter().for_each(|&write| lay(&mut choice, write));
            judge(Kind::Subset, choice, &mut random);
            for place in (1..chosen.len()).rev() {
                chosen.swap(place, random.next_u32() as usize % (place + 1));
            }
            let mut choice = none();
            chosen.iter().for_each(|&write| lay(&mut choice, write));
            judge(Kind::Reordered, choice, &mut random);
        }
        for (kind, unit) in [(Kind::Torn512, 1), (Kind::Torn4096, BLOCK / SECTOR)] {
            let share = chance(&mut random);
            let mut choice = none();
            for (disk, pending) in pending.iter().enumerate() {
                let mut fate = BTreeMap::new();
                for (place, (sector, versions)) in pending.sectors.iter().enumerate() {
                    // Sectors of a block share its fate: it reached the medium at one moment, or not at all.
                    let moment = *fate
                        .entry(sector / unit)
                        .or_insert_with(|| (random.next_u32() % 64 < share).then(|| random.next_u32()));
                    let count = u32::try_from(versions.len()).unwrap();
                    choice[disk][place] =
                        moment.map_or(0, |moment| u16::try_from(1 + moment % count).unwrap());
                }
            }
            judge(kind, choice, &mut random);
        }
    }
}

// === The promises ===

/// Takes up from a state after a power cut: the bundle that was coming comes again, and is committed.
fn go_on(cast: &Cast, world: World, instant: usize) -> Trace {
    let mut before = Shared::new(world.clone()).store(SETTLING).unwrap();
    let acked = match before.found() {
        Found::Kept => Some(before.state().sequence),
        _ => None,
    };
    let context = format!("after operation {instant}");
    record_run(world, acked, |shared| {
        let store = shared.store(SETTLING).unwrap();
        before = store.clone();
        store.recover(&mut |_, _, _| {}).expect(&context);
        let mut state = store.state();
        if state.trial.is_some() {
            state = store.step(&Step::Return { bad: false }).expect(&context);
            self::acked(shared, &store);
        }
        let slot = match state.active {
            Some(active) => active.other(),
            None => {
                SlotId::BOTH.into_iter().find(|&slot| state.slot(slot).bundle.is_some()).unwrap_or(SlotId::A)
            }
        };
        let imb = match state.slot(slot).status {
            SlotStatus::Writing | SlotStatus::Staged => {
                cast.find(&state, slot).expect("it is one of the story")
            }
            _ => cast.imbs.last().unwrap(),
        };
        if state.slot(slot).status != SlotStatus::Staged {
            let staged = install(&store, imb).expect(&context);
            assert!(state.active != Some(staged.slot), "{context}");
            self::acked(shared, &store);
        }
        let state = store.state();
        let slot = SlotId::BOTH.into_iter().find(|&slot| {
            state.active != Some(slot)
                && state.slot(slot).bundle == Some(imb.id())
                && state.slot(slot).is_complete()
        });
        let slot = slot.expect(&context);
        commit(&store, slot).expect(&context);
        self::acked(shared, &store);
        let open = store.open(slot).expect(&context);
        for (model, network) in &imb.networks {
            let mut read = Vec::new();
            open.read_file(model, "model.onnx").unwrap().read_to_end(&mut read).expect(&context);
            assert!(read == *network, "{context}");
        }
    })
}

fn print(what: &str, tally: &Tally) {
    println!(
        "{what}: {} states at {} instants, {} violations",
        tally.total(),
        tally.instants,
        tally.violations.len()
    );
    for (kind, count) in &tally.states {
        println!("  {:<12} {count:>9}", format!("{kind:?}"));
    }
}

#[test]
fn a_power_cut_at_any_instant_leaves_the_old_or_the_new_bundle_whole() {
    let cast = Cast::new();
    let trace = story(&cast);
    let tally = enumerate(&trace, Effort { draws: DRAWS, sample_every: 25_000, stop: false });
    print("a device's life", &tally);
    assert_eq!(tally.violations, Vec::<String>::new());
    assert!(tally.total() >= 1_000_000, "only {} states", tally.total());

    // Power cuts while it recovers from a power cut.
    let mut second = Tally::default();
    let samples = tally.samples.len();
    assert!(samples >= 30, "only {samples} were taken up again");
    for (world, _, instant) in tally.samples {
        let again = go_on(&cast, world, instant);
        second.add(enumerate(&again, Effort { draws: 1, sample_every: u64::MAX, stop: false }));
    }
    print(&format!("{samples} of them taken up again, and cut again"), &second);
    assert_eq!(second.violations, Vec::<String>::new());
}

// === That the enumeration can fail ===

/// A trace as a writer with a mistake would have left it.
fn mistaken(trace: &Trace, change: impl Fn(&[Op]) -> Vec<Op>) -> Tally {
    let ops = change(&trace.ops);
    assert_ne!(ops, trace.ops, "the mistake must change something");
    let trace = Trace { ops, ..trace.clone() };
    enumerate(&trace, Effort { draws: 2, sample_every: u64::MAX, stop: true })
}

/// Where a record with this status of any slot, not seen before, is written.
fn records(ops: &[Op], status: SlotStatus) -> Vec<(usize, SlotId)> {
    let mut found = Vec::new();
    let mut before = State::default();
    for (place, op) in ops.iter().enumerate() {
        let Op::Write { disk: STATE, bytes, .. } = op else { continue };
        let state = record::decode((&**bytes).try_into().unwrap()).unwrap();
        for slot in SlotId::BOTH {
            let changed =
                before.slot(slot).status != status || before.slot(slot).bundle != state.slot(slot).bundle;
            if state.slot(slot).status == status && changed {
                found.push((place, slot));
            }
        }
        before = state;
    }
    found
}

/// Moves the operations of a slot that match, between `from` and the record at `record`, behind that record and its flush.
fn behind(ops: &[Op], from: usize, record: usize, moves: impl Fn(&Op) -> bool) -> Vec<Op> {
    let (moved, kept): (Vec<Op>, Vec<Op>) = ops[from..record].iter().cloned().partition(&moves);
    let mut changed = ops[..from].to_vec();
    changed.extend(kept);
    changed.extend_from_slice(&ops[record..record + 2]);
    changed.extend(moved);
    changed.extend_from_slice(&ops[record + 2..]);
    changed
}

#[test]
fn a_writer_that_never_syncs_the_slot_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        ops.iter().filter(|op| !matches!(op, Op::Flush { disk: 1 | 2 })).cloned().collect()
    });
    print("no sync", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_writer_that_records_staged_before_its_last_sync_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        // The last sync that has something to make durable: `finish` syncs once more.
        let (record, slot) = records(ops, SlotStatus::Staged)[1];
        let disk = disk_of(slot);
        let last_write =
            ops[..record].iter().rposition(|op| matches!(op, Op::Write { disk: d, .. } if *d == disk));
        behind(ops, last_write.unwrap(), record, |op| *op == Op::Flush { disk })
    });
    print("staged before the sync", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_writer_that_records_staged_before_its_last_chunk_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        let (record, slot) = records(ops, SlotStatus::Staged)[2];
        let disk = disk_of(slot);
        let last = ops[..record].iter().rposition(|op| matches!(op, Op::Write { disk: d, .. } if *d == disk));
        behind(ops, last.unwrap(), record, |op| matches!(op, Op::Write { .. } | Op::Flush { .. }))
    });
    print("staged before the last chunk", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_writer_that_begins_before_the_record_says_so_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        // The first bundle that replaces a committed one.
        let (record, slot) = records(ops, SlotStatus::Writing)[2];
        let disk = disk_of(slot);
        let first = ops[record..].iter().position(|op| matches!(op, Op::Write { disk: d, .. } if *d == disk));
        let mut ops = ops.to_vec();
        let first = ops.remove(record + first.unwrap());
        ops.insert(record, first);
        ops
    });
    print("writing before the record", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_state_record_without_its_twin_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        ops.iter()
            .map(|op| match op {
                Op::Write { disk: STATE, bytes, .. } => {
                    Op::Write { disk: STATE, at: 0, bytes: Arc::clone(bytes) }
                }
                other => other.clone(),
            })
            .collect()
    });
    print("one record", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_state_record_that_is_not_durable_when_the_step_returns_is_caught() {
    let trace = story(&Cast::new());
    let tally =
        mistaken(&trace, |ops| ops.iter().filter(|op| **op != Op::Flush { disk: STATE }).cloned().collect());
    print("no durable record", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn a_writer_that_touches_the_active_slot_is_caught() {
    let trace = story(&Cast::new());
    let tally = mistaken(&trace, |ops| {
        let (record, slot) = records(ops, SlotStatus::Writing)[1];
        let (disk, active) = (disk_of(slot), disk_of(slot.other()));
        let mut ops = ops.to_vec();
        let write = ops[record..].iter_mut().find_map(|op| match op {
            Op::Write { disk: d, .. } if *d == disk => Some(d),
            _ => None,
        });
        *write.unwrap() = active;
        ops
    });
    print("the active slot", &tally);
    assert!(!tally.violations.is_empty());
}

#[test]
fn an_install_that_was_stopped_with_the_program_alone_is_durable_when_it_is_staged() {
    // All of it reached the disk's cache only, then another process finds it complete: `finish` must sync what it did not write.
    let cast = Cast::new();
    let imb = &cast.imbs[0];
    let trace = record_run(World::new(SLOT_LEN), None, |shared| {
        let store = shared.store(u64::MAX).unwrap();
        let mut begun = store.begin_install(imb.prefix()).unwrap();
        acked(shared, &store);
        feed(&mut begun, imb, usize::MAX);
        drop(begun);
        drop(store);
        let store = shared.store(u64::MAX).unwrap();
        let begun = store.begin_install(imb.prefix()).unwrap();
        assert_eq!(begun.missing().chunks, 0);
        begun.finish().unwrap();
        acked(shared, &store);
    });
    let tally = enumerate(&trace, Effort { draws: 20, sample_every: u64::MAX, stop: false });
    print("found in the cache", &tally);
    assert_eq!(tally.violations, Vec::<String>::new());
}

#[test]
fn a_device_whose_first_record_is_torn_starts_fresh_or_recovers_to_nothing() {
    for torn in [SECTOR, BLOCK - SECTOR] {
        let shared = Shared::new(World::new(SLOT_LEN));
        shared.store(SETTLING).unwrap().step(&Step::Trust { root: 1, revocations: 0 }).unwrap();
        // The second record is not written yet.
        shared.lock().disks[STATE][torn..].fill(0);
        let store = shared.store(SETTLING).unwrap();
        assert_eq!(store.found(), Found::Lost);
        assert!(matches!(store.step(&Step::Permit { nonce: 1 }), Err(SlotError::Lost)));
        let recovered = store.recover(&mut |_, _, _| {}).unwrap().unwrap();
        assert_eq!(recovered.candidate, None);
        store.step(&Step::Permit { nonce: 1 }).unwrap();
    }
}
