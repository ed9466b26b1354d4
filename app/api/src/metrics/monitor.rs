//! The resource monitor's numbers, of its newest reading.

use super::live::{Writer, float, yes};
use inferd_watch::alerts::{Kind, Severity};
use inferd_watch::monitor::parse::Pressure;
use inferd_watch::monitor::{AcceleratorReading, Monitor, Sample, View};
use inferd_watch::shed::Level;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The monitor, once it runs.
pub(super) struct Resources {
    pub(super) monitor: Arc<OnceLock<Monitor>>,
    /// Whether the seed service's `edge_*` names are exported too.
    pub(super) aliases: bool,
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources").finish_non_exhaustive()
    }
}

impl Collector for Resources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(monitor) = self.monitor.get() else { return Ok(()) };
        let view = monitor.view().borrow().clone();
        let mut out = Writer { encoder: &mut encoder };
        own(&mut out, monitor, &view)?;
        alerts(&mut out, &view)?;
        if let Some(sample) = &view.sample {
            machine(&mut out, sample)?;
            wear(&mut out, sample)?;
        }
        if self.aliases { aliases(&mut out, &view) } else { Ok(()) }
    }
}

/// Families of one sample each, of what is known.
type One<'a> = (&'a str, &'a str, Option<f64>);

fn each(out: &mut Writer<'_, '_>, families: &[One<'_>]) -> fmt::Result {
    for &(name, help, value) in families {
        out.gauge(name, help, value.map(|v| (vec![], v)))?;
    }
    Ok(())
}

fn own(out: &mut Writer<'_, '_>, monitor: &Monitor, view: &View) -> fmt::Result {
    let age = "How long ago the monitor was last seen at work; above two intervals it is stuck";
    out.gauge("inferd_monitor_age_seconds", age, [(vec![], monitor.age().as_secs_f64())])?;
    out.counter("inferd_monitor_readings", "Readings of the resource monitor", [(vec![], view.readings)])?;
    out.counter("inferd_monitor_panics", "Readings that panicked", [(vec![], view.panics)])?;
    let hanging = view.sample.iter().flat_map(|s| &s.hanging);
    out.gauge(
        "inferd_monitor_hanging",
        "Sensors whose reading hangs; always 1",
        hanging.map(|name| (vec![("sensor", name.as_str())], 1.0)),
    )
}

fn alerts(out: &mut Writer<'_, '_>, view: &View) -> fmt::Result {
    let severities = [Severity::Warning, Severity::Critical];
    let each = Kind::ALL.iter().flat_map(|kind| severities.map(|severity| (*kind, severity)));
    out.gauge(
        "inferd_alert_active",
        "Whether the alert is raised at this severity",
        each.map(|(kind, severity)| {
            let raised = view.active(kind).is_some_and(|a| a.severity == severity);
            (vec![("alert", kind.name()), ("severity", severity.name())], yes(raised))
        }),
    )?;
    out.counter(
        "inferd_alerts",
        "Times the alert was raised",
        Kind::ALL.iter().map(|kind| (vec![("alert", kind.name())], view.raised(*kind))),
    )?;
    out.gauge(
        "inferd_shedding",
        "Whether optional work is shed so that inference does not suffer",
        [(vec![], yes(view.shed != Level::None))],
    )
}

/// What a family has of an accelerator.
type Read = fn(&AcceleratorReading) -> Option<f64>;

fn machine(out: &mut Writer<'_, '_>, s: &Sample) -> fmt::Result {
    let disk = s.disk.as_ref();
    let ratio = |percent: Option<f64>| percent.map(|p| p / 100.0);
    each(
        out,
        &[
            ("cpu_usage_percent", "How busy the processors were in the last interval", s.cpu_percent),
            (
                "memory_usage_bytes",
                "Memory of the board that is in use",
                s.memory.map(|m| float(m.used_bytes)),
            ),
            ("inferd_memory_size_bytes", "Memory of the board", s.memory.map(|m| float(m.total_bytes))),
            (
                "inferd_memory_available_bytes",
                "Memory that could be had without swapping",
                s.memory.map(|m| float(m.available_bytes)),
            ),
            (
                "inferd_cgroup_memory_bytes",
                "Memory of the control group the daemon is in",
                s.cgroup.map(|c| float(c.used_bytes)),
            ),
            (
                "inferd_cgroup_memory_limit_bytes",
                "The limit of that control group",
                s.cgroup.and_then(|c| c.limit_bytes).map(float),
            ),
            ("inferd_disk_size_bytes", "Size of the data partition", disk.map(|d| float(d.total_bytes))),
            (
                "inferd_disk_available_bytes",
                "What may still be written to the data partition",
                disk.map(|d| float(d.available_bytes)),
            ),
            ("inferd_disk_used_ratio", "How full the data partition is", ratio(disk.map(|d| d.percent))),
            (
                "inferd_disk_inodes_used_ratio",
                "Inodes of the data partition that are in use",
                ratio(disk.and_then(|d| d.inodes_percent)),
            ),
            (
                "inferd_disk_read_only",
                "Whether the data partition can only be read",
                disk.map(|d| yes(d.read_only)),
            ),
            (
                "inferd_disk_errors",
                "Errors that were found in the file system of the data partition since it was last checked",
                disk.and_then(|d| d.errors).map(float),
            ),
            (
                "inferd_pool_efficiency_ratio",
                "Requests of the last interval that found a free slot; absent when there were few",
                s.pool_efficiency,
            ),
            ("inferd_under_voltage", "Whether the supply is too low", s.power.under_voltage.map(yes)),
        ],
    )?;
    let of = |p: &Option<Pressure>, kind| match kind {
        "some" => p.map(|p| p.some_avg10),
        _ => p.and_then(|p| p.full_avg10),
    };
    let stalls = [("cpu", &s.pressure.cpu), ("memory", &s.pressure.memory), ("io", &s.pressure.io)];
    let stalls = stalls.iter().flat_map(|&(resource, p)| {
        ["some", "full"].into_iter().filter_map(move |kind| {
            Some((vec![("resource", resource), ("kind", kind)], of(p, kind)? / 100.0))
        })
    });
    out.gauge(
        "inferd_pressure_ratio",
        "Share of the last ten seconds in which some or all work stood still for want of this",
        stalls,
    )?;
    if let Some(t) = s.power.throttled {
        let clocks = [("capped", t.capped), ("throttled", t.throttled), ("soft_limit", t.soft_limit)];
        out.gauge(
            "inferd_throttled",
            "What the firmware does to the clock of the processors",
            clocks.map(|(how, is)| (vec![("how", how)], yes(is))),
        )?;
    }
    let families: [(&str, &str, Read); 5] = [
        ("inferd_accelerator_load_ratio", "How busy the accelerator is", |a| {
            a.load_percent.map(|p| p / 100.0)
        }),
        ("inferd_accelerator_temperature_celsius", "How warm it is", |a| a.celsius),
        ("inferd_accelerator_clock_hertz", "Its clock", |a| a.frequency_hz.map(float)),
        ("inferd_accelerator_memory_used_bytes", "Its own memory in use", |a| a.memory_used_bytes.map(float)),
        ("inferd_accelerator_memory_size_bytes", "Its own memory", |a| a.memory_total_bytes.map(float)),
    ];
    for (name, help, value) in families {
        out.gauge(
            name,
            help,
            s.accelerators.iter().filter_map(|a| Some((vec![("accelerator", a.name.as_str())], value(a)?))),
        )?;
    }
    Ok(())
}

fn wear(out: &mut Writer<'_, '_>, s: &Sample) -> fmt::Result {
    let w = &s.wear;
    let written =
        "Bytes written to the data partition, or by the daemon where it has no partition of its own";
    out.counter("inferd_data_written_bytes", written, [(vec![], w.written_bytes)])?;
    out.gauge(
        "inferd_data_written_day_bytes",
        "Of these, in the last 24 hours of running",
        [(vec![], float(w.written_today_bytes))],
    )?;
    let budget = "What may be written in 24 hours of running; absent: anything";
    out.gauge(
        "inferd_data_write_budget_bytes",
        budget,
        (w.budget_bytes > 0).then(|| (vec![], float(w.budget_bytes))),
    )?;
    let refused = "Optional writes that were refused because the budget was spent";
    out.counter("inferd_data_writes_refused", refused, [(vec![], w.refused)])?;
    let areas = w.flash.iter().flat_map(|f| {
        [("a", f.life_used_a_percent), ("b", f.life_used_b_percent)].into_iter().filter_map(|(area, used)| {
            Some((vec![("device", f.device.as_str()), ("area", area)], f64::from(used?) / 100.0))
        })
    });
    out.gauge("inferd_flash_life_used_ratio", "How much of an eMMC's life is used, at most", areas)
}

/// The seed service's own names, for dashboards that know them.
fn aliases(out: &mut Writer<'_, '_>, view: &View) -> fmt::Result {
    if let Some(s) = &view.sample {
        let gpu = s.accelerators.first();
        each(
            out,
            &[
                ("edge_cpu_usage_percent", "cpu_usage_percent", s.cpu_percent),
                ("edge_memory_usage_bytes", "memory_usage_bytes", s.memory.map(|m| float(m.used_bytes))),
                ("edge_memory_usage_percent", "Memory in use", s.memory.map(|m| m.percent)),
                (
                    "edge_disk_usage_percent",
                    "How full the data partition is",
                    s.disk.as_ref().map(|d| d.percent),
                ),
                (
                    "edge_gpu_memory_usage_bytes",
                    "Memory of the accelerator in use",
                    gpu.and_then(|g| g.memory_used_bytes).map(float),
                ),
                (
                    "edge_gpu_temperature_celsius",
                    "Temperature of the accelerator",
                    gpu.and_then(|g| g.celsius),
                ),
                ("edge_gpu_utilization_percent", "Load of the accelerator", gpu.and_then(|g| g.load_percent)),
            ],
        )?;
    }
    let times = |kind| [(vec![], view.raised(kind))];
    out.counter("edge_high_cpu_alerts", "inferd_alerts_total of cpu", times(Kind::Cpu))?;
    out.counter("edge_high_memory_alerts", "inferd_alerts_total of memory", times(Kind::Memory))
}
