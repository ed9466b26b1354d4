//! What the first boot has to do in the daemon's own directory. Root does not do it: whoever owns a directory may put a link or a pipe wherever
//! root would look, and have root give away, overwrite or wait for something else. A second process of this program does it as the directory's
//! owner, who can then only reach what is the owner's anyway.
//!
//! What it says is the owner's word, too: so much of it is read, for so long, and nothing but printable ASCII of it is passed on.

use nix::unistd::geteuid;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The most that is read of what the process says.
const MAX_SAID: u64 = 16 << 10;

/// Runs this program in the role `provision` as the owner of `dir`, with `input` to read, and returns what it says.
///
/// # Errors
/// What it says where it fails; that it took longer than `patience`; the system's.
pub fn does(dir: &Path, arguments: &[&OsStr], input: &str, patience: Duration) -> io::Result<String> {
    // Not of what a link leads to.
    let owner = fs::symlink_metadata(dir)?;
    if !owner.is_dir() {
        return Err(io::Error::other(format!("{} is no directory", dir.display())));
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg("provision").args(arguments).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if owner.uid() != geteuid().as_raw() {
        // Root's other groups go along with root.
        command.gid(owner.gid()).uid(owner.uid());
    }
    let mut child = command.spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (told, said) = mpsc::channel();
    let input = input.to_owned();
    std::thread::spawn(move || {
        // One that does not read does not want it.
        let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        let mut bytes = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(MAX_SAID).read_to_end(&mut bytes));
        let _ = told.send(read.map(|_| bytes));
    });
    let said = said.recv_timeout(patience);
    if said.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let Ok(said) = said else {
        return Err(io::Error::other(format!("it took longer than {} s", patience.as_secs())));
    };
    let printable = |byte: u8| matches!(byte, b'\n' | b' '..=b'~');
    let said: String =
        said?.into_iter().map(|byte| if printable(byte) { char::from(byte) } else { '?' }).collect();
    if status.success() { Ok(said) } else { Err(io::Error::other(said.trim().to_owned())) }
}
