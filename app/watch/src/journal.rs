//! systemd's journal behind the keeper: who writes which line into it.
//!
//! The daemon's standard error is a pipe to the keeper, so what it writes there would reach the journal as text of the keeper's. Where
//! the keeper's own standard error is the journal, it says so in [`VARIABLE`]. The daemon then writes its entries to journald itself,
//! with their fields, and gives the keeper a copy of each line that begins with [`MARK`]: one to keep, for the last words, and not to
//! pass on. What has no mark (the words of libc at an abort, of a program that is no daemon of ours) is passed on as ever.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The environment variable in which the keeper tells the daemon where its lines end.
pub const VARIABLE: &str = "INFERD_KEEPER_LOG";
/// Its value: in the journal.
pub const JOURNAL: &str = "journal";
/// The byte before a line that is only kept. A control character: the daemon's own lines have none.
pub const MARK: u8 = 0x06;
/// Where journald says which file it gave a service as its standard error.
const STREAM: &str = "JOURNAL_STREAM";

/// Whether this process' standard error is the journal.
#[must_use]
pub fn is_standard_error() -> bool {
    std::env::var(STREAM).is_ok_and(|stream| is_stream(Path::new("/proc/self/fd/2"), &stream))
}

/// Whether the keeper has told this process that its lines end in the journal.
#[must_use]
pub fn is_told() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == JOURNAL)
}

/// Whether `DEVICE:INODE`, as journald writes it, means this file.
fn is_stream(file: &Path, stream: &str) -> bool {
    std::fs::metadata(file).is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_by_device_and_inode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let meta = file.path().metadata().unwrap();
        let stream = format!("{}:{}", meta.dev(), meta.ino());
        assert!(is_stream(file.path(), &stream));
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_stream(other.path(), &stream), "a variable that was inherited means another file");
        for bad in ["", ":", "journal", "8:x"] {
            assert!(!is_stream(file.path(), bad), "{bad}");
        }
        assert!(!is_stream(Path::new("/no/such/file"), &stream));
    }
}
