//! What is seen of one edition of a model while it serves, and how far two stretches of time are apart.
//!
//! An *edition* is a model as it was handed in; restarts of its host go on counting in it, a replacement begins anew. So the
//! answers an old host still gives after a route flip count for the old edition alone. [`Served::observe`](crate::Served::observe)
//! gives the counters, [`Observation::since`] the stretch between two of them, [`Observation::drift`] compares two stretches.
//!
//! The cost on the path of a request is bounded: at most [`LOOK_AT`] elements of each output are looked at, evenly spread,
//! beginning one further at each answer, so that over time every element is.

use crate::limits::LOOK_AT;
use crate::served::InferError;
use crate::stats::End;
use inferd_model::{DType, Manifest, Motif};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use zerocopy::FromBytes;

/// Counts of durations in buckets of equal ratio: 16 to a doubling from 1 µs up, linear in steps of 64 ns below, the last one
/// for everything from 35 minutes. A quantile is at most 3.2 % off (half of the widest bucket, 1/16, of its lower end).
///
/// The scheme is `HdrHistogram`'s with 4 bits of precision; kept here in an array because two of these are subtracted.
#[derive(Clone, PartialEq)]
pub struct Latencies {
    counts: Box<[u64; BUCKETS]>,
}

const SUB: u64 = 16;
const SUB_BITS: u32 = SUB.ilog2();
/// A unit is 64 ns.
const UNIT_BITS: u32 = 6;
const BUCKETS: usize = 512;

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]) }
    }
}

impl std::fmt::Debug for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let q = |q| self.quantile(q);
        f.debug_struct("Latencies")
            .field("count", &self.count())
            .field("p50", &q(0.5))
            .field("p99", &q(0.99))
            .finish()
    }
}

impl Latencies {
    fn bucket(d: Duration) -> usize {
        let v = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX) >> UNIT_BITS;
        let index = if v < SUB {
            v
        } else {
            let e = v.ilog2() - SUB_BITS;
            SUB * u64::from(e) + (v >> e)
        };
        usize::try_from(index).map_or(BUCKETS - 1, |i| i.min(BUCKETS - 1))
    }

    /// The middle of a bucket.
    fn middle(bucket: usize) -> Duration {
        let i = bucket as u64;
        let (low, width) =
            if i < SUB { (i, 1) } else { ((SUB + i % SUB) << (i / SUB - 1), 1 << (i / SUB - 1)) };
        Duration::from_nanos((low << UNIT_BITS) + (width << UNIT_BITS) / 2)
    }

    pub(crate) fn record(&mut self, d: Duration) {
        self.counts[Self::bucket(d)] += 1;
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration that a share `q` (0 to 1) of all does not exceed; `None` without any.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        // Exact below 2^53, which no counter of requests reaches.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|n| {
            seen += n;
            seen >= rank
        });
        at.filter(|_| count > 0).map(Self::middle)
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts.clone();
        for (n, e) in counts.iter_mut().zip(earlier.counts.iter()) {
            *n = n.saturating_sub(*e);
        }
        Self { counts }
    }
}

/// What the answers looked like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// How often each class had the highest score, when the model has scores: the output its manifest names as such, else the
    /// first one that is a single vector of 2 to 1024 numbers. Empty when it has none.
    pub classes: Vec<u64>,
    /// Answers with a value that is not finite among the elements looked at, in any output.
    pub non_finite: u64,
    /// Elements of the scores (of the first output, where there are none) that were looked at and finite.
    pub elements: u64,
    /// Sums are taken of differences to this value (the first one seen), so that they do not cancel.
    pivot: f64,
    sum: f64,
    squares: f64,
}

impl Outputs {
    /// Mean of those elements; `None` without any.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.elements > 0).then(|| self.pivot + self.sum / self.n())
    }

    /// Their variance; `None` without any.
    #[must_use]
    pub fn variance(&self) -> Option<f64> {
        let n = self.n();
        (self.elements > 0).then(|| ((self.squares - self.sum * self.sum / n) / n).max(0.0))
    }

    #[allow(clippy::cast_precision_loss)] // exact below 2^53
    fn n(&self) -> f64 {
        self.elements as f64
    }

    fn since(&self, earlier: &Self) -> Self {
        let classes = self.classes.iter().zip(&earlier.classes);
        Self {
            classes: classes.map(|(n, e)| n.saturating_sub(*e)).collect(),
            non_finite: self.non_finite.saturating_sub(earlier.non_finite),
            elements: self.elements.saturating_sub(earlier.elements),
            pivot: self.pivot,
            // Before its first answer an edition has no pivot, and sums of zero.
            sum: self.sum - earlier.sum,
            squares: self.squares - earlier.squares,
        }
    }
}

/// The counters of one edition from its beginning, or of a stretch of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    edition: u64,
    /// Requests answered with a result.
    pub success: u64,
    /// Compute times of these.
    pub compute: Latencies,
    /// Those of answers that no other rung gave in the place of the preferred one.
    pub compute_preferred: Latencies,
    /// What they looked like.
    pub outputs: Outputs,
    failures: [u64; InferError::KINDS.len()],
    ends: [u64; End::ALL.len()],
}

impl Observation {
    /// What came after `earlier`. When the model was replaced in between: everything of the newer edition.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if self.edition != earlier.edition {
            return self.clone();
        }
        Self {
            edition: self.edition,
            success: self.success.saturating_sub(earlier.success),
            compute: self.compute.since(&earlier.compute),
            compute_preferred: self.compute_preferred.since(&earlier.compute_preferred),
            outputs: self.outputs.since(&earlier.outputs),
            failures: std::array::from_fn(|i| self.failures[i].saturating_sub(earlier.failures[i])),
            ends: std::array::from_fn(|i| self.ends[i].saturating_sub(earlier.ends[i])),
        }
    }

    /// Whether both are of the same edition: the model was not replaced in between.
    #[must_use]
    pub fn same_edition(&self, other: &Self) -> bool {
        self.edition == other.edition
    }

    /// Requests that failed, by [`InferError::kind`], in the order of [`InferError::KINDS`]; not those that a lost device cost.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        InferError::KINDS.iter().copied().zip(self.failures)
    }

    /// Ends of hosts that served, by cause ([`End::ALL`]). Those that were asked for do not count, and neither does a lost device:
    /// it says nothing about the model.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        End::ALL.iter().map(|e| e.name()).zip(self.ends)
    }

    /// Failures the model is to blame for: all but refusals for a full queue or an unmeetable deadline, which come with load, and
    /// those of an input that has ended hosts, which were counted when it did.
    #[must_use]
    pub fn faults(&self) -> u64 {
        let excused = |kind| matches!(kind, "queue_full" | "deadline_unmeetable" | "quarantined");
        self.failures().filter(|(kind, _)| !excused(*kind)).map(|(_, n)| n).sum()
    }

    /// Share of [`Observation::faults`] in faults and successes; 0 without any.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // exact below 2^53
    pub fn fault_rate(&self) -> f64 {
        let faults = self.faults();
        match faults + self.success {
            0 => 0.0,
            all => faults as f64 / all as f64,
        }
    }

    /// How far the answers of this stretch are from those of `before`.
    #[must_use]
    pub fn drift(&self, before: &Self) -> Drift {
        let index = stability_index(&before.outputs.classes, &self.outputs.classes);
        let mean_shift = match (
            before.outputs.mean().zip(before.outputs.variance()),
            self.outputs.mean().zip(self.outputs.variance()),
        ) {
            (Some((m0, v0)), Some((m1, v1))) => Some(mean_shift(m0, v0, m1, v1)),
            _ => None,
        };
        Drift { psi: index.map(|i| i.0), psi_noise: index.map_or(0.0, |i| i.1), mean_shift }
    }
}

/// How far the answers of two stretches are apart.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Drift {
    /// Population stability index of the class histograms; `None` without classes, with another number of them, or without
    /// answers on one side. By custom below 0.1 is no change to speak of and above 0.25 a large one
    /// (N. Siddiqi, *Credit Risk Scorecards*, 2006).
    pub psi: Option<f64>,
    /// What the index exceeds by chance alone once in a thousand times when nothing has changed and answers are independent:
    /// with `k` classes in use and `n` and `m` answers it is distributed like chi-squared with `k - 1` degrees of freedom times
    /// `1/n + 1/m` (B. Yurdakul, *Statistical Properties of Population Stability Index*, 2018).
    pub psi_noise: f64,
    /// Difference of the means of the scores (of the first output, where there are none), in units of their elements' standard deviation (the root of the mean of
    /// both variances: Cohen's d); `None` without answers on one side.
    pub mean_shift: Option<f64>,
}

impl Drift {
    /// One number to hold against a limit: the larger of the index above its noise and the mean's shift. 0: no difference, or
    /// nothing to tell one by. A mean that is not a number counts as infinite.
    #[must_use]
    pub fn size(&self) -> f64 {
        let psi = self.psi.map_or(0.0, |p| (p - self.psi_noise).max(0.0));
        let shift = self.mean_shift.map_or(0.0, |s| if s.is_nan() { f64::INFINITY } else { s });
        psi.max(shift)
    }
}

/// (index, its noise) of two histograms. Half a count is added to every class that either side has met (Jeffreys' prior), so
/// that a class only one of them met weighs much and not infinitely.
#[allow(clippy::cast_precision_loss)] // exact below 2^53
fn stability_index(before: &[u64], after: &[u64]) -> Option<(f64, f64)> {
    let (n, m): (u64, u64) = (before.iter().sum(), after.iter().sum());
    if before.len() != after.len() || n == 0 || m == 0 {
        return None;
    }
    let met = || before.iter().zip(after).filter(|(b, a)| **b + **a > 0);
    let classes = met().count() as f64;
    let share = |count: u64, all: u64| (count as f64 + 0.5) / (all as f64 + 0.5 * classes);
    let index = met().map(|(b, a)| {
        let (p, q) = (share(*b, n), share(*a, m));
        (q - p) * (q / p).ln()
    });
    Some((index.sum(), chi_squared_999(classes - 1.0) * (1.0 / n as f64 + 1.0 / m as f64)))
}

/// The 99.9 % quantile of chi-squared: E. B. Wilson and M. M. Hilferty, *The Distribution of Chi-Square*, 1931; at most 3.1 % too
/// high, less with more degrees of freedom.
fn chi_squared_999(freedom: f64) -> f64 {
    const Z: f64 = 3.0902;
    if freedom < 1.0 {
        return 0.0;
    }
    let v = 2.0 / (9.0 * freedom);
    freedom * (1.0 - v + Z * v.sqrt()).powi(3)
}

fn mean_shift(m0: f64, v0: f64, m1: f64, v1: f64) -> f64 {
    let difference = (m1 - m0).abs();
    let spread = f64::midpoint(v0, v1).sqrt();
    // Constants that are the same have not moved, whatever their spread.
    if difference == 0.0 { 0.0 } else { difference / spread }
}

// ------------------------------------------------------------------------------------------------ the live counters

/// The live counters of an edition.
pub struct Observed {
    /// Nothing is counted before the model serves: a candidate's trial runs are nobody's requests.
    serving: AtomicBool,
    /// The host that served lost its device, and no other one serves yet: what is refused meanwhile is not the model's.
    without_device: AtomicBool,
    /// The output that looks like scores.
    scores: Option<usize>,
    /// Per output how many elements it has, and whether it can hold values that are not finite.
    looks: Vec<Look>,
    failures: [AtomicU64; InferError::KINDS.len()],
    ends: [AtomicU64; End::ALL.len()],
    /// Answers so far, for the rotation of what is looked at.
    turn: AtomicU64,
    pivot: OnceLock<f64>,
    tally: Mutex<Tally>,
}

struct Look {
    dtype: DType,
    step: usize,
}

#[derive(Default)]
struct Tally {
    success: u64,
    compute: Latencies,
    compute_preferred: Latencies,
    classes: Box<[u64]>,
    non_finite: u64,
    elements: u64,
    sum: f64,
    squares: f64,
}

/// What one tensor adds.
#[derive(Clone, Copy, Default)]
struct Sums {
    elements: u64,
    finite: u64,
    sum: f64,
    squares: f64,
}

impl Observed {
    pub fn new(manifest: &Manifest) -> Self {
        let elements = |s: &inferd_model::TensorSpec| s.shape.iter().map(|&d| d as usize).product::<usize>();
        let countable = |s: &inferd_model::TensorSpec| {
            let vector = s.shape.iter().filter(|&&d| d != 1).count() == 1;
            vector && (2..=LOOK_AT).contains(&elements(s)) && s.dtype != DType::Bool
        };
        // A latent vector is a vector as well, and its highest place is no class: what the manifest says goes first.
        let named = match manifest.imu.as_ref().and_then(|imu| imu.motif.as_ref()) {
            Some(Motif::Output { output, .. }) => Some(output),
            _ => None,
        };
        let named = manifest.outputs.iter().position(|s| named == Some(&s.name) && countable(s));
        let scores = named.or_else(|| manifest.outputs.iter().position(countable));
        let classes = scores.map_or(0, |i| elements(&manifest.outputs[i]));
        let look = |s: &inferd_model::TensorSpec| Look {
            dtype: s.dtype,
            step: elements(s).div_ceil(LOOK_AT).max(1),
        };
        Self {
            serving: AtomicBool::new(false),
            without_device: AtomicBool::new(false),
            scores,
            looks: manifest.outputs.iter().map(look).collect(),
            failures: std::array::from_fn(|_| AtomicU64::default()),
            ends: std::array::from_fn(|_| AtomicU64::default()),
            turn: AtomicU64::default(),
            pivot: OnceLock::new(),
            tally: Mutex::new(Tally { classes: vec![0; classes].into(), ..Tally::default() }),
        }
    }

    /// From now on everything counts.
    pub fn begin(&self) {
        self.serving.store(true, Relaxed);
    }

    /// A host serves.
    pub fn has_host(&self) {
        self.without_device.store(false, Relaxed);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer; `stood_in`: of another rung than the preferred one.
    pub fn answered<'a>(&self, compute: Duration, stood_in: bool, output: impl Fn(usize) -> &'a [u8]) {
        if !self.serving.load(Relaxed) {
            return;
        }
        let turn = usize::try_from(self.turn.fetch_add(1, Relaxed)).unwrap_or(0);
        let judged = self.scores.unwrap_or(0);
        let (mut sums_of_judged, mut finite, mut class) = (Sums::default(), true, None);
        for (i, look) in self.looks.iter().enumerate() {
            let can = matches!(look.dtype, DType::Fp32 | DType::Fp64 | DType::Fp16 | DType::Bf16);
            if i != judged && !can {
                continue;
            }
            let bytes = output(i);
            let sums = look.sums(bytes, turn % look.step, &self.pivot, i == judged);
            finite &= sums.finite == sums.elements;
            if i == judged {
                sums_of_judged = sums;
            }
            if self.scores == Some(i) {
                class = look.highest(bytes);
            }
        }
        let mut t = self.tally();
        t.success += 1;
        t.compute.record(compute);
        if !stood_in {
            t.compute_preferred.record(compute);
        }
        t.non_finite += u64::from(!finite);
        t.elements += sums_of_judged.finite;
        t.sum += sums_of_judged.sum;
        t.squares += sums_of_judged.squares;
        if let Some(n) = class.and_then(|c| t.classes.get_mut(c)) {
            *n += 1;
        }
    }

    pub fn failed(&self, e: &InferError) {
        let lost = matches!(e, InferError::NotReady { .. }) && self.without_device.load(Relaxed);
        if self.serving.load(Relaxed)
            && !lost
            && let Some(i) = InferError::KINDS.iter().position(|&k| k == e.kind())
        {
            self.failures[i].fetch_add(1, Relaxed);
        }
    }

    /// The host that served ended.
    pub fn ended(&self, how: End) {
        if how == End::Device {
            self.without_device.store(true, Relaxed);
        } else if self.serving.load(Relaxed) {
            self.ends[how as usize].fetch_add(1, Relaxed);
        }
    }

    pub fn read(&self, edition: u64) -> Observation {
        let t = self.tally();
        Observation {
            edition,
            success: t.success,
            compute: t.compute.clone(),
            compute_preferred: t.compute_preferred.clone(),
            outputs: Outputs {
                classes: t.classes.to_vec(),
                non_finite: t.non_finite,
                elements: t.elements,
                pivot: self.pivot.get().copied().unwrap_or_default(),
                sum: t.sum,
                squares: t.squares,
            },
            failures: std::array::from_fn(|i| self.failures[i].load(Relaxed)),
            ends: std::array::from_fn(|i| self.ends[i].load(Relaxed)),
        }
    }
}

/// Calls `$f` with an iterator over the elements of `$bytes` as f64 (64-bit integers may round).
macro_rules! with_elements {
    ($dtype:expr, $bytes:expr, $f:expr) => {{
        macro_rules! of {
            ($t:ty) => {{
                let elements = $bytes.chunks_exact(size_of::<$t>());
                #[allow(clippy::cast_precision_loss, clippy::cast_lossless)]
                let elements =
                    elements.map(|c| <$t>::from_le_bytes(c.try_into().expect("of this size")) as f64);
                $f(elements)
            }};
        }
        match $dtype {
            DType::Bool | DType::Uint8 => of!(u8),
            DType::Int8 => of!(i8),
            DType::Uint16 => of!(u16),
            DType::Int16 => of!(i16),
            DType::Uint32 => of!(u32),
            DType::Int32 => of!(i32),
            DType::Uint64 => of!(u64),
            DType::Int64 => of!(i64),
            DType::Fp32 => of!(f32),
            DType::Fp64 => of!(f64),
            DType::Fp16 => {
                $f($bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f64()))
            }
            DType::Bf16 => {
                $f($bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f64()))
            }
        }
    }};
}

impl Look {
    fn sums(&self, bytes: &[u8], from: usize, pivot: &OnceLock<f64>, moments: bool) -> Sums {
        if self.dtype == DType::Fp32
            && let Ok(values) = <[f32]>::ref_from_bytes(bytes)
        {
            if self.step == 1 {
                return sums(values.iter().map(|&v| f64::from(v)), pivot, moments);
            }
            return sums(values.iter().skip(from).step_by(self.step).map(|&v| f64::from(v)), pivot, moments);
        }
        with_elements!(self.dtype, bytes, |e| sums(
            Iterator::step_by(Iterator::skip(e, from), self.step),
            pivot,
            moments
        ))
    }

    /// The index of the highest element; the first of equals, none when no element is a number.
    fn highest(&self, bytes: &[u8]) -> Option<usize> {
        if self.dtype == DType::Fp32
            && let Ok(values) = <[f32]>::ref_from_bytes(bytes)
        {
            return highest(values.iter().copied());
        }
        with_elements!(self.dtype, bytes, highest)
    }
}

fn sums(values: impl Iterator<Item = f64>, pivot: &OnceLock<f64>, moments: bool) -> Sums {
    let mut s = Sums::default();
    if !moments {
        for v in values {
            s.elements += 1;
            s.finite += u64::from(v.is_finite());
        }
        return s;
    }
    let mut values = values.peekable();
    let zero = match (pivot.get(), values.peek()) {
        (Some(&p), _) => p,
        (None, Some(v)) if v.is_finite() => *pivot.get_or_init(|| *v),
        // An edition that begins with a value that is no number is summed up around 0.
        _ => *pivot.get_or_init(|| 0.0),
    };
    for v in values {
        s.elements += 1;
        if v.is_finite() {
            let d = v - zero;
            s.finite += 1;
            s.sum += d;
            s.squares += d * d;
        }
    }
    s
}

fn highest<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    for (i, v) in values.enumerate() {
        // Not a number equals nothing, itself included.
        #[allow(clippy::eq_op)]
        if v == v && best.is_none_or(|(_, b)| v > b) {
            best = Some((i, v));
        }
    }
    best.map(|(i, _)| i)
}

/// The index of the highest element of a tensor; the first of equals.
pub fn highest_of(dtype: DType, bytes: &[u8]) -> Option<usize> {
    Look { dtype, step: 1 }.highest(bytes)
}

/// Whether every element of a tensor is finite.
pub fn all_finite(dtype: DType, bytes: &[u8]) -> bool {
    with_elements!(dtype, bytes, |mut e| Iterator::all(&mut e, f64::is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn a_quantile_is_right_to_three_percent_over_nine_decades() {
        for exponent in 0..34 {
            let ns = 1000_u64 << exponent >> 4;
            for ns in [ns, ns + ns / 3, ns + ns / 2 + 1] {
                let mut l = Latencies::default();
                l.record(Duration::from_nanos(ns));
                let got = l.quantile(0.99).unwrap().as_secs_f64() * 1e9;
                #[allow(clippy::cast_precision_loss)]
                let off = (got - ns as f64).abs();
                #[allow(clippy::cast_precision_loss)]
                let allowed = (ns as f64 * 0.032).max(32.0);
                assert!(off <= allowed, "{ns} ns became {got}");
            }
        }
    }

    #[test]
    fn a_stretch_holds_only_what_came_in_it() {
        let mut l = Latencies::default();
        (0..100).for_each(|_| l.record(Duration::from_millis(50)));
        let before = l.clone();
        (0..10).for_each(|_| l.record(Duration::from_millis(1)));
        let stretch = l.since(&before);
        assert_eq!(stretch.count(), 10);
        assert!(stretch.quantile(0.99).unwrap() < Duration::from_millis(2));
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    fn with(classes: &[u64], values: &[f64]) -> Observation {
        let pivot = OnceLock::new();
        let s = sums(values.iter().copied(), &pivot, true);
        let outputs = Outputs {
            classes: classes.to_vec(),
            non_finite: 0,
            elements: s.finite,
            pivot: pivot.get().copied().unwrap_or_default(),
            sum: s.sum,
            squares: s.squares,
        };
        Observation { outputs, ..Observation::default() }
    }

    #[test]
    fn classes_are_those_of_the_scores_that_the_manifest_names() {
        let manifest = include_str!("../../inferd/models/imu-motion/manifest.toml");
        let manifest = Manifest::from_toml(manifest).unwrap();
        assert_eq!(manifest.outputs[1].name, "motif_scores", "a latent vector comes first");
        let observed = Observed::new(&manifest);
        observed.begin();
        let (latent, mut scores) = (vec![9.0_f32; manifest.outputs[0].elements()], [0.0_f32; 12]);
        scores[7] = 1.2;
        let bytes = [latent.as_bytes(), scores.as_bytes()];
        observed.answered(Duration::from_millis(1), false, |i| bytes[i]);
        let outputs = observed.read(1).outputs;
        assert_eq!(outputs.classes, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert!((outputs.mean().unwrap() - 0.1).abs() < 1e-6, "the mean is that of the scores");
    }

    #[test]
    fn the_same_answers_have_not_drifted_and_permuted_ones_have() {
        let before = with(&[700, 200, 100], &[1.0, 2.0, 3.0]);
        assert!(with(&[70, 20, 10], &[3.0, 2.0, 1.0]).drift(&before).size() < 0.01);
        let permuted = with(&[20, 10, 70], &[1.0, 2.0, 3.0]).drift(&before);
        assert!(permuted.size() > 1.0 && permuted.mean_shift == Some(0.0), "{permuted:?}");
    }

    #[test]
    fn a_few_answers_are_not_mistaken_for_drift() {
        // 20 answers over 10 equally likely classes, one draw: the index alone says "change".
        let before = with(&[1000; 10], &[]);
        let drift = with(&[2, 3, 1, 2, 4, 0, 2, 3, 1, 2], &[]).drift(&before);
        assert!(drift.psi.unwrap() > 0.2 && drift.size() == 0.0, "{drift:?}");
    }

    #[test]
    fn the_noise_is_what_tables_of_chi_squared_say() {
        for (freedom, table) in
            [(1.0, 10.828), (2.0, 13.816), (3.0, 16.266), (11.0, 31.264), (100.0, 149.449)]
        {
            let off = chi_squared_999(freedom) / table - 1.0;
            assert!((0.0..0.031).contains(&off), "{freedom}: {off}");
        }
    }

    #[test]
    fn a_mean_is_held_against_the_spread() {
        let before = with(&[], &[1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0]);
        assert!((before.outputs.variance().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{:?}", before.outputs);
        let moved = with(&[], &[1e9 + 2.0, 1e9 + 3.0, 1e9 + 4.0]).drift(&before);
        assert!((moved.size() - 1.5_f64.sqrt()).abs() < 1e-6, "{moved:?}");
        assert_eq!(with(&[], &[0.0; 3]).drift(&with(&[], &[0.0; 3])).size(), 0.0);
        assert_eq!(with(&[], &[1.0; 3]).drift(&with(&[], &[0.0; 3])).size(), f64::INFINITY);
        assert_eq!(with(&[], &[]).drift(&before).size(), 0.0);
    }

    #[test]
    fn the_highest_is_the_first_of_equals_and_never_no_number() {
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(highest_of(DType::Fp32, &bytes(&[f32::NAN, 1.0, 3.0, 3.0])), Some(2));
        assert_eq!(highest_of(DType::Fp32, &bytes(&[f32::NAN; 2])), None);
        assert_eq!(highest_of(DType::Uint8, &[1, 200, 7]), Some(1));
        assert!(!all_finite(DType::Fp32, &bytes(&[1.0, f32::INFINITY])));
    }
}
