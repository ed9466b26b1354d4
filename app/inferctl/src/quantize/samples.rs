//! Samples of a model's inputs, read from whatever people have and checked before anything else is done: `.npz`, `.npy`, `.safetensors`,
//! `.json`, `.ndjson`, or a folder of them. Nothing of a file is trusted: sizes are bounded, and every number is finite.
//!
//! A part of them is **held out**: every fourth, by its place. What a variant lost is judged on those (and on the golden vectors), never
//! on samples that its ranges were made of. The same data gives the same parts.

use crate::fail::Failure;
use inferd_model::{DType, Golden, TensorSpec};
use safetensors::{Dtype as StDtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The most samples.
const MOST_SAMPLES: usize = 4096;
/// The most bytes, of a file and of all samples.
const MOST_BYTES: u64 = 1 << 30;
/// One of so many is held out.
const HELD_OUT: usize = 4;
/// The largest magic and head of a `.npy` file that is read.
const MOST_HEAD: usize = 1 << 16;

/// One array of a file: its numbers in C order, little-endian.
struct Array {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// All samples that were found, in their order.
pub struct Samples<'m> {
    specs: &'m [TensorSpec],
    /// Of each sample the bytes of each input.
    rows: Vec<Vec<Vec<u8>>>,
    /// What each sample is, where the data says so.
    pub labels: Vec<Option<i64>>,
    bytes: u64,
    digest: Sha256,
    /// They are the golden vectors, on which everything is judged anyway.
    golden: bool,
}

/// `{message} ({kind})`: the second for programs.
fn bad(kind: &str, message: impl std::fmt::Display) -> Failure {
    Failure::Other(format!("{message} ({kind})"))
}

impl<'m> Samples<'m> {
    fn none(specs: &'m [TensorSpec]) -> Self {
        Self { specs, rows: Vec::new(), labels: Vec::new(), bytes: 0, digest: Sha256::new(), golden: false }
    }

    /// The inputs of golden vectors.
    pub fn golden(specs: &'m [TensorSpec], golden: &Golden) -> Self {
        let mut all = Self { golden: true, ..Self::none(specs) };
        for case in golden.cases() {
            case.inputs.iter().for_each(|bytes| all.digest.update(bytes));
            all.rows.push(case.inputs.clone());
            all.labels.push(None);
        }
        all
    }

    /// Everything in a file, or in the files of a folder, by name.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file it is in.
    pub fn read(path: &Path, specs: &'m [TensorSpec]) -> Result<Self, Failure> {
        let file = |e: std::io::Error| bad("file", format!("{}: {e}", path.display()));
        let mut all = Self::none(specs);
        let mut files = Vec::new();
        if std::fs::metadata(path).map_err(file)?.is_dir() {
            find(path, &mut files).map_err(file)?;
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        for path in files {
            all.file(&path)?;
        }
        if all.rows.is_empty() {
            return Err(bad("empty", format!("{}: there is no calibration data in it", path.display())));
        }
        Ok(all)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The places of those that are held out; none of fewer than two, and none of golden vectors.
    pub fn held_out(&self) -> Vec<usize> {
        if self.golden {
            return Vec::new();
        }
        let most = self.len().saturating_sub(1);
        let every = (HELD_OUT - 1..self.len()).step_by(HELD_OUT);
        if self.len() < HELD_OUT { (most.max(1)..self.len()).collect() } else { every.collect() }
    }

    /// SHA-256 of all of them.
    pub fn sha256(&self) -> String {
        self.digest.clone().finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// As one file: an array `[samples, ..]` for each input.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, Failure> {
        let no = |e: safetensors::SafeTensorError| bad("format", e);
        let joined: Vec<Vec<u8>> = (0..self.specs.len())
            .map(|i| self.rows.iter().flat_map(|row| row[i].iter().copied()).collect())
            .collect();
        let mut tensors = BTreeMap::new();
        for (spec, bytes) in self.specs.iter().zip(&joined) {
            let dtype = st_dtype(spec.dtype).ok_or_else(|| no_such_type(spec))?;
            let shape = std::iter::once(self.len()).chain(shape_of(spec)).collect();
            tensors.insert(spec.name.as_str(), TensorView::new(dtype, shape, bytes).map_err(no)?);
        }
        safetensors::serialize(tensors, None).map_err(no)
    }

    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let reader = READERS.iter().find(|(ending, _)| path.extension().is_some_and(|e| e == *ending));
        let Some((_, reader)) = reader else {
            let known: Vec<String> = READERS.iter().map(|(e, _)| format!(".{e}")).collect();
            let known = known.join(", ");
            return Err(bad(
                "format",
                format!("{name}: calibration data are files of {known}, or a folder of them"),
            ));
        };
        let file = |e: std::io::Error| bad("file", format!("{}: {e}", path.display()));
        let mut bytes = Vec::new();
        // Opening a named pipe would wait for somebody to write into it.
        if !std::fs::metadata(path).map_err(file)?.is_file() {
            return Err(file(std::io::Error::other("is not a regular file")));
        }
        let opened = std::fs::File::open(path).map_err(file)?;
        opened.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(file)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(too_much(&name));
        }
        reader(self, &name, &bytes)
    }

    /// Adds the samples of one file: an array for each input, all with as many samples.
    fn add(
        &mut self,
        source: &str,
        mut arrays: BTreeMap<String, Array>,
        labels: Option<Vec<i64>>,
    ) -> Result<(), Failure> {
        let mut columns: Vec<Vec<u8>> = Vec::new();
        let mut counts = Vec::new();
        for spec in self.specs {
            let Some(array) = arrays.remove(&spec.name) else {
                let there: Vec<&str> = arrays.keys().map(String::as_str).collect();
                let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
                return Err(bad("shape", format!("{source}: has no input '{}', but {there}", spec.name)));
            };
            counts.push(count_of(source, spec, &array)?);
            columns.push(array.bytes);
        }
        let count = counts.first().copied().unwrap_or_default();
        if counts.iter().any(|c| *c != count) {
            return Err(bad(
                "shape",
                format!("{source}: its inputs have different numbers of samples: {counts:?}"),
            ));
        }
        if let Some(labels) = labels.as_ref().filter(|l| l.len() != count) {
            return Err(bad("shape", format!("{source}: {} labels for {count} samples", labels.len())));
        }
        self.bytes += columns.iter().map(|c| c.len() as u64).sum::<u64>();
        if self.len() + count > MOST_SAMPLES || self.bytes > MOST_BYTES {
            return Err(too_much(source));
        }
        for i in 0..count {
            let slice = |(spec, column): (&TensorSpec, &Vec<u8>)| {
                column[i * spec.byte_len()..(i + 1) * spec.byte_len()].to_vec()
            };
            let row: Vec<Vec<u8>> = self.specs.iter().zip(&columns).map(slice).collect();
            row.iter().for_each(|bytes| self.digest.update(bytes));
            self.rows.push(row);
            self.labels.push(labels.as_ref().map(|l| l[i]));
        }
        Ok(())
    }
}

fn too_much(source: &str) -> Failure {
    let mib = MOST_BYTES >> 20;
    bad(
        "too-large",
        format!("{source}: more than {MOST_SAMPLES} samples and {mib} MiB of calibration data are not read"),
    )
}

fn unreadable(name: &str, why: impl std::fmt::Display) -> Failure {
    bad("format", format!("{name} cannot be read: {why}"))
}

fn no_such_type(spec: &TensorSpec) -> Failure {
    bad("dtype", format!("inputs of {} cannot be quantised: Python has no such type", spec.dtype))
}

fn shape_of(spec: &TensorSpec) -> impl Iterator<Item = usize> {
    spec.shape.iter().map(|&d| d as usize)
}

/// How many samples an array has; its type, shape and numbers are those of the input.
fn count_of(source: &str, spec: &TensorSpec, array: &Array) -> Result<usize, Failure> {
    let input = format!("{source}: input '{}'", spec.name);
    if array.dtype != spec.dtype {
        let (is, takes) = (python_name(array.dtype), python_name(spec.dtype));
        return Err(bad("dtype", format!("{input} is {is}, the model takes {takes}")));
    }
    if !finite(array.dtype, &array.bytes) {
        return Err(bad("not-finite", format!("{input} has values that are not finite")));
    }
    let want: Vec<usize> = shape_of(spec).collect();
    let short = (want.first() == Some(&1)).then(|| &want[1..]);
    let fits = |shape: &[usize]| shape == want || short == Some(shape);
    if fits(&array.shape) {
        return Ok(1);
    }
    match array.shape.split_first() {
        Some((count, rest)) if fits(rest) => Ok(*count),
        _ => Err(bad(
            "shape",
            format!("{input} has shape {:?}; the model takes {want:?}, or that many times", array.shape),
        )),
    }
}

fn finite(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::Fp16 => bytes.as_chunks::<2>().0.iter().all(|b| half::f16::from_le_bytes(*b).is_finite()),
        DType::Fp32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        DType::Fp64 => bytes.as_chunks::<8>().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        _ => true,
    }
}

/// Files below a folder that can be read.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, found)?;
        } else if READERS.iter().any(|(ending, _)| path.extension().is_some_and(|e| e == *ending)) {
            found.push(path);
        }
    }
    Ok(())
}

type Reader = fn(&mut Samples<'_>, &str, &[u8]) -> Result<(), Failure>;
const READERS: [(&str, Reader); 6] = [
    ("json", read_json),
    ("jsonl", read_ndjson),
    ("ndjson", read_ndjson),
    ("npy", read_npy),
    ("npz", read_npz),
    ("safetensors", read_safetensors),
];

fn read_npy(all: &mut Samples<'_>, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let [spec] = all.specs else {
        let said = format!("{name}: the model has {} inputs; name them in an .npz file", all.specs.len());
        return Err(bad("format", said));
    };
    let array = npy(bytes).map_err(|e| unreadable(name, e))?;
    all.add(name, BTreeMap::from([(spec.name.clone(), array)]), None)
}

fn read_npz(all: &mut Samples<'_>, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let mut arrays = BTreeMap::new();
    for (member, content) in unzip(bytes).map_err(|e| unreadable(name, e))? {
        let member = member.strip_suffix(".npy").unwrap_or(&member).to_owned();
        arrays.insert(member, npy(&content).map_err(|e| unreadable(name, e))?);
    }
    let labels = match arrays.remove("labels") {
        Some(array) => {
            Some(whole_numbers(&array).ok_or_else(|| unreadable(name, "labels are whole numbers"))?)
        }
        None => None,
    };
    all.add(name, arrays, labels)
}

fn read_safetensors(all: &mut Samples<'_>, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| unreadable(name, e))?;
    let mut arrays = BTreeMap::new();
    for (tensor, view) in file.tensors() {
        let Some(dtype) = DTYPES.iter().find(|(_, st, _)| *st == view.dtype()).map(|(d, ..)| *d) else {
            return Err(unreadable(name, format!("{tensor} is {:?}", view.dtype())));
        };
        arrays.insert(tensor, Array { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() });
    }
    // Golden vectors: case by case.
    let mut cases: Vec<String> =
        arrays.keys().filter_map(|n| Some(n.split_once("/in/")?.0.to_owned())).collect();
    cases.sort_by_key(|c| (c.len(), c.clone()));
    cases.dedup();
    for case in &cases {
        let head = format!("{case}/in/");
        let names: Vec<String> = arrays.keys().filter(|n| n.starts_with(&head)).cloned().collect();
        let one = names.iter().filter_map(|n| Some((n[head.len()..].to_owned(), arrays.remove(n)?)));
        all.add(name, one.collect(), None)?;
    }
    if !cases.is_empty() {
        return Ok(());
    }
    // A captured window.
    if let [spec] = all.specs
        && !arrays.contains_key(&spec.name)
        && let Some(window) = arrays.remove("input")
    {
        arrays.insert(spec.name.clone(), window);
    }
    all.add(name, arrays, None)
}

fn read_json(all: &mut Samples<'_>, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let content: Value = serde_json::from_slice(bytes).map_err(|e| unreadable(name, e))?;
    let windows = if let Value::Array(windows) = content { windows } else { vec![content] };
    windows
        .iter()
        .enumerate()
        .try_for_each(|(i, window)| all.window(&format!("{name}, window {i}"), name, window))
}

fn read_ndjson(all: &mut Samples<'_>, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, l)| !l.trim_ascii().is_empty()) {
        let window: Value = serde_json::from_slice(line).map_err(|e| unreadable(name, e))?;
        all.window(&format!("{name}, line {}", i + 1), name, &window)?;
    }
    Ok(())
}

impl Samples<'_> {
    /// One window: `{"x": rows}`, as /infer takes it, or a capture with `{"input", "shape"}`, or `{NAME: numbers}`.
    fn window(&mut self, source: &str, file: &str, window: &Value) -> Result<(), Failure> {
        let Value::Object(window) = window else {
            return Err(bad("format", format!("{source}: a window is a JSON object")));
        };
        let mut arrays = BTreeMap::new();
        for spec in self.specs {
            let alone = self.specs.len() == 1;
            let names = [spec.name.as_str(), "x", "input"];
            let found = names.into_iter().take(if alone { 3 } else { 1 }).find(|n| window.contains_key(*n));
            let Some(name) = found else { continue };
            let (mut shape, mut numbers) = (Vec::new(), Vec::new());
            flatten(&window[name], 0, &mut shape, &mut numbers)
                .map_err(|e| unreadable(file, format!("{name:?} {e}")))?;
            if name == "input"
                && let Some(said) = window.get("shape")
            {
                let said: Option<Vec<usize>> = serde_json::from_value(said.clone()).ok();
                let said = said
                    .filter(|s| s.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)) == Some(numbers.len()));
                shape = said.ok_or_else(|| unreadable(file, "its shape is not that of its numbers"))?;
            }
            let bytes = numbers.iter().map(|n| encode(spec.dtype, n)).collect::<Option<Vec<_>>>();
            let bytes = bytes.ok_or_else(|| {
                bad("shape", format!("{source}: {name:?} is no array of numbers of type {}", spec.dtype))
            })?;
            arrays.insert(spec.name.clone(), Array { dtype: spec.dtype, shape, bytes: bytes.concat() });
        }
        let label = match window.get("label") {
            None | Some(Value::Null) => None,
            Some(label) => {
                Some(vec![label.as_i64().ok_or_else(|| unreadable(file, "a label is a whole number"))?])
            }
        };
        self.add(source, arrays, label)
    }
}

/// The numbers of nested lists, all of one shape.
fn flatten<'v>(
    value: &'v Value,
    depth: usize,
    shape: &mut Vec<usize>,
    numbers: &mut Vec<&'v Value>,
) -> Result<(), &'static str> {
    let Value::Array(items) = value else {
        numbers.push(value);
        return if depth == shape.len() { Ok(()) } else { Err("has rows of different lengths") };
    };
    if depth == shape.len() && numbers.is_empty() {
        shape.push(items.len());
    }
    if shape.get(depth) != Some(&items.len()) || depth > 8 {
        return Err("has rows of different lengths");
    }
    items.iter().try_for_each(|item| flatten(item, depth + 1, shape, numbers))
}

/// A number of JSON as an element; `None` for what is none, or does not fit.
fn encode(dtype: DType, value: &Value) -> Option<Vec<u8>> {
    macro_rules! whole {
        ($t:ty) => {
            <$t>::try_from(value.as_i64().map(i128::from).or(value.as_u64().map(i128::from))?)
                .ok()?
                .to_le_bytes()
                .to_vec()
        };
    }
    #[allow(clippy::cast_possible_truncation)]
    // what is too large for an FP32 becomes infinite, and is refused as that
    Some(match dtype {
        DType::Bool => vec![value.as_bool().or(Some(value.as_i64()? != 0)).map(u8::from)?],
        DType::Uint8 => whole!(u8),
        DType::Uint16 => whole!(u16),
        DType::Uint32 => whole!(u32),
        DType::Uint64 => whole!(u64),
        DType::Int8 => whole!(i8),
        DType::Int16 => whole!(i16),
        DType::Int32 => whole!(i32),
        DType::Int64 => whole!(i64),
        DType::Fp16 => half::f16::from_f64(value.as_f64()?).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f64(value.as_f64()?).to_le_bytes().to_vec(),
        DType::Fp32 => (value.as_f64()? as f32).to_le_bytes().to_vec(),
        DType::Fp64 => value.as_f64()?.to_le_bytes().to_vec(),
    })
}

/// Element types: ours, that of safetensors, and how numpy writes and calls it.
const DTYPES: [(DType, StDtype, (&str, &str)); 12] = [
    (DType::Bool, StDtype::BOOL, ("|b1", "bool")),
    (DType::Uint8, StDtype::U8, ("|u1", "uint8")),
    (DType::Uint16, StDtype::U16, ("<u2", "uint16")),
    (DType::Uint32, StDtype::U32, ("<u4", "uint32")),
    (DType::Uint64, StDtype::U64, ("<u8", "uint64")),
    (DType::Int8, StDtype::I8, ("|i1", "int8")),
    (DType::Int16, StDtype::I16, ("<i2", "int16")),
    (DType::Int32, StDtype::I32, ("<i4", "int32")),
    (DType::Int64, StDtype::I64, ("<i8", "int64")),
    (DType::Fp16, StDtype::F16, ("<f2", "float16")),
    (DType::Fp32, StDtype::F32, ("<f4", "float32")),
    (DType::Fp64, StDtype::F64, ("<f8", "float64")),
];

fn st_dtype(dtype: DType) -> Option<StDtype> {
    DTYPES.iter().find(|(d, ..)| *d == dtype).map(|(_, st, _)| *st)
}

fn python_name(dtype: DType) -> &'static str {
    DTYPES.iter().find(|(d, ..)| *d == dtype).map_or("bfloat16", |(.., (_, name))| name)
}

fn whole_numbers(array: &Array) -> Option<Vec<i64>> {
    let values = array.bytes.chunks_exact(array.dtype.size());
    let one = |b: &[u8]| {
        // Sign or zeros up to 8 bytes.
        let negative = matches!(array.dtype, DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64)
            && b.last().is_some_and(|b| *b >= 128);
        let mut whole = [if negative { 255 } else { 0 }; 8];
        whole[..b.len()].copy_from_slice(b);
        i64::from_le_bytes(whole)
    };
    (!array.dtype.is_float() && array.shape.len() == 1).then(|| values.map(one).collect())
}

/// A `.npy` file: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
fn npy(file: &[u8]) -> Result<Array, String> {
    let cut = || "it is cut short".to_owned();
    let rest = file.strip_prefix(b"\x93NUMPY").ok_or("it is no array of numpy")?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(cut)?;
    let (len, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(n, r)| (usize::from(u16::from_le_bytes(*n)), r)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(n, r)| (u32::from_le_bytes(*n) as usize, r)),
        other => return Err(format!("its form is {other}, known are 1 to 3")),
    }
    .ok_or_else(cut)?;
    let (head, data) = rest.split_at_checked(len.min(MOST_HEAD)).ok_or_else(cut)?;
    let head = std::str::from_utf8(head).map_err(|e| e.to_string())?;
    let after = |key: &str| {
        let at = head.find(&format!("'{key}':"))?;
        Some(head[at + key.len() + 3..].trim_start())
    };
    let descr =
        after("descr").and_then(|t| t.strip_prefix('\'')?.split('\'').next()).ok_or("it holds records")?;
    let known = DTYPES.iter().find(|(.., (written, _))| *written == descr);
    let dtype = known.map(|(d, ..)| *d).ok_or_else(|| format!("its elements are {descr:?}"))?;
    let shape =
        after("shape").and_then(|t| t.strip_prefix('(')?.split(')').next()).ok_or("it has no shape")?;
    let shape: Result<Vec<usize>, _> =
        shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse).collect();
    let shape = shape.map_err(|e| e.to_string())?;
    let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    let wanted = elements.and_then(|n| n.checked_mul(dtype.size())).ok_or("its shape is too large")?;
    if data.len() != wanted {
        return Err(format!("it has {} bytes of numbers, its shape {shape:?} needs {wanted}", data.len()));
    }
    let columns_first = after("fortran_order").is_some_and(|t| t.starts_with("True"));
    let bytes = if columns_first { rows_first(data, &shape, dtype.size()) } else { data.to_vec() };
    Ok(Array { dtype, shape, bytes })
}

/// From Fortran's order of elements to C's.
fn rows_first(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..data.len() / size {
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, d)| at * d + i);
        out.extend_from_slice(&data[at * size..(at + 1) * size]);
        for (i, d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// The members of a ZIP archive as numpy writes it: stored or deflated, their sizes in the central directory.
/// <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>
fn unzip(file: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let cut = || "the archive is damaged".to_owned();
    let at = |from: usize, n: usize| file.get(from..from.checked_add(n)?);
    let two = |from| at(from, 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let four = |from| at(from, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let end = file.windows(4).rposition(|w| w == b"PK\x05\x06").ok_or_else(cut)?;
    let read = || {
        let (count, mut entry) = (two(end + 10)?, four(end + 16)? as usize);
        let mut members = Vec::new();
        for _ in 0..count {
            at(entry, 4).filter(|m| *m == b"PK\x01\x02")?;
            let (method, crc) = (two(entry + 10)?, four(entry + 16)?);
            let (packed, plain) = (four(entry + 20)? as usize, four(entry + 24)? as usize);
            let (name, extra, comment) = (two(entry + 28)?, two(entry + 30)?, two(entry + 32)?);
            let place = four(entry + 42)? as usize;
            let called = String::from_utf8_lossy(at(entry + 46, name)?).into_owned();
            let start = place.checked_add(30 + two(place + 26)? + two(place + 28)?)?;
            members.push((called, method, crc, at(start, packed)?, plain));
            entry += 46 + name + extra + comment;
        }
        Some(members)
    };
    let mut found = Vec::new();
    let mut all = 0;
    for (name, method, crc, packed, plain) in read().ok_or_else(cut)? {
        all += plain as u64;
        if all > MOST_BYTES {
            return Err(format!("unpacked it has more than {} MiB", MOST_BYTES >> 20));
        }
        let mut content = Vec::new();
        match method {
            0 => content.extend_from_slice(packed),
            8 => {
                let mut inflated = flate2::read::DeflateDecoder::new(packed).take(plain as u64 + 1);
                inflated.read_to_end(&mut content).map_err(|e| e.to_string())?;
            }
            other => return Err(format!("{name} is packed in a way (method {other}) that is not read")),
        }
        let mut sum = flate2::Crc::new();
        sum.update(&content);
        if content.len() != plain || sum.sum() != crc {
            return Err(cut());
        }
        found.push((name, content));
    }
    Ok(found)
}
