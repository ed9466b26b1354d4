//! Engines that were built on this device, kept on its disk: building one takes minutes, reading it back takes a second.
//!
//! An entry is a folder that a vendor's library writes into and reads from. It is made for one network and one **maker**: the
//! library's version, the device, its driver and the precision, in words. Its name has the digests of both, so an engine of another
//! version or device is never found, and is removed when the network is next asked for: it could not be read any more.
//!
//! | state | how it is told | what happens |
//! |---|---|---|
//! | complete | a list with every file's length and SHA-256 that fits | used |
//! | begun | no list: whoever built it ended before | removed, built anew |
//! | damaged | a list that does not fit | removed, built anew |
//!
//! Who builds holds a lock, so that two hosts never build the same engine at once; the second waits and finds it complete. An entry
//! that is complete and that the library cannot read all the same is put aside and built anew, once. Building that has failed, or
//! ended with its host, three times is left for a day: it costs minutes of the device each time. A failure within a minute does not
//! count: a device that was busy or gone is said at once.
//!
//! Beyond [`EngineCache::MOST`] bytes the entries that were completed first go, and nothing is begun with less than
//! [`EngineCache::FREE`] bytes free. What was begun and left, and locks of what is gone, are removed; nothing that is held is. Nothing
//! here is trusted with an answer: what is loaded from an entry has golden vectors to pass like everything else.

use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The list of a complete entry.
const LIST: &str = "complete";
/// The longest list that is read.
const LONGEST_LIST: u64 = 64 << 10;
/// What follows the name of an entry that was put aside.
const ASIDE: &str = "aside";
/// How often it is tried to build an engine that is never finished.
const TRIES: usize = 3;
/// How long it is left alone then.
const LEFT_ALONE: Duration = Duration::from_secs(24 * 3600);
/// A failure within this time is none of building.
const QUICK: Duration = Duration::from_secs(60);
/// How many characters of an entry's name are its network's.
const NETWORK: usize = 32;

/// The folder of all entries.
#[derive(Clone, Debug)]
pub struct EngineCache {
    root: PathBuf,
    quick: Duration,
}

/// One entry, held against everybody else until it is dropped.
#[derive(Debug)]
pub struct Entry {
    dir: PathBuf,
    complete: bool,
    tries: Tries,
    quick: Duration,
    _held: File,
}

impl EngineCache {
    /// How much the entries may take together, in bytes.
    pub const MOST: u64 = 1 << 30;
    /// How much must be free in their filesystem before one is begun, in bytes.
    pub const FREE: u64 = 512 << 20;

    /// A cache in a folder that is made when it is first needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, quick: QUICK }
    }

    /// Whether the engine of a network for a maker is to be built, or somebody is building it. Does not wait.
    #[must_use]
    pub fn must_build(&self, network: &[u8], maker: &str) -> bool {
        let (_, name) = names(network, maker);
        !is_complete(&self.root.join(&name)) && self.tries(&name).given_up().is_none()
    }

    /// The entry of a network for a maker, complete or empty. Waits while somebody else builds it.
    ///
    /// # Errors
    /// When the folder cannot be written or read, or there is too little space for another entry.
    pub fn entry(&self, network: &[u8], maker: &str) -> io::Result<Entry> {
        let (network, name) = names(network, maker);
        fs::create_dir_all(&self.root)?;
        let held = loop {
            if let Some(held) = self.hold(&network, true)? {
                break held;
            }
        };
        self.tidy(&network, &name)?;
        let dir = self.root.join(&name);
        let complete = is_complete(&dir);
        // Whoever put it aside has ended while it built another.
        remove(&dir.with_extension(ASIDE))?;
        if !complete {
            remove(&dir)?;
            let space = nix::sys::statvfs::statvfs(&self.root)?;
            if (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64) < Self::FREE {
                return Err(io::Error::other("there is too little space for another engine"));
            }
            fs::create_dir(&dir)?;
        }
        Ok(Entry { dir, complete, tries: self.tries(&name), quick: self.quick, _held: held })
    }

    fn tries(&self, name: &str) -> Tries {
        Tries(self.root.join(format!("{name}.tries")))
    }

    /// A network's lock; `None` when somebody else has it and it is not waited for, or when it was removed meanwhile.
    fn hold(&self, network: &str, wait: bool) -> io::Result<Option<File>> {
        let path = self.root.join(format!("{network}.lock"));
        let file = File::create(&path)?;
        if wait {
            file.lock()?;
        } else {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
        // Who tidied up before may have removed the file that this is a lock of.
        let ours = file.metadata()?;
        let same =
            fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        Ok(same.then_some(file))
    }

    /// Removes what was built of this network for others, what others have begun and left, and the oldest while there is too much.
    fn tidy(&self, network: &str, name: &str) -> io::Result<()> {
        let mut all = Vec::new();
        for (other, path) in self.content()? {
            let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if other == network {
                if !file_name.starts_with(name) && path.extension().is_none_or(|e| e != "lock") {
                    remove(&path)?;
                }
            } else if path.is_dir() {
                match fs::metadata(path.join(LIST)) {
                    Ok(list) => all.push((list.modified()?, size(&path)?, path, other)),
                    Err(_) => self.remove_unheld(&other, &path)?,
                }
            } else if path.extension().is_some_and(|e| e == "tries") && Tries(path.clone()).is_old() {
                self.remove_unheld(&other, &path)?;
            }
        }
        all.sort();
        let mut total: u64 = all.iter().map(|(_, size, _, _)| size).sum();
        for (_, size, path, other) in all {
            if total <= Self::MOST {
                break;
            }
            self.remove_unheld(&other, &path)?;
            if !path.exists() {
                total -= size;
            }
        }
        let left = self.content()?;
        for (other, path) in &left {
            if other != network && left.iter().filter(|(n, _)| n == other).count() == 1 {
                // All there is of it is its lock, or what was never one of ours.
                if path.extension().is_some_and(|e| e == "lock") {
                    self.remove_unheld(other, path)?;
                }
            }
        }
        Ok(())
    }

    /// Everything in the folder that belongs to a network, and to which.
    fn content(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut content = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if let Some(network) = entry.file_name().to_str().and_then(|n| n.get(..NETWORK)) {
                content.push((network.to_owned(), entry.path()));
            }
        }
        Ok(content)
    }

    /// Removes something of a network that nobody holds.
    fn remove_unheld(&self, network: &str, path: &Path) -> io::Result<()> {
        match self.hold(network, false)? {
            Some(_held) => remove(path),
            None => Ok(()),
        }
    }
}

/// What a network is called here, and its entry for a maker.
fn names(network: &[u8], maker: &str) -> (String, String) {
    let mut network = hex(&Sha256::digest(network));
    network.truncate(NETWORK);
    let name = format!("{network}-{}", &hex(&Sha256::digest(maker))[..16]);
    (network, name)
}

/// How often it was tried to build an entry: a line for each time, with why it failed where that was heard.
#[derive(Debug)]
struct Tries(PathBuf);

impl Tries {
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whether the last is so long ago that it is tried again; a clock that was set back makes it so too.
    fn is_old(&self) -> bool {
        let last = fs::metadata(&self.0).and_then(|m| m.modified());
        last.is_ok_and(|last| SystemTime::now().duration_since(last).map_or(true, |ago| ago > LEFT_ALONE))
    }

    /// Why it is not tried for now.
    fn given_up(&self) -> Option<String> {
        let lines = self.lines();
        let last = lines.last().filter(|_| lines.len() >= TRIES && !self.is_old())?;
        Some(format!("building an engine was begun {} times and never finished ({last})", lines.len()))
    }

    fn write(&self, lines: &[String]) -> io::Result<()> {
        if lines.is_empty() {
            return fs::remove_file(&self.0);
        }
        let mut file = File::create(&self.0)?;
        file.write_all(lines.iter().flat_map(|l| [l, "\n"]).collect::<String>().as_bytes())?;
        file.sync_all()
    }
}

impl Entry {
    /// Opens the engine with its folder, for a library to read from it or to build into it, and lists what it has built.
    ///
    /// # Errors
    /// What `open` says, or that building is left alone for now.
    pub fn open<T>(&mut self, mut open: impl FnMut(&Path) -> Result<T, String>) -> Result<T, String> {
        if !self.complete {
            return self.build(open);
        }
        let why = match open(&self.dir) {
            Ok(opened) => return Ok(opened),
            Err(why) => why,
        };
        // Either the device fails or the entry cannot be read. It is not lost before another one is there.
        let aside = self.dir.with_extension(ASIDE);
        let moved = remove(&aside)
            .and_then(|()| fs::rename(&self.dir, &aside))
            .and_then(|()| fs::create_dir(&self.dir));
        if moved.is_err() {
            return Err(why);
        }
        match self.build(open) {
            Ok(opened) => {
                let _ = remove(&aside);
                Ok(opened)
            }
            Err(_) => {
                let _ = remove(&self.dir).and_then(|()| fs::rename(&aside, &self.dir));
                Err(why)
            }
        }
    }

    fn build<T>(&mut self, open: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, String> {
        if let Some(why) = self.tries.given_up() {
            return Err(why);
        }
        let mut tries = if self.tries.is_old() { Vec::new() } else { self.tries.lines() };
        tries.push("the host ended".to_owned());
        // What cannot be written is not remembered.
        let _ = self.tries.write(&tries);
        let begun = Instant::now();
        match open(&self.dir) {
            Ok(opened) => {
                let _ = self.tries.write(&[]);
                // What cannot be listed is built again the next time.
                let _ = self.finish();
                Ok(opened)
            }
            Err(why) => {
                tries.pop();
                if begun.elapsed() >= self.quick {
                    tries.push(why.replace('\n', " "));
                }
                let _ = self.tries.write(&tries);
                Err(why)
            }
        }
    }

    /// Says that the engine is built: its files are on the disk and listed from now on.
    fn finish(&mut self) -> io::Result<()> {
        let mut list = String::new();
        for path in files(&self.dir)? {
            let (length, digest) = judge(&path)?;
            File::open(&path)?.sync_all()?;
            let name = path.file_name().and_then(|n| n.to_str());
            let name = name.ok_or_else(|| io::Error::other("a file's name is not UTF-8"))?;
            list += &format!("{digest} {length} {name}\n");
        }
        let begun = self.dir.join("complete.new");
        let mut file = File::create(&begun)?;
        file.write_all(list.as_bytes())?;
        file.sync_all()?;
        fs::rename(&begun, self.dir.join(LIST))?;
        File::open(&self.dir)?.sync_all()?;
        self.complete = true;
        Ok(())
    }
}

/// Whether the folder holds exactly what its list says.
fn is_complete(dir: &Path) -> bool {
    let mut list = String::new();
    let read = File::open(dir.join(LIST)).and_then(|f| f.take(LONGEST_LIST + 1).read_to_string(&mut list));
    if !read.is_ok_and(|n| n as u64 <= LONGEST_LIST && n > 0) {
        return false;
    }
    let Ok(files) = files(dir) else { return false };
    let fits = |line: &str, path: &Path| {
        let mut words = line.splitn(3, ' ');
        let (digest, length, name) = (words.next(), words.next(), words.next());
        name.is_some_and(|n| path.file_name().is_some_and(|f| f == n))
            && judge(path).is_ok_and(|(l, d)| length == Some(&l.to_string()) && digest == Some(&d))
    };
    list.lines().count() == files.len() && list.lines().zip(&files).all(|(line, path)| fits(line, path))
}

/// The files of an entry but its list, sorted.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != LIST {
            if !entry.file_type()?.is_file() {
                return Err(io::Error::other("there is something else than files"));
            }
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn judge(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((length, hex(&hasher.finalize())));
        }
        length += n as u64;
        hasher.update(&buffer[..n]);
    }
}

fn size(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        total += entry?.metadata()?.len();
    }
    Ok(total)
}

fn remove(path: &Path) -> io::Result<()> {
    match if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn cache() -> (tempfile::TempDir, EngineCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = EngineCache::new(dir.path().join("engines"));
        (dir, cache)
    }

    fn build(entry: &mut Entry, files: &[(&str, &[u8])]) {
        for (name, bytes) in files {
            fs::write(entry.dir.join(name), bytes).unwrap();
        }
        entry.finish().unwrap();
    }

    #[test]
    fn what_was_finished_is_found_again_and_only_for_its_network_and_maker() {
        let (_dir, cache) = cache();
        let mut entry = cache.entry(b"network", "10.3 Orin").unwrap();
        assert!(!entry.complete);
        build(&mut entry, &[("a.engine", b"plan"), ("b.profile", b"shapes")]);
        drop(entry);
        let again = cache.entry(b"network", "10.3 Orin").unwrap();
        assert!(again.complete);
        assert_eq!(fs::read(again.dir.join("a.engine")).unwrap(), b"plan");
        drop(again);
        assert!(!cache.entry(b"another network", "10.3 Orin").unwrap().complete);
        assert!(cache.entry(b"network", "10.3 Orin").unwrap().complete, "the other one is beside it");
    }

    #[test]
    fn another_version_or_device_takes_the_old_engine_away() {
        let (_dir, cache) = cache();
        let mut entry = cache.entry(b"network", "10.3 Orin").unwrap();
        build(&mut entry, &[("a.engine", b"plan")]);
        let old = entry.dir.to_owned();
        drop(entry);
        assert!(!cache.entry(b"network", "10.16 Orin").unwrap().complete);
        assert!(!old.exists());
    }

    #[test]
    fn what_was_not_finished_or_is_damaged_is_built_anew() {
        let (_dir, cache) = cache();
        type Spoil = fn(&Path);
        let spoil: [(&str, Spoil); 6] = [
            ("no list", |dir| fs::remove_file(dir.join(LIST)).unwrap()),
            ("a bit", |dir| fs::write(dir.join("a.engine"), b"plaN").unwrap()),
            ("a byte less", |dir| fs::write(dir.join("a.engine"), b"pla").unwrap()),
            ("a file less", |dir| fs::remove_file(dir.join("a.engine")).unwrap()),
            ("a file more", |dir| fs::write(dir.join("c"), b"").unwrap()),
            ("a long list", |dir| fs::write(dir.join(LIST), vec![b'\n'; 1 << 20]).unwrap()),
        ];
        for (what, spoil) in spoil {
            let mut entry = cache.entry(b"network", "maker").unwrap();
            if !entry.complete {
                build(&mut entry, &[("a.engine", b"plan"), ("b", b"")]);
            }
            let dir = entry.dir.to_owned();
            drop(entry);
            spoil(&dir);
            let entry = cache.entry(b"network", "maker").unwrap();
            assert!(!entry.complete, "{what}");
            assert_eq!(fs::read_dir(entry.dir).unwrap().count(), 0, "{what}: nothing is left of it");
        }
    }

    #[test]
    fn the_second_waits_for_the_first_and_finds_it_complete() {
        let (_dir, cache) = cache();
        let mut first = cache.entry(b"network", "maker").unwrap();
        let (said, hears) = mpsc::channel();
        let second = std::thread::spawn({
            let cache = cache.clone();
            move || {
                said.send("asks").unwrap();
                let entry = cache.entry(b"network", "maker").unwrap();
                said.send("has it").unwrap();
                entry.complete
            }
        });
        assert_eq!(hears.recv().unwrap(), "asks");
        build(&mut first, &[("a.engine", b"plan")]);
        assert!(hears.try_recv().is_err(), "the first still holds it");
        drop(first);
        assert!(second.join().unwrap());
    }

    #[test]
    fn the_oldest_go_when_there_is_too_much() {
        let (_dir, cache) = cache();
        for n in 0..4u8 {
            let mut entry = cache.entry(&[n], "maker").unwrap();
            // Large and empty: the disk holds nothing of it.
            File::create(entry.dir.join("a.engine")).unwrap().set_len(1).unwrap();
            entry.finish().unwrap();
            File::options().write(true).open(entry.dir.join("a.engine")).unwrap().set_len(400 << 20).unwrap();
        }
        drop(cache.entry(b"new", "maker").unwrap());
        let left =
            fs::read_dir(&cache.root).unwrap().filter(|e| e.as_ref().unwrap().path().join(LIST).exists());
        assert_eq!(left.count(), 2);
    }

    /// What a cache holds, sorted.
    fn content(cache: &EngineCache) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&cache.root)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .map(|n| n.replace(&n[..NETWORK], "N"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_engine_that_cannot_be_read_is_built_anew_and_one_of_a_device_that_fails_is_kept() {
        let (_dir, cache) = cache();
        let mut entry = cache.entry(b"network", "maker").unwrap();
        build(&mut entry, &[("a.engine", b"old")]);
        let gone = entry.open(|_| Err::<(), _>("the device is gone".into())).unwrap_err();
        assert_eq!(gone, "the device is gone");
        assert_eq!(fs::read(entry.dir.join("a.engine")).unwrap(), b"old");
        let read = |dir: &Path| fs::read(dir.join("a.engine")).unwrap_or_default();
        let opened = entry.open(|dir| match read(dir).as_slice() {
            b"old" => Err("it cannot be deserialized".to_owned()),
            _ => fs::write(dir.join("a.engine"), b"new").map_err(|e| e.to_string()),
        });
        assert_eq!(opened, Ok(()));
        drop(entry);
        let entry = cache.entry(b"network", "maker").unwrap();
        assert!(entry.complete && read(&entry.dir) == b"new");
        assert_eq!(content(&cache).len(), 2, "the entry and its lock");
    }

    #[test]
    fn what_is_never_finished_is_left_alone_for_a_day() {
        let (_dir, mut cache) = cache();
        let fail = |cache: &EngineCache| {
            cache.entry(b"network", "maker").unwrap().open(|_| Err::<(), _>("no\nlayer".into())).unwrap_err()
        };
        for _ in 0..2 * TRIES {
            assert_eq!(fail(&cache), "no\nlayer", "a quick failure does not count");
        }
        cache.quick = Duration::ZERO;
        for _ in 0..TRIES {
            assert!(cache.must_build(b"network", "maker"));
            assert_eq!(fail(&cache), "no\nlayer");
        }
        assert!(!cache.must_build(b"network", "maker"), "nobody has to wait for it");
        let mut entry = cache.entry(b"network", "maker").unwrap();
        let why = entry.open(|_| Ok(())).unwrap_err();
        assert!(why.contains("3 times") && why.contains("no layer"), "{why}");
        assert!(cache.must_build(b"network", "another maker"), "with another library it is tried");
        let long_ago = SystemTime::now() - 2 * LEFT_ALONE;
        File::options().write(true).open(&entry.tries.0).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(entry.open(|dir| fs::write(dir.join("e"), b"plan").map_err(|e| e.to_string())), Ok(()));
        assert!(!entry.tries.0.exists());
    }

    #[test]
    fn a_host_that_ends_while_it_builds_has_tried() {
        let (_dir, cache) = cache();
        for _ in 0..TRIES {
            let mut entry = cache.entry(b"network", "maker").unwrap();
            // The process is gone in the middle of it: nothing after this runs.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                entry.open(|dir| -> Result<(), String> {
                    fs::write(dir.join("half"), b"half").unwrap();
                    std::panic::resume_unwind(Box::new(()))
                })
            }));
            assert!(ended.is_err());
        }
        let mut entry = cache.entry(b"network", "maker").unwrap();
        assert_eq!(fs::read_dir(&entry.dir).unwrap().count(), 0, "nothing is left of what was begun");
        assert!(entry.open(|_| Ok(())).unwrap_err().contains("the host ended"));
    }

    #[test]
    fn who_builds_is_seen_without_waiting() {
        let (_dir, cache) = cache();
        let _held = cache.entry(b"network", "maker").unwrap();
        assert!(cache.must_build(b"network", "maker"));
    }

    #[test]
    fn what_was_begun_and_left_goes_and_what_is_held_stays() {
        let (_dir, cache) = cache();
        drop(cache.entry(b"left", "maker").unwrap());
        let held = cache.entry(b"held", "maker").unwrap();
        drop(cache.entry(b"new", "maker").unwrap());
        assert!(held.dir.exists());
        assert_eq!(
            content(&cache).len(),
            4,
            "two entries that are begun and their locks: {:?}",
            content(&cache)
        );
        drop(held);
        drop(cache.entry(b"new", "maker").unwrap());
        assert_eq!(content(&cache).len(), 2);
    }
}
