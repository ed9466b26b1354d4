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
//! Who builds holds a lock, so that two hosts never build the same engine at once; the second waits and finds it complete. Beyond
//! [`EngineCache::MOST`] bytes the entries that were completed first go. Nothing here is trusted with an answer: what is loaded from
//! an entry has golden vectors to pass like everything else.

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The list of a complete entry.
const LIST: &str = "complete";
/// The longest list that is read.
const LONGEST_LIST: u64 = 64 << 10;

/// The folder of all entries.
#[derive(Clone, Debug)]
pub struct EngineCache {
    root: PathBuf,
}

/// One entry, held against everybody else until it is dropped.
#[derive(Debug)]
pub struct Entry {
    dir: PathBuf,
    complete: bool,
    _held: File,
}

impl EngineCache {
    /// How much the entries may take together, in bytes.
    pub const MOST: u64 = 1 << 30;

    /// A cache in a folder that is made when it is first needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The entry of a network for a maker, complete or empty. Waits while somebody else builds it.
    ///
    /// # Errors
    /// When the folder cannot be written or read.
    pub fn entry(&self, network: &[u8], maker: &str) -> io::Result<Entry> {
        let network = hex(&Sha256::digest(network));
        let name = format!("{}-{}", &network[..32], &hex(&Sha256::digest(maker))[..16]);
        fs::create_dir_all(&self.root)?;
        let held = File::create(self.root.join(format!("{}.lock", &network[..32])))?;
        held.lock()?;
        self.remove_others(&network[..32], &name)?;
        let dir = self.root.join(name);
        let complete = is_complete(&dir);
        if !complete {
            remove(&dir)?;
            fs::create_dir(&dir)?;
        }
        Ok(Entry { dir, complete, _held: held })
    }

    /// Removes what was built of this network for others, then the oldest of all while there is too much.
    fn remove_others(&self, network: &str, name: &str) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let path = entry.path();
            let file_name = entry.file_name();
            let Some(other) = file_name.to_str().filter(|n| *n != name && path.is_dir() && n.contains('-'))
            else {
                continue;
            };
            if other.starts_with(network) {
                remove(&path)?;
            } else if let Ok(list) = fs::metadata(path.join(LIST)) {
                all.push((list.modified()?, size(&path)?, path));
            }
        }
        all.sort();
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in all {
            if total <= Self::MOST {
                break;
            }
            remove(&path)?;
            total -= size;
        }
        Ok(())
    }
}

impl Entry {
    /// Its folder, for a library to write into and read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether the engine is there. If not, it has to be built, then [`Entry::finish`]ed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Says that the engine is built: its files are on the disk and listed from now on.
    ///
    /// # Errors
    /// When they cannot be read or the list cannot be written; the entry is then built anew the next time.
    pub fn finish(&mut self) -> io::Result<()> {
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

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
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
            fs::write(entry.path().join(name), bytes).unwrap();
        }
        entry.finish().unwrap();
    }

    #[test]
    fn what_was_finished_is_found_again_and_only_for_its_network_and_maker() {
        let (_dir, cache) = cache();
        let mut entry = cache.entry(b"network", "10.3 Orin").unwrap();
        assert!(!entry.is_complete());
        build(&mut entry, &[("a.engine", b"plan"), ("b.profile", b"shapes")]);
        drop(entry);
        let again = cache.entry(b"network", "10.3 Orin").unwrap();
        assert!(again.is_complete());
        assert_eq!(fs::read(again.path().join("a.engine")).unwrap(), b"plan");
        drop(again);
        assert!(!cache.entry(b"another network", "10.3 Orin").unwrap().is_complete());
        assert!(cache.entry(b"network", "10.3 Orin").unwrap().is_complete(), "the other one is beside it");
    }

    #[test]
    fn another_version_or_device_takes_the_old_engine_away() {
        let (_dir, cache) = cache();
        let mut entry = cache.entry(b"network", "10.3 Orin").unwrap();
        build(&mut entry, &[("a.engine", b"plan")]);
        let old = entry.path().to_owned();
        drop(entry);
        assert!(!cache.entry(b"network", "10.16 Orin").unwrap().is_complete());
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
            if !entry.is_complete() {
                build(&mut entry, &[("a.engine", b"plan"), ("b", b"")]);
            }
            let dir = entry.path().to_owned();
            drop(entry);
            spoil(&dir);
            let entry = cache.entry(b"network", "maker").unwrap();
            assert!(!entry.is_complete(), "{what}");
            assert_eq!(fs::read_dir(entry.path()).unwrap().count(), 0, "{what}: nothing is left of it");
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
                entry.is_complete()
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
            File::create(entry.path().join("a.engine")).unwrap().set_len(1).unwrap();
            entry.finish().unwrap();
            File::options()
                .write(true)
                .open(entry.path().join("a.engine"))
                .unwrap()
                .set_len(400 << 20)
                .unwrap();
        }
        drop(cache.entry(b"new", "maker").unwrap());
        let left =
            fs::read_dir(&cache.root).unwrap().filter(|e| e.as_ref().unwrap().path().join(LIST).exists());
        assert_eq!(left.count(), 2);
    }
}
