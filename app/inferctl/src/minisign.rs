//! `inferctl sign` and `inferctl verify`: detached signatures of any file in minisign's format, so that who has no inferctl verifies a
//! release with `minisign -V`. The keys are those of `keygen`.

mod form;

pub use form::verify;

use crate::{
    fail::Failure,
    files::{self, Unwritten},
    show,
};
use blake2::Blake2b512;
use inferd_bundle::PublicKey;
use serde_json::json;
use sha2::Digest as _;
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The longest signature or key file.
const MAX: u64 = 4096;

/// Arguments of `sign`.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The file; its signature becomes FILE.minisig
    file: PathBuf,
    /// A secret key of `inferctl keygen`
    #[arg(long, value_name = "NAME.key")]
    key: PathBuf,
    /// Signed with it and shown to who verifies [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Also write the public key as minisign reads it
    #[arg(long, value_name = "FILE")]
    write_pub: Option<PathBuf>,
}

impl Sign {
    /// Signs.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let key = files::secret(&self.key)?;
        let name = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let comment = self.comment.clone().unwrap_or_else(|| format!("file:{name}"));
        if comment.contains(char::is_control) {
            return Err(Failure::Other("a comment is one line".into()));
        }
        let text = form::signed(&key, &blake2b(&self.file)?, &comment);
        let output = beside(&self.file);
        let put = |path: &Path, text: &str| {
            files::replace(path, b"untrusted comment:", |out| {
                out.write_all(text.as_bytes()).map_err(Unwritten::Io)
            })
        };
        put(&output, &text)?;
        if let Some(path) = &self.write_pub {
            put(path, &form::public_text(&key.public()))?;
        }
        let public = form::public_line(&key.public());
        if json {
            show::json(&json!({ "signature": output, "public": public, "id": key.id() }));
        } else {
            show::line(&format!(
                "{}; verify it: minisign -Vm {} -P {public}",
                output.display(),
                self.file.display()
            ));
        }
        Ok(())
    }
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The file; FILE.minisig lies beside it
    file: PathBuf,
    /// The public key: NAME.pub of `keygen`, or minisign's
    #[arg(long = "pub", value_name = "FILE")]
    public: PathBuf,
    /// Where the signature is [default: FILE.minisig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

impl Verify {
    /// Verifies.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let signature = self.signature.clone().unwrap_or_else(|| beside(&self.file));
        let comment = verify_file(&self.file, &signature, &self.public)?;
        if json {
            show::json(&json!({ "file": self.file, "verified": true, "comment": comment }));
        } else {
            show::line(&format!("{} is signed by this key; {comment}", self.file.display()));
        }
        Ok(())
    }
}

/// FILE.minisig.
pub fn beside(file: &Path) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Checks a file's signature; the trusted comment comes back.
///
/// # Errors
/// [`Failure`].
pub fn verify_file(file: &Path, signature: &Path, public: &Path) -> Result<String, Failure> {
    let said = |why: &str| Failure::Other(format!("{}: {why}", signature.display()));
    let key = public_key(public)?;
    let text = String::from_utf8(files::read(signature, MAX)?).map_err(|_| said("it is no signature"))?;
    verify(&key, &blake2b(file)?, &text).map_err(|why| said(&why))
}

fn blake2b(file: &Path) -> Result<[u8; 64], Failure> {
    let mut hash = Blake2b512::new();
    each(file, |part| hash.update(part))?;
    Ok(hash.finalize().into())
}

fn each(path: &Path, mut part: impl FnMut(&[u8])) -> Result<(), Failure> {
    let unreadable = |e: io::Error| Failure::Other(format!("{} cannot be read: {e}", path.display()));
    let (mut file, mut buffer) = (File::open(path).map_err(unreadable)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(()),
            n => part(&buffer[..n]),
        }
    }
}

/// A public key in either form.
///
/// # Errors
/// [`Failure`].
pub fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = String::from_utf8_lossy(&files::read(path, MAX)?).into_owned();
    match form::public(&text) {
        Some(key) => key.map_err(|why| Failure::Other(format!("{}: {why}", path.display()))),
        None => Ok(files::public(path)?.0),
    }
}
