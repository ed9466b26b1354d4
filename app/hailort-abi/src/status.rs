//! What a call gave, and what follows from it.

/// `hailo_status`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

/// What a status means for who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It worked.
    Success,
    /// This call was wrong; the session goes on.
    Request,
    /// What is in the streams is not known any more: the session is made anew, and never read again.
    Poisoned,
    /// The device does not answer or is gone.
    DeviceLost,
    /// The chip has stopped because of heat; it can be used again when it has cooled down.
    TooHot,
    /// The network is damaged or for another device: retrying is useless.
    Network,
    /// Library, driver, firmware and system do not fit together: retrying is useless.
    Configuration,
    /// The driver is not loaded; it may be later.
    NoDriver,
    /// Another process or session has the device.
    Busy,
    /// HailoRT's service, which has the device, does not answer.
    NoService,
    /// The library has run out of something, or failed inside.
    Internal,
}

/// Declares the codes that are told apart, by name.
macro_rules! codes {
    ($( $name:ident = $code:literal => $class:ident ),* $(,)?) => {
        #[allow(missing_docs)] // named as in the header
        impl Status {
            $( pub const $name: Self = Self($code); )*

            /// The header's name, without `HAILO_`, of the codes that are told apart.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $( $code => Some(stringify!($name)), )* _ => None }
            }

            /// What it means for the caller.
            #[must_use]
            pub fn class(self) -> Class {
                match self.0 { $( $code => Class::$class, )* _ => Class::Internal }
            }
        }
    };
}

codes! {
    SUCCESS = 0 => Success,
    INVALID_ARGUMENT = 2 => Request,
    OUT_OF_HOST_MEMORY = 3 => Internal,
    TIMEOUT = 4 => Poisoned,
    INSUFFICIENT_BUFFER = 5 => Request,
    INVALID_OPERATION = 6 => Internal,
    NOT_IMPLEMENTED = 7 => Internal,
    INTERNAL_FAILURE = 8 => Internal,
    OPEN_FILE_FAILURE = 13 => Internal,
    UNSUPPORTED_CONTROL_PROTOCOL_VERSION = 15 => Configuration,
    UNSUPPORTED_FW_VERSION = 16 => Configuration,
    INVALID_CONTROL_RESPONSE = 17 => DeviceLost,
    FW_CONTROL_FAILURE = 18 => DeviceLost,
    INVALID_FIRMWARE = 23 => Configuration,
    INVALID_HEF = 26 => Network,
    START_VDMA_CHANNEL_FAIL = 29 => DeviceLost,
    SYNC_VDMA_BUFFER_FAIL = 30 => DeviceLost,
    STOP_VDMA_CHANNEL_FAIL = 31 => DeviceLost,
    CLOSE_VDMA_CHANNEL_FAIL = 32 => DeviceLost,
    DRIVER_OPERATION_FAILED = 36 => DeviceLost,
    INVALID_FIRMWARE_MAGIC = 37 => Configuration,
    INVALID_FIRMWARE_CODE_SIZE = 38 => Configuration,
    INVALID_KEY_CERTIFICATE_SIZE = 39 => Configuration,
    INVALID_CONTENT_CERTIFICATE_SIZE = 40 => Configuration,
    MISMATCHING_FIRMWARE_BUFFER_SIZES = 41 => Configuration,
    INVALID_FIRMWARE_CPU_ID = 42 => Configuration,
    CONTROL_RESPONSE_MD5_MISMATCH = 43 => DeviceLost,
    GET_CONTROL_RESPONSE_FAIL = 44 => DeviceLost,
    GET_D2H_EVENT_MESSAGE_FAIL = 45 => DeviceLost,
    SHUTDOWN_EVENT_SIGNALED = 57 => Poisoned,
    NOT_FOUND = 61 => Network,
    COMMUNICATION_CLOSED = 62 => Poisoned,
    STREAM_ABORT = 63 => Poisoned,
    DRIVER_NOT_INSTALLED = 64 => NoDriver,
    NETWORK_GROUP_NOT_ACTIVATED = 69 => Poisoned,
    VSTREAM_PIPELINE_NOT_ACTIVATED = 70 => Poisoned,
    OUT_OF_FW_MEMORY = 71 => Internal,
    STREAM_NOT_ACTIVATED = 72 => Poisoned,
    DEVICE_IN_USE = 73 => Busy,
    OUT_OF_PHYSICAL_DEVICES = 74 => Busy,
    INVALID_DEVICE_ARCHITECTURE = 75 => Network,
    INVALID_DRIVER_VERSION = 76 => Configuration,
    RPC_FAILED = 77 => NoService,
    INVALID_SERVICE_VERSION = 78 => Configuration,
    NOT_SUPPORTED = 79 => Configuration,
    OUT_OF_HOST_CMA_MEMORY = 81 => Configuration,
    QUEUE_IS_FULL = 82 => Poisoned,
    CANT_MEET_BUFFER_REQUIREMENTS = 84 => Request,
    DRIVER_INVALID_RESPONSE = 85 => DeviceLost,
    DRIVER_INVALID_IOCTL = 86 => Configuration,
    DRIVER_TIMEOUT = 87 => DeviceLost,
    DRIVER_INTERRUPTED = 88 => DeviceLost,
    DRIVER_WAIT_CANCELED = 90 => DeviceLost,
    HEF_FILE_CORRUPTED = 91 => Network,
    HEF_NOT_SUPPORTED = 92 => Network,
    HEF_NOT_COMPATIBLE_WITH_DEVICE = 93 => Network,
}

impl Status {
    /// Whether it worked.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 == 0
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "HAILO_{name} ({})", self.0),
            None => write!(f, "status {}", self.0),
        }
    }
}
