//! A libonnxruntime with the providers of TensorRT and CUDA, without a GPU: the real library behind it computes, and this plays what a
//! provider does beside computing: it can be had or not, takes a network or leaves it to the CPU, builds plans and reads them back.
//!
//! The real library is the file `real.so` beside this one. Its table of functions (`OrtApi`) is passed on with a few entries replaced,
//! so everything else is real, the check of `session.disable_cpu_ep_fallback` included.
//!
//! What the providers do is read from the file `providers` beside this object whenever one is registered, a `name=value` on each line:
//!
//! | line | what happens |
//! |---|---|
//! | nothing of a provider | it cannot be registered, in the real one's words |
//! | `tensorrt=works`, `cuda=works` | it takes the whole network |
//! | `tensorrt=silent`, `cuda=silent` | it can be registered and takes nothing: the network is left to the CPU |
//! | `build=hang` | a plan that is being built is half written for as long as that is there |
//! | `build=fail` | a plan cannot be built |
//! | `start=socket` | the library opens a connection as soon as it is asked for anything |
//!
//! TensorRT's plans go to where the client wants them kept (`double.engine`); each begun build is a line in the file `builds` beside this
//! object. Reading back a plan that is not ours is an error, as it is of TensorRT.

use ort_sys::{
    ORT_API_VERSION, OrtApi, OrtApiBase, OrtCUDAProviderOptionsV2, OrtEnv, OrtErrorCode, OrtSession,
    OrtSessionOptions, OrtStatusPtr, OrtTensorRTProviderOptionsV2,
};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// What a whole plan is.
const PLAN: &[u8] = b"a plan of the double, whole";
/// What the client says so that the CPU takes over nothing.
const NO_FALLBACK: &CStr = c"session.disable_cpu_ep_fallback";

/// What is registered in a session's options.
#[derive(Default)]
struct Registered {
    /// A provider takes the whole network.
    works: bool,
    /// Where TensorRT keeps its plan.
    kept: Option<PathBuf>,
}

/// By the address of the options.
static REGISTERED: Mutex<BTreeMap<usize, Registered>> = Mutex::new(BTreeMap::new());

fn registered() -> MutexGuard<'static, BTreeMap<usize, Registered>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

// ------------------------------------------------------------------------------------------------- the real library

struct Real {
    base: &'static OrtApiBase,
    api: &'static OrtApi,
    ours: OrtApi,
}

// SAFETY: tables of functions that may be called from any thread.
unsafe impl Sync for Real {}
// SAFETY: the same.
unsafe impl Send for Real {}

fn real() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    REAL.get_or_init(|| {
        let path = home().join("real.so");
        // SAFETY: a libonnxruntime that the test has put there.
        let library =
            unsafe { libloading::Library::new(&path) }.expect("the real library is beside this one");
        // SAFETY: every libonnxruntime declares it so.
        let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0") };
        let base = *base.expect("the real library is a libonnxruntime");
        // SAFETY: it takes nothing and gives a static, and the library is never unloaded.
        let base: &'static OrtApiBase = unsafe { &*base() };
        std::mem::forget(library);
        // SAFETY: the version that the table's type is of; a newer library's table begins with it.
        let api: &'static OrtApi = unsafe { &*(base.GetApi)(ORT_API_VERSION) };
        // SAFETY: a table of functions is bytes.
        let ours: OrtApi = unsafe { std::ptr::read(api) };
        let ours = OrtApi {
            GetAvailableProviders: available,
            ReleaseAvailableProviders: release_available,
            CreateTensorRTProviderOptions: create,
            UpdateTensorRTProviderOptions: update,
            ReleaseTensorRTProviderOptions: release,
            SessionOptionsAppendExecutionProvider_TensorRT_V2: append_tensorrt,
            CreateCUDAProviderOptions: create,
            UpdateCUDAProviderOptions: update,
            ReleaseCUDAProviderOptions: release,
            SessionOptionsAppendExecutionProvider_CUDA_V2: append_cuda,
            AddSessionConfigEntry: add_entry,
            CreateSessionFromArray: create_session,
            ReleaseSessionOptions: release_options,
            ..ours
        };
        Real { base, api, ours }
    })
}

fn no(why: &str) -> OrtStatusPtr {
    let why = CString::new(why).unwrap_or_default();
    // SAFETY: the text is copied.
    unsafe { (real().api.CreateStatus)(OrtErrorCode::ORT_FAIL, why.as_ptr()) }
}

const WELL: OrtStatusPtr = OrtStatusPtr(std::ptr::null_mut());

#[unsafe(no_mangle)]
extern "C" fn OrtGetApiBase() -> *const OrtApiBase {
    static BASE: OnceLock<OrtApiBase> = OnceLock::new();
    if told("start").as_deref() == Some("socket") {
        // What its maker's own does with its events: who it is to is no matter.
        let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    }
    BASE.get_or_init(|| OrtApiBase { GetApi: api, GetVersionString: real().base.GetVersionString })
}

unsafe extern "system" fn api(version: u32) -> *const OrtApi {
    if version == ORT_API_VERSION { &raw const real().ours } else { std::ptr::null() }
}

// ---------------------------------------------------------------------------------------------------- the providers

unsafe extern "system" fn available(names: *mut *mut *mut c_char, count: *mut c_int) -> OrtStatusPtr {
    let all = [c"TensorrtExecutionProvider", c"CUDAExecutionProvider", c"CPUExecutionProvider"];
    // Asked for some times in a process, and never freed.
    let list: &'static mut [*mut c_char] = Box::leak(Box::new(all.map(|name| name.as_ptr().cast_mut())));
    // SAFETY: the caller's variables.
    unsafe {
        *names = list.as_mut_ptr();
        *count = 3;
    }
    WELL
}

unsafe extern "system" fn release_available(_: *mut *mut c_char, _: c_int) -> OrtStatusPtr {
    WELL
}

type Options = BTreeMap<String, String>;

unsafe extern "system" fn create<T>(out: *mut *mut T) -> OrtStatusPtr {
    // SAFETY: the caller's variable; what it points to is ours alone.
    unsafe { *out = Box::into_raw(Box::new(Options::new())).cast() };
    WELL
}

unsafe extern "system" fn update<T>(
    options: *mut T,
    keys: *const *const c_char,
    values: *const *const c_char,
    count: usize,
) -> OrtStatusPtr {
    for i in 0..count {
        // SAFETY: two lists of `count` C strings, and options that `create` made.
        unsafe {
            let text =
                |list: *const *const c_char| CStr::from_ptr(*list.add(i)).to_string_lossy().into_owned();
            (*options.cast::<Options>()).insert(text(keys), text(values));
        }
    }
    WELL
}

unsafe extern "system" fn release<T>(options: *mut T) {
    if !options.is_null() {
        // SAFETY: `create` made them, and the caller gives them back once.
        drop(unsafe { Box::from_raw(options.cast::<Options>()) });
    }
}

fn append(to: *mut OrtSessionOptions, name: &str, options: &Options) -> OrtStatusPtr {
    match told(name).as_deref() {
        Some("works") => {}
        Some("silent") => return WELL,
        _ => {
            return no(&format!(
                "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2167 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_{name}.so with error: libcublas.so.12: cannot open shared object file: No such file or directory"
            ));
        }
    }
    let mut registered = registered();
    let here = registered.entry(to as usize).or_default();
    here.works = true;
    if options.get("trt_engine_cache_enable").is_some_and(|on| ["1", "true", "True"].contains(&on.as_str())) {
        here.kept = options.get("trt_engine_cache_path").map(PathBuf::from);
    }
    WELL
}

unsafe extern "system" fn append_tensorrt(
    to: *mut OrtSessionOptions,
    options: *const OrtTensorRTProviderOptionsV2,
) -> OrtStatusPtr {
    // SAFETY: `create` made them.
    append(to, "tensorrt", unsafe { &*options.cast::<Options>() })
}

unsafe extern "system" fn append_cuda(
    to: *mut OrtSessionOptions,
    options: *const OrtCUDAProviderOptionsV2,
) -> OrtStatusPtr {
    // SAFETY: `create` made them.
    append(to, "cuda", unsafe { &*options.cast::<Options>() })
}

// ----------------------------------------------------------------------------------------------------------- sessions

unsafe extern "system" fn add_entry(
    options: *mut OrtSessionOptions,
    key: *const c_char,
    value: *const c_char,
) -> OrtStatusPtr {
    // SAFETY: a C string.
    let key_is = unsafe { CStr::from_ptr(key) };
    // The real library does not know that a provider has the network: it would refuse its own CPU.
    if key_is == NO_FALLBACK && registered().get(&(options as usize)).is_some_and(|r| r.works) {
        return WELL;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().api.AddSessionConfigEntry)(options, key, value) }
}

unsafe extern "system" fn release_options(options: *mut OrtSessionOptions) {
    registered().remove(&(options as usize));
    // SAFETY: passed on as it came.
    unsafe { (real().api.ReleaseSessionOptions)(options) }
}

unsafe extern "system" fn create_session(
    env: *const OrtEnv,
    data: *const c_void,
    length: usize,
    options: *const OrtSessionOptions,
    out: *mut *mut OrtSession,
) -> OrtStatusPtr {
    let kept = registered().get(&(options as usize)).and_then(|r| r.kept.clone());
    if let Some(Err(why)) = kept.map(|folder| plan(&folder)) {
        return no(&why);
    }
    // SAFETY: passed on as it came.
    unsafe { (real().api.CreateSessionFromArray)(env, data, length, options, out) }
}

/// Reads the plan in a folder, or builds it there.
fn plan(folder: &Path) -> Result<(), String> {
    let file = folder.join("double.engine");
    if let Ok(plan) = std::fs::read(&file) {
        let why = "TensorRT EP could not deserialize engine from cache: ";
        return if plan == PLAN { Ok(()) } else { Err(format!("{why}{}", file.display())) };
    }
    let text = |e: std::io::Error| format!("TensorRT EP could not call engine->serialize: {e}");
    let builds = std::fs::File::options().append(true).create(true).open(home().join("builds"));
    builds.and_then(|mut builds| builds.write_all(b"begun\n")).map_err(text)?;
    let mut new = std::fs::File::create(&file).map_err(text)?;
    let (half, rest) = PLAN.split_at(PLAN.len() / 2);
    new.write_all(half).map_err(text)?;
    loop {
        match told("build").as_deref() {
            Some("hang") => std::thread::sleep(Duration::from_millis(5)),
            Some(_) => return Err("TensorRT EP failed to create engine from network.".to_owned()),
            None => break,
        }
    }
    new.write_all(rest).map_err(text)
}

/// What the file says of something now.
fn told(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(home().join("providers")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim().to_owned()))
}

/// The folder that this shared object was loaded from.
fn home() -> PathBuf {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of this object's; `info` is written during the call.
    let found = unsafe { libc::dladdr(home as fn() -> PathBuf as *const c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return PathBuf::new();
    }
    // SAFETY: the linker's name of a loaded object, which stays.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    PathBuf::from(name.to_string_lossy().into_owned()).parent().map(PathBuf::from).unwrap_or_default()
}
