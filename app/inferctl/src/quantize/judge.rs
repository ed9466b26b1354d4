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
    /// Least cosine similarity of any output of any sample.
    pub cosine: f64,
    /// Least cosine similarity of an output over all samples together.
    pub overall: f64,
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
        let parts = [("held-out samples", &variant.held_out), ("golden vectors", &variant.golden)];
        for (data, measured) in parts.into_iter().filter_map(|(data, m)| Some((data, m.as_ref()?))) {
            if !measured.finite {
                found.push(format!("on the {data} it answers with values that are not finite"));
                continue;
            }
            if measured.worst.cosine < self.cosine {
                let (got, least) = (measured.worst.cosine, self.cosine);
                let (sample, output) = (
                    measured.worst.sample.unwrap_or_default(),
                    measured.worst.output.as_deref().unwrap_or_default(),
                );
                found.push(format!(
                    "of the {data} sample {sample} has cosine similarity {got:.6} in {output}, at least {least} is asked for of each"
                ));
            }
            if measured.overall_cosine < self.overall {
                let (got, least) = (measured.overall_cosine, self.overall);
                found.push(format!(
                    "on the {data} together its cosine similarity is {got:.6}, at least {least} is asked for"
                ));
            }
            if let Some(argmax) = measured.argmax.filter(|a| 1.0 - a > self.loss + ROUNDING) {
                let (other, most) = ((1.0 - argmax) * 100.0, self.loss * 100.0);
                found.push(format!(
                    "on the {data} {other:.1} % of the samples have another highest score, at most {most:.1} % may"
                ));
            }
        }
        if let Some(golden) = variant.golden.as_ref().filter(|g| g.finite && twice(g.worst.cosine) <= 0.0) {
            found.push(format!(
                "its worst golden vector has cosine similarity {:.6}: twice as far off is no direction any more, and nothing could be asked of a device",
                golden.worst.cosine
            ));
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

/// The cosine of twice the angle: an answer that is twice as far off turns by no more than twice as much.
fn twice(cosine: f64) -> f64 {
    2.0 * cosine * cosine.abs() - 1.0
}

/// How near a variant must come to the golden vectors on a device: twice as far off as it was here, in angle and in difference, and on top
/// what the model's own network is allowed. Processors round differently, so exactly what was measured would refuse good devices; what is
/// more than twice as far off computes something else. Nothing is made up for a variant of which that leaves no direction: it is refused.
pub fn tolerance(own: Tolerance, worst_cosine: f64, max_abs: f64) -> Option<Tolerance> {
    let cosine = twice(worst_cosine) - (1.0 - own.cosine);
    (cosine > 0.0).then_some(Tolerance { cosine, max_abs: 2.0 * max_abs + own.max_abs })
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
    use super::super::script::{Differences, Task, Worst};
    use super::*;
    use inferd_model::Precision;

    fn variant(name: &str, speed: f64) -> Variant {
        let well = Differences {
            finite: true,
            overall_cosine: 0.999,
            worst: Worst { cosine: 0.97, sample: Some(7), output: Some("latent".into()) },
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
            held_out: Some(well.clone()),
            golden: Some(well),
            task: None,
            speed,
        }
    }

    fn rungs(text: &str) -> Vec<Rung> {
        text.split(' ').map(|r| r.parse().unwrap()).collect()
    }

    #[test]
    fn every_loss_beyond_its_limit_is_named_with_numbers() {
        let limits = Limits { cosine: 0.95, overall: 0.99, loss: 0.02 };
        let said = |change: &dyn Fn(&mut Variant)| {
            let mut v = variant("int8", 2.0);
            change(&mut v);
            limits.complaints(&v, 380).join("; ")
        };
        let golden = |change: &dyn Fn(&mut Differences)| said(&|v| change(v.golden.as_mut().unwrap()));
        let held_out = |change: &dyn Fn(&mut Differences)| said(&|v| change(v.held_out.as_mut().unwrap()));
        assert_eq!(said(&|_| ()), "");
        assert_eq!(said(&|v| v.held_out = None), "", "of one sample nothing is held out");
        assert!(said(&|v| v.same_interface = false).contains("inputs or outputs"));
        assert!(said(&|v| v.bytes = 380).contains("380 bytes"));
        assert_eq!(
            held_out(&|d| d.worst.cosine = 0.94),
            "of the held-out samples sample 7 has cosine similarity 0.940000 in latent, at least 0.95 is asked for of each",
            "one is enough, however good the others are"
        );
        assert!(golden(&|d| d.worst.cosine = 0.94).contains("of the golden vectors sample 7"));
        assert_eq!(held_out(&|d| d.worst.cosine = 0.95), "", "the limit itself is allowed");
        assert!(
            golden(&|d| d.overall_cosine = 0.98)
                .contains("golden vectors together its cosine similarity is 0.980000")
        );
        assert!(held_out(&|d| d.argmax = Some(0.9)).contains("10.0 %"));
        assert_eq!(held_out(&|d| d.argmax = Some(0.98)), "", "the limit itself is allowed");
        assert!(golden(&|d| d.finite = false).contains("not finite"));
        let lenient = Limits { cosine: 0.0, overall: 0.0, loss: 1.0 };
        let mut lost = variant("int8", 2.0);
        lost.golden.as_mut().unwrap().worst.cosine = 0.7;
        assert!(lenient.complaints(&lost, 380).join("; ").contains("nothing could be asked of a device"));
        let task = |original, value| Some(Task { original, value, samples: 50 });
        assert!(said(&|v| v.task = task(0.98, 0.95)).contains("right in 95.0 %, the original in 98.0 %"));
        assert_eq!(said(&|v| v.task = task(0.95, 0.98)), "", "a gain is no loss");
    }

    #[test]
    fn the_tolerance_is_twice_what_was_measured_on_top_of_the_models() {
        let own = Tolerance { cosine: 0.9999, max_abs: 1e-4 };
        let t = tolerance(own, 0.99, 0.1).unwrap();
        assert!((t.cosine - 0.9601).abs() < 1e-9 && (t.max_abs - 0.2001).abs() < 1e-9, "{t:?}");
        // The angle, not the distance of its cosine from 1: 10 degrees become 20.
        let (ten, twenty) = (10_f64.to_radians().cos(), 20_f64.to_radians().cos());
        assert!(
            (tolerance(Tolerance { cosine: 1.0, max_abs: 0.0 }, ten, 0.0).unwrap().cosine - twenty).abs()
                < 1e-9
        );
        for lost in [0.7, 0.5, 0.0, -1.0] {
            assert_eq!(tolerance(own, lost, 0.1), None, "no floor is made up for {lost}");
        }
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
