//! A double of libhailort for tests: the C interface of 4.23.0 as far as the host calls it (39 functions), and no chip.
//!
//! What stands for a HEF is a [`container`] with a network and the quantisation of its ends; the built-in engine computes it on a thread
//! that stands for the chip ([`core`]). Faults come from a file beside the library ([`control`]). Layouts and constants are those of
//! `app/hailort-abi`, which are compared with Hailo's own header; what the real library does without a chip, the same tests see it do.
//!
//! It is found only by its path, and says that it is no chip: its board is called `double`.

#![allow(clippy::missing_safety_doc)] // what a caller must do says hailort.h

pub mod container;
mod control;
mod core;
mod names;

use crate::container::{Bad, Page, Stream};
use crate::core::{Core, LOOK, Stop};
use ::core::ffi::{CStr, c_char, c_int, c_void};
use hailort_abi::Status;
use hailort_abi::types::*;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The one address on the bus.
pub const ADDRESS: &str = "0001:01:00.0";

const OK: Status = Status::SUCCESS;

// ---------------------------------------------------------------------------------------------------------------- handles

/// What a handle stands for.
#[derive(Clone)]
enum Object {
    Vdevice(Arc<Opened>),
    Device(Arc<Opened>),
    Hef(Arc<Read>),
    Group(Arc<Group>),
    Input(Arc<Vstream>),
    Output(Arc<Vstream>),
}

struct Read {
    page: Arc<Page>,
    onnx: Vec<u8>,
}

struct Opened {
    /// Locked as long as it is open: by one process, or by all that share the chip.
    _lock: File,
    /// The service has the chip, and others may have it too.
    shared: bool,
    /// Opened by the service before the chip was lost: what this process has of it is gone for good.
    gone: AtomicBool,
    /// For each notification: the function, its word, and the device that it was given for.
    callbacks: Mutex<HashMap<u32, (NotificationCallback, usize, usize)>>,
    groups: Mutex<Vec<Arc<Core>>>,
    closed: AtomicBool,
    sequence: AtomicU32,
}

struct Group {
    core: Arc<Core>,
    has_inputs: AtomicBool,
    has_outputs: AtomicBool,
    is_shut_down: AtomicBool,
}

struct Vstream {
    group: Arc<Group>,
    at: usize,
    params: VstreamParams,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

static OBJECTS: Mutex<Option<HashMap<usize, Object>>> = Mutex::new(None);

fn give(object: Object) -> *mut c_void {
    let handle = NEXT.fetch_add(16, SeqCst);
    lock(&OBJECTS).get_or_insert_default().insert(handle, object);
    handle as *mut c_void
}

fn find(handle: *mut c_void) -> Option<Object> {
    lock(&OBJECTS).get_or_insert_default().get(&(handle as usize)).cloned()
}

fn take(handle: *mut c_void) -> Option<Object> {
    lock(&OBJECTS).get_or_insert_default().remove(&(handle as usize))
}

/// A handle as what it must be; another one breaks the interface.
macro_rules! object {
    ($handle:expr, $kind:ident) => {
        match find($handle) {
            Some(Object::$kind(object)) => object,
            _ => {
                control::misuse(concat!("a handle that is no ", stringify!($kind)));
                return Status::INVALID_ARGUMENT;
            }
        }
    };
}

/// Whether there is a chip to talk to.
fn chip() -> Result<(), Status> {
    let faults = control::read().1;
    if faults.lost {
        return Err(Status::DRIVER_OPERATION_FAILED);
    }
    if faults.hung {
        return Err(Status::DRIVER_TIMEOUT);
    }
    Ok(())
}

macro_rules! needs_chip {
    () => {
        if let Err(status) = chip() {
            return status;
        }
    };
    ($opened:expr) => {
        $opened.look();
        needs_chip!();
        if $opened.gone.load(SeqCst) {
            return Status::DRIVER_OPERATION_FAILED;
        }
    };
}

/// What stands for HailoRT's service, which a test starts by writing its version to `LIBRARY.service`; an empty file is a service that does
/// not run, and with none the library was built without it.
fn service() -> Result<(), Status> {
    let Ok(version) = std::fs::read_to_string(control::beside(".service")) else {
        return Err(Status::INVALID_OPERATION);
    };
    match version.trim() {
        "" => Err(Status::RPC_FAILED),
        "4.23.0" => Ok(()),
        _ => Err(Status::INVALID_SERVICE_VERSION),
    }
}

/// There while the service has a chip open that was lost since: whoever shares that is told so, until all have left it.
fn dead() -> std::path::PathBuf {
    control::beside(".dead")
}

/// Copies a text into an array of the interface, with its end.
fn put(to: &mut [c_char], text: &str) {
    to.fill(0);
    let room = to.len() - 1;
    for (to, &b) in to.iter_mut().take(room).zip(text.as_bytes()) {
        *to = c_char::from_ne_bytes([b]);
    }
}

/// Copies a text and its end, and leaves the rest of the array as it was: so does the real one where it fills configurations.
fn put_name(to: &mut [c_char], text: &str) {
    let end = text.len().min(to.len() - 1);
    put(&mut to[..=end], text);
}

/// Writes an array for the caller, as long as there is room; `count` holds how many fit, and gets how many there are.
///
/// # Safety
/// `to` has room for `*count` elements.
unsafe fn put_all<T>(all: Vec<T>, to: *mut T, count: *mut usize) -> Status {
    if to.is_null() || count.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: not null, and the caller's to read and write.
    let room = unsafe { count.replace(all.len()) };
    if all.len() > room {
        return Status::INSUFFICIENT_BUFFER;
    }
    for (i, one) in all.into_iter().enumerate() {
        // SAFETY: `i` is below the room there is.
        unsafe { to.add(i).write(one) };
    }
    OK
}

/// Writes one value for the caller.
///
/// # Safety
/// `to` is null or may be written.
unsafe fn put_one<T>(value: T, to: *mut T) -> Status {
    if to.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: not null, and the caller's.
    unsafe { to.write(value) };
    OK
}

// ---------------------------------------------------------------------------------------------------------------- library

/// The version the file says, or 4.23.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_get_library_version(version: *mut RawVersion) -> Status {
    let [major, minor, revision] = control::read().1.version.unwrap_or([4, 23, 0]);
    // SAFETY: the caller's.
    unsafe { put_one(RawVersion { major, minor, revision }, version) }
}

/// A status by its name; null for one that is unknown.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_get_status_message(status: Status) -> *const c_char {
    names::NAMES.get(status.0 as usize).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// The one chip, unless it is off the bus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_scan_devices(
    params: *mut c_void,
    ids: *mut DeviceId,
    count: *mut usize,
) -> Status {
    if !params.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    let mut id = DeviceId::zeroed();
    put(&mut id.id, ADDRESS);
    let faults = control::read().1;
    if let Some(words) = &faults.prints {
        use std::io::Write as _;
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{words}").and_then(|()| out.flush());
    }
    if faults.crashes {
        // SAFETY: none: it is what was asked for.
        unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
    }
    while faults.silent {
        std::thread::park();
    }
    let all = if faults.lost { vec![] } else { vec![id] };
    // SAFETY: the caller's.
    unsafe { put_all(all, ids, count) }
}

/// The defaults of 4.23.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_init_vdevice_params(params: *mut VdeviceParams) -> Status {
    let mut made = VdeviceParams::zeroed();
    made.device_count = 1;
    made.scheduling_algorithm = SCHEDULING_ALGORITHM_ROUND_ROBIN;
    made.group_id = c"UNIQUE".as_ptr();
    // SAFETY: the caller's.
    unsafe { put_one(made, params) }
}

/// Opens the chip: for one process at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_create_vdevice(params: *mut VdeviceParams, vdevice: *mut Vdevice) -> Status {
    if vdevice.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    let (mut named, mut shared) = (false, false);
    if !params.is_null() {
        // SAFETY: not null, and filled by the caller.
        let params = unsafe { params.read() };
        if params.device_count == 0 {
            return Status::INVALID_ARGUMENT;
        }
        shared = params.multi_process_service;
        if shared && let Err(status) = service() {
            return status;
        }
        // SAFETY: null, or a text with its end.
        let unique = params.group_id.is_null() || unsafe { CStr::from_ptr(params.group_id) } == c"UNIQUE";
        if shared && unique {
            control::misuse("a chip of one's own was asked for at the service");
            return Status::DEVICE_IN_USE;
        }
        named = !params.device_ids.is_null();
        for i in 0..if named { params.device_count as usize } else { 0 } {
            // SAFETY: as many as the count says.
            let id = unsafe { &*params.device_ids.add(i) };
            // SAFETY: an id ends within its array: ours does, and a test's.
            if unsafe { CStr::from_ptr(id.id.as_ptr()) }.to_bytes() != ADDRESS.as_bytes() {
                return Status::INVALID_ARGUMENT;
            }
        }
    }
    let faults = control::read().1;
    std::thread::sleep(std::time::Duration::from_millis(faults.open_ms));
    if faults.lost {
        // Who names it names something that is not there.
        return if named { Status::INVALID_ARGUMENT } else { Status::OUT_OF_PHYSICAL_DEVICES };
    }
    if faults.no_node {
        return Status::DRIVER_OPERATION_FAILED;
    }
    if faults.no_driver {
        return Status::DRIVER_NOT_INSTALLED;
    }
    if faults.driver_mismatch {
        return Status::INVALID_DRIVER_VERSION;
    }
    needs_chip!();
    let Ok(file) = File::options().create(true).truncate(false).write(true).open(control::beside(".lock"))
    else {
        return Status::OPEN_FILE_FAILURE;
    };
    // SAFETY: a descriptor of ours.
    let locked = |how| unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0;
    let first = locked(libc::LOCK_EX);
    if first {
        let _ = std::fs::remove_file(dead());
    }
    // Who opens it at this moment has it alone for as long as it takes to look.
    let joined = || {
        (0..40).any(|_| {
            let joined = locked(libc::LOCK_SH);
            if !joined {
                std::thread::sleep(LOOK);
            }
            joined
        })
    };
    if !(if shared { joined() } else { first }) {
        // As the real one: whoever names a chip is told about that chip.
        return if named { Status::DEVICE_IN_USE } else { Status::OUT_OF_PHYSICAL_DEVICES };
    }
    let opened = Arc::new(Opened {
        _lock: file,
        shared,
        gone: AtomicBool::new(false),
        callbacks: Mutex::default(),
        groups: Mutex::default(),
        closed: AtomicBool::new(false),
        sequence: AtomicU32::new(0),
    });
    let notifier = opened.clone();
    std::thread::spawn(move || notifier.notify());
    // SAFETY: not null, the caller's.
    unsafe { vdevice.write(give(Object::Vdevice(opened))) };
    OK
}

impl Opened {
    /// Sends what the file says, once for each text of it, to who has asked.
    fn notify(&self) {
        let mut done = String::new();
        while !self.closed.load(SeqCst) {
            let (text, faults) = control::read();
            self.look();
            if text != done && !faults.mute {
                let wanted = faults.notify.iter().all(|n| lock(&self.callbacks).contains_key(&n.id));
                if wanted {
                    done = text;
                    faults.notify.iter().for_each(|n| self.tell(n));
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Notices that a chip that is shared is lost.
    fn look(&self) {
        if self.shared && control::read().1.lost && !self.gone.swap(true, SeqCst) {
            let _ = File::create(dead());
            lock(&self.groups).iter().for_each(|core| core.is_gone());
        }
    }

    fn tell(&self, what: &control::Notify) {
        // Held during the call: who has taken its callback away is not called any more.
        let callbacks = lock(&self.callbacks);
        let Some(&(callback, opaque, device)) = callbacks.get(&what.id) else { return };
        let mut body = [0; 20];
        body[..4].copy_from_slice(&what.word.to_ne_bytes());
        let sequence = self.sequence.fetch_add(1, SeqCst);
        let notification = Notification { id: what.id, sequence, body };
        // SAFETY: the callback was given for this, with this word, and is not taken away during the call.
        unsafe { callback(device as Device, &raw const notification, opaque as *mut c_void) };
    }
}

/// Closes the chip, with all networks on it.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_release_vdevice(vdevice: Vdevice) -> Status {
    let opened = object!(vdevice, Vdevice);
    take(vdevice);
    opened.closed.store(true, SeqCst);
    let cores = std::mem::take(&mut *lock(&opened.groups));
    cores.iter().for_each(|core| core.close());
    let mut all = lock(&OBJECTS);
    let mut streams = 0;
    all.get_or_insert_default().retain(|_, object| match object {
        Object::Device(of) => !Arc::ptr_eq(of, &opened),
        Object::Group(group) => !cores.iter().any(|c| Arc::ptr_eq(c, &group.core)),
        Object::Input(s) | Object::Output(s) => {
            let mine = cores.iter().any(|c| Arc::ptr_eq(c, &s.group.core));
            streams += usize::from(mine);
            !mine
        }
        _ => true,
    });
    if streams > 0 {
        control::misuse("a device was released before its streams");
    }
    // The lock goes with the file, which the notifier may hold for a moment longer: given up here.
    // SAFETY: a descriptor of ours.
    unsafe { libc::flock(opened._lock.as_raw_fd(), libc::LOCK_UN) };
    OK
}

/// The one chip of a virtual device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_get_physical_devices(
    vdevice: Vdevice,
    devices: *mut Device,
    count: *mut usize,
) -> Status {
    let opened = object!(vdevice, Vdevice);
    // SAFETY: the caller's.
    unsafe { put_all(vec![give(Object::Device(opened))], devices, count) }
}

/// What the chip is: a double.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_identify(device: Device, identity: *mut DeviceIdentity) -> Status {
    let opened = object!(device, Device);
    needs_chip!(opened);
    let mut made = DeviceIdentity::zeroed();
    made.protocol_version = 2;
    made.fw_version = RawVersion { major: 4, minor: 23, revision: 0 };
    put(&mut made.board_name, "double");
    made.board_name_length = 6;
    made.is_release = true;
    made.device_architecture = architecture();
    put(&mut made.serial_number, "DOUBLE-0");
    made.serial_number_length = 8;
    put(&mut made.product_name, "test double, no chip");
    made.product_name_length = 20;
    // SAFETY: the caller's.
    unsafe { put_one(made, identity) }
}

fn architecture() -> u32 {
    match control::read().1.architecture.as_deref() {
        Some("hailo8l") => ARCH_HAILO8L,
        _ => ARCH_HAILO8,
    }
}

/// Not supported by the double: the host does not ask.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_get_extended_device_information(_: Device, _: *mut c_void) -> Status {
    Status::NOT_SUPPORTED
}

/// The address on the bus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_get_device_id(device: Device, id: *mut DeviceId) -> Status {
    let _ = object!(device, Device);
    let mut made = DeviceId::zeroed();
    put(&mut made.id, ADDRESS);
    // SAFETY: the caller's.
    unsafe { put_one(made, id) }
}

/// Not supported on PCIe, as in the real one.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_reset_device(_: Device, _: c_int) -> Status {
    Status::NOT_SUPPORTED
}

/// Both sensors show what the file says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_get_chip_temperature(
    device: Device,
    info: *mut ChipTemperatureInfo,
) -> Status {
    let opened = object!(device, Device);
    needs_chip!(opened);
    if opened.shared && control::read().1.service_tells_nothing {
        return Status::NOT_SUPPORTED;
    }
    let t = control::read().1.temperature.unwrap_or(45.0);
    let made = ChipTemperatureInfo { ts0_temperature: t, ts1_temperature: t - 0.5, sample_count: 1 };
    // SAFETY: the caller's.
    unsafe { put_one(made, info) }
}

/// As on an M.2 module without a current monitor.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_power_measurement(device: Device, _: c_int, _: c_int, _: *mut f32) -> Status {
    let opened = object!(device, Device);
    needs_chip!(opened);
    if opened.shared && control::read().1.service_tells_nothing {
        return Status::NOT_SUPPORTED;
    }
    Status::NOT_SUPPORTED
}

/// Asks to be called.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_set_notification_callback(
    device: Device,
    callback: NotificationCallback,
    id: u32,
    opaque: *mut c_void,
) -> Status {
    let opened = object!(device, Device);
    needs_chip!(opened);
    if opened.shared && control::read().1.service_tells_nothing {
        return Status::NOT_SUPPORTED;
    }
    lock(&opened.callbacks).insert(id, (callback, opaque as usize, device as usize));
    OK
}

/// Asks to be called no more.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_remove_notification_callback(device: Device, id: u32) -> Status {
    let opened = object!(device, Device);
    lock(&opened.callbacks).remove(&id);
    OK
}

// --------------------------------------------------------------------------------------------------------------- networks

fn read_container(bytes: &[u8], hef: *mut Hef) -> Status {
    if hef.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    match container::unpack(bytes) {
        Ok((page, onnx)) => {
            let read = Read { page: Arc::new(page), onnx: onnx.to_vec() };
            // SAFETY: not null, the caller's.
            unsafe { hef.write(give(Object::Hef(Arc::new(read)))) };
            OK
        }
        Err(Bad::Corrupted) => Status::HEF_FILE_CORRUPTED,
        Err(Bad::NotSupported) => Status::HEF_NOT_SUPPORTED,
    }
}

/// Reads a container.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_create_hef_buffer(
    hef: *mut Hef,
    buffer: *const c_void,
    size: usize,
) -> Status {
    if buffer.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    if size == 0 {
        // SAFETY: none: the real one does not survive it either.
        unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
    }
    // SAFETY: the caller's, of this size.
    read_container(unsafe { std::slice::from_raw_parts(buffer.cast(), size) }, hef)
}

/// Reads a container from a file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_create_hef_file(hef: *mut Hef, path: *const c_char) -> Status {
    if path.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: a text with its end.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    match std::fs::read(path) {
        Ok(bytes) => read_container(&bytes, hef),
        Err(_) => Status::OPEN_FILE_FAILURE,
    }
}

/// Forgets a container.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_release_hef(hef: Hef) -> Status {
    let _ = object!(hef, Hef);
    take(hef);
    OK
}

/// Not supported by the double: the host does not ask.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_get_network_groups_infos(_: Hef, _: *mut c_void, _: *mut usize) -> Status {
    Status::NOT_SUPPORTED
}

fn info(page: &Page, stream: &Stream, direction: u32) -> VstreamInfo {
    let mut made = VstreamInfo::zeroed();
    put(&mut made.name, &stream.name);
    put(&mut made.network_name, &network_name(page));
    made.direction = direction;
    let [type_, order] = stream.format();
    made.format = Format { type_, order, flags: 0 };
    let [height, width, features] = stream.shape;
    made.shape = Shape { image: ImageShape { height, width, features } };
    let (qp_zp, qp_scale) = (stream.zp, stream.scale);
    let (limvals_min, limvals_max) = (stream.dequantise(0), stream.dequantise(255));
    made.quant_info = QuantInfo { qp_zp, qp_scale, limvals_min, limvals_max };
    made
}

/// The one network of a group: HailoRT names it after the group, twice.
fn network_name(page: &Page) -> String {
    format!("{0}/{0}", page.network)
}

/// Whether a caller means what there is: everything when nothing is named, else the group or its network.
///
/// # Safety
/// `name` is null or a text with its end.
unsafe fn is_meant(page: &Page, name: *const c_char) -> bool {
    if name.is_null() {
        return true;
    }
    // SAFETY: a text with its end.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    name.is_empty() || name == page.network.as_bytes() || name == network_name(page).as_bytes()
}

/// The streams of a container: inputs, then outputs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_hef_get_all_vstream_infos(
    hef: Hef,
    name: *const c_char,
    infos: *mut VstreamInfo,
    count: *mut usize,
) -> Status {
    let read = object!(hef, Hef);
    let page = &read.page;
    // SAFETY: the caller's.
    if !unsafe { is_meant(page, name) } {
        return Status::NOT_FOUND;
    }
    let inputs = page.inputs.iter().map(|s| info(page, s, H2D_STREAM));
    let all = inputs.chain(page.outputs.iter().map(|s| info(page, s, D2H_STREAM))).collect();
    // SAFETY: the caller's.
    unsafe { put_all(all, infos, count) }
}

/// How a container's one group is configured when nobody says otherwise.
///
/// # Safety
/// `params` is null or may be written.
unsafe fn put_configuration(page: &Page, interface: u32, params: *mut ConfigureParams) -> Status {
    if params.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: not null, the caller's; every field is a number or an array of such.
    let params = unsafe { &mut *params };
    params.network_group_params_count = 1;
    let group = &mut params.network_group_params[0];
    put_name(&mut group.name, &page.network);
    (group.batch_size, group.power_mode, group.latency) = (0, 0, 0);
    group.network_params_by_name_count = 1;
    put_name(&mut group.network_params_by_name[0].name, &network_name(page));
    group.network_params_by_name[0].network_params.batch_size = 0;
    // By their names, as a map of them is gone through.
    let mut channels: Vec<(&str, u32)> = page.inputs.iter().map(|s| (s.channel(), H2D_STREAM)).collect();
    channels.extend(page.outputs.iter().map(|s| (s.channel(), D2H_STREAM)));
    channels.sort_unstable();
    channels.dedup();
    group.stream_params_by_name_count = channels.len();
    for (to, (name, direction)) in group.stream_params_by_name.iter_mut().zip(channels) {
        put_name(&mut to.name, name);
        to.stream_params.stream_interface = interface;
        to.stream_params.direction = direction;
        to.stream_params.flags = 0;
        to.stream_params.pcie_input_params = [0; 17];
    }
    OK
}

/// One network group, the library's choice of batch and power.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_init_configure_params_by_vdevice(
    hef: Hef,
    vdevice: Vdevice,
    params: *mut ConfigureParams,
) -> Status {
    let read = object!(hef, Hef);
    let _ = object!(vdevice, Vdevice);
    // SAFETY: the caller's.
    unsafe { put_configuration(&read.page, STREAM_INTERFACE_PCIE, params) }
}

/// The same without a chip. The host does not ask: it is here because the real one can be asked where there is no chip.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_init_configure_params(
    hef: Hef,
    interface: u32,
    params: *mut ConfigureParams,
) -> Status {
    let read = object!(hef, Hef);
    // SAFETY: the caller's.
    unsafe { put_configuration(&read.page, interface, params) }
}

/// Puts a network on the chip.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_configure_vdevice(
    vdevice: Vdevice,
    hef: Hef,
    params: *mut ConfigureParams,
    groups: *mut NetworkGroup,
    count: *mut usize,
) -> Status {
    let (opened, read) = (object!(vdevice, Vdevice), object!(hef, Hef));
    opened.look();
    needs_chip!();
    if opened.shared && dead().exists() {
        return Status::DRIVER_OPERATION_FAILED;
    }
    if !params.is_null() {
        // SAFETY: not null, filled by the caller.
        let params = unsafe { &*params };
        if params.network_group_params_count != 1 || params.network_group_params[0].batch_size > 1 {
            return Status::INVALID_ARGUMENT;
        }
    }
    let fits = match architecture() {
        ARCH_HAILO8L => "hailo8l",
        _ => "hailo8",
    };
    if read.page.architecture != fits {
        return Status::HEF_NOT_COMPATIBLE_WITH_DEVICE;
    }
    if read.page.inputs.iter().chain(&read.page.outputs).any(|s| s.format.is_some() || s.scale == 0.0) {
        eprintln!("hailort double: only UINT8 with one quantisation is computed");
        return Status::INTERNAL_FAILURE;
    }
    let core = match Core::start(read.page.clone(), &read.onnx, opened.shared) {
        Ok(core) => core,
        Err(why) => {
            eprintln!("hailort double: {why}");
            return Status::INTERNAL_FAILURE;
        }
    };
    lock(&opened.groups).push(core.clone());
    let group = Group {
        core,
        has_inputs: AtomicBool::new(false),
        has_outputs: AtomicBool::new(false),
        is_shut_down: AtomicBool::new(false),
    };
    // SAFETY: the caller's.
    unsafe { put_all(vec![give(Object::Group(Arc::new(group)))], groups, count) }
}

/// Aborts what is under way.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_shutdown_network_group(group: NetworkGroup) -> Status {
    let group = object!(group, Group);
    group.is_shut_down.store(true, SeqCst);
    group.core.shut_down();
    OK
}

/// Nothing to schedule.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_set_scheduler_timeout(group: NetworkGroup, _: u32, _: *const c_char) -> Status {
    let _ = object!(group, Group);
    OK
}

/// Nothing to schedule.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_set_scheduler_threshold(group: NetworkGroup, _: u32, _: *const c_char) -> Status {
    let _ = object!(group, Group);
    OK
}

/// Nothing to schedule.
#[unsafe(no_mangle)]
pub extern "C" fn hailo_set_scheduler_priority(group: NetworkGroup, _: u8, _: *const c_char) -> Status {
    let _ = object!(group, Group);
    OK
}

// ---------------------------------------------------------------------------------------------------------------- streams

/// The defaults of 4.23.0: 10 s, two frames, and an order that follows from the chip's.
fn default_params(format_type: u32) -> VstreamParams {
    VstreamParams {
        user_buffer_format: Format { type_: format_type, order: FORMAT_ORDER_AUTO, flags: 0 },
        timeout_ms: 10_000,
        queue_size: 2,
        vstream_stats_flags: 0,
        pipeline_elements_stats_flags: 0,
    }
}

macro_rules! make_params {
    ($name:ident, $of_hef:ident, $list:ident, $params:ident) => {
        /// The defaults of 4.23.0, sorted by names.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            group: NetworkGroup,
            _: bool,
            format_type: u32,
            params: *mut $params,
            count: *mut usize,
        ) -> Status {
            let group = object!(group, Group);
            let all = by_name(&group.core.page.$list).into_iter().map(|at| {
                let mut made = $params::zeroed();
                put(&mut made.name, &group.core.page.$list[at].name);
                made.params = default_params(format_type);
                made
            });
            // SAFETY: the caller's.
            unsafe { put_all(all.collect(), params, count) }
        }

        /// The same without a chip. The host does not ask: it is here because the real one can be asked where there is no chip.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $of_hef(
            hef: Hef,
            name: *const c_char,
            _: bool,
            format_type: u32,
            params: *mut $params,
            count: *mut usize,
        ) -> Status {
            let read = object!(hef, Hef);
            // SAFETY: the caller's.
            if !unsafe { is_meant(&read.page, name) } {
                return Status::NOT_FOUND;
            }
            let all = by_name(&read.page.$list).into_iter().map(|at| {
                let mut made = $params::zeroed();
                put(&mut made.name, &read.page.$list[at].name);
                made.params = default_params(format_type);
                made
            });
            // SAFETY: the caller's.
            unsafe { put_all(all.collect(), params, count) }
        }
    };
}

make_params!(
    hailo_make_input_vstream_params,
    hailo_hef_make_input_vstream_params,
    inputs,
    InputVstreamParamsByName
);
make_params!(
    hailo_make_output_vstream_params,
    hailo_hef_make_output_vstream_params,
    outputs,
    OutputVstreamParamsByName
);

/// The places of streams in a list, in the order of their names.
fn by_name(streams: &[Stream]) -> Vec<usize> {
    let mut all: Vec<usize> = (0..streams.len()).collect();
    all.sort_by_key(|&at| &streams[at].name);
    all
}

/// The order in which the library opens streams, whatever the order they are named in: by name, but all that share a channel of the chip
/// together, where the first of them is.
fn as_opened(streams: &[Stream]) -> Vec<usize> {
    let mut all = Vec::new();
    for at in by_name(streams) {
        if !all.contains(&at) {
            all.extend((0..streams.len()).filter(|&i| streams[i].channel() == streams[at].channel()));
        }
    }
    all
}

macro_rules! create_streams {
    ($name:ident, $list:ident, $params:ident, $handle:ident, $object:ident, $has:ident) => {
        /// Opens all streams of this direction, once for a network.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            group: NetworkGroup,
            params: *const $params,
            count: usize,
            streams: *mut $handle,
        ) -> Status {
            let group = object!(group, Group);
            needs_chip!();
            let known = &group.core.page.$list;
            if params.is_null() || streams.is_null() || count != known.len() {
                return Status::INVALID_ARGUMENT;
            }
            if group.is_shut_down.load(SeqCst) {
                return Status::STREAM_ABORT;
            }
            if group.$has.swap(true, SeqCst) {
                control::misuse("streams were opened twice");
                return Status::INVALID_OPERATION;
            }
            let mut wanted = HashMap::new();
            for i in 0..count {
                // SAFETY: as many as the count says.
                let one = unsafe { params.add(i).read() };
                // SAFETY: a name ends within its array.
                let name = unsafe { CStr::from_ptr(one.name.as_ptr()) }.to_string_lossy();
                let Some(at) = known.iter().position(|s| s.name == name) else {
                    return Status::NOT_FOUND;
                };
                wanted.insert(at, one.params);
            }
            for (i, at) in as_opened(known).into_iter().enumerate() {
                let Some(&params) = wanted.get(&at) else { return Status::NOT_FOUND };
                let stream = Vstream { group: group.clone(), at, params };
                // SAFETY: as many as the count says.
                unsafe { streams.add(i).write(give(Object::$object(Arc::new(stream)))) };
            }
            OK
        }
    };
}

create_streams!(
    hailo_create_input_vstreams,
    inputs,
    InputVstreamParamsByName,
    InputVstream,
    Input,
    has_inputs
);
create_streams!(
    hailo_create_output_vstreams,
    outputs,
    OutputVstreamParamsByName,
    OutputVstream,
    Output,
    has_outputs
);

impl Vstream {
    fn frame_size(&self, stream: &Stream) -> usize {
        match self.params.user_buffer_format.type_ {
            FORMAT_TYPE_FLOAT32 => 4 * stream.elements(),
            _ => stream.elements(),
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.params.timeout_ms.into())
    }
}

fn status_of(outcome: Result<(), Stop>) -> Status {
    match outcome {
        Ok(()) => OK,
        Err(Stop::Timeout) => Status::TIMEOUT,
        Err(Stop::Aborted) => Status::STREAM_ABORT,
        Err(Stop::Lost) => Status::DRIVER_OPERATION_FAILED,
        Err(Stop::Hung) => Status::DRIVER_TIMEOUT,
    }
}

macro_rules! of_streams {
    ($info:ident, $size:ident, $release:ident, $list:ident, $handle:ident, $object:ident, $direction:ident, $has:ident) => {
        /// What a stream is.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $info(stream: $handle, to: *mut VstreamInfo) -> Status {
            let stream = object!(stream, $object);
            let page = &stream.group.core.page;
            // SAFETY: the caller's.
            unsafe { put_one(info(page, &page.$list[stream.at], $direction), to) }
        }

        /// Bytes of a frame in the caller's format.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $size(stream: $handle, to: *mut usize) -> Status {
            let stream = object!(stream, $object);
            // SAFETY: the caller's.
            unsafe { put_one(stream.frame_size(&stream.group.core.page.$list[stream.at]), to) }
        }

        /// Closes streams.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $release(streams: *const $handle, count: usize) -> Status {
            for i in 0..count {
                // SAFETY: as many as the count says.
                let handle = unsafe { streams.add(i).read() };
                let stream = object!(handle, $object);
                stream.group.$has.store(false, SeqCst);
                take(handle);
            }
            OK
        }
    };
}

of_streams!(
    hailo_get_input_vstream_info,
    hailo_get_input_vstream_frame_size,
    hailo_release_input_vstreams,
    inputs,
    InputVstream,
    Input,
    H2D_STREAM,
    has_inputs
);
of_streams!(
    hailo_get_output_vstream_info,
    hailo_get_output_vstream_frame_size,
    hailo_release_output_vstreams,
    outputs,
    OutputVstream,
    Output,
    D2H_STREAM,
    has_outputs
);

/// One quantisation for all features.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_get_output_vstream_quant_infos(
    stream: OutputVstream,
    infos: *mut QuantInfo,
    count: *mut usize,
) -> Status {
    let stream = object!(stream, Output);
    let page = &stream.group.core.page;
    let one = info(page, &page.outputs[stream.at], D2H_STREAM).quant_info;
    // SAFETY: the caller's.
    unsafe { put_all(vec![one], infos, count) }
}

/// Sends a frame.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_vstream_write_raw_buffer(
    stream: InputVstream,
    buffer: *const c_void,
    size: usize,
) -> Status {
    let stream = object!(stream, Input);
    let core = &stream.group.core;
    if buffer.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    if size != stream.frame_size(&core.page.inputs[stream.at]) {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: the caller's, of this size.
    let frame = unsafe { std::slice::from_raw_parts(buffer.cast(), size) };
    let (format, queue) = (stream.params.user_buffer_format.type_, stream.params.queue_size as usize);
    status_of(core.write(stream.at, frame, format, queue.max(1), stream.timeout()))
}

/// Fetches a frame.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hailo_vstream_read_raw_buffer(
    stream: OutputVstream,
    buffer: *mut c_void,
    size: usize,
) -> Status {
    let stream = object!(stream, Output);
    let core = &stream.group.core;
    if buffer.is_null() {
        return Status::INVALID_ARGUMENT;
    }
    if size != stream.frame_size(&core.page.outputs[stream.at]) {
        return Status::INVALID_ARGUMENT;
    }
    // SAFETY: the caller's, of this size, and nobody else's during the call.
    let frame = unsafe { std::slice::from_raw_parts_mut(buffer.cast(), size) };
    status_of(core.read(stream.at, frame, stream.params.user_buffer_format.type_, stream.timeout()))
}
