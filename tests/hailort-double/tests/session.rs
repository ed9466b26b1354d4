//! `app/hailort-abi` against the double, and against a real libhailort for what needs no chip, where `INFERD_HAILORT_LIB` names one.

use hailort_abi::types::{self, *};
use hailort_abi::{Chip, Class, Elements, Hef, Library, LibraryError, Network, Owner, Status, Streams};
use hailort_double::ADDRESS;
use hailort_double::container::{self, Page};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A double of its own: faults, lock and complaints lie beside it.
struct Double {
    dir: tempfile::TempDir,
}

impl Double {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(built(), dir.path().join("libhailort.so.4.23.0")).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("libhailort.so.4.23.0")
    }

    fn faults(&self, json: &str) {
        let there = self.dir.path().join("libhailort.so.4.23.0.faults");
        std::fs::write(self.dir.path().join("new"), json).unwrap();
        std::fs::rename(self.dir.path().join("new"), there).unwrap();
    }

    fn open(&self) -> &'static Library {
        Box::leak(Box::new(Library::open(&self.path()).unwrap()))
    }

    /// What it complains of.
    fn misuse(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("libhailort.so.4.23.0.misuse")).unwrap_or_default()
    }
}

/// Cargo builds the shared object for these tests, and puts it beside them.
fn built() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().join("libhailort_double.so")
}

fn libraries(double: &Double) -> Vec<&'static Library> {
    double.faults(r#"{"lost": true}"#);
    let mut all = vec![double.open()];
    if let Some(path) = std::env::var_os("INFERD_HAILORT_LIB") {
        // SAFETY: no other thread of this program reads the environment meanwhile: nothing of the library runs yet.
        unsafe { std::env::set_var("HAILORT_LOGGER_PATH", "NONE") };
        all.push(Box::leak(Box::new(Library::open(Path::new(&path)).unwrap())));
    }
    all
}

const IDENTITY: &[u8] = include_bytes!("../../models/identity-fp32/model.onnx");

/// `y = x` of six numbers, in steps of 0.5 around 0.
fn identity() -> &'static [u8] {
    let stream = |name: &str, tensor: &str| {
        serde_json::json!({
            "name": format!("net/{name}"), "shape": [1, 2, 3], "zp": 128.0, "scale": 0.5, "tensor": tensor, "dims": [2, 3],
            "dtype": "FP32", "features_first": false
        })
    };
    let page: Page = serde_json::from_value(serde_json::json!({
        "network": "net", "architecture": "hailo8",
        "inputs": [stream("input_layer1", "x")], "outputs": [stream("output_layer1", "y")],
    }))
    .unwrap();
    container::pack(&page, IDENTITY).leak()
}

fn network(library: &'static Library) -> Arc<Network> {
    let hef = Arc::new(Hef::read(library, identity()).unwrap());
    Arc::new(Arc::new(Chip::open(library, Owner::Process).unwrap()).configure(hef).unwrap())
}

fn streams(library: &'static Library, timeout_ms: u32) -> Streams {
    network(library).open(timeout_ms, &|_| Elements::Float).unwrap()
}

fn ask(streams: &mut Streams, x: f32) -> Result<f32, Class> {
    let frame: Vec<u8> = [x; 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut answer = [0; 24];
    streams.infer(&[&frame], &mut [&mut answer]).map_err(|e| e.class)?;
    let first = f32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]);
    assert!(answer.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b) == first));
    Ok(first)
}

// ------------------------------------------------------------------------------- without a chip, on both libraries

#[test]
fn without_a_chip_both_libraries_say_the_same() {
    let double = Double::new();
    for library in libraries(&double) {
        let f = library.functions();
        assert!(library.version().is_supported());
        let mut count = 8;
        let mut ids = [DeviceId { id: [0; 32] }; 8];
        let mut params = VdeviceParams::zeroed();
        let mut vdevice = std::ptr::null_mut();
        // SAFETY: as the header has it; every array has as many elements as its count says.
        unsafe {
            assert_eq!(
                (f.scan_devices)(std::ptr::null_mut(), ids.as_mut_ptr(), &raw mut count),
                Status::SUCCESS
            );
            assert_eq!(count, 0);
            for (code, known) in [(0, true), (93, true), (94, false), (97, false)] {
                assert_eq!(!(f.get_status_message)(Status(code)).is_null(), known, "{code}");
            }
            assert_eq!((f.init_vdevice_params)(&raw mut params), Status::SUCCESS);
            assert_eq!(
                (params.device_count, params.scheduling_algorithm),
                (1, SCHEDULING_ALGORITHM_ROUND_ROBIN)
            );
            assert!(params.device_ids.is_null() && !params.multi_process_service);
            assert_eq!(CStr::from_ptr(params.group_id), c"UNIQUE");
            let mut create = |change: &dyn Fn(&mut VdeviceParams)| {
                let mut changed = params;
                change(&mut changed);
                (f.create_vdevice)(&raw mut changed, &raw mut vdevice)
            };
            assert_eq!(create(&|_| ()), Status::OUT_OF_PHYSICAL_DEVICES);
            assert_eq!(create(&|p| p.device_count = 2), Status::OUT_OF_PHYSICAL_DEVICES);
            assert_eq!(create(&|p| p.device_count = 0), Status::INVALID_ARGUMENT);
            assert_eq!(create(&|p| p.multi_process_service = true), Status::INVALID_OPERATION);
            // An address of a bus where nothing is, the one where the double's chip is when it is there, and two that are none.
            for address in ["0009:09:00.0", ADDRESS, "", "rubbish"] {
                let mut named = DeviceId { id: [0; 32] };
                for (to, b) in named.id.iter_mut().zip(address.bytes()) {
                    *to = core::ffi::c_char::from_ne_bytes([b]);
                }
                let named = &raw mut named;
                assert_eq!(create(&|p| p.device_ids = named), Status::INVALID_ARGUMENT, "{address}");
            }
            assert_eq!(
                (f.create_vdevice)(std::ptr::null_mut(), &raw mut vdevice),
                Status::OUT_OF_PHYSICAL_DEVICES
            );
        }
        let none = Chip::open(library, Owner::Process).err().unwrap();
        assert_eq!(none.class, Class::DeviceLost);
        assert!(none.to_string().contains("there is none"), "{none}");
    }
}

#[test]
fn what_is_missing_in_a_call_is_an_invalid_argument_of_both() {
    let double = Double::new();
    for library in libraries(&double) {
        let f = library.functions();
        let (mut params, mut ids, mut count) = (VdeviceParams::zeroed(), [DeviceId { id: [0; 32] }; 8], 8);
        let (mut hef, mut warmth, mut identity) =
            (std::ptr::null_mut(), ChipTemperatureInfo::default(), DeviceIdentity::zeroed());
        // SAFETY: null is what is tried; the rest is as the header has it.
        let said = unsafe {
            [
                (f.scan_devices)(std::ptr::null_mut(), std::ptr::null_mut(), &raw mut count),
                (f.scan_devices)(std::ptr::null_mut(), ids.as_mut_ptr(), std::ptr::null_mut()),
                (f.scan_devices)((&raw mut count).cast(), ids.as_mut_ptr(), &raw mut count),
                (f.init_vdevice_params)(std::ptr::null_mut()),
                (f.create_vdevice)(&raw mut params, std::ptr::null_mut()),
                (f.create_hef_buffer)(std::ptr::null_mut(), [0_u8; 4].as_ptr().cast(), 4),
                (f.create_hef_buffer)(&raw mut hef, std::ptr::null(), 4),
                (f.release_hef)(std::ptr::null_mut()),
                (f.release_vdevice)(std::ptr::null_mut()),
                (f.shutdown_network_group)(std::ptr::null_mut()),
                (f.get_chip_temperature)(std::ptr::null_mut(), &raw mut warmth),
                (f.identify)(std::ptr::null_mut(), &raw mut identity),
                (f.vstream_write_raw_buffer)(std::ptr::null_mut(), [0_u8; 4].as_ptr().cast(), 4),
                (f.vstream_read_raw_buffer)(std::ptr::null_mut(), [0_u8; 4].as_mut_ptr().cast(), 4),
            ]
        };
        assert_eq!(said, [Status::INVALID_ARGUMENT; 14]);
    }
}

#[test]
fn every_status_has_the_name_that_the_library_gives_it() {
    let double = Double::new();
    for library in libraries(&double) {
        for code in 0..94 {
            let Some(name) = Status(code).name() else { continue };
            // SAFETY: any number may be asked for, and a known one has a text.
            let text = unsafe { CStr::from_ptr((library.functions().get_status_message)(Status(code))) };
            assert_eq!(text.to_str().unwrap(), format!("HAILO_{name}"));
        }
    }
}

/// Compiled networks by Hailo's own compiler, where `INFERD_HEFS` names some (with `:` between them); none is kept here.
fn compiled() -> Vec<Vec<u8>> {
    let named = std::env::var_os("INFERD_HEFS").unwrap_or_default();
    std::env::split_paths(&named)
        .filter(|p| !p.as_os_str().is_empty())
        .map(|p| std::fs::read(p).unwrap())
        .collect()
}

fn status_of(library: &'static Library, bytes: &[u8]) -> Status {
    let bytes = bytes.to_vec().leak();
    let (f, mut hef) = (library.functions(), std::ptr::null_mut());
    // SAFETY: the bytes live for ever; what was made is given back.
    unsafe {
        let status = (f.create_hef_buffer)(&raw mut hef, bytes.as_ptr().cast(), bytes.len());
        if status.is_success() {
            assert_eq!((f.release_hef)(hef), Status::SUCCESS);
        }
        status
    }
}

#[test]
fn what_is_no_network_is_told_the_same_way_by_both() {
    let double = Double::new();
    for (at, library) in libraries(&double).into_iter().enumerate() {
        for length in [1, 4, 12, 16, 40, 55] {
            assert_eq!(status_of(library, &vec![0; length]), Status::HEF_FILE_CORRUPTED, "{length}");
        }
        assert_eq!(status_of(library, &[0; 56]), Status::HEF_NOT_SUPPORTED);
        assert_eq!(status_of(library, &[0xff; 4096]), Status::HEF_NOT_SUPPORTED);
        let nothing = Hef::read(library, b"").err().unwrap();
        assert_eq!((nothing.class, nothing.text.as_str()), (Class::Network, "the file is empty"));
        let whole = if at == 0 { vec![identity().to_vec()] } else { compiled() };
        for whole in whole {
            assert_eq!(status_of(library, &whole), Status::SUCCESS);
            for length in [4, 40, 100, whole.len() / 2, whole.len() - 1] {
                assert_eq!(status_of(library, &whole[..length]), Status::HEF_FILE_CORRUPTED, "{length}");
            }
            for (at, said) in [
                (0, Status::HEF_NOT_SUPPORTED),
                (4, Status::HEF_NOT_SUPPORTED),
                (11, Status::HEF_FILE_CORRUPTED),
                (100, Status::HEF_FILE_CORRUPTED),
                (whole.len() / 2, Status::HEF_FILE_CORRUPTED),
                (whole.len() - 1, Status::HEF_FILE_CORRUPTED),
            ] {
                let mut flipped = whole.clone();
                flipped[at] ^= 0x10;
                assert_eq!(status_of(library, &flipped), said, "byte {at}");
            }
        }
    }
}

/// What a library says of a compiled network where there is no chip.
#[derive(Debug, PartialEq)]
struct Said {
    streams: Vec<Described>,
    /// Asked for a network that is not in it.
    unknown: Status,
    /// Asked with room for one stream.
    short: (Status, usize),
    inputs: Vec<(String, VstreamParams)>,
    outputs: Vec<(String, VstreamParams)>,
    group: String,
    /// Batch, power, latency.
    defaults: (u16, u32, u32),
    /// Channels of the chip: name, interface, direction, flags.
    channels: Vec<(String, u32, u32, u32)>,
    networks: Vec<(String, u16)>,
}

/// A stream.
#[derive(Clone, Debug, PartialEq)]
struct Described {
    name: String,
    network: String,
    direction: u32,
    format: Format,
    shape: ImageShape,
    zero: f32,
    scale: f32,
    /// The ends of the range, in hundredths; of bytes only.
    range: Option<[f32; 2]>,
}

fn text(chars: &[core::ffi::c_char]) -> String {
    // SAFETY: a name ends within its array.
    unsafe { CStr::from_ptr(chars.as_ptr()) }.to_str().unwrap().to_owned()
}

type MakeParams<T> =
    unsafe extern "C" fn(types::Hef, *const core::ffi::c_char, bool, u32, *mut T, *mut usize) -> Status;

fn said(library: &'static Library, bytes: &'static [u8]) -> Said {
    // SAFETY: it is open already.
    let more = unsafe { libloading::Library::new(library.path()) }.unwrap();
    let f = library.functions();
    let mut hef = std::ptr::null_mut();
    // SAFETY: as the header has it; every array has as many elements as its count says.
    unsafe {
        assert_eq!((f.create_hef_buffer)(&raw mut hef, bytes.as_ptr().cast(), bytes.len()), Status::SUCCESS);
        let infos = |name: *const core::ffi::c_char, room: usize| {
            let (mut all, mut count) = (vec![VstreamInfo::zeroed(); 80], room);
            let status = (f.hef_get_all_vstream_infos)(hef, name, all.as_mut_ptr(), &raw mut count);
            (status, count, all)
        };
        let (status, count, mut all) = infos(std::ptr::null(), 80);
        assert_eq!(status, Status::SUCCESS);
        all.truncate(count);
        let streams = all.iter().map(|info| Described {
            name: text(&info.name),
            network: text(&info.network_name),
            direction: info.direction,
            format: info.format,
            shape: info.shape.image,
            zero: info.quant_info.qp_zp,
            scale: info.quant_info.qp_scale,
            range: (info.format.type_ == FORMAT_TYPE_UINT8).then(|| {
                [info.quant_info.limvals_min, info.quant_info.limvals_max].map(|x| (x * 100.0).round())
            }),
        });
        let short = infos(std::ptr::null(), 1);

        let make =
            more.get::<MakeParams<InputVstreamParamsByName>>(b"hailo_hef_make_input_vstream_params").unwrap();
        let (mut inputs, mut count) = (vec![InputVstreamParamsByName::zeroed(); 40], 40);
        let of = std::ptr::null();
        assert_eq!(
            make(hef, of, false, FORMAT_TYPE_AUTO, inputs.as_mut_ptr(), &raw mut count),
            Status::SUCCESS
        );
        inputs.truncate(count);
        let make = more
            .get::<MakeParams<OutputVstreamParamsByName>>(b"hailo_hef_make_output_vstream_params")
            .unwrap();
        let (mut outputs, mut count) = (vec![OutputVstreamParamsByName::zeroed(); 40], 40);
        assert_eq!(
            make(hef, of, false, FORMAT_TYPE_FLOAT32, outputs.as_mut_ptr(), &raw mut count),
            Status::SUCCESS
        );
        outputs.truncate(count);

        type Configure = unsafe extern "C" fn(types::Hef, u32, *mut ConfigureParams) -> Status;
        let configure = more.get::<Configure>(b"hailo_init_configure_params").unwrap();
        let mut params = vec![ConfigureParams::zeroed()];
        assert_eq!(configure(hef, STREAM_INTERFACE_PCIE, params.as_mut_ptr()), Status::SUCCESS);
        assert_eq!(params[0].network_group_params_count, 1);
        let group = &params[0].network_group_params[0];
        let channels = group.stream_params_by_name.iter().take(group.stream_params_by_name_count).map(|c| {
            let p = c.stream_params;
            (text(&c.name), p.stream_interface, p.direction, p.flags)
        });
        let networks = group.network_params_by_name.iter().take(group.network_params_by_name_count);
        let said = Said {
            streams: streams.collect(),
            unknown: infos(c"nothing".as_ptr(), 80).0,
            short: (short.0, short.1),
            inputs: inputs.iter().map(|p| (text(&p.name), p.params)).collect(),
            outputs: outputs.iter().map(|p| (text(&p.name), p.params)).collect(),
            group: text(&group.name),
            defaults: (group.batch_size, group.power_mode, group.latency),
            channels: channels.collect(),
            networks: networks.map(|n| (text(&n.name), n.network_params.batch_size)).collect(),
        };
        assert_eq!((f.release_hef)(hef), Status::SUCCESS);
        said
    }
}

/// A container of the same streams. Nothing computes it.
fn container_like(said: &Said) -> &'static [u8] {
    let streams = |direction: u32| -> Vec<serde_json::Value> {
        let of = said.streams.iter().filter(|s| s.direction == direction);
        of.map(|s| {
            let ImageShape { height, width, features } = s.shape;
            serde_json::json!({
                "name": s.name, "shape": [height, width, features], "zp": s.zero, "scale": s.scale, "tensor": s.name,
                "format": [s.format.type_, s.format.order],
                "dims": [height, width, features], "dtype": "FP32", "features_first": false
            })
        })
        .collect()
    };
    let page: Page = serde_json::from_value(serde_json::json!({
        "network": said.group, "architecture": "hailo8", "inputs": streams(H2D_STREAM), "outputs": streams(D2H_STREAM),
    }))
    .unwrap();
    container::pack(&page, b"").leak()
}

#[test]
fn a_container_with_the_streams_of_a_real_network_says_the_same_as_it() {
    let double = Double::new();
    let [double, real] = libraries(&double)[..] else { return };
    for bytes in compiled() {
        let truth = said(real, bytes.leak());
        assert_eq!(said(double, container_like(&truth)), truth);
    }
}

// ------------------------------------------------------------------------------------------------------- libraries

#[test]
fn only_the_versions_with_these_layouts_are_opened() {
    for (version, taken) in [
        ([4, 20, 1], false),
        ([4, 21, 0], true),
        ([4, 22, 0], true),
        ([4, 23, 0], true),
        ([4, 24, 0], false),
        ([5, 2, 0], false),
    ] {
        let double = Double::new();
        double.faults(&format!(r#"{{"version": {version:?}}}"#));
        match Library::open(&double.path()) {
            Ok(library) => assert!(taken && library.path() == double.path()),
            Err(e) => assert!(!taken && matches!(e, LibraryError::Version { .. }), "{e}"),
        }
    }
}

#[test]
fn a_library_without_a_function_is_refused_by_its_name() {
    let double = Double::new();
    let mut bytes = std::fs::read(double.path()).unwrap();
    let name = b"\0hailo_power_measurement\0";
    let mut found = 0;
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            bytes[at + 1] = b'x';
            found += 1;
        }
    }
    assert!(found > 0);
    let path = double.dir.path().join("other.so");
    std::fs::write(&path, bytes).unwrap();
    let e = Library::open(&path).unwrap_err();
    assert!(matches!(e, LibraryError::Symbol { name: "hailo_power_measurement", .. }), "{e}");
    assert!(Library::open(Path::new("/nowhere/libhailort.so")).is_err());
}

// --------------------------------------------------------------------------------------------------------- frames

#[test]
fn a_frame_comes_back_as_what_was_sent_in_the_steps_of_the_chip() {
    let double = Double::new();
    let mut streams = streams(double.open(), 1000);
    for (sent, got) in [(0.0, 0.0), (1.2, 1.0), (1.3, 1.5), (-64.0, -64.0), (1000.0, 63.5), (-1000.0, -64.0)]
    {
        assert_eq!(ask(&mut streams, sent), Ok(got));
    }
    assert!(
        streams.inputs().eq([("net/input_layer1", 24)]) && streams.outputs().eq([("net/output_layer1", 24)])
    );
    drop(streams);
    assert_eq!(double.misuse(), "");
}

#[test]
fn raw_frames_are_the_bytes_of_the_chip() {
    let double = Double::new();
    let mut streams = network(double.open()).open(1000, &|_| Elements::Raw).unwrap();
    let mut answer = [0; 6];
    streams.infer(&[&[0, 1, 127, 128, 254, 255]], &mut [&mut answer]).unwrap();
    assert_eq!(answer, [0, 1, 127, 128, 254, 255]);
    let wrong = streams.infer(&[&[0; 5]], &mut [&mut answer]).unwrap_err();
    assert_eq!(wrong.class, Class::Request);
    streams.infer(&[&[0; 6]], &mut [&mut answer]).expect("a wrong length costs nothing but its call");
}

/// `y = x` with three outputs in steps of their own; the first and the last in the order of names share a channel of the chip.
fn shared_channel() -> &'static [u8] {
    let stream = |name: &str, tensor: &str, scale: f32, channel: Option<&str>| {
        serde_json::json!({
            "name": format!("net/{name}"), "shape": [1, 2, 3], "zp": 128.0, "scale": scale, "tensor": tensor, "dims": [2, 3],
            "dtype": "FP32", "features_first": false, "channel": channel
        })
    };
    let page: Page = serde_json::from_value(serde_json::json!({
        "network": "net", "architecture": "hailo8", "inputs": [stream("x", "x", 0.125, None)],
        "outputs": [stream("b", "y", 1.0, None), stream("a", "y", 0.5, Some("mux")), stream("c", "y", 0.25, Some("mux"))],
    }))
    .unwrap();
    container::pack(&page, IDENTITY).leak()
}

#[test]
fn a_stream_is_what_the_library_says_and_not_where_its_handle_lies() {
    // The library opens what shares a channel together: asked for a, b and c it gives handles of a, c and b, all with frames of one size.
    let double = Double::new();
    let library = double.open();
    let hef = Arc::new(Hef::read(library, shared_channel()).unwrap());
    let network = Arc::new(Arc::new(Chip::open(library, Owner::Process).unwrap()).configure(hef).unwrap());
    let mut streams = network.open(1000, &|_| Elements::Float).unwrap();
    let names: Vec<String> = streams.outputs().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["net/a", "net/c", "net/b"], "as the real one, or this test shows nothing");
    let frame: Vec<u8> = [1.25_f32; 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut answers = [[0; 24]; 3];
    let [first, second, third] = &mut answers;
    streams.infer(&[&frame], &mut [first, second, third]).unwrap();
    for (name, answer) in names.iter().zip(&answers) {
        let got = f32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]);
        let steps = [("net/a", 1.5), ("net/b", 1.0), ("net/c", 1.25)];
        assert!(steps.contains(&(name.as_str(), got)), "{name}: {got}");
    }
    drop(streams);
    assert_eq!(double.misuse(), "");
}

#[test]
fn a_handle_that_is_none_is_refused() {
    let double = Double::new();
    let library = double.open();
    let f = library.functions();
    let network = network(library);
    let _streams = network.open(100, &|_| Elements::Float).unwrap();
    // SAFETY: a handle that is none is refused before it is looked at.
    let refused = unsafe { (f.vstream_read_raw_buffer)(8 as *mut _, [0_u8; 4].as_mut_ptr().cast(), 4) };
    assert_eq!(refused, Status::INVALID_ARGUMENT);
    assert!(double.misuse().contains("a handle that is no Output"));
}

#[test]
fn after_a_frame_that_came_too_late_the_streams_answer_nothing_any_more() {
    let double = Double::new();
    let library = double.open();
    let mut first = streams(library, 100);
    double.faults(r#"{"frames": [{"count": 1, "delay_ms": 400}]}"#);
    assert_eq!(ask(&mut first, 7.0), Err(Class::Poisoned));
    double.faults("{}");
    // By now the answer to 7 may be there. Whoever asks for 9 must not get it.
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(25));
        assert_eq!(ask(&mut first, 9.0), Err(Class::Poisoned));
    }
    drop(first);
    assert_eq!(ask(&mut streams(library, 1000), 9.0), Ok(9.0), "on a chip that was opened again");
    assert_eq!(double.misuse(), "");
}

#[test]
fn the_double_gives_a_late_frame_to_new_streams_of_the_same_network() {
    // This is why the chip is opened again. If the double did not do it, the test above would prove nothing.
    let double = Double::new();
    let network = network(double.open());
    let mut first = network.clone().open(100, &|_| Elements::Float).unwrap();
    double.faults(r#"{"frames": [{"count": 1, "delay_ms": 300}]}"#);
    assert_eq!(ask(&mut first, 7.0), Err(Class::Poisoned));
    drop(first);
    let mut second = network.open(2000, &|_| Elements::Float).unwrap();
    assert_eq!(ask(&mut second, 9.0), Ok(7.0));
}

#[test]
fn a_dropped_frame_is_a_timeout_and_no_other_frames_answer() {
    let double = Double::new();
    let mut streams = streams(double.open(), 100);
    double.faults(r#"{"frames": [{"after": 2, "count": 1, "dropped": true}]}"#);
    assert_eq!((ask(&mut streams, 1.0), ask(&mut streams, 2.0)), (Ok(1.0), Ok(2.0)));
    assert_eq!(ask(&mut streams, 3.0), Err(Class::Poisoned));
}

// --------------------------------------------------------------------------------------------------------- faults

#[test]
fn each_fault_of_the_chip_has_its_class() {
    for (faults, class) in [
        (r#"{"lost": true}"#, Class::DeviceLost),
        (r#"{"hung": true}"#, Class::DeviceLost),
        (r#"{"shut_down": true, "notify": [{"id": 2}]}"#, Class::TooHot),
        (r#"{"shut_down": true, "notify": [{"id": 2}], "mute": true}"#, Class::Poisoned),
        (r#"{"notify": [{"id": 5}]}"#, Class::DeviceLost),
        (r#"{"notify": [{"id": 7}]}"#, Class::DeviceLost),
        (r#"{"notify": [{"id": 12}]}"#, Class::Poisoned),
    ] {
        let double = Double::new();
        let library = double.open();
        let hef = Arc::new(Hef::read(library, identity()).unwrap());
        let chip = Arc::new(Chip::open(library, Owner::Process).unwrap());
        let events = chip.events().clone();
        let mut streams = Arc::new(chip.configure(hef).unwrap()).open(1000, &|_| Elements::Float).unwrap();
        assert_eq!(ask(&mut streams, 1.0), Ok(1.0));
        double.faults(faults);
        let notified = faults.contains("notify") && !faults.contains("mute");
        while notified && events.verdict().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(ask(&mut streams, 2.0), Err(class), "{faults}");
        assert_eq!(ask(&mut streams, 2.0), Err(if notified { class } else { Class::Poisoned }));
    }
}

#[test]
fn warnings_are_counted_and_stop_nothing() {
    let double = Double::new();
    let library = double.open();
    let chip = Chip::open(library, Owner::Process).unwrap();
    let events = chip.events();
    double.faults(
        r#"{"temperature": 107, "notify": [{"id": 1, "word": 1}, {"id": 3}, {"id": 4}, {"id": 10}]}"#,
    );
    while events.count(NOTIFICATION_CLOCK_CHANGED) == 0 {
        std::thread::yield_now();
    }
    assert_eq!((events.temperature_zone(), events.count(1), events.count(3), events.count(4)), (1, 1, 1, 1));
    assert_eq!(events.verdict(), None);
    assert_eq!(chip.temperature(), Ok(Some(107.0)));
    assert_eq!(chip.power(), None, "this module measures no current");
}

#[test]
fn who_reads_is_let_go_when_the_network_is_shut_down() {
    let double = Double::new();
    let library = double.open();
    let network = network(library);
    let mut streams = network.clone().open(100, &|_| Elements::Float).unwrap();
    double.faults(r#"{"lost": true, "stuck": true}"#);
    let reading = std::thread::spawn(move || ask(&mut streams, 1.0));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!reading.is_finished(), "no timeout ends it");
    network.shut_down();
    assert_eq!(reading.join().unwrap(), Err(Class::Poisoned));
}

#[test]
fn one_chip_is_one_owners() {
    let double = Double::new();
    let library = double.open();
    let first = Chip::open(library, Owner::Process).unwrap();
    assert_eq!(Chip::open(library, Owner::Process).err().unwrap().class, Class::Busy);
    drop(first);
    assert_eq!(Chip::open(library, Owner::Process).unwrap().identity().architecture, "hailo8");
}

#[test]
fn what_a_chip_told_is_kept_as_long_as_it_is_open_and_no_longer() {
    let double = Double::new();
    let library = double.open();
    for _ in 0..3 {
        let chip = Chip::open(library, Owner::Process).unwrap();
        let told = Arc::downgrade(chip.events());
        assert!(told.upgrade().is_some_and(|t| t.count(NOTIFICATION_CLOCK_CHANGED) == 0));
        drop(chip);
        assert!(told.upgrade().is_none(), "something of it is kept each time it is opened");
    }
}

/// The service, as a test starts and stops it.
fn service(double: &Double, version: &str) {
    std::fs::write(double.dir.path().join("libhailort.so.4.23.0.service"), version).unwrap();
}

fn shared(library: &'static Library) -> Result<Arc<Chip>, (Class, String)> {
    Chip::open(library, Owner::Service).map(Arc::new).map_err(|e| (e.class, e.to_string()))
}

#[test]
fn a_service_that_is_not_there_is_told_from_a_chip_that_is_not() {
    let double = Double::new();
    let library = double.open();
    let (class, said) = shared(library).err().unwrap();
    assert_eq!(class, Class::Configuration);
    assert!(said.contains("HAILO_INVALID_OPERATION (6)") && said.contains("built without"), "{said}");
    service(&double, "");
    let none = (Class::NoService, "opening the chip: HAILO_RPC_FAILED (77)".to_owned());
    assert_eq!(shared(library).err().unwrap(), none);
    service(&double, "4.22.0");
    assert_eq!(shared(library).err().unwrap().0, Class::Configuration, "it must be of the library's version");
    service(&double, "4.23.0");
    assert_eq!(shared(library).unwrap().identity().architecture, "hailo8");
    double.faults(r#"{"lost": true}"#);
    assert_eq!(shared(library).err().unwrap().0, Class::DeviceLost);
}

#[test]
fn by_the_service_two_networks_are_on_one_chip_and_each_gets_its_own_answers() {
    let double = Double::new();
    let library = double.open();
    service(&double, "4.23.0");
    let hef = || Arc::new(Hef::read(library, identity()).unwrap());
    let open = || {
        let network = Arc::new(shared(library).unwrap().configure(hef()).unwrap());
        network.open(1000, &|_| Elements::Float).unwrap()
    };
    let (mut one, mut two) = (open(), open());
    for i in 0..20_u8 {
        let x = f32::from(i);
        assert_eq!((ask(&mut one, x), ask(&mut two, -x)), (Ok(x), Ok(-x)));
    }
    let alone = Chip::open(library, Owner::Process).err().unwrap();
    assert_eq!(alone.class, Class::Busy, "who does not ask the service does not get what it has");
    drop((one, two));
    let alone = Chip::open(library, Owner::Process).unwrap();
    assert_eq!(
        shared(library).err().unwrap().0,
        Class::Busy,
        "and the service does not get what another has"
    );
    drop(alone);
    assert_eq!(double.misuse(), "");
}

#[test]
fn what_the_service_does_not_tell_is_unknown_and_fails_nothing() {
    let double = Double::new();
    let library = double.open();
    service(&double, "4.23.0");
    double.faults(r#"{"service_tells_nothing": true}"#);
    let chip = shared(library).unwrap();
    assert_eq!((chip.temperature(), chip.power()), (Ok(None), None));
    let network = Arc::new(chip.configure(Arc::new(Hef::read(library, identity()).unwrap())).unwrap());
    assert_eq!(ask(&mut network.open(1000, &|_| Elements::Float).unwrap(), 1.5), Ok(1.5));
    double.faults(r#"{"lost": true}"#);
}

#[test]
fn a_lost_chip_comes_back_to_those_who_share_it_when_all_have_left_it() {
    let double = Double::new();
    let library = double.open();
    service(&double, "4.23.0");
    let (one, two) = (shared(library).unwrap(), shared(library).unwrap());
    double.faults(r#"{"lost": true}"#);
    for chip in [&one, &two] {
        while chip.temperature().is_ok() {
            std::thread::yield_now();
        }
    }
    double.faults("{}");
    let hef = Arc::new(Hef::read(library, identity()).unwrap());
    assert_eq!(two.temperature().err().unwrap().class, Class::DeviceLost, "what was open stays lost");
    drop(one);
    let again = shared(library).unwrap().configure(hef.clone()).err().unwrap();
    assert_eq!(again.class, Class::DeviceLost, "the service has the old one yet, because of the other");
    drop(two);
    while let Err(e) = shared(library).unwrap().configure(hef.clone()) {
        assert_eq!(e.class, Class::DeviceLost);
    }
}

#[test]
fn a_chip_that_does_not_fit_is_not_tried_again() {
    let double = Double::new();
    let library = double.open();
    double.faults(r#"{"driver_mismatch": true}"#);
    let e = Chip::open(library, Owner::Process).err().unwrap();
    assert_eq!((e.class, e.text.as_str()), (Class::Configuration, "HAILO_INVALID_DRIVER_VERSION (76)"));
    double.faults(r#"{"architecture": "hailo8l"}"#);
    let hef = Arc::new(Hef::read(library, identity()).unwrap());
    let e = Arc::new(Chip::open(library, Owner::Process).unwrap()).configure(hef).err().unwrap();
    assert_eq!((e.class, e.text.as_str()), (Class::Network, "HAILO_HEF_NOT_COMPATIBLE_WITH_DEVICE (93)"));
    assert_eq!(double.misuse(), "");
}
