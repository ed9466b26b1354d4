//! A directory of numbered files that never takes more room than it may: the oldest give way.
//!
//! What is on it is counted anew before every write, from the directory itself, so that no crash and no helping hand can make the
//! count wrong. Names are a prefix, a number and an ending; whatever else lies there is neither counted nor touched nor given out.

use crate::permit::Permit;
use nix::fcntl::OFlag;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
};

/// What files take on a medium: whole blocks.
const BLOCK: u64 = 4096;
/// Marks a file that is being made.
const PART: &str = ".part";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Item {
    /// Its name, without a directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Which one it is: the greater, the newer.
    #[serde(skip)]
    pub number: u64,
}

impl Item {
    /// The room it takes.
    fn room(&self) -> u64 {
        room(self.bytes)
    }
}

/// The room that so many bytes take.
pub(crate) fn room(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).max(1) * BLOCK
}

/// The directory.
#[derive(Clone)]
pub struct Shelf {
    dir: PathBuf,
    prefix: &'static str,
    /// Endings of whole files; [`PART`] behind one marks a file that is being made.
    endings: &'static [&'static str],
    quota: u64,
    /// The most files.
    files: usize,
    permit: Arc<dyn Permit>,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("dir", &self.dir).field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Shelf {
    /// At most so many bytes in so many files here.
    pub fn new(
        dir: PathBuf,
        (prefix, endings): (&'static str, &'static [&'static str]),
        quota: u64,
        files: usize,
        permit: Arc<dyn Permit>,
    ) -> Self {
        Self { dir, prefix, endings, quota, files: files.max(2), permit }
    }

    /// The most room that is taken.
    #[must_use]
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Asked before anything is written.
    #[must_use]
    pub fn permit(&self) -> &dyn Permit {
        &*self.permit
    }

    /// The number in a name of ours, and whether the file is whole. Everything else is no name: no path leads out of the directory.
    fn read_name(&self, name: &str) -> Option<(u64, bool)> {
        let rest = name.strip_prefix(self.prefix)?.strip_prefix('-')?;
        let (digits, ending) = rest.split_at(rest.find('.')?);
        let (ending, whole) = ending.strip_suffix(PART).map_or((ending, true), |ending| (ending, false));
        let known = self.endings.contains(&ending);
        let good = known && (8..=18).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        good.then(|| digits.parse().ok()).flatten().map(|number| (number, whole))
    }

    /// The name of a file.
    #[must_use]
    pub fn name(&self, number: u64, ending: &str) -> String {
        format!("{}-{number:08}{ending}", self.prefix)
    }

    fn all(&self) -> io::Result<Vec<(Item, bool)>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some((number, whole)) = self.read_name(&name) else { continue };
            match entry.metadata() {
                Ok(meta) if meta.is_file() => found.push((Item { name, bytes: meta.len(), number }, whole)),
                // Not a file, or gone in between.
                _ => {}
            }
        }
        found.sort_by(|(a, _), (b, _)| (a.number, &a.name).cmp(&(b.number, &b.name)));
        Ok(found)
    }

    /// The whole files, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read; one that does not exist is empty.
    pub fn list(&self) -> io::Result<Vec<Item>> {
        Ok(self.all()?.into_iter().filter(|(_, whole)| *whole).map(|(item, _)| item).collect())
    }

    /// Removes what a crash left half made.
    ///
    /// # Errors
    /// The directory cannot be read or changed.
    pub fn tidy(&self) -> io::Result<()> {
        for (item, whole) in self.all()? {
            if !whole {
                fs::remove_file(self.dir.join(&item.name))?;
            }
        }
        Ok(())
    }

    /// Makes room for a file of so many bytes: removes the oldest, but never `keep`. False: there is not enough to remove.
    ///
    /// # Errors
    /// The directory cannot be read or changed.
    pub fn make_room(&self, bytes: u64, keep: Option<&str>) -> io::Result<bool> {
        let mut all: Vec<Item> = self.all()?.into_iter().map(|(item, _)| item).collect();
        let need = room(bytes);
        loop {
            let used: u64 = all.iter().map(Item::room).sum();
            if used + need <= self.quota && all.len() < self.files {
                return Ok(true);
            }
            let Some(oldest) = all.iter().position(|i| Some(i.name.as_str()) != keep) else {
                return Ok(false);
            };
            let oldest = all.remove(oldest);
            fs::remove_file(self.dir.join(&oldest.name))?;
        }
    }

    /// One whole file's content; `None`: there is none of this name.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        if !matches!(self.read_name(name), Some((_, true))) {
            return Ok(None);
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(self.dir.join(name));
        let file = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(self.quota).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Removes one whole file; false: there is none of this name.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        if !matches!(self.read_name(name), Some((_, true))) {
            return Ok(false);
        }
        match fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Gives one whole file another ending of ours, so that it is kept within the quota and read no more; false: there is none of this
    /// name.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn set_aside(&self, name: &str, ending: &str) -> io::Result<bool> {
        let Some((number, true)) = self.read_name(name) else { return Ok(false) };
        let aside = self.name(number, ending);
        if !matches!(self.read_name(&aside), Some((_, true))) {
            return Ok(false);
        }
        match fs::rename(self.dir.join(name), self.dir.join(aside)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Writes a whole new file. After a failure nothing of it is left, as far as the medium lets that be done.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let (part, at) = (self.dir.join(format!("{name}{PART}")), self.dir.join(name));
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            drop(file);
            fs::rename(&part, &at)?;
            File::open(&self.dir)?.sync_all()
        };
        let done = write();
        self.permit.wrote(bytes.len() as u64);
        if done.is_err() {
            let _ = fs::remove_file(&part);
        }
        done
    }

    /// Puts bytes at the end of a file, durably, in one write. After a failure the file is as it was, as far as the medium lets
    /// that be done.
    pub(crate) fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let at = self.dir.join(name);
        let new = !at.exists();
        let mut file = OpenOptions::new().append(true).create(true).open(&at)?;
        let before = file.metadata()?.len();
        let done = file.write_all(bytes).and_then(|()| file.sync_data());
        self.permit.wrote(bytes.len() as u64);
        if done.is_err() {
            let _ = file.set_len(before);
            return done;
        }
        if new { File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }

    /// Cuts a file of lines back to its last whole line; its length then.
    pub(crate) fn mend(&self, name: &str) -> io::Result<u64> {
        let mut file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        let len = file.metadata()?.len();
        let mut end = len;
        let mut piece = [0; 4096];
        while end > 0 {
            let n = end.min(piece.len() as u64);
            file.seek(SeekFrom::Start(end - n))?;
            let part = &mut piece[..usize::try_from(n).unwrap_or(0)];
            file.read_exact(part)?;
            match part.iter().rposition(|b| *b == b'\n') {
                Some(at) => {
                    end = end - n + at as u64 + 1;
                    break;
                }
                None => end -= n,
            }
        }
        if end < len {
            file.set_len(end)?;
            file.sync_data()?;
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permit::Unlimited;

    fn shelf(dir: &tempfile::TempDir, quota: u64, files: usize) -> Shelf {
        Shelf::new(dir.path().join("x"), ("a", &[".b", ".b.gz"]), quota, files, Arc::new(Unlimited))
    }

    #[test]
    fn only_names_of_ours_lead_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(&dir, 1 << 20, 100);
        shelf.put("a-00000001.b", b"x").unwrap();
        fs::write(dir.path().join("secret"), b"s").unwrap();
        fs::write(dir.path().join("x/other"), b"o").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("x/a-00000002.b")).unwrap();
        fs::create_dir(dir.path().join("x/a-00000003.b")).unwrap();
        assert_eq!(shelf.read("a-00000001.b").unwrap().as_deref(), Some(&b"x"[..]));
        for name in [
            "../secret",
            "other",
            "",
            ".",
            "..",
            "/etc/passwd",
            "a-00000001.b/../../secret",
            "a-1.b",
            "a-00000001.c",
            "a-00000001.b.part",
            "a-00000001.b\0",
            "a-+0000001.b",
            "a-00000009.b",
            "a-00000003.b",
        ] {
            assert_eq!(shelf.read(name).ok().flatten(), None, "{name:?}");
            assert!(name == "a-00000003.b" || !shelf.remove(name).unwrap(), "{name:?}");
        }
        assert!(shelf.read("a-00000002.b").is_err(), "a link is not followed");
        assert_eq!(shelf.list().unwrap().len(), 1);
    }

    #[test]
    fn the_oldest_give_way_and_what_is_there_is_counted_anew() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(&dir, 10 * BLOCK, 100);
        for n in 1..=10 {
            assert!(shelf.make_room(100, None).unwrap());
            shelf.put(&shelf.name(n, ".b"), &[0; 100]).unwrap();
        }
        // Left by a crash, and put there by somebody.
        fs::write(dir.path().join("x/a-00000011.b.gz.part"), vec![0; 5000]).unwrap();
        assert!(shelf.make_room(3 * BLOCK, Some("a-00000001.b")).unwrap());
        let left: Vec<u64> = shelf.list().unwrap().iter().map(|i| i.number).collect();
        assert_eq!(left, [1, 7, 8, 9, 10], "two blocks of the part, three of the new one, five files");
        shelf.tidy().unwrap();
        assert!(!dir.path().join("x/a-00000011.b.gz.part").exists());
        assert!(!shelf.make_room(11 * BLOCK, None).unwrap(), "what can never fit is told");
    }

    #[test]
    fn what_is_set_aside_still_counts_and_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(&dir, 10 * BLOCK, 100);
        shelf.put("a-00000001.b", b"x").unwrap();
        assert!(!shelf.set_aside("a-00000001.b", ".other").unwrap(), "an ending that is not ours");
        assert!(!shelf.set_aside("../secret", ".b.gz").unwrap());
        assert!(shelf.set_aside("a-00000001.b", ".b.gz").unwrap());
        assert!(!shelf.set_aside("a-00000001.b", ".b.gz").unwrap(), "it is gone");
        assert_eq!(shelf.list().unwrap()[0].name, "a-00000001.b.gz");
    }

    #[test]
    fn a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(&dir, 1 << 20, 100);
        let long = "x".repeat(9000);
        for (content, whole) in [
            ("", 0),
            ("a\n", 2),
            ("a\nb", 2),
            ("abc", 0),
            (&*format!("a\n{long}"), 2),
            (&*format!("{long}\n{long}"), 9001),
        ] {
            let _ = shelf.remove("a-00000001.b");
            shelf.append("a-00000001.b", content.as_bytes()).unwrap();
            assert_eq!(shelf.mend("a-00000001.b").unwrap(), whole);
            assert_eq!(shelf.read("a-00000001.b").unwrap().unwrap().len() as u64, whole);
        }
    }
}
