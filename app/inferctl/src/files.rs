//! Key files, and files that are written whole or not at all.

use crate::fail::Failure;
use inferd_bundle::{PublicKey, SigningKey, keys::SECRET};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The longest key file that is read: one line.
const MAX_KEY_FILE: u64 = 4096;

/// Arguments of `keygen`.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// The secret key's file, for its owner's eyes only; the public key is put beside it as NAME.pub
    #[arg(value_name = "NAME.key")]
    file: PathBuf,
    /// Who holds it, or where; part of both files and of root documents [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl Keygen {
    /// Makes a key pair. Nothing that is there is ever overwritten.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let public_file = self.file.with_extension("pub");
        if public_file == self.file {
            return Err(Failure::Other(format!(
                "{} is the name of the public key; name the secret one NAME.key",
                self.file.display()
            )));
        }
        for file in [&self.file, &public_file] {
            if file.symlink_metadata().is_ok() {
                return Err(Failure::Other(format!(
                    "{} is there already, and a key is never overwritten",
                    file.display()
                )));
            }
        }
        let stem = self.file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let note = self.note.as_deref().unwrap_or(&stem);
        let key = SigningKey::generate().map_err(|e| Failure::Other(e.to_string()))?;
        let public = key.public();
        write_new(&self.file, key.to_line(note).as_bytes(), 0o600)?;
        write_new(&public_file, public.to_line(note).as_bytes(), 0o644)?;
        if json {
            crate::show::json(&serde_json::json!({
                "secret": self.file, "public": public_file, "id": public.id().to_string(), "note": note,
            }));
        } else {
            crate::show::line(&format!(
                "{} is the secret key: keep it off line and copy it once, to a safe place\n{} is the public key, for root documents:",
                self.file.display(),
                public_file.display()
            ));
            crate::show::line(public.to_line(note).trim_end());
            crate::show::line(&format!("key id {}", public.id()));
        }
        Ok(())
    }
}

/// A secret key. One that others may read is used, and said.
///
/// # Errors
/// [`Failure`] when it is not there or not a secret key.
pub fn secret(path: &Path) -> Result<SigningKey, Failure> {
    let text = key_text(path)?;
    let (key, _) =
        SigningKey::from_line(&text).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))?;
    if path.metadata().is_ok_and(|m| m.permissions().mode() & 0o077 != 0) {
        eprintln!("inferctl: {} can be read by others: chmod 600 it", path.display());
    }
    Ok(key)
}

/// Several secret keys.
///
/// # Errors
/// [`Failure`].
pub fn secrets(paths: &[PathBuf]) -> Result<Vec<SigningKey>, Failure> {
    paths.iter().map(|path| secret(path)).collect()
}

/// A public key and the note beside it.
///
/// # Errors
/// [`Failure`] when it is not there or not a public key.
pub fn public(path: &Path) -> Result<(PublicKey, String), Failure> {
    let text = key_text(path)?;
    PublicKey::from_line(&text).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))
}

fn key_text(path: &Path) -> Result<String, Failure> {
    let unreadable = |why: String| Failure::Other(format!("{} cannot be read: {why}", path.display()));
    let bytes = read(path, MAX_KEY_FILE)?;
    String::from_utf8(bytes).map_err(|_| unreadable("it is not a text".into()))
}

/// A whole file of at most `most` bytes.
///
/// # Errors
/// [`Failure`].
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    match read {
        Err(e) => Err(Failure::Other(format!("{} cannot be read: {e}", path.display()))),
        Ok(n) if n as u64 > most => Err(Failure::Other(format!(
            "{} is larger than {most} bytes: it is something else",
            path.display()
        ))),
        Ok(_) => Ok(bytes),
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Other(if error.kind() == io::ErrorKind::AlreadyExists {
        format!("{} is there already; --force replaces it", path.display())
    } else {
        format!("{} cannot be written: {error}", path.display())
    })
}

/// Writes a file that must not be there yet.
///
/// # Errors
/// [`Failure`].
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(|e| unwritable(path, &e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| {
        // Half of it would be in the way of the next try.
        let _ = std::fs::remove_file(path);
        unwritable(path, &e)
    })
}

/// Writes a file, in place of an older one if there is one and `force` allows it.
///
/// # Errors
/// [`Failure`].
pub fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), Failure> {
    if force { replace(path, b"", |file| Ok(file.write_all(bytes)?)) } else { write_new(path, bytes, 0o644) }
}

/// Why a file was not written: the file system's reason, or that of what makes the content.
pub enum Unwritten {
    /// The medium's.
    Io(io::Error),
    /// The content's.
    Content(Failure),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Puts a file in place whole: what was there stays until the new one is complete and on the medium. What is there already must begin
/// like `kind`, where it says how such a file begins, and is never a secret key: a name that was mixed up costs nothing.
///
/// # Errors
/// [`Failure`]; nothing was changed then.
pub fn replace(
    path: &Path,
    kind: &[u8],
    content: impl FnOnce(&mut io::BufWriter<File>) -> Result<(), Unwritten>,
) -> Result<(), Failure> {
    let mut beginning = Vec::new();
    if path.is_file() {
        let long = kind.len().max(SECRET.len()) as u64;
        let read = File::open(path).and_then(|there| there.take(long).read_to_end(&mut beginning));
        read.map_err(|e| unwritable(path, &e))?;
    }
    if beginning.starts_with(SECRET.as_bytes()) {
        return Err(Failure::Other(format!("{} is a secret key: it is not written over", path.display())));
    }
    if !(beginning.is_empty() || beginning.starts_with(kind)) {
        let path = path.display();
        return Err(Failure::Other(format!(
            "{path} is there already, and is something else: name another file"
        )));
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(&part);
    let done = made.map_err(Unwritten::Io).and_then(|file| {
        let mut writer = io::BufWriter::with_capacity(1 << 20, file);
        content(&mut writer)?;
        let file = writer.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        Ok(std::fs::rename(&part, path)?)
    });
    done.map_err(|e| {
        let _ = std::fs::remove_file(&part);
        match e {
            Unwritten::Io(e) => unwritable(path, &e),
            Unwritten::Content(failure) => failure,
        }
    })
}
