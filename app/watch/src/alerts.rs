//! Alerts: readings held against thresholds, with one alert per episode.
//!
//! A reading is over a threshold when it is **strictly** beyond it. After [`Rule::raise_after`] such readings in a row the alert is
//! raised, once; it is cleared after [`Rule::clear_after`] readings in a row that are better than the threshold by the rule's
//! margin. Between the two nothing happens, and a reading that is missing is no reading: it neither counts nor starts anew.
//!
//! | state | reading | becomes | event |
//! |---|---|---|---|
//! | quiet | enough beyond critical | critical | `raised` |
//! | quiet | enough beyond warning | warning | `raised` |
//! | warning | enough beyond critical | critical | `worse` |
//! | warning | enough better than warning by the margin | quiet | `cleared` |
//! | critical | enough better than every threshold by the margin | quiet | `cleared` |
//! | critical | enough better than critical by the margin | warning | `better` |
//! | any | any other, or none | the same | none |
//!
//! Where a rule has one threshold only, the lines of the other one do not apply.

use serde::Serialize;
use std::collections::VecDeque;

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Processors are busy, in percent of the interval.
    Cpu,
    /// Memory is in use, in percent.
    Memory,
    /// Tasks stood still for want of memory, in percent of the last ten seconds.
    MemoryPressure,
    /// Tasks stood still for want of a disk, in percent of the last ten seconds.
    IoPressure,
    /// The data partition is full, in percent.
    Disk,
    /// The data partition's inodes are in use, in percent.
    Inodes,
    /// The hottest sensor, in degrees Celsius.
    Temperature,
    /// The firmware slows the clock down: 1 while it caps it, 2 while it throttles it.
    Throttled,
    /// The supply is below its limit: 1.
    UnderVoltage,
    /// The hottest accelerator, in degrees Celsius.
    Accelerator,
    /// Requests that found a free slot, in percent of those of the interval.
    PoolEfficiency,
    /// A circuit breaker is open: 1.
    BreakerOpen,
    /// The data directory cannot be written: 1.
    StorageFailing,
    /// The file system of the data directory is damaged: the errors that were found in it.
    DiskErrors,
    /// An actuator is in its safe pose because something failed: 1.
    ActuatorFailing,
    /// A model answers as it was shipped although somebody calibrated it: 1.
    CalibrationFailing,
    /// Parts of an engine that must be of one release (library, driver, firmware) are not: 1.
    EngineMismatch,
    /// The system that was tried last did not stay, and none has come since: 1.
    SystemReturned,
    /// What was written to the data partition in a day, in percent of the budget.
    WriteBudget,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Cpu,
        Self::Memory,
        Self::MemoryPressure,
        Self::IoPressure,
        Self::Disk,
        Self::Inodes,
        Self::Temperature,
        Self::Throttled,
        Self::UnderVoltage,
        Self::Accelerator,
        Self::PoolEfficiency,
        Self::BreakerOpen,
        Self::StorageFailing,
        Self::DiskErrors,
        Self::ActuatorFailing,
        Self::CalibrationFailing,
        Self::EngineMismatch,
        Self::SystemReturned,
        Self::WriteBudget,
    ];

    /// As metrics and JSON name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::MemoryPressure => "memory_pressure",
            Self::IoPressure => "io_pressure",
            Self::Disk => "disk",
            Self::Inodes => "inodes",
            Self::Temperature => "temperature",
            Self::Throttled => "throttled",
            Self::UnderVoltage => "under_voltage",
            Self::Accelerator => "accelerator",
            Self::PoolEfficiency => "pool_efficiency",
            Self::BreakerOpen => "breaker_open",
            Self::StorageFailing => "storage_failing",
            Self::DiskErrors => "disk_errors",
            Self::ActuatorFailing => "actuator_failing",
            Self::CalibrationFailing => "calibration_failing",
            Self::EngineMismatch => "engine_mismatch",
            Self::SystemReturned => "system_returned",
            Self::WriteBudget => "write_budget",
        }
    }

    /// Whether it says that the device has more to do than it can: what optional work is shed for.
    #[must_use]
    pub fn is_load(self) -> bool {
        matches!(
            self,
            Self::Cpu
                | Self::Memory
                | Self::MemoryPressure
                | Self::IoPressure
                | Self::Temperature
                | Self::Throttled
                | Self::Accelerator
        )
    }

    /// One sentence for the operator.
    fn sentence(self, value: f64, limit: f64, about: Option<&str>) -> String {
        let of = about.map(|a| format!(" of {a}")).unwrap_or_default();
        match self {
            Self::Cpu => format!("the processors are {value:.0} % busy, at most {limit:.0} % is expected"),
            Self::Memory => format!("{value:.0} % of the memory is in use, at most {limit:.0} % is expected"),
            Self::MemoryPressure => {
                format!(
                    "work stands still for want of memory {value:.0} % of the time, at most {limit:.0} % is expected"
                )
            }
            Self::IoPressure => {
                format!(
                    "work stands still for want of a disk {value:.0} % of the time, at most {limit:.0} % is expected"
                )
            }
            Self::Disk => format!("the disk{of} is {value:.0} % full, at most {limit:.0} % is expected"),
            Self::Inodes => {
                format!(
                    "the disk{of} has {value:.0} % of its inodes in use, at most {limit:.0} % is expected"
                )
            }
            Self::Temperature | Self::Accelerator => {
                format!("the temperature{of} is {value:.0} °C, at most {limit:.0} °C is expected")
            }
            Self::Throttled if value > 1.5 => "the firmware throttles the processors".to_owned(),
            Self::Throttled => "the firmware caps the clock of the processors".to_owned(),
            Self::UnderVoltage => {
                "the supply voltage is too low: use a stronger supply or a shorter cable".to_owned()
            }
            Self::PoolEfficiency => {
                format!(
                    "only {value:.0} % of the requests found a free slot, at least {limit:.0} % is expected"
                )
            }
            Self::BreakerOpen => format!("the circuit breaker{of} is open"),
            Self::StorageFailing => format!("the data directory{of} cannot be written"),
            Self::DiskErrors => {
                format!(
                    "the file system{of} is damaged ({value:.0} errors): fetch from it what matters, then check it with e2fsck on another machine, or write the image to another medium"
                )
            }
            Self::ActuatorFailing => {
                format!("an actuator fails safe: {}", about.unwrap_or("nobody knows why"))
            }
            Self::CalibrationFailing => {
                format!("a calibration is not applied: {}", about.unwrap_or("nobody knows why"))
            }
            Self::EngineMismatch => {
                format!("an engine is put together wrongly: {}", about.unwrap_or("nobody knows why"))
            }
            Self::SystemReturned => {
                format!("a new system did not stay: {}", about.unwrap_or("nobody knows why"))
            }
            Self::WriteBudget => {
                format!("{value:.0} % of a day's write budget is spent, so optional writes are refused")
            }
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it.
    Warning,
    /// Act.
    Critical,
}

impl Severity {
    /// As metrics and JSON name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What is held against which thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// What it is about.
    pub kind: Kind,
    /// Beyond it is a warning.
    pub warning: Option<f64>,
    /// Beyond it is critical.
    pub critical: Option<f64>,
    /// By how much a reading must be better than a threshold to count as well again.
    pub margin: f64,
    /// Beyond is below: of [`Kind::PoolEfficiency`].
    pub below: bool,
    /// Readings in a row before it is raised, at least 1.
    pub raise_after: u32,
    /// Readings in a row before it is cleared, at least 1.
    pub clear_after: u32,
}

/// The readings in a row that say the same of one threshold.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    beyond: u32,
    well: u32,
}

impl Row {
    fn take(&mut self, value: f64, threshold: Option<f64>, margin: f64) {
        let Some(threshold) = threshold else { return };
        let count = |n: u32, is: bool| if is { n.saturating_add(1) } else { 0 };
        self.beyond = count(self.beyond, value > threshold);
        self.well = count(self.well, value < threshold - margin);
    }
}

/// One rule and where it stands.
#[derive(Clone, Copy, Debug)]
struct Track {
    rule: Rule,
    now: Option<Severity>,
    warning: Row,
    critical: Row,
}

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// An episode begins.
    Raised,
    /// From warning to critical.
    Worse,
    /// From critical to warning.
    Better,
    /// The episode is over.
    Cleared,
}

impl Track {
    /// Takes one reading in. All there is to decide is decided here; see the table of this module.
    fn take(&mut self, value: f64) -> Option<Change> {
        // Below is beyond on the other side of zero.
        let sign = if self.rule.below { -1.0 } else { 1.0 };
        let rule = self.rule;
        self.warning.take(sign * value, rule.warning.map(|t| sign * t), rule.margin);
        self.critical.take(sign * value, rule.critical.map(|t| sign * t), rule.margin);
        let beyond = |row: Row, t: Option<f64>| t.is_some() && row.beyond >= rule.raise_after.max(1);
        let well = |row: Row, t: Option<f64>| t.is_none() || row.well >= rule.clear_after.max(1);
        let (over_warning, over_critical) =
            (beyond(self.warning, rule.warning), beyond(self.critical, rule.critical));
        let (under_warning, under_critical) =
            (well(self.warning, rule.warning), well(self.critical, rule.critical));
        let (now, change) = match self.now {
            None if over_critical => (Some(Severity::Critical), Change::Raised),
            None if over_warning => (Some(Severity::Warning), Change::Raised),
            Some(Severity::Warning) if over_critical => (Some(Severity::Critical), Change::Worse),
            Some(Severity::Warning) if under_warning => (None, Change::Cleared),
            Some(Severity::Critical) if under_critical && under_warning => (None, Change::Cleared),
            Some(Severity::Critical) if under_critical && rule.warning.is_some() => {
                (Some(Severity::Warning), Change::Better)
            }
            _ => return None,
        };
        self.now = now;
        Some(change)
    }

    /// The threshold that matters to this severity.
    fn limit(&self, severity: Option<Severity>) -> f64 {
        let (warning, critical) = (self.rule.warning, self.rule.critical);
        let limit = match severity {
            Some(Severity::Critical) => critical.or(warning),
            _ => warning.or(critical),
        };
        limit.unwrap_or_default()
    }
}

/// One reading of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// What it is of.
    pub kind: Kind,
    /// The value; `None`: it could not be had.
    pub value: Option<f64>,
    /// The sensor, disk or model it is about.
    pub about: Option<String>,
}

/// When something was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct When {
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// Unix time in milliseconds, as the clock had it.
    pub clock_ms: u64,
}

/// One change of one alert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Counted up since the daemon started; 1 is the first.
    pub number: u64,
    /// When.
    #[serde(flatten)]
    pub when: When,
    /// Which alert.
    pub alert: Kind,
    /// What became of it.
    pub change: Change,
    /// How bad it is now; of one that is over, how bad it was.
    pub severity: Severity,
    /// The reading that did it.
    pub value: f64,
    /// The threshold that counts.
    pub threshold: f64,
    /// The sensor, disk or model it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// One sentence for the operator.
    pub sentence: String,
}

/// An alert that is raised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// Which.
    pub alert: Kind,
    /// How bad.
    pub severity: Severity,
    /// The newest reading.
    pub value: f64,
    /// The threshold that counts.
    pub threshold: f64,
    /// The sensor, disk or model it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// When it was raised.
    pub since: When,
    /// One sentence for the operator.
    pub sentence: String,
}

/// How many events are kept.
pub const KEPT: usize = 64;

/// All alerts of the device.
#[derive(Clone, Debug)]
pub struct Alerts {
    tracks: Vec<Track>,
    active: Vec<Active>,
    recent: VecDeque<Event>,
    raised: [u64; Kind::ALL.len()],
    number: u64,
}

impl Alerts {
    /// By these rules, at most one for each kind.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Self {
        let row = Row::default();
        Self {
            tracks: rules
                .iter()
                .map(|&rule| Track { rule, now: None, warning: row, critical: row })
                .collect(),
            active: Vec::new(),
            recent: VecDeque::with_capacity(KEPT),
            raised: [0; Kind::ALL.len()],
            number: 0,
        }
    }

    /// Takes the readings of one interval in; what they changed.
    pub fn take(&mut self, when: When, readings: &[Reading]) -> Vec<Event> {
        let mut events = Vec::new();
        for reading in readings {
            let Some(value) = reading.value.filter(|v| v.is_finite()) else { continue };
            let Some(track) = self.tracks.iter_mut().find(|t| t.rule.kind == reading.kind) else { continue };
            let before = track.now;
            let change = track.take(value);
            let now = track.now;
            // What is over is over of what it was raised for.
            let raised = self.active.iter().find(|a| a.alert == reading.kind).and_then(|a| a.about.clone());
            let about = reading.about.clone().or(raised.filter(|_| now.is_none()));
            let threshold = track.limit(now.or(before));
            let sentence = |over: bool| {
                let said = reading.kind.sentence(value, threshold, about.as_deref());
                if over { format!("over: {said}") } else { said }
            };
            let old = self.active.iter().position(|a| a.alert == reading.kind);
            match (now, old) {
                (None, Some(at)) => drop(self.active.remove(at)),
                (None, None) => {}
                (Some(severity), old) => {
                    let since = old.map_or(when, |at| self.active[at].since);
                    let active = Active {
                        alert: reading.kind,
                        severity,
                        value,
                        threshold,
                        about: about.clone(),
                        since,
                        sentence: sentence(false),
                    };
                    match old {
                        Some(at) => self.active[at] = active,
                        None => self.active.push(active),
                    }
                }
            }
            let (Some(change), Some(severity)) = (change, now.or(before)) else { continue };
            self.number += 1;
            if change == Change::Raised {
                self.raised[reading.kind as usize] += 1;
            }
            let over = change == Change::Cleared;
            events.push(Event {
                number: self.number,
                when,
                alert: reading.kind,
                change,
                severity,
                value,
                threshold,
                about: about.clone(),
                sentence: sentence(over),
            });
        }
        for event in &events {
            if self.recent.len() == KEPT {
                self.recent.pop_front();
            }
            self.recent.push_back(event.clone());
        }
        events
    }

    /// Those that are raised, oldest first.
    #[must_use]
    pub fn active(&self) -> &[Active] {
        &self.active
    }

    /// The last [`KEPT`] events, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Event> {
        self.recent.iter()
    }

    /// How often this one was raised.
    #[must_use]
    pub fn raised(&self, kind: Kind) -> u64 {
        self.raised[kind as usize]
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.tracks.iter().map(|t| &t.rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        kind: Kind::Disk,
        warning: Some(80.0),
        critical: Some(90.0),
        margin: 5.0,
        below: false,
        raise_after: 2,
        clear_after: 2,
    };

    fn run(rule: Rule, values: &[Option<f64>]) -> Vec<(Change, Severity)> {
        let mut alerts = Alerts::new(&[rule]);
        let mut events = Vec::new();
        for value in values {
            let reading = Reading { kind: rule.kind, value: *value, about: None };
            events.extend(alerts.take(When::default(), &[reading]));
        }
        events.into_iter().map(|e| (e.change, e.severity)).collect()
    }

    /// Every sequence of this length over these readings.
    fn every(readings: &[Option<f64>], length: u32, mut look: impl FnMut(&[Option<f64>])) {
        let n = readings.len();
        let mut values = vec![None; length as usize];
        for mut code in 0..n.pow(length) {
            for value in &mut values {
                *value = readings[code % n];
                code /= n;
            }
            look(&values);
        }
    }

    #[test]
    fn five_readings_strictly_over_raise_once_and_five_below_the_margin_clear() {
        let rule = Rule { critical: None, raise_after: 5, clear_after: 5, ..RULE };
        let some = |v: f64, n: usize| vec![Some(v); n];
        assert_eq!(run(rule, &some(80.0, 100)), [], "the threshold itself is not over it");
        assert_eq!(run(rule, &some(80.1, 4)), []);
        let raised = (Change::Raised, Severity::Warning);
        assert_eq!(run(rule, &some(80.1, 100)), [raised], "one alert for one episode");
        let not_yet = [some(99.0, 5), some(75.0, 50)].concat();
        assert_eq!(run(rule, &not_yet), [raised], "within the margin it is not over");
        let over = [some(99.0, 5), some(74.9, 4), some(75.0, 1), some(74.9, 5)].concat();
        assert_eq!(run(rule, &over), [raised, (Change::Cleared, Severity::Warning)]);
        assert_eq!(run(rule, &over[..14]), [raised], "the row was broken");
    }

    #[test]
    fn two_thresholds_go_up_and_down_within_one_episode() {
        let walk = [85.0, 85.0, 95.0, 95.0, 82.0, 82.0, 70.0, 70.0].map(Some);
        use Severity::{Critical, Warning};
        assert_eq!(
            run(RULE, &walk),
            [
                (Change::Raised, Warning),
                (Change::Worse, Critical),
                (Change::Better, Warning),
                (Change::Cleared, Warning)
            ]
        );
        let jump = [95.0, 95.0, 10.0, 10.0].map(Some);
        assert_eq!(run(RULE, &jump), [(Change::Raised, Critical), (Change::Cleared, Critical)]);
    }

    #[test]
    fn alternating_readings_never_raise() {
        let rule = Rule { raise_after: 2, ..RULE };
        for (a, b) in [(99.0, 1.0), (99.0, 80.0), (81.0, 79.0), (99.0, 85.0)] {
            let values: Vec<_> = [Some(a), Some(b)].into_iter().cycle().take(1000).collect();
            let none: Vec<(Change, Severity)> = Vec::new();
            let expected = if b > 80.0 { vec![(Change::Raised, Severity::Warning)] } else { none };
            assert_eq!(run(rule, &values), expected, "{a} {b}");
        }
    }

    #[test]
    fn in_every_sequence_raises_and_clears_take_turns_and_missing_readings_change_nothing() {
        let readings = [Some(95.0), Some(87.0), Some(77.0), Some(50.0), None];
        for (raise_after, clear_after) in [(1, 1), (1, 3), (2, 2), (3, 1)] {
            let rule = Rule { raise_after, clear_after, ..RULE };
            every(&readings, 6, |values| {
                let events = run(rule, values);
                let read: Vec<_> = values.iter().copied().filter(Option::is_some).collect();
                assert_eq!(events, run(rule, &read), "a missing reading is no reading: {values:?}");
                let mut now = None;
                for (change, severity) in events {
                    use Severity::{Critical, Warning};
                    now = match (now, change, severity) {
                        (None, Change::Raised, severity) => Some(severity),
                        (Some(Warning), Change::Worse, Critical) => Some(Critical),
                        (Some(Critical), Change::Better, Warning) => Some(Warning),
                        (Some(was), Change::Cleared, is) if was == is => None,
                        strange => panic!("{strange:?} in {values:?}"),
                    };
                }
            });
        }
    }

    #[test]
    fn in_every_sequence_it_is_raised_exactly_after_a_row_of_readings_over_a_threshold() {
        let rule = Rule { critical: None, raise_after: 3, clear_after: 2, ..RULE };
        every(&[Some(95.0), Some(77.0), Some(50.0)], 10, |values| {
            let first = values.windows(3).any(|w| w.iter().all(|v| v.is_some_and(|v| v > 80.0)));
            assert_eq!(!run(rule, values).is_empty(), first, "{values:?}");
        });
    }

    #[test]
    fn a_share_that_should_be_high_is_watched_from_below() {
        let rule =
            Rule { kind: Kind::PoolEfficiency, warning: Some(60.0), critical: None, below: true, ..RULE };
        assert_eq!(run(rule, &[60.0; 9].map(Some)), []);
        let values = [59.0, 59.0, 65.0, 65.0, 65.1, 65.1].map(Some);
        assert_eq!(
            run(rule, &values),
            [(Change::Raised, Severity::Warning), (Change::Cleared, Severity::Warning)]
        );
    }

    #[test]
    fn a_rule_that_is_critical_or_nothing_has_no_way_in_between() {
        let flag = Rule { warning: None, critical: Some(0.5), margin: 0.0, raise_after: 1, ..RULE };
        let values = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0].map(Some);
        use Severity::Critical;
        assert_eq!(
            run(flag, &values),
            [(Change::Raised, Critical), (Change::Cleared, Critical), (Change::Raised, Critical)]
        );
        let broken = [Some(f64::NAN), Some(f64::INFINITY)];
        assert_eq!(run(flag, &broken), [], "what is no number is no reading");
    }

    #[test]
    fn what_is_kept_is_bounded_and_counted_on() {
        let rule = Rule { critical: None, raise_after: 1, clear_after: 1, ..RULE };
        let mut alerts = Alerts::new(&[rule]);
        for i in 0..200 {
            let value = Some(if i % 2 == 0 { 99.0 } else { 1.0 });
            alerts.take(When::default(), &[Reading { kind: Kind::Disk, value, about: Some("/data".into()) }]);
        }
        assert_eq!(alerts.recent().count(), KEPT);
        assert_eq!(alerts.recent().last().unwrap().number, 200);
        assert_eq!(alerts.raised(Kind::Disk), 100);
        assert!(alerts.active().is_empty());
        assert!(alerts.recent().all(|e| e.sentence.contains("/data")));
    }
}
