//! The library itself: opened by path, its version asked, every function looked up before the first is called.

use crate::types::*;
use crate::{Class, Status};
use core::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};

/// A version as the library tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 4 for Hailo-8.
    pub major: u32,
    /// 21 to 23 here.
    pub minor: u32,
    /// Any.
    pub revision: u32,
}

impl Version {
    /// Whether its layouts are those of this crate.
    #[must_use]
    pub fn is_supported(self) -> bool {
        self.major == 4 && (21..=23).contains(&self.minor)
    }
}

impl From<RawVersion> for Version {
    fn from(v: RawVersion) -> Self {
        Self { major: v.major, minor: v.minor, revision: v.revision }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.revision)
    }
}

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LibraryError {
    #[error("{path}: {why}")]
    Open { path: PathBuf, why: String },
    #[error("{path}: it has no function {name}; it is no HailoRT, or another version than it says")]
    Symbol { path: PathBuf, name: &'static str },
    #[error("{path}: it does not tell its version ({status})")]
    NoVersion { path: PathBuf, status: Status },
    #[error(
        "{path}: HailoRT {version}; 4.21, 4.22 and 4.23 are supported, the releases for Hailo-8 with these layouts"
    )]
    Version { path: PathBuf, version: Version },
}

macro_rules! functions {
    ($( $name:ident = $symbol:literal : fn( $($arg:ty),* ) $(-> $ret:ty)? ; )*) => {
        /// The functions, named without `hailo_`. Their documentation is `hailort.h`.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)]
        pub struct Functions { $( pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?, )* }

        impl Functions {
            /// The symbols, in the order of the structure.
            pub const SYMBOLS: &'static [&'static str] = &[ $( $symbol ),* ];

            /// Looks all of them up.
            fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self { $(
                    // SAFETY: the symbol is a function of a HailoRT whose version was asked, with the type its header gives it.
                    $name: *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }.map_err(|_| $symbol)?,
                )* })
            }
        }
    };
}

functions! {
    get_status_message = "hailo_get_status_message": fn(Status) -> *const c_char;
    scan_devices = "hailo_scan_devices": fn(*mut c_void, *mut DeviceId, *mut usize) -> Status;
    init_vdevice_params = "hailo_init_vdevice_params": fn(*mut VdeviceParams) -> Status;
    create_vdevice = "hailo_create_vdevice": fn(*mut VdeviceParams, *mut Vdevice) -> Status;
    release_vdevice = "hailo_release_vdevice": fn(Vdevice) -> Status;
    get_physical_devices = "hailo_get_physical_devices": fn(Vdevice, *mut Device, *mut usize) -> Status;
    identify = "hailo_identify": fn(Device, *mut DeviceIdentity) -> Status;
    create_hef_buffer = "hailo_create_hef_buffer": fn(*mut Hef, *const c_void, usize) -> Status;
    release_hef = "hailo_release_hef": fn(Hef) -> Status;
    hef_get_all_vstream_infos = "hailo_hef_get_all_vstream_infos": fn(Hef, *const c_char, *mut VstreamInfo, *mut usize) -> Status;
    init_configure_params_by_vdevice = "hailo_init_configure_params_by_vdevice": fn(Hef, Vdevice, *mut ConfigureParams) -> Status;
    configure_vdevice = "hailo_configure_vdevice": fn(Vdevice, Hef, *mut ConfigureParams, *mut NetworkGroup, *mut usize) -> Status;
    shutdown_network_group = "hailo_shutdown_network_group": fn(NetworkGroup) -> Status;
    set_scheduler_timeout = "hailo_set_scheduler_timeout": fn(NetworkGroup, u32, *const c_char) -> Status;
    set_scheduler_priority = "hailo_set_scheduler_priority": fn(NetworkGroup, u8, *const c_char) -> Status;
    make_input_vstream_params = "hailo_make_input_vstream_params": fn(NetworkGroup, bool, u32, *mut InputVstreamParamsByName, *mut usize) -> Status;
    make_output_vstream_params = "hailo_make_output_vstream_params": fn(NetworkGroup, bool, u32, *mut OutputVstreamParamsByName, *mut usize) -> Status;
    create_input_vstreams = "hailo_create_input_vstreams": fn(NetworkGroup, *const InputVstreamParamsByName, usize, *mut InputVstream) -> Status;
    create_output_vstreams = "hailo_create_output_vstreams": fn(NetworkGroup, *const OutputVstreamParamsByName, usize, *mut OutputVstream) -> Status;
    get_input_vstream_info = "hailo_get_input_vstream_info": fn(InputVstream, *mut VstreamInfo) -> Status;
    get_output_vstream_info = "hailo_get_output_vstream_info": fn(OutputVstream, *mut VstreamInfo) -> Status;
    get_input_vstream_frame_size = "hailo_get_input_vstream_frame_size": fn(InputVstream, *mut usize) -> Status;
    get_output_vstream_frame_size = "hailo_get_output_vstream_frame_size": fn(OutputVstream, *mut usize) -> Status;
    vstream_write_raw_buffer = "hailo_vstream_write_raw_buffer": fn(InputVstream, *const c_void, usize) -> Status;
    vstream_read_raw_buffer = "hailo_vstream_read_raw_buffer": fn(OutputVstream, *mut c_void, usize) -> Status;
    release_input_vstreams = "hailo_release_input_vstreams": fn(*const InputVstream, usize) -> Status;
    release_output_vstreams = "hailo_release_output_vstreams": fn(*const OutputVstream, usize) -> Status;
    get_chip_temperature = "hailo_get_chip_temperature": fn(Device, *mut ChipTemperatureInfo) -> Status;
    power_measurement = "hailo_power_measurement": fn(Device, u32, u32, *mut f32) -> Status;
    set_notification_callback = "hailo_set_notification_callback": fn(Device, NotificationCallback, u32, *mut c_void) -> Status;
    remove_notification_callback = "hailo_remove_notification_callback": fn(Device, u32) -> Status;
}

/// A HailoRT that is open and of a version this crate knows. It stays open as long as the process: its threads live in it.
#[derive(Debug)]
pub struct Library {
    path: PathBuf,
    version: Version,
    functions: Functions,
}

impl Library {
    /// Opens the library at `path`.
    ///
    /// The file must be a library that is meant to be loaded here: its constructors run.
    ///
    /// # Errors
    /// [`LibraryError`], one sentence for the operator. Nothing but `hailo_get_library_version` was called then.
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        let open = |why: String| LibraryError::Open { path: path.to_owned(), why };
        // SAFETY: the image's maker or the operator has put this library there to be loaded.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| {
            use std::error::Error as _;
            open(e.source().map_or_else(|| e.to_string(), ToString::to_string))
        })?;
        let version = Self::version_of(&library, path)?;
        if !version.is_supported() {
            return Err(LibraryError::Version { path: path.to_owned(), version });
        }
        let functions =
            Functions::of(&library).map_err(|name| LibraryError::Symbol { path: path.to_owned(), name })?;
        // Never closed: the functions are copied out of it, and its threads may outlive any session.
        std::mem::forget(library);
        Ok(Self { path: path.to_owned(), version, functions })
    }

    fn version_of(library: &libloading::Library, path: &Path) -> Result<Version, LibraryError> {
        const NAME: &str = "hailo_get_library_version";
        // SAFETY: every HailoRT since 4.0 has this function with this type, and its structure of three numbers.
        let ask: libloading::Symbol<'_, unsafe extern "C" fn(*mut RawVersion) -> Status> =
            unsafe { library.get(NAME.as_bytes()) }
                .map_err(|_| LibraryError::Symbol { path: path.to_owned(), name: NAME })?;
        let mut version = RawVersion::default();
        // SAFETY: the pointer is to a structure of that type, and alive during the call.
        let status = unsafe { ask(&raw mut version) };
        match status.class() {
            Class::Success => Ok(version.into()),
            _ => Err(LibraryError::NoVersion { path: path.to_owned(), status }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its functions.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// A status by its name, or in the library's own word for those that are not told apart here; and its number.
    #[must_use]
    pub fn explain(&self, status: Status) -> String {
        // SAFETY: it takes any number, and gives a static text, or null for one it does not know.
        let text = unsafe { (self.functions.get_status_message)(status) };
        if text.is_null() {
            return status.to_string();
        }
        // SAFETY: not null, so a static text with its end.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        if status.name().is_some() { status.to_string() } else { format!("{text} ({})", status.0) }
    }
}
