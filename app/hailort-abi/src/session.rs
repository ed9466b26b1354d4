//! The few things that are done with a Hailo chip, in the order the library wants them: read a network, open the chip, configure it,
//! stream frames.
//!
//! [`Hef`] needs no chip. [`Chip`], [`Network`] and [`Streams`] own what they stand on, so whichever order they are dropped in, the
//! library is asked in its own.

use crate::types::*;
use crate::{Class, Library, Status};
use core::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Chips that are looked at.
const MAX_DEVICES: usize = 8;

/// The notifications that are asked for.
pub const NOTIFICATIONS: [u32; 9] = [
    NOTIFICATION_TEMPERATURE_ALARM,
    NOTIFICATION_DATAFLOW_SHUTDOWN,
    NOTIFICATION_OVERCURRENT_ALARM,
    NOTIFICATION_LCU_ECC_CORRECTABLE,
    NOTIFICATION_LCU_ECC_UNCORRECTABLE,
    NOTIFICATION_CPU_ECC_ERROR,
    NOTIFICATION_CPU_ECC_FATAL,
    NOTIFICATION_CLOCK_CHANGED,
    NOTIFICATION_RUN_TIME_ERROR,
];

/// A call that did not work.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what}: {text}")]
pub struct Failure {
    /// What was tried.
    pub what: &'static str,
    /// What follows from it.
    pub class: Class,
    /// The status by its name, or what was wrong before the library was asked.
    pub text: String,
}

/// What the chip has told since it was opened. Written by a thread of the library, read by anybody.
#[derive(Debug, Default)]
pub struct Events {
    counts: [AtomicU64; 16],
    zone: AtomicU32,
}

impl Events {
    /// How often a notification came; they are numbered as in the header.
    #[must_use]
    pub fn count(&self, id: u32) -> u64 {
        self.counts.get(id as usize).map_or(0, |c| c.load(Relaxed))
    }

    /// The zone of the last temperature alarm: 0 green, 1 orange, 2 red.
    #[must_use]
    pub fn temperature_zone(&self) -> u32 {
        self.zone.load(Relaxed)
    }

    /// What follows from what the chip has said of itself, when it has said that it cannot go on: stopped by heat, memory that it
    /// could not correct, an error of its sequencer.
    #[must_use]
    pub fn verdict(&self) -> Option<(Class, &'static str)> {
        let table = [
            (NOTIFICATION_DATAFLOW_SHUTDOWN, Class::TooHot, "the chip has stopped because it was too hot"),
            (
                NOTIFICATION_LCU_ECC_UNCORRECTABLE,
                Class::DeviceLost,
                "the chip has met an error in its memory that it could not correct",
            ),
            (
                NOTIFICATION_CPU_ECC_FATAL,
                Class::DeviceLost,
                "the chip has met a fatal error in the memory of its processor",
            ),
            (
                NOTIFICATION_RUN_TIME_ERROR,
                Class::Poisoned,
                "the chip has met an error while it ran the network",
            ),
        ];
        table.into_iter().find(|(id, ..)| self.count(*id) > 0).map(|(_, class, text)| (class, text))
    }

    fn take(&self, notification: &Notification) {
        let (id, body) = (notification.id, notification.body);
        if id == NOTIFICATION_TEMPERATURE_ALARM {
            self.zone.store(u32::from_ne_bytes([body[0], body[1], body[2], body[3]]), Relaxed);
        }
        if let Some(count) = self.counts.get(id as usize) {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// Called on a thread of the library.
unsafe extern "C" fn notified(_: Device, notification: *const Notification, events: *mut c_void) {
    // SAFETY: `events` is the chip's, which lets go of it after the thread that calls this was joined ([`Chip::drop`]); the library gives a
    // notification that is alive during the call, packed as its header says, so it is copied out unaligned.
    let (events, notification) =
        unsafe { (&*events.cast_const().cast::<Events>(), notification.read_unaligned()) };
    events.take(&notification);
}

/// Who else may have a chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// This process alone has it.
    #[default]
    Process,
    /// HailoRT's service (`hailort_service`, a daemon of Hailo's) has it, and whoever asks the service shares it.
    Service,
}

/// What all who share the chip call it: the library gives those of one name one virtual device. Any text but `UNIQUE`, the default, with
/// which each asks for a chip of its own.
const GROUP: &CStr = c"inferd";

/// A chip that is open: ours alone, or by the service.
pub struct Chip {
    library: &'static Library,
    owner: Owner,
    vdevice: Vdevice,
    device: Device,
    /// The library has a pointer to them as long as the virtual device is there.
    events: Arc<Events>,
    identity: Identity,
}

// SAFETY: handles of HailoRT may be used from any thread (its documentation says so for devices and virtual devices); nothing in here is
// bound to one.
unsafe impl Send for Chip {}
// SAFETY: what takes `&self` are calls the library serialises itself (controls of the device).
unsafe impl Sync for Chip {}

/// What a chip says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its address on the bus.
    pub id: String,
    /// `hailo8`, `hailo8l`, or the number the library gives it.
    pub architecture: String,
    /// The firmware that runs on it.
    pub firmware: crate::Version,
    /// Its serial number.
    pub serial: String,
}

impl Chip {
    /// Opens the first chip that is there.
    ///
    /// # Errors
    /// [`Failure`]: there is none, another process has it, the service does not answer, or the chip does not.
    pub fn open(library: &'static Library, owner: Owner) -> Result<Self, Failure> {
        let f = library.functions();
        let mut ids = [DeviceId { id: [0; 32] }; MAX_DEVICES];
        let mut count = ids.len();
        // SAFETY: the array has as many elements as `count` says.
        let status = unsafe { (f.scan_devices)(null_mut(), ids.as_mut_ptr(), &raw mut count) };
        library.check("looking for a chip", status)?;
        if count == 0 {
            let text = "there is none (its driver is not loaded, or it is not on the bus)".to_owned();
            return Err(Failure { what: "looking for a chip", class: Class::DeviceLost, text });
        }
        let mut params = VdeviceParams::zeroed();
        // SAFETY: the library fills the structure.
        library.check("asking for the defaults of a device", unsafe {
            (f.init_vdevice_params)(&raw mut params)
        })?;
        params.device_count = 1;
        params.device_ids = ids.as_mut_ptr();
        params.scheduling_algorithm = SCHEDULING_ALGORITHM_ROUND_ROBIN;
        if owner == Owner::Service {
            params.multi_process_service = true;
            params.group_id = GROUP.as_ptr();
        }
        let mut vdevice = null_mut();
        // SAFETY: the ids live as long as the call, which copies what it needs.
        let status = unsafe { (f.create_vdevice)(&raw mut params, &raw mut vdevice) };
        library.check("opening the chip", status).map_err(|e| match status {
            // That is what it says of an address where nothing is: the chip was there a moment ago.
            Status::INVALID_ARGUMENT => Failure { class: Class::DeviceLost, ..e },
            Status::INVALID_OPERATION if owner == Owner::Service => {
                let text = format!("{}: this libhailort was built without HailoRT's service", e.text);
                Failure { class: Class::Configuration, text, ..e }
            }
            _ => e,
        })?;
        // From here on dropping it releases the device.
        let mut chip = Self {
            library,
            owner,
            vdevice,
            device: null_mut(),
            events: Arc::default(),
            identity: Identity {
                id: text(&ids[0].id),
                architecture: String::new(),
                firmware: crate::Version { major: 0, minor: 0, revision: 0 },
                serial: String::new(),
            },
        };
        let mut one = 1;
        // SAFETY: room for one handle, as `one` says.
        let status = unsafe { (f.get_physical_devices)(vdevice, &raw mut chip.device, &raw mut one) };
        library.check("asking for the chip behind the device", status)?;
        chip.identify()?;
        for id in NOTIFICATIONS {
            let events = Arc::as_ptr(&chip.events).cast_mut().cast();
            // SAFETY: the function never unwinds, and what it is given lives until the device is released ([`Chip::drop`]).
            let status = unsafe { (f.set_notification_callback)(chip.device, notified, id, events) };
            if !chip.is_left_out(status) {
                library.check("asking to be notified", status)?;
            }
        }
        Ok(chip)
    }

    fn identify(&mut self) -> Result<(), Failure> {
        let mut said = DeviceIdentity::zeroed();
        // SAFETY: the library fills the structure.
        let status = unsafe { (self.library.functions().identify)(self.device, &raw mut said) };
        self.library.check("asking the chip what it is", status)?;
        self.identity.architecture = match said.device_architecture {
            ARCH_HAILO8_A0 => "hailo8-a0".to_owned(),
            ARCH_HAILO8 => "hailo8".to_owned(),
            ARCH_HAILO8L => "hailo8l".to_owned(),
            other => format!("architecture {other}"),
        };
        self.identity.firmware = said.fw_version.into();
        self.identity.serial = text(&said.serial_number);
        Ok(())
    }

    /// What it says of itself.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What it has told.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Whether a call did nothing because a chip that is shared does not know it: what it would have told is unknown then.
    fn is_left_out(&self, status: Status) -> bool {
        let unknown = [Status::INVALID_OPERATION, Status::NOT_IMPLEMENTED, Status::NOT_SUPPORTED];
        self.owner == Owner::Service && unknown.contains(&status)
    }

    /// The hotter of its two sensors, in degrees Celsius; `None` where a shared chip does not tell.
    ///
    /// # Errors
    /// [`Failure`], of class [`Class::DeviceLost`] when it is gone.
    pub fn temperature(&self) -> Result<Option<f32>, Failure> {
        let mut info = ChipTemperatureInfo::default();
        // SAFETY: the library fills the structure.
        let status = unsafe { (self.library.functions().get_chip_temperature)(self.device, &raw mut info) };
        if self.is_left_out(status) {
            return Ok(None);
        }
        self.library.check("asking for the temperature", status)?;
        Ok(Some(info.ts0_temperature.max(info.ts1_temperature)))
    }

    /// What it draws, in watts; `None` where the module cannot measure it.
    #[must_use]
    pub fn power(&self) -> Option<f32> {
        let mut watts = 0.0;
        // SAFETY: the library writes one number.
        let status = unsafe {
            (self.library.functions().power_measurement)(self.device, POWER_AUTO, POWER_AUTO, &raw mut watts)
        };
        status.is_success().then_some(watts)
    }

    /// Configures the chip with a network.
    ///
    /// # Errors
    /// [`Failure`], of class [`Class::Network`] when it is for another chip.
    pub fn configure(self: Arc<Self>, hef: Arc<Hef>) -> Result<Network, Failure> {
        let (library, f) = (self.library, self.library.functions());
        // 84 KiB, so not on the stack. SAFETY: all zeros is a value of every field.
        let mut params: Box<ConfigureParams> = unsafe { Box::<ConfigureParams>::new_zeroed().assume_init() };
        // SAFETY: the library fills the structure.
        let status =
            unsafe { (f.init_configure_params_by_vdevice)(hef.handle, self.vdevice, &raw mut *params) };
        library.check("asking how to configure the network", status)?;
        let used = params.network_group_params_count;
        if used != 1 {
            let text = format!("the HEF has {used} network groups; one is served");
            return Err(Failure { what: "configuring the network", class: Class::Network, text });
        }
        params.network_group_params[0].batch_size = 1;
        params.network_group_params[0].power_mode = POWER_MODE_ULTRA_PERFORMANCE;
        let mut groups = [null_mut(); MAX_NETWORK_GROUPS];
        let mut count = groups.len();
        // SAFETY: the array has as many elements as `count` says.
        let status = unsafe {
            (f.configure_vdevice)(
                self.vdevice,
                hef.handle,
                &raw mut *params,
                groups.as_mut_ptr(),
                &raw mut count,
            )
        };
        library.check("configuring the network", status)?;
        let network = Network { chip: self, _hef: hef, group: groups[0] };
        // SAFETY: a group the library has just given; no name means the whole group. A frame is sent on at once.
        let status = unsafe { (f.set_scheduler_timeout)(network.group, 0, core::ptr::null()) };
        if !network.chip.is_left_out(status) {
            library.check("setting up the scheduler", status)?;
        }
        Ok(network)
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        let f = self.library.functions();
        if !self.device.is_null() {
            for id in NOTIFICATIONS {
                // SAFETY: the device lives until its virtual device is released, below.
                unsafe { (f.remove_notification_callback)(self.device, id) };
            }
        }
        // SAFETY: a handle that is released once, here; networks and streams own a share of the chip, so they are gone.
        let status = unsafe { (f.release_vdevice)(self.vdevice) };
        if !status.is_success() {
            // It joins the thread that calls [`notified`] (`~DeviceBase`, device_internal.cpp of 4.23.0), which may be in the middle of it although
            // the callback was taken away. One that was not released may call for ever.
            std::mem::forget(self.events.clone());
        }
    }
}

impl Library {
    fn check(&self, what: &'static str, status: Status) -> Result<(), Failure> {
        match status.class() {
            Class::Success => Ok(()),
            class => Err(Failure { what, class, text: self.explain(status) }),
        }
    }
}

/// One input or output of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamInfo {
    /// Its name in the HEF.
    pub name: String,
    /// Whether it leads into the chip.
    pub is_input: bool,
    /// `FORMAT_TYPE_*` of the chip.
    pub format_type: u32,
    /// `FORMAT_ORDER_*`.
    pub order: u32,
    /// Height, width, features; `None` for the result of non-maximum suppression.
    pub shape: Option<[u32; 3]>,
    /// How its bytes stand for numbers; `None` where each feature has a quantisation of its own, which the library then keeps to itself.
    pub quant: Option<QuantInfo>,
}

/// A compiled network that was read. It needs no chip.
pub struct Hef {
    library: &'static Library,
    handle: crate::types::Hef,
    streams: Vec<StreamInfo>,
}

// SAFETY: the handle is to what was parsed, which no call after `read` changes; it is bound to no thread.
unsafe impl Send for Hef {}
// SAFETY: the same.
unsafe impl Sync for Hef {}

impl Hef {
    /// Reads a compiled network. The library may keep the bytes, so they live as long as the process.
    ///
    /// # Errors
    /// [`Failure`], of class [`Class::Network`] when it is damaged or of a form the library does not know.
    pub fn read(library: &'static Library, bytes: &'static [u8]) -> Result<Self, Failure> {
        if bytes.is_empty() {
            // 4.23.0 ends the process by a bad access to memory when it is given nothing.
            let text = "the file is empty".to_owned();
            return Err(Failure { what: "reading the HEF", class: Class::Network, text });
        }
        let f = library.functions();
        let mut handle = null_mut();
        // SAFETY: the bytes live for ever.
        let status = unsafe { (f.create_hef_buffer)(&raw mut handle, bytes.as_ptr().cast(), bytes.len()) };
        library.check("reading the HEF", status)?;
        let mut hef = Self { library, handle, streams: Vec::new() };
        let mut infos = vec![VstreamInfo::zeroed(); 2 * MAX_STREAMS_COUNT];
        let mut count = infos.len();
        // SAFETY: the array has as many elements as `count` says.
        let status = unsafe {
            (f.hef_get_all_vstream_infos)(hef.handle, core::ptr::null(), infos.as_mut_ptr(), &raw mut count)
        };
        library.check("reading the streams of the HEF", status)?;
        hef.streams = infos.iter().take(count).map(StreamInfo::of).collect();
        Ok(hef)
    }

    /// Its inputs and outputs.
    #[must_use]
    pub fn streams(&self) -> &[StreamInfo] {
        &self.streams
    }
}

impl Drop for Hef {
    fn drop(&mut self) {
        // SAFETY: a handle that is released once, here; a network owns a share of it.
        unsafe { (self.library.functions().release_hef)(self.handle) };
    }
}

/// How the elements of a frame are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// As the chip has them: quantised, a byte each.
    Raw,
    /// As numbers of 32 bits: the library quantises.
    Float,
}

impl Elements {
    fn format_type(self) -> u32 {
        match self {
            Self::Raw => FORMAT_TYPE_AUTO,
            Self::Float => FORMAT_TYPE_FLOAT32,
        }
    }
}

/// A network on a chip. The library has no call to give it back: that is done by closing the chip.
pub struct Network {
    chip: Arc<Chip>,
    _hef: Arc<Hef>,
    group: NetworkGroup,
}

// SAFETY: as for the chip.
unsafe impl Send for Network {}
// SAFETY: as for the chip.
unsafe impl Sync for Network {}

impl Network {
    /// Opens its streams. `timeout_ms` is how long a frame may take; `elements` says how a stream's are handed over.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn open(
        self: Arc<Self>,
        timeout_ms: u32,
        elements: &dyn Fn(&str) -> Elements,
    ) -> Result<Streams, Failure> {
        let (library, f) = (self.chip.library, self.chip.library.functions());
        let mut inputs = vec![InputVstreamParamsByName::zeroed(); MAX_STREAMS_COUNT];
        let mut outputs = vec![OutputVstreamParamsByName::zeroed(); MAX_STREAMS_COUNT];
        let (mut n_in, mut n_out) = (inputs.len(), outputs.len());
        // SAFETY: the arrays have as many elements as their counts say.
        let status = unsafe {
            (f.make_input_vstream_params)(
                self.group,
                false,
                FORMAT_TYPE_AUTO,
                inputs.as_mut_ptr(),
                &raw mut n_in,
            )
        };
        library.check("asking for the input streams", status)?;
        // SAFETY: as above.
        let status = unsafe {
            (f.make_output_vstream_params)(
                self.group,
                false,
                FORMAT_TYPE_AUTO,
                outputs.as_mut_ptr(),
                &raw mut n_out,
            )
        };
        library.check("asking for the output streams", status)?;
        inputs.truncate(n_in);
        outputs.truncate(n_out);
        let set = |name: &[c_char], params: &mut VstreamParams| {
            params.timeout_ms = timeout_ms;
            params.user_buffer_format.type_ = elements(&text(name)).format_type();
        };
        inputs.iter_mut().for_each(|p| set(&p.name, &mut p.params));
        outputs.iter_mut().for_each(|p| set(&p.name, &mut p.params));

        let group = self.group;
        let mut streams =
            Streams { network: self, inputs: Vec::new(), outputs: Vec::new(), is_poisoned: false };
        let mut handles = vec![null_mut(); n_in];
        // SAFETY: room for as many handles as there are parameters.
        let status = unsafe { (f.create_input_vstreams)(group, inputs.as_ptr(), n_in, handles.as_mut_ptr()) };
        library.check("opening the input streams", status)?;
        streams.inputs = handles.into_iter().map(Open::new).collect();
        let mut handles = vec![null_mut(); n_out];
        // SAFETY: as above.
        let status =
            unsafe { (f.create_output_vstreams)(group, outputs.as_ptr(), n_out, handles.as_mut_ptr()) };
        library.check("opening the output streams", status)?;
        streams.outputs = handles.into_iter().map(Open::new).collect();
        // The handles come in the library's order, not in that of the parameters: those of outputs that share a channel of the chip come
        // together. So each is asked what it is.
        for stream in &mut streams.inputs {
            stream.ask(library, f.get_input_vstream_info, f.get_input_vstream_frame_size)?;
        }
        for stream in &mut streams.outputs {
            stream.ask(library, f.get_output_vstream_info, f.get_output_vstream_frame_size)?;
        }
        Ok(streams)
    }
}

impl Network {
    /// Aborts what is under way: who waits in [`Streams::infer`] is let go. Nothing can be sent afterwards.
    pub fn shut_down(&self) {
        // SAFETY: a group of a device that is still open.
        unsafe { (self.chip.library.functions().shutdown_network_group)(self.group) };
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A stream, its name in the HEF, and the bytes of its frame.
struct Open {
    handle: *mut c_void,
    name: String,
    size: usize,
}

impl Open {
    fn new(handle: *mut c_void) -> Self {
        Self { handle, name: String::new(), size: 0 }
    }

    /// Asks the library what the stream is.
    fn ask(
        &mut self,
        library: &Library,
        info: unsafe extern "C" fn(*mut c_void, *mut VstreamInfo) -> Status,
        size: unsafe extern "C" fn(*mut c_void, *mut usize) -> Status,
    ) -> Result<(), Failure> {
        let mut said = VstreamInfo::zeroed();
        // SAFETY: an open stream of the direction these functions are for; the library fills the structure.
        library.check("asking which stream it is", unsafe { info(self.handle, &raw mut said) })?;
        self.name = text(&said.name);
        // SAFETY: as above; the library writes one number.
        library.check("asking for the size of a frame", unsafe { size(self.handle, &raw mut self.size) })
    }
}

/// The open streams of a network: one frame at a time goes in and comes out.
pub struct Streams {
    network: Arc<Network>,
    inputs: Vec<Open>,
    outputs: Vec<Open>,
    is_poisoned: bool,
}

// SAFETY: the library's streams may be used from any thread, by one at a time: `infer` takes `&mut self`.
unsafe impl Send for Streams {}

impl Streams {
    /// Names and frame sizes of the inputs, in the order of [`Streams::infer`].
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.inputs.iter().map(|s| (s.name.as_str(), s.size))
    }

    /// The same of the outputs.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.outputs.iter().map(|s| (s.name.as_str(), s.size))
    }

    /// Sends one frame and waits for its answer.
    ///
    /// After a failure that is not of class [`Class::Request`] the streams may hold a frame of this or of an earlier call, which would
    /// come out as the next one's answer. So they answer nothing any more. A frame may even wait in the chip, so new streams of the same
    /// network are not enough: drop streams, network and chip, and open the chip again.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn infer(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Failure> {
        let refuse =
            |text: &str, class| Err(Failure { what: "sending a frame", class, text: text.to_owned() });
        if let Some((class, why)) = self.network.chip.events.verdict() {
            self.is_poisoned = true;
            return refuse(why, class);
        }
        if self.is_poisoned {
            return refuse("the streams hold an answer that was not fetched", Class::Poisoned);
        }
        let fit = inputs.len() == self.inputs.len()
            && outputs.len() == self.outputs.len()
            && inputs.iter().zip(&self.inputs).all(|(bytes, s)| bytes.len() == s.size)
            && outputs.iter().zip(&self.outputs).all(|(bytes, s)| bytes.len() == s.size);
        if !fit {
            return refuse("the buffers are not those of the streams", Class::Request);
        }
        let outcome = self.exchange(inputs, outputs);
        self.is_poisoned = outcome.is_err();
        // What the chip says of itself weighs more than the status it led to, and more than an answer.
        if let Some((class, why)) = self.network.chip.events.verdict() {
            self.is_poisoned = true;
            return refuse(why, class);
        }
        outcome.map_err(|e| match e.class {
            // Nothing of the host fails here: the chip did not do what it was told.
            Class::Internal | Class::Configuration | Class::Busy | Class::Network => {
                Failure { class: Class::DeviceLost, ..e }
            }
            // The buffers were compared with the frames before, so a request that is refused is one that was half sent.
            Class::Request => Failure { class: Class::Poisoned, ..e },
            _ => e,
        })
    }

    fn exchange(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Failure> {
        let (library, f) = (self.network.chip.library, self.network.chip.library.functions());
        for (bytes, s) in inputs.iter().zip(&self.inputs) {
            // SAFETY: an open stream, and a buffer of its frame's size that lives during the call.
            let status = unsafe { (f.vstream_write_raw_buffer)(s.handle, bytes.as_ptr().cast(), s.size) };
            library.check("sending a frame", status)?;
        }
        for (bytes, s) in outputs.iter_mut().zip(&self.outputs) {
            // SAFETY: the same; the buffer is ours alone.
            let status = unsafe { (f.vstream_read_raw_buffer)(s.handle, bytes.as_mut_ptr().cast(), s.size) };
            library.check("waiting for the answer", status)?;
        }
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let f = self.network.chip.library.functions();
        let handles = |streams: &[Open]| streams.iter().map(|s| s.handle).collect::<Vec<_>>();
        let (outputs, inputs) = (handles(&self.outputs), handles(&self.inputs));
        // SAFETY: open streams that are released once, here; the answers' first.
        unsafe {
            if !outputs.is_empty() {
                (f.release_output_vstreams)(outputs.as_ptr(), outputs.len());
            }
            if !inputs.is_empty() {
                (f.release_input_vstreams)(inputs.as_ptr(), inputs.len());
            }
        }
    }
}

impl StreamInfo {
    fn of(info: &VstreamInfo) -> Self {
        let is_nms = matches!(
            info.format.order,
            FORMAT_ORDER_HAILO_NMS
                | FORMAT_ORDER_HAILO_NMS_WITH_BYTE_MASK
                | FORMAT_ORDER_HAILO_NMS_ON_CHIP
                | FORMAT_ORDER_HAILO_NMS_BY_CLASS
                | FORMAT_ORDER_HAILO_NMS_BY_SCORE
        );
        // SAFETY: both variants are plain numbers, and the image is the shorter one.
        let image = unsafe { info.shape.image };
        Self {
            name: text(&info.name),
            is_input: info.direction == H2D_STREAM,
            format_type: info.format.type_,
            order: info.format.order,
            shape: (!is_nms).then_some([image.height, image.width, image.features]),
            // All zeros is what it says where one quantisation is not all (`INVALID_QP` in hef.cpp of 4.23.0).
            quant: (info.quant_info != QuantInfo::default()).then_some(info.quant_info),
        }
    }
}

/// A name in an array of fixed size: up to its zero, or all of it.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> =
        chars.iter().map(|&c| c.to_ne_bytes()[0]).take_while(|&b| b != 0).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}
