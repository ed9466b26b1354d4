//! Runtime, plan and context: owned C++ objects with safe doors where that is possible.

use crate::library::Library;
use crate::tables::{ContextTable, LoggerTable, Object, PlanTable, Public, RuntimeTable};
use crate::types::{DataType, Dims, IoMode, Location, Severity, TensorFormat};
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// Why TensorRT does not do what it is asked; each is one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrtError {
    #[error("TensorRT gives no runtime: {0}")]
    Runtime(String),
    #[error("TensorRT refuses the plan: {0}")]
    Plan(String),
    #[error("TensorRT gives no execution context: {0}")]
    Context(String),
    #[error("the plan's tensor {0} is not named in UTF-8 or says of itself what cannot be")]
    Tensor(String),
    #[error("the plan has {0} tensors, this program takes at most {MOST_TENSORS}")]
    Many(i32),
    #[error("TensorRT refuses {what} for tensor {name}: {why}")]
    Bind { name: String, what: &'static str, why: String },
    #[error("TensorRT did not run the plan: {0}")]
    Run(String),
}

/// Most inputs and outputs of a plan together.
const MOST_TENSORS: i32 = 64;
/// Most bytes of one message that are kept.
const WORDS: usize = 400;

/// Our `ILogger`: keeps the last error, passes nothing on. The table must be its first field.
#[repr(C)]
struct Logger {
    table: &'static LoggerTable,
    last: Mutex<Option<String>>,
}

static LOGGER: LoggerTable = LoggerTable { log, destroy: [ignore, ignore] };

unsafe extern "C" fn ignore(_: *mut c_void) {}

unsafe extern "C" fn log(this: *mut c_void, severity: i32, words: *const c_char) {
    if words.is_null() || !matches!(Severity::of(severity), Some(Severity::InternalError | Severity::Error)) {
        return;
    }
    // SAFETY: the library hands back the logger it was given, which outlives its runtime (`Runtime` owns both).
    let logger = unsafe { &*this.cast::<Logger>() };
    // SAFETY: the library gives a text that ends in a zero and lives during the call.
    let words = unsafe { CStr::from_ptr(words) }.to_string_lossy();
    let mut plain: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if plain.len() > WORDS {
        plain.truncate(plain.floor_char_boundary(WORDS));
    }
    *logger.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(plain);
}

impl Logger {
    /// The last error, taken.
    fn why(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.unwrap_or_else(|| "it does not say why".to_owned())
    }
}

/// An owned object of a public class, deleted when it is dropped.
struct Owned<T> {
    at: *mut Public<T>,
}

// SAFETY: TensorRT's objects are bound to no thread; which calls may be made at the same time is the owners' to see to.
unsafe impl<T> Send for Owned<T> {}

impl<T> Owned<T> {
    /// Takes a pointer a library gave; `None` for a null pointer, also one that a cast in the library moved away from zero
    /// (0x228 was seen).
    fn take(at: *mut Public<T>) -> Option<Self> {
        ((at as usize) >= 4096).then(|| Self { at })
    }

    fn work(&self) -> *mut Object<T> {
        // SAFETY: `at` is an object of the library, alive until `drop`.
        unsafe { (*self.at).work }
    }

    fn table(&self) -> &T {
        // SAFETY: the object that does the work lives as long as the public one, its table as long as the library.
        unsafe { &*(*self.work()).table }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and nobody else has it; `delete` is its class' deleting destructor.
        unsafe { ((*(*self.at).table).delete)(self.at.cast()) }
    }
}

/// Where work is queued: a `CUstream` of the current context.
#[derive(Clone, Copy, Debug)]
pub struct Stream(*mut c_void);

impl Stream {
    /// A stream of CUDA.
    ///
    /// # Safety
    /// It is one, and lives until the work that is queued in it is done.
    #[must_use]
    pub unsafe fn new(stream: *mut c_void) -> Self {
        Self(stream)
    }
}

/// `IRuntime`.
pub struct Runtime {
    // Dropped in this order: the runtime writes to the logger.
    object: Owned<RuntimeTable>,
    logger: Box<Logger>,
}

// SAFETY: every call of `object` is made with `&mut self`, and the logger's words are behind a lock.
unsafe impl Sync for Runtime {}

impl Runtime {
    /// Makes a runtime. CUDA must work: probe it first.
    ///
    /// # Errors
    /// [`TrtError::Runtime`] with what the library said.
    pub fn new(library: &Library) -> Result<Self, TrtError> {
        let logger = Box::new(Logger { table: &LOGGER, last: Mutex::new(None) });
        let address = (&raw const *logger).cast_mut().cast::<c_void>();
        // SAFETY: the logger begins with the table of an `ILogger` and lives as long as the runtime. The number is the
        // library's own: what we call is in every 10.
        let made = unsafe { (library.create)(address, library.number()) };
        match Owned::take(made.cast()) {
            Some(object) => Ok(Self { object, logger }),
            None => Err(TrtError::Runtime(logger.why())),
        }
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`TrtError::Plan`] with what the library said: it is damaged, for another version or another device.
    pub fn plan(mut self, bytes: &[u8]) -> Result<Plan, TrtError> {
        let work = self.object.work();
        // SAFETY: `this` is the runtime's; the bytes are only read during the call.
        let made = unsafe { (self.object.table().deserialize)(work, bytes.as_ptr().cast(), bytes.len()) };
        match Owned::take(made) {
            Some(object) => Ok(Plan { object: Mutex::new(object), runtime: Arc::new(self) }),
            None => Err(TrtError::Plan(self.said())),
        }
    }

    fn said(&mut self) -> String {
        self.logger.why()
    }
}

/// What a plan says of one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanTensor {
    /// Its name.
    pub name: CString,
    /// Input or output.
    pub mode: IoMode,
    /// Element type; `None` for one that is not known here.
    pub data_type: Option<DataType>,
    /// Dimensions, -1 where they are only known at run time.
    pub shape: Vec<i64>,
    /// Whether it is row-major device memory, the only kind that is bound here.
    pub plain: bool,
}

/// `ICudaEngine`: a plan that was read.
pub struct Plan {
    // Dropped in this order: the runtime outlives its plans.
    object: Mutex<Owned<PlanTable>>,
    runtime: Arc<Runtime>,
}

impl Plan {
    /// Its inputs and outputs, in the plan's order.
    ///
    /// # Errors
    /// [`TrtError::Tensor`], [`TrtError::Many`].
    pub fn tensors(&self) -> Result<Vec<PlanTensor>, TrtError> {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner);
        let (this, table) = (object.work().cast_const(), object.table());
        // SAFETY: `this` is the plan's, alive and locked.
        let count = unsafe { (table.tensors)(this) };
        if count > MOST_TENSORS {
            return Err(TrtError::Many(count));
        }
        let mut tensors = Vec::new();
        for index in 0..count {
            // SAFETY: as above; the index is below the count.
            let at = unsafe { (table.name)(this, index) };
            if at.is_null() {
                return Err(TrtError::Tensor(format!("number {index}")));
            }
            // SAFETY: names are texts of the plan that end in a zero and live with it.
            let name = unsafe { CStr::from_ptr(at) };
            let fail = || TrtError::Tensor(name.to_string_lossy().into_owned());
            let at = name.as_ptr();
            // SAFETY: as above.
            let (mode, data_type) = unsafe { ((table.mode)(this, at), (table.data_type)(this, at)) };
            // SAFETY: as above.
            let (location, format) = unsafe { ((table.location)(this, at), (table.format)(this, at)) };
            // SAFETY: as above.
            let shape = unsafe { (table.shape)(this, at) };
            name.to_str().map_err(|_| fail())?;
            tensors.push(PlanTensor {
                mode: IoMode::of(mode).filter(|m| *m != IoMode::None).ok_or_else(fail)?,
                data_type: DataType::of(data_type),
                shape: shape.shape().ok_or_else(fail)?.to_vec(),
                plain: Location::of(location) == Some(Location::Device)
                    && TensorFormat::of(format) == Some(TensorFormat::Linear),
                name: name.to_owned(),
            });
        }
        Ok(tensors)
    }

    /// Bytes of device memory that one context needs for its activations.
    #[must_use]
    pub fn context_memory(&self) -> usize {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `this` is the plan's, alive and locked.
        unsafe { (object.table().memory)(object.work().cast_const()) }
    }

    /// Makes a context: one for each thread that runs the plan.
    ///
    /// # Errors
    /// [`TrtError::Context`] with what the library said: usually too little device memory.
    pub fn context(self: &Arc<Self>) -> Result<Context, TrtError> {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `this` is the plan's, alive and locked; 0 is `ExecutionContextAllocationStrategy::kSTATIC`.
        let made = unsafe { (object.table().create_context)(object.work(), 0) };
        match Owned::take(made) {
            Some(object) => Ok(Context { object, plan: self.clone() }),
            None => Err(TrtError::Context(self.runtime.logger.why())),
        }
    }
}

/// `IExecutionContext`: what one thread runs a plan with.
pub struct Context {
    // Dropped in this order: the plan outlives its contexts.
    object: Owned<ContextTable>,
    plan: Arc<Plan>,
}

impl Context {
    fn why(&self) -> String {
        self.plan.runtime.logger.why()
    }

    fn refused(&self, name: &CStr, what: &'static str) -> TrtError {
        TrtError::Bind { name: name.to_string_lossy().into_owned(), what, why: self.why() }
    }

    /// Says what shape an input has.
    ///
    /// # Errors
    /// [`TrtError::Bind`]: the plan was not built for it.
    pub fn set_shape(&mut self, name: &CStr, shape: &Dims) -> Result<(), TrtError> {
        // SAFETY: `this` is the context's; name and shape are only read during the call.
        let taken = unsafe { (self.object.table().set_shape)(self.object.work(), name.as_ptr(), shape) };
        if taken { Ok(()) } else { Err(self.refused(name, "the shape")) }
    }

    /// The shape of a tensor with the input shapes that were set.
    #[must_use]
    pub fn shape(&self, name: &CStr) -> Dims {
        // SAFETY: `this` is the context's; the name is only read during the call.
        unsafe { (self.object.table().shape)(self.object.work().cast_const(), name.as_ptr()) }
    }

    /// Says where a tensor lies in device memory.
    ///
    /// # Safety
    /// `address` is device memory large enough for the tensor, and stays until the context is dropped or another is set.
    ///
    /// # Errors
    /// [`TrtError::Bind`].
    pub unsafe fn set_address(&mut self, name: &CStr, address: *mut c_void) -> Result<(), TrtError> {
        // SAFETY: `this` is the context's; the caller answers for the address.
        let taken = unsafe { (self.object.table().set_address)(self.object.work(), name.as_ptr(), address) };
        if taken { Ok(()) } else { Err(self.refused(name, "the address")) }
    }

    /// Queues one run in a stream. It is done when the stream is synchronised.
    ///
    /// # Errors
    /// [`TrtError::Run`] with what the library said.
    pub fn enqueue(&mut self, stream: Stream) -> Result<(), TrtError> {
        // SAFETY: `this` is the context's, which no other thread has; who made the stream answers for it.
        let queued = unsafe { (self.object.table().enqueue)(self.object.work(), stream.0) };
        if queued { Ok(()) } else { Err(TrtError::Run(self.why())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_pointer_that_was_moved_is_still_none() {
        for at in [0usize, 8, 0x228, 4095] {
            assert!(Owned::<RuntimeTable>::take(at as *mut _).is_none(), "{at:#x}");
        }
    }

    #[test]
    fn only_errors_are_kept_short_and_on_one_line() {
        let logger = Logger { table: &LOGGER, last: Mutex::new(None) };
        let this = (&raw const logger).cast_mut().cast();
        let say = |severity: Severity, words: &str| {
            let words = CString::new(words).unwrap();
            // SAFETY: a logger and a text, both alive.
            unsafe { (logger.table.log)(this, severity as i32, words.as_ptr()) };
        };
        say(Severity::Warning, "a warning");
        assert_eq!(logger.why(), "it does not say why");
        say(Severity::Error, "one\ntwo");
        say(Severity::Info, "progress");
        assert_eq!(logger.why(), "one two");
        say(Severity::InternalError, &"ä".repeat(1000));
        assert_eq!(logger.why(), "ä".repeat(WORDS / 2));
    }
}
