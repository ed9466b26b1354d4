//! Whether a variant may be kept, how near it must come to the golden vectors, and where on the ladder it goes: pure functions of
//! measured numbers.

use super::script::Variant;
use crate::fail::Failure;
use inferd_model::{EngineKind, Rung, Tolerance};

/// What a difference of two ratios may be off by: the limit itself is allowed.
const ROUNDING: f64 = 1e-9;

/// How much a variant may lose.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Least cosine similarity of an output over all samples.
    pub cosine: f64,
    /// Largest part of samples with another highest score, and largest loss of the task's own measure.
    pub loss: f64,
}

impl Limits {
    /// Why it may not be kept, with numbers; nothing when it may.
    pub fn complaints(&self, variant: &Variant, original_bytes: u64) -> Vec<String> {
        let mut found = Vec::new();
        if !variant.same_interface {
            found.push("its inputs or outputs are not those of the model".to_owned());
        }
        if variant.bytes >= original_bytes {
            found.push(format!("it has {} bytes, the original {original_bytes}", variant.bytes));
        }
        for (data, measured) in
            [("calibration data", &variant.calibration), ("golden vectors", &variant.golden)]
        {
            if !measured.finite {
                found.push(format!("on the {data} it answers with values that are not finite"));
                continue;
            }
            if measured.cosine < self.cosine {
                let (got, least) = (measured.cosine, self.cosine);
                found.push(format!(
                    "on the {data} its cosine similarity is {got:.6}, at least {least} is asked for"
                ));
            }
            if let Some(argmax) = measured.argmax.filter(|a| 1.0 - a > self.loss + ROUNDING) {
                let (other, most) = ((1.0 - argmax) * 100.0, self.loss * 100.0);
                found.push(format!(
                    "on the {data} {other:.1} % of the samples have another highest score, at most {most:.1} % may"
                ));
            }
        }
        if let Some(task) = variant.task.as_ref().filter(|t| t.original - t.value > self.loss + ROUNDING) {
            found.push(format!(
                "on {} samples with labels it is right in {:.1} %, the original in {:.1} %; {:.1} points may be lost",
                task.samples,
                task.value * 100.0,
                task.original * 100.0,
                self.loss * 100.0
            ));
        }
        found
    }
}

/// How near a variant must come to the golden vectors on a device: twice as far off as it was here, and on top what the model's
/// own network is allowed. Processors round differently, so exactly what was measured would refuse good devices.
pub fn tolerance(own: Tolerance, worst_cosine: f64, max_abs: f64) -> Tolerance {
    let cosine = 1.0 - 2.0 * (1.0 - worst_cosine) - (1.0 - own.cosine);
    // A case whose outputs are all but zero may have any direction; its size is what `max_abs` holds.
    Tolerance { cosine: cosine.clamp(0.1, 1.0), max_abs: 2.0 * max_abs + own.max_abs }
}

/// The ladder with the variants on it: on ONNX Runtime, before the model's own network where they were faster here, after it
/// where not. The built-in engine is slower on INT8 than on the network itself, and gets none.
pub fn ladder(old: &[Rung], variants: &[Variant]) -> Result<Vec<Rung>, Failure> {
    let of = |faster: bool| {
        let mut some: Vec<&Variant> = variants.iter().filter(|v| (v.speed > 1.0) == faster).collect();
        some.sort_by(|a, b| b.speed.total_cmp(&a.speed));
        some.into_iter().map(|v| Rung { engine: EngineKind::Ort, variant: Some(v.name) })
    };
    let mut new = old.to_vec();
    let own = Rung::bare(EngineKind::Ort);
    let at = old.iter().position(|&r| r == own);
    // Without ONNX Runtime in it: before the built-in engine, which is there for when nothing else is.
    let first = at.or_else(|| old.iter().position(|r| r.engine == EngineKind::Cpu)).unwrap_or(old.len());
    let after = at.map_or(first, |at| at + 1);
    new.splice(after..after, of(false));
    new.splice(first..first, of(true));
    if let Some(twice) = (1..new.len()).find(|&i| new[..i].contains(&new[i])) {
        return Err(Failure::Other(format!("the ladder has {} already", new[twice])));
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::super::script::{Differences, Task};
    use super::*;
    use inferd_model::Precision;

    fn variant(name: &str, speed: f64) -> Variant {
        let well = Differences {
            finite: true,
            cosine: 0.999,
            worst_cosine: 0.99,
            max_abs: Some(0.1),
            argmax: Some(1.0),
        };
        Variant {
            name: name.parse().unwrap(),
            precision: Precision::Int8,
            file: "f".into(),
            method: "m".into(),
            bytes: 100,
            same_interface: true,
            calibration: well.clone(),
            golden: well,
            task: None,
            speed,
        }
    }

    fn rungs(text: &str) -> Vec<Rung> {
        text.split(' ').map(|r| r.parse().unwrap()).collect()
    }

    #[test]
    fn every_loss_beyond_its_limit_is_named_with_numbers() {
        let limits = Limits { cosine: 0.99, loss: 0.02 };
        let said = |change: &dyn Fn(&mut Variant)| {
            let mut v = variant("int8", 2.0);
            change(&mut v);
            limits.complaints(&v, 380).join("; ")
        };
        assert_eq!(said(&|_| ()), "");
        assert!(said(&|v| v.same_interface = false).contains("inputs or outputs"));
        assert!(said(&|v| v.bytes = 380).contains("380 bytes"));
        assert!(
            said(&|v| v.golden.cosine = 0.98).contains("golden vectors its cosine similarity is 0.980000")
        );
        assert!(said(&|v| v.calibration.cosine = f64::NAN.min(0.5)).contains("calibration data"));
        assert!(said(&|v| v.calibration.argmax = Some(0.9)).contains("10.0 %"));
        assert_eq!(said(&|v| v.calibration.argmax = Some(0.98)), "", "the limit itself is allowed");
        assert!(said(&|v| v.golden.finite = false).contains("not finite"));
        let task = |original, value| Some(Task { original, value, samples: 50 });
        assert!(said(&|v| v.task = task(0.98, 0.95)).contains("right in 95.0 %, the original in 98.0 %"));
        assert_eq!(said(&|v| v.task = task(0.95, 0.98)), "", "a gain is no loss");
    }

    #[test]
    fn the_tolerance_is_twice_what_was_measured_on_top_of_the_models() {
        let t = tolerance(Tolerance { cosine: 0.9999, max_abs: 1e-4 }, 0.99, 0.1);
        assert!((t.cosine - 0.9799).abs() < 1e-9 && (t.max_abs - 0.2001).abs() < 1e-9, "{t:?}");
        assert!(tolerance(t, -1.0, 0.0).cosine > 0.0);
    }

    #[test]
    fn variants_stand_before_the_network_they_were_faster_than() {
        let made = [variant("int8", 2.0), variant("fp16", 0.9), variant("int8-dyn", 1.5)];
        let new = |old: &str| ladder(&rungs(old), &made).unwrap();
        assert_eq!(new("ort cpu"), rungs("ort-int8 ort-int8-dyn ort ort-fp16 cpu"));
        assert_eq!(new("cpu"), rungs("ort-int8 ort-int8-dyn ort-fp16 cpu"));
        assert_eq!(new("hailo ort"), rungs("hailo ort-int8 ort-int8-dyn ort ort-fp16"));
        assert!(ladder(&rungs("ort-int8 ort"), &made).is_err());
    }
}
