//! Structures and constants of `hailort.h` 4.21 to 4.23.

#![allow(missing_docs)] // named as in the header, which documents them

use core::ffi::{c_char, c_void};
use core::mem::{align_of, offset_of, size_of};

/// Declares a structure with the layout the header has, and refuses to compile when Rust's differs.
macro_rules! layouts {
    ($(
        $(#[$attr:meta])*
        $rust:ident = $c:ident ($size:literal, $align:literal) { $( $field:ident @ $at:literal : $ty:ty ),* $(,)? }
    )*) => {
        $(
            $(#[$attr])*
            #[derive(Clone, Copy)]
            pub struct $rust { $( pub $field: $ty ),* }
            impl $rust {
                /// All zeros, for the library to fill.
                #[must_use]
                pub fn zeroed() -> Self {
                    // SAFETY: numbers, arrays of such, raw pointers and `bool`: zero is a value of each.
                    unsafe { core::mem::zeroed() }
                }
            }
            const _: () = assert!(size_of::<$rust>() == $size, concat!("size of ", stringify!($c)));
            const _: () = assert!(align_of::<$rust>() == $align, concat!("alignment of ", stringify!($c)));
            $( const _: () = assert!(offset_of!($rust, $field) == $at, concat!(stringify!($c), ".", stringify!($field))); )*
        )*

        /// The same as C assertions, with the sizes of the fields: compiled after `#include "hailo/hailort.h"` they hold, or this crate
        /// is not for that header.
        #[cfg(test)]
        fn layout() -> String {
            let mut text = String::from("#include <stddef.h>\n");
            $(
                text += concat!("_Static_assert(sizeof(", stringify!($c), ") == ", $size, ", \"size\");\n");
                text += concat!("_Static_assert(_Alignof(", stringify!($c), ") == ", $align, ", \"alignment\");\n");
                $(
                    text += concat!(
                        "_Static_assert(offsetof(", stringify!($c), ", ", stringify!($field), ") == ", $at, ", \"",
                        stringify!($c), ".", stringify!($field), "\");\n"
                    );
                    text += &format!(
                        "_Static_assert(sizeof((({} *)0)->{}) == {}, \"size of {}\");\n",
                        stringify!($c), stringify!($field), size_of::<$ty>(), stringify!($field)
                    );
                )*
            )*
            text
        }
    };
}

layouts! {
    #[repr(C)]
    #[derive(Debug, Default, PartialEq, Eq)]
    RawVersion = hailo_version_t (12, 4) { major @ 0: u32, minor @ 4: u32, revision @ 8: u32 }

    #[repr(C)]
    DeviceId = hailo_device_id_t (32, 1) { id @ 0: [c_char; 32] }

    #[repr(C)]
    VdeviceParams = hailo_vdevice_params_t (40, 8) {
        device_count @ 0: u32,
        device_ids @ 8: *mut DeviceId,
        scheduling_algorithm @ 16: u32,
        group_id @ 24: *const c_char,
        multi_process_service @ 32: bool,
    }

    #[repr(C)]
    DeviceIdentity = hailo_device_identity_t (140, 4) {
        protocol_version @ 0: u32,
        fw_version @ 4: RawVersion,
        logger_version @ 16: u32,
        board_name_length @ 20: u8,
        board_name @ 21: [c_char; 32],
        is_release @ 53: bool,
        extended_context_switch_buffer @ 54: bool,
        device_architecture @ 56: u32,
        serial_number_length @ 60: u8,
        serial_number @ 61: [c_char; 16],
        part_number_length @ 77: u8,
        part_number @ 78: [c_char; 16],
        product_name_length @ 94: u8,
        product_name @ 95: [c_char; 42],
    }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq, Eq)]
    Format = hailo_format_t (12, 4) { type_ @ 0: u32, order @ 4: u32, flags @ 8: u32 }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq, Eq)]
    ImageShape = hailo_3d_image_shape_t (12, 4) { height @ 0: u32, width @ 4: u32, features @ 8: u32 }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq, Eq)]
    NmsShape = hailo_nms_shape_t (16, 4) {
        number_of_classes @ 0: u32,
        max_bboxes_per_class @ 4: u32,
        max_bboxes_total @ 8: u32,
        max_accumulated_mask_size @ 12: u32,
    }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq)]
    QuantInfo = hailo_quant_info_t (16, 4) { qp_zp @ 0: f32, qp_scale @ 4: f32, limvals_min @ 8: f32, limvals_max @ 12: f32 }

    #[repr(C)]
    VstreamInfo = hailo_vstream_info_t (436, 4) {
        name @ 0: [c_char; 128],
        network_name @ 128: [c_char; 257],
        direction @ 388: u32,
        format @ 392: Format,
        shape @ 404: Shape,
        quant_info @ 420: QuantInfo,
    }

    #[repr(C)]
    StreamParameters = hailo_stream_parameters_t (80, 4) {
        stream_interface @ 0: u32,
        direction @ 4: u32,
        flags @ 8: u32,
        pcie_input_params @ 12: [u32; 17],
    }

    #[repr(C)]
    StreamParametersByName = hailo_stream_parameters_by_name_t (208, 4) {
        name @ 0: [c_char; 128],
        stream_params @ 128: StreamParameters,
    }

    #[repr(C)]
    NetworkParameters = hailo_network_parameters_t (2, 2) { batch_size @ 0: u16 }

    #[repr(C)]
    NetworkParametersByName = hailo_network_parameters_by_name_t (260, 2) {
        name @ 0: [c_char; 257],
        network_params @ 258: NetworkParameters,
    }

    #[repr(C)]
    NetworkGroupParams = hailo_configure_network_group_params_t (10560, 8) {
        name @ 0: [c_char; 128],
        batch_size @ 128: u16,
        power_mode @ 132: u32,
        latency @ 136: u32,
        stream_params_by_name_count @ 144: usize,
        stream_params_by_name @ 152: [StreamParametersByName; 40],
        network_params_by_name_count @ 8472: usize,
        network_params_by_name @ 8480: [NetworkParametersByName; 8],
    }

    /// 84,488 bytes: on the heap, never on a stack.
    #[repr(C)]
    ConfigureParams = hailo_configure_params_t (84488, 8) {
        network_group_params_count @ 0: usize,
        network_group_params @ 8: [NetworkGroupParams; 8],
    }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq, Eq)]
    VstreamParams = hailo_vstream_params_t (28, 4) {
        user_buffer_format @ 0: Format,
        timeout_ms @ 12: u32,
        queue_size @ 16: u32,
        vstream_stats_flags @ 20: u32,
        pipeline_elements_stats_flags @ 24: u32,
    }

    #[repr(C)]
    InputVstreamParamsByName = hailo_input_vstream_params_by_name_t (156, 4) {
        name @ 0: [c_char; 128],
        params @ 128: VstreamParams,
    }

    #[repr(C)]
    OutputVstreamParamsByName = hailo_output_vstream_params_by_name_t (156, 4) {
        name @ 0: [c_char; 128],
        params @ 128: VstreamParams,
    }

    #[repr(C)]
    #[derive(Debug, Default, PartialEq)]
    ChipTemperatureInfo = hailo_chip_temperature_info_t (12, 4) {
        ts0_temperature @ 0: f32,
        ts1_temperature @ 4: f32,
        sample_count @ 8: u16,
    }

    #[repr(C, packed)]
    Notification = hailo_notification_t (28, 1) { id @ 0: u32, sequence @ 4: u32, body @ 8: [u8; 20] }

    #[repr(C, packed)]
    TemperatureAlarm = hailo_health_monitor_temperature_alarm_notification_message_t (16, 1) {
        temperature_zone @ 0: u32,
        alarm_ts_id @ 4: u32,
        ts0_temperature @ 8: f32,
        ts1_temperature @ 12: f32,
    }

    #[repr(C, packed)]
    DataflowShutdown = hailo_health_monitor_dataflow_shutdown_notification_message_t (8, 1) {
        ts0_temperature @ 0: f32,
        ts1_temperature @ 4: f32,
    }

    #[repr(C, packed)]
    OvercurrentAlert = hailo_health_monitor_overcurrent_alert_notification_message_t (9, 1) {
        overcurrent_zone @ 0: u32,
        exceeded_alert_threshold @ 4: f32,
        is_last_overcurrent_violation_reached @ 8: bool,
    }

    #[repr(C, packed)]
    RunTimeError = hailo_context_switch_run_time_error_message_t (11, 1) {
        exit_status @ 0: u32,
        network_group_index @ 4: u8,
        batch_index @ 5: u16,
        context_index @ 7: u16,
        action_index @ 9: u16,
    }
}

/// A stream's shape: `image`, or `nms` where the format's order is one of non-maximum suppression.
#[repr(C)]
#[derive(Clone, Copy)]
pub union Shape {
    pub image: ImageShape,
    pub nms: NmsShape,
}

/// Handles. The library owns what they point to.
pub type Device = *mut c_void;
pub type Vdevice = *mut c_void;
pub type Hef = *mut c_void;
pub type NetworkGroup = *mut c_void;
pub type InputVstream = *mut c_void;
pub type OutputVstream = *mut c_void;

/// Called on a thread of the library: it may not unwind, and may not call the library.
pub type NotificationCallback = unsafe extern "C" fn(Device, *const Notification, *mut c_void);

pub const MAX_NETWORK_GROUPS: usize = 8;
pub const MAX_STREAMS_COUNT: usize = 40;

pub const SCHEDULING_ALGORITHM_ROUND_ROBIN: u32 = 1;
pub const POWER_MODE_ULTRA_PERFORMANCE: u32 = 1;
/// `HAILO_DVM_OPTIONS_AUTO` and `HAILO_POWER_MEASUREMENT_TYPES__AUTO`.
pub const POWER_AUTO: u32 = i32::MAX as u32;

pub const ARCH_HAILO8_A0: u32 = 0;
pub const ARCH_HAILO8: u32 = 1;
pub const ARCH_HAILO8L: u32 = 2;

pub const STREAM_INTERFACE_PCIE: u32 = 0;

pub const H2D_STREAM: u32 = 0;
pub const D2H_STREAM: u32 = 1;

pub const FORMAT_TYPE_AUTO: u32 = 0;
pub const FORMAT_TYPE_UINT8: u32 = 1;
pub const FORMAT_TYPE_UINT16: u32 = 2;
pub const FORMAT_TYPE_FLOAT32: u32 = 3;

pub const FORMAT_ORDER_AUTO: u32 = 0;
pub const FORMAT_ORDER_NHWC: u32 = 1;
/// On the host the same as NHWC; the chip's own order differs, and the library turns one into the other.
pub const FORMAT_ORDER_FCR: u32 = 3;
pub const FORMAT_ORDER_NHW: u32 = 5;
pub const FORMAT_ORDER_NC: u32 = 6;
pub const FORMAT_ORDER_HAILO_NMS: u32 = 9;
pub const FORMAT_ORDER_HAILO_NMS_WITH_BYTE_MASK: u32 = 20;
pub const FORMAT_ORDER_HAILO_NMS_ON_CHIP: u32 = 21;
pub const FORMAT_ORDER_HAILO_NMS_BY_CLASS: u32 = 22;
pub const FORMAT_ORDER_HAILO_NMS_BY_SCORE: u32 = 23;

pub const NOTIFICATION_TEMPERATURE_ALARM: u32 = 1;
pub const NOTIFICATION_DATAFLOW_SHUTDOWN: u32 = 2;
pub const NOTIFICATION_OVERCURRENT_ALARM: u32 = 3;
pub const NOTIFICATION_LCU_ECC_CORRECTABLE: u32 = 4;
pub const NOTIFICATION_LCU_ECC_UNCORRECTABLE: u32 = 5;
pub const NOTIFICATION_CPU_ECC_ERROR: u32 = 6;
pub const NOTIFICATION_CPU_ECC_FATAL: u32 = 7;
pub const NOTIFICATION_CLOCK_CHANGED: u32 = 10;
pub const NOTIFICATION_RUN_TIME_ERROR: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// `type` is a word of Rust.
    fn as_in_c(line: &str) -> String {
        line.replace(", type_)", ", type)").replace("->type_)", "->type)")
    }

    /// Set `INFERD_HAILORT_HEADER` to the folder that holds `hailo/hailort.h` of 4.21 to 4.23; without one there is nothing to compare.
    #[test]
    fn the_layouts_are_those_of_the_header_where_one_is_at_hand() {
        let Some(folder) = std::env::var_os("INFERD_HAILORT_HEADER") else { return };
        let source = std::env::temp_dir().join(format!("hailort-layout-{}.c", std::process::id()));
        // Two fields are the first of unions without a name: their offsets are compared, their sizes are not.
        let union =
            |line: &&str| !line.contains("size of shape") && !line.contains("size of pcie_input_params");
        let fields: Vec<String> = layout().lines().filter(union).map(as_in_c).collect();
        let fields = fields.join("\n");
        std::fs::write(&source, format!("#include \"hailo/hailort.h\"\n{fields}")).unwrap();
        for compiler in ["cc", "aarch64-linux-gnu-gcc"] {
            let Ok(done) = std::process::Command::new(compiler)
                .args(["-fsyntax-only", "-I"])
                .arg(&folder)
                .arg(&source)
                .output()
            else {
                continue;
            };
            assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
        }
        std::fs::remove_file(source).unwrap();
    }
}
