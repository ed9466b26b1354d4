//! What a benchmark may be asked to do, checked.

use crate::constraint::{Constraint, MAX_CONSTRAINTS};
use crate::record::MAX_RUNGS;
use serde::{Deserialize, Serialize};

/// The longest name of a model or a rung.
const MAX_NAME: usize = 64;
/// The longest stability run, in seconds.
pub const MAX_SOAK_S: u32 = 3600;
/// The largest body that is read.
pub const MAX_BODY: usize = 16 << 10;

/// Requests that are handed over at once when nobody says how many.
const DEFAULT_BATCHES: [u32; 2] = [2, 4];
/// The most numbers of requests at once, or in flight.
const MOST_POINTS: usize = 8;

/// A request; every field may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// The model; empty: the default one.
    pub model: String,
    /// The rungs to measure, or their engines; none: all of the manifest's.
    pub rungs: Vec<String>,
    /// What the selected rung must keep to.
    pub constraints: Vec<Constraint>,
    /// Inferences before a rung is measured.
    pub warm_up: u32,
    /// Inferences of one run.
    pub iterations: u32,
    /// Runs that must agree.
    pub repeats: u32,
    /// The most runs until they do.
    pub most_repeats: u32,
    /// Seconds after which a run ends with the inferences it has.
    pub run_s: u32,
    /// Requests handed over at once, each number measured in turn; none: the step is left out. Absent from records before form 3 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batches: Option<Vec<u32>>,
    /// Requests in flight, each measured in turn; none: the step is left out.
    pub in_flight: Vec<u32>,
    /// Seconds of the stability run; 0: the step is left out.
    pub soak_s: u32,
    /// Worker threads of the hosts; 0: as the model is served.
    pub workers: u32,
    /// End optimising at the step after which the stop rules hold.
    pub stop: bool,
    /// Make these numbers the baseline that later ones are compared with.
    pub baseline: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            model: String::new(),
            rungs: Vec::new(),
            constraints: Vec::new(),
            warm_up: 50,
            iterations: 200,
            repeats: 3,
            most_repeats: 8,
            run_s: 60,
            batches: Some(DEFAULT_BATCHES.to_vec()),
            in_flight: vec![1, 2, 4],
            soak_s: 5,
            workers: 0,
            stop: false,
            baseline: false,
        }
    }
}

/// Why a request is refused; one sentence that names the field and its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadRequest {
    #[error("the body: {0}")]
    Form(String),
    #[error("{field} is {value}, allowed are {min} to {max}")]
    Range { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{field}: at most {max}, each once")]
    Many { field: &'static str, max: usize },
    #[error("{field}: a name has 1 to {MAX_NAME} letters, digits, dots, dashes and underscores")]
    Name { field: &'static str },
}

impl Request {
    /// Reads a body; an empty one asks for all defaults.
    ///
    /// # Errors
    /// [`BadRequest`] for the first thing that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let body = body.trim_ascii();
        if body.is_empty() {
            return Ok(Self::default());
        }
        if body.len() > MAX_BODY {
            let (value, max) = (body.len() as u64, MAX_BODY as u64);
            return Err(BadRequest::Range { field: "the body's length", value, min: 0, max });
        }
        if body[0] != b'{' {
            return Err(BadRequest::Form("a JSON object is needed, or nothing".into()));
        }
        let request: Self = serde_json::from_slice(body).map_err(|e| {
            // What serde says of a wrong word repeats it; a long or strange one is left out.
            let said = e.to_string();
            let plain = said.len() <= 300 && said.bytes().all(|b| (32..127).contains(&b));
            BadRequest::Form(if plain { said } else { format!("line {}, column {}", e.line(), e.column()) })
        })?;
        request.checked()
    }

    /// Checks a request that was made in code.
    ///
    /// # Errors
    /// [`BadRequest`] for the first thing that is wrong.
    pub fn checked(mut self) -> Result<Self, BadRequest> {
        let range = |field, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(BadRequest::Range { field, value: value.into(), min: min.into(), max: max.into() })
        };
        range("warm_up", self.warm_up, 0, 10_000)?;
        range("iterations", self.iterations, 1, 10_000)?;
        range("repeats", self.repeats, 1, 10)?;
        range("most_repeats", self.most_repeats, self.repeats, 20)?;
        range("run_s", self.run_s, 1, 600)?;
        range("soak_s", self.soak_s, 0, MAX_SOAK_S)?;
        range("workers", self.workers, 0, 16)?;
        let batches: &[u32] = self.batches.get_or_insert_with(|| DEFAULT_BATCHES.to_vec());
        for (field, least, points) in [("batches", 2, batches), ("in_flight", 1, &self.in_flight)] {
            points.iter().try_for_each(|n| range(field, *n, least, 64))?;
            if points.len() > MOST_POINTS || (1..points.len()).any(|i| points[..i].contains(&points[i])) {
                return Err(BadRequest::Many { field, max: MOST_POINTS });
            }
        }
        let doubled = |list: &[String]| (1..list.len()).any(|i| list[..i].contains(&list[i]));
        if self.rungs.len() > MAX_RUNGS || doubled(&self.rungs) {
            return Err(BadRequest::Many { field: "rungs", max: MAX_RUNGS });
        }
        if self.constraints.len() > MAX_CONSTRAINTS {
            return Err(BadRequest::Many { field: "constraints", max: MAX_CONSTRAINTS });
        }
        if !self.model.is_empty() && !is_name(&self.model) {
            return Err(BadRequest::Name { field: "model" });
        }
        if !self.rungs.iter().all(|r| is_name(r)) {
            return Err(BadRequest::Name { field: "rungs" });
        }
        Ok(self)
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asks_for_the_defaults() {
        let request = Request::parse(b"").unwrap();
        assert_eq!(request, Request::parse(b" {} ").unwrap());
        assert_eq!((request.warm_up, request.iterations, request.repeats), (50, 200, 3));
        assert_eq!(request.in_flight, [1, 2, 4]);
    }

    #[test]
    fn what_is_asked_is_read_and_written_back() {
        let text = r#"{"model":"imu-motion","rungs":["cpu","ort-int8"],"constraints":["p95_ms<50"],"iterations":10,"soak_s":3600}"#;
        let request = Request::parse(text.as_bytes()).unwrap();
        assert_eq!(request.constraints[0].to_string(), "p95_ms<50");
        let back = serde_json::to_vec(&request).unwrap();
        assert_eq!(Request::parse(&back).unwrap(), request);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_its_name() {
        for (body, said) in [
            ("[]", "a JSON object is needed"),
            ("{\"model\":1}", "invalid type"),
            ("{\"speed\":1}", "unknown field"),
            ("{\"iterations\":0}", "iterations is 0, allowed are 1 to 10000"),
            ("{\"iterations\":10001}", "iterations is 10001"),
            ("{\"iterations\":-1}", "invalid value"),
            ("{\"repeats\":11}", "repeats is 11"),
            ("{\"repeats\":5,\"most_repeats\":4}", "most_repeats is 4, allowed are 5 to 20"),
            ("{\"soak_s\":3601}", "soak_s is 3601"),
            ("{\"in_flight\":[65]}", "in_flight is 65"),
            ("{\"in_flight\":[1,1]}", "in_flight: at most 8, each once"),
            ("{\"batches\":[1]}", "batches is 1, allowed are 2 to 64"),
            ("{\"batches\":[4,2,4]}", "batches: at most 8, each once"),
            ("{\"rungs\":[\"cpu\",\"cpu\"]}", "rungs: at most 16, each once"),
            ("{\"rungs\":[\"c/u\"]}", "rungs: a name has"),
            ("{\"model\":\"../x\"}", "model: a name has"),
            ("{\"constraints\":[\"p95_ms<=5\"]}", "a constraint is a name"),
        ] {
            let e = Request::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(e.contains(said), "{body}: {e}");
        }
        let long = format!("{{\"model\":\"{}\"}}", "x".repeat(MAX_BODY));
        assert!(matches!(Request::parse(long.as_bytes()), Err(BadRequest::Range { .. })));
    }
}
