//! Bundles to install, and disks in memory that record, fail and rot.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

use inferd_bundle::build::{BundleSpec, Content, FileSource, ModelSource, build};
use inferd_bundle::{Bundle, Digest, SigningKey, Stream};
use inferd_slots::{BLOCK, Media, Medium, Phase, SlotError, SlotId, Staged, Step, Store};
use nix::errno::Errno;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that no compressor shortens, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A bundle in memory.
pub struct Imb {
    pub bytes: Vec<u8>,
    pub parsed: Bundle,
    pub product: String,
    pub version: u64,
    /// The network of each model, in order of their names.
    pub networks: Vec<(String, Vec<u8>)>,
}

impl Imb {
    pub fn id(&self) -> Digest {
        self.parsed.id()
    }

    pub fn prefix(&self) -> &[u8] {
        &self.bytes[..usize::try_from(self.parsed.prefix_bytes()).unwrap()]
    }
}

/// A bundle with a model per length: golden vectors of a hundredth of it, a network of that length.
pub fn bundle(product: &str, version: u64, lengths: &[usize]) -> Imb {
    let mut networks = Vec::new();
    let models = lengths.iter().enumerate().map(|(number, &len)| {
        let seed = version * 1000 + number as u64;
        let (golden, network) = (noise(seed, len / 100 + 1), noise(seed + 500, len));
        let name = format!("model-{number}");
        let manifest = format!(
            "schema = 1\nname = \"{name}\"\nversion = \"1\"\ntask = \"tensor\"\nengines = [\"cpu\"]\n\
             [budget]\nmemory_mib = 64\ndeadline_ms = 1000\n\
             [onnx]\nfile = \"model.onnx\"\nsha256 = \"{}\"\n\
             [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{}\"\ncosine = 0.9999\nmax_abs = 0.001\n\
             [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [2, 3]\n\
             [[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [2, 3]\n",
            Digest::of(&network),
            Digest::of(&golden),
        );
        networks.push((name, network.clone()));
        let file = |name: &str, bytes| FileSource { name: name.to_owned(), content: Content::Bytes(bytes) };
        ModelSource { manifest, files: vec![file("model.onnx", network), file("golden.safetensors", golden)] }
    });
    let models = models.collect();
    let spec = BundleSpec::new(inferd_model::ModelName::new(product).unwrap(), version, models);
    let key = SigningKey::from_seed(&[7; 32]);
    let mut bytes = Vec::new();
    build(&spec, &[&key], &mut bytes).unwrap();
    let parsed = Bundle::parse(&bytes).unwrap();
    Imb { bytes, parsed, product: product.to_owned(), version, networks }
}

/// What is done to the disks, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Write {
        disk: usize,
        at: u64,
        bytes: Arc<[u8]>,
    },
    Flush {
        disk: usize,
    },
    /// The step with this sequence has returned.
    Acked(u64),
}

/// The disks' number: the state's.
pub const STATE: usize = 0;

/// The disks' number: a slot's.
pub fn disk_of(slot: SlotId) -> usize {
    1 + slot.index()
}

/// What is wrong with the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation of this number, counted from 1, fails with this error; the ones after it work.
    Once(u64, Errno),
    /// That operation fails and all after it.
    From(u64, Errno),
    /// Every write and reservation fails with EROFS.
    ReadOnly,
    /// That write is reported as done and is not; the page cache has it.
    Swallow(u64),
    /// That write spoils what lies in front of it in its first block, or behind it in its last one.
    Spoil { at: u64, behind: bool },
    /// Every operation on this disk fails with EIO.
    Dead(usize),
}

/// Three disks of one machine: the state's and the slots'.
#[derive(Debug, Clone)]
pub struct World {
    pub disks: [Vec<u8>; 3],
    /// What the page cache has that the disks do not: the disk, where, the bytes. The last one counts.
    pub cached: Vec<(usize, usize, Vec<u8>)>,
    /// Recorded when it is there.
    pub log: Option<Vec<Op>>,
    pub fault: Option<Fault>,
    /// Operations so far.
    pub ops: u64,
    /// Bytes written to slots.
    pub written: u64,
}

impl World {
    pub fn new(slot_len: usize) -> Self {
        let disks = [vec![0; 2 * BLOCK], vec![0; slot_len], vec![0; slot_len]];
        Self { disks, cached: Vec::new(), log: None, fault: None, ops: 0, written: 0 }
    }

    fn op(&mut self, disk: usize, writes: bool) -> io::Result<bool> {
        self.ops += 1;
        match self.fault {
            Some(Fault::Dead(dead)) if dead == disk => Err(Errno::EIO.into()),
            Some(Fault::Once(at, errno)) if self.ops == at => Err(errno.into()),
            Some(Fault::From(at, errno)) if self.ops >= at => Err(errno.into()),
            Some(Fault::ReadOnly) if writes => Err(Errno::EROFS.into()),
            Some(Fault::Swallow(at)) => Ok(self.ops != at),
            _ => Ok(true),
        }
    }
}

/// A world that several disks and the test share.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub fn media(&self) -> Media<Disk> {
        let disk = |number| Disk { number, world: self.clone() };
        Media { state: disk(STATE), slots: [disk(1), disk(2)] }
    }

    pub fn store(&self, settling: u64) -> Result<Store<Disk>, SlotError> {
        Store::with_settling(self.media(), settling)
    }

    pub fn note(&self, op: Op) {
        if let Some(log) = &mut self.lock().log {
            log.push(op);
        }
    }
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    number: usize,
    world: Shared,
}

impl Disk {
    fn range(
        &self,
        len: usize,
        at: u64,
        bytes: usize,
        error: io::ErrorKind,
    ) -> io::Result<std::ops::Range<usize>> {
        let at = usize::try_from(at).unwrap();
        if at + bytes > len { Err(error.into()) } else { Ok(at..at + bytes) }
    }

    fn get(&self, at: u64, into: &mut [u8], through_cache: bool) -> io::Result<()> {
        let mut world = self.world.lock();
        world.op(self.number, false)?;
        let disk = &world.disks[self.number];
        let range = self.range(disk.len(), at, into.len(), io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(&disk[range.clone()]);
        for (_, at, bytes) in world.cached.iter().filter(|(disk, ..)| through_cache && *disk == self.number) {
            for (at, byte) in (*at..).zip(bytes).filter(|(at, _)| range.contains(at)) {
                into[at - range.start] = *byte;
            }
        }
        Ok(())
    }
}

impl Medium for Disk {
    fn capacity(&self) -> u64 {
        self.world.lock().disks[self.number].len() as u64
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        self.world.lock().op(self.number, true).map(drop)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.get(at, into, true)
    }

    fn read_back(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.get(at, into, false)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world.lock();
        let done = world.op(self.number, true)?;
        let range = self.range(world.disks[self.number].len(), at, bytes.len(), io::ErrorKind::WriteZero)?;
        if !done || !world.cached.is_empty() {
            world.cached.push((self.number, range.start, bytes.to_vec()));
        }
        if !done {
            return Ok(());
        }
        world.disks[self.number][range.clone()].copy_from_slice(bytes);
        if let Some(Fault::Spoil { at, behind }) = world.fault
            && at == world.ops
        {
            let (of, beside) =
                if behind { (range.end - 1, range.end) } else { (range.start, range.start.wrapping_sub(1)) };
            if of / BLOCK == beside / BLOCK {
                world.disks[self.number][beside] ^= 1;
            }
        }
        if self.number != STATE {
            world.written += bytes.len() as u64;
        }
        if let Some(log) = &mut world.log {
            log.push(Op::Write { disk: self.number, at, bytes: bytes.into() });
        }
        Ok(())
    }

    fn write_through(&self, at: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        self.write(at, block)?;
        self.world.note(Op::Flush { disk: self.number });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.world.lock().op(self.number, true)?;
        self.world.note(Op::Flush { disk: self.number });
        Ok(())
    }
}

/// Installs a bundle in order, as a stream does, and finishes.
pub fn install<M: Medium>(store: &Store<M>, imb: &Imb) -> Result<Staged, SlotError> {
    let mut install = store.begin_install(imb.prefix())?;
    let mut stream = Stream::resume(imb.parsed.clone(), install.place(), &mut install)?;
    let from = usize::try_from(stream.position()).unwrap();
    for part in imb.bytes[from..].chunks(10_000) {
        stream.push(part, &mut install)?;
    }
    stream.finish()?;
    install.finish()
}

/// Tries a staged bundle and commits it.
pub fn commit<M: Medium>(store: &Store<M>, slot: SlotId) -> Result<(), SlotError> {
    store.step(&Step::Try { slot, boot_id: "boot".to_owned() })?;
    store.step(&Step::Advance { phase: Phase::Probation })?;
    store.step(&Step::Commit { permit: None })?;
    Ok(())
}
