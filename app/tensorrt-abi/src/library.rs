//! Finding and opening libnvinfer.

use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a library is looked for when nobody names one.
const PLACES: [&str; 5] = [
    "/usr/lib/inferd/libnvinfer.so.10",
    "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10",
    "/usr/lib/x86_64-linux-gnu/libnvinfer.so.10",
    "/usr/lib/libnvinfer.so.10",
    "/usr/local/lib/libnvinfer.so.10",
];

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 10.
    pub major: u32,
    /// 3 in 10.3.0.
    pub minor: u32,
    /// 0 in 10.3.0.
    pub patch: u32,
}

impl Version {
    /// Of the number that `getInferLibVersion` gives: 100300 is 10.3.0, before 10 there were only thousands.
    #[must_use]
    pub fn of(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let thousand = if number < 10_000 { 1000 } else { 10_000 };
        Self { major: number / thousand, minor: number % thousand / 100, patch: number % 100 }
    }

    /// Whether its objects are known to have the tables of this room.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.major == 10 && (FIRST..=LAST).contains(&self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The first and the last minor version of TensorRT 10 whose tables were compared with ours. What is between them has every slot where
/// both ends have it; before and after them nobody has looked.
const FIRST: u32 = 3;
const LAST: u32 = 16;

fn known(minor: u32) -> String {
    format!("10.{minor}")
}

/// Why a library is not used; each is one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LibraryError {
    #[error("no libnvinfer is installed (looked for {})", PLACES.join(", "))]
    Absent,
    #[error("{0}")]
    Open(String),
    #[error("{path}: it is no TensorRT (it has no {symbol})")]
    Symbol { path: String, symbol: &'static str },
    #[error("{path}: it is TensorRT {version}, this program knows {} to {}", known(FIRST), known(LAST))]
    Version { path: String, version: Version },
}

type CreateRuntime = unsafe extern "C" fn(logger: *mut c_void, version: i32) -> *mut c_void;

/// An open library. It stays loaded for the rest of the process: its objects and threads are in it.
#[derive(Debug)]
pub struct Library {
    path: PathBuf,
    number: i32,
    pub(crate) create: CreateRuntime,
}

impl Library {
    /// The file that would be opened: `path`, or the first there is at the usual places; links followed, so that its name says
    /// its version.
    ///
    /// # Errors
    /// [`LibraryError::Absent`], [`LibraryError::Open`].
    pub fn find(path: Option<&Path>) -> Result<PathBuf, LibraryError> {
        let path = match path {
            Some(path) => path,
            None => PLACES.iter().map(Path::new).find(|p| p.exists()).ok_or(LibraryError::Absent)?,
        };
        std::fs::canonicalize(path).map_err(|e| LibraryError::Open(format!("{}: {e}", path.display())))
    }

    /// Opens what [`Library::find`] found. Whether the file is whole and for this processor is the caller's to look at first: the
    /// dynamic linker does not.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        let name = path.display().to_string();
        // SAFETY: loading runs the constructors of a library that the image's maker or the operator has put there to be loaded.
        let library =
            unsafe { libloading::Library::new(path) }.map_err(|e| LibraryError::Open(crate::words(&e)))?;
        let missing = |symbol| LibraryError::Symbol { path: name.clone(), symbol };
        // SAFETY: NvInferRuntimeBase.h declares it so in every version from 5 on.
        let version = unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"getInferLibVersion\0") }
            .map_err(|_| missing("getInferLibVersion"))?;
        // SAFETY: it takes nothing and gives a number.
        let number = unsafe { version() };
        let version = Version::of(number);
        if !version.is_known() {
            return Err(LibraryError::Version { path: name, version });
        }
        // SAFETY: NvInferRuntime.h of 10 declares it so.
        let create = unsafe { library.get::<CreateRuntime>(b"createInferRuntime_INTERNAL\0") }
            .map_err(|_| missing("createInferRuntime_INTERNAL"))?;
        let create = *create;
        // Never unloaded: threads of it may live on.
        std::mem::forget(library);
        Ok(Self { path: path.to_owned(), number, create })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::of(self.number)
    }

    /// Its version as it gives it.
    pub(crate) fn number(&self) -> i32 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_kinds_are_versions() {
        assert_eq!(Version::of(100_300).to_string(), "10.3.0");
        assert_eq!(Version::of(101_601).to_string(), "10.16.1");
        assert_eq!(Version::of(8601).to_string(), "8.6.1");
        assert_eq!(Version::of(110_100).to_string(), "11.1.0");
        assert_eq!(Version::of(-1).to_string(), "0.0.0");
    }

    #[test]
    fn only_versions_between_those_that_were_compared_are_known() {
        for number in [100_300, 100_302, 100_900, 101_600, 101_699] {
            assert!(Version::of(number).is_known(), "{number}");
        }
        for number in [8601, 100_000, 100_299, 101_700, 110_100, 110_400, -1] {
            assert!(!Version::of(number).is_known(), "{number}");
        }
        let (path, version) = ("/l.so".to_owned(), Version::of(101_700));
        let said = LibraryError::Version { path, version }.to_string();
        assert_eq!(said, "/l.so: it is TensorRT 10.17.0, this program knows 10.3 to 10.16");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let why = Library::find(Some(Path::new("/nowhere/libnvinfer.so.10"))).unwrap_err();
        assert!(why.to_string().starts_with("/nowhere/libnvinfer.so.10: "), "{why}");
    }

    #[test]
    fn another_library_is_no_tensorrt() {
        let libc = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
        let Some(path) = libc.iter().map(Path::new).find(|p| p.exists()) else { return };
        let why = Library::open(path).unwrap_err();
        assert!(matches!(why, LibraryError::Symbol { symbol: "getInferLibVersion", .. }), "{why}");
    }
}
