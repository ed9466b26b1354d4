//! What is heard, as lines: in two columns where there is room, below one another where there is less, and as plain text.

use super::text::{millis, sparkline, words};
use super::view::{Contact, Focus, Reading, View};
use crate::{show, slots};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};
use serde_json::Value;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// From this width on there are two columns.
const TWO_COLUMNS: u16 = 100;
/// Verdicts that are shown.
const VERDICTS: usize = 4;
/// Cells of a plot at most.
const PLOT: usize = 60;

/// What a text says of the device.
#[derive(Clone, Copy)]
enum Mood {
    Good,
    Warn,
    Bad,
    Soft,
    Plain,
    Strong,
}

impl Mood {
    fn style(self, colours: bool) -> Style {
        let style = Style::new();
        match (self, colours) {
            (Self::Plain, _) => style,
            (Self::Good, true) => style.fg(Color::Green),
            (Self::Warn, true) => style.fg(Color::Yellow).add_modifier(Modifier::BOLD),
            (Self::Bad, true) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Self::Good | Self::Strong, _) => style.add_modifier(Modifier::BOLD),
            (Self::Warn, false) => style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            (Self::Bad, false) => style.add_modifier(Modifier::REVERSED),
            (Self::Soft, _) => style.add_modifier(Modifier::DIM),
        }
    }
}

/// A title and what stands below it.
struct Section {
    title: String,
    chosen: bool,
    lines: Vec<Line<'static>>,
}

/// Draws for one width.
struct Pen {
    width: usize,
    colours: bool,
    /// All of it is old.
    stale: bool,
}

impl Pen {
    fn span(&self, mood: Mood, text: impl Into<String>) -> Span<'static> {
        let style = mood.style(self.colours);
        Span::styled(text.into(), if self.stale { style.add_modifier(Modifier::DIM) } else { style })
    }

    /// These one behind the other, as many as there is room for: the first are the most important.
    fn row(&self, fields: &[(Mood, String)]) -> Line<'static> {
        let mut line = Line::default();
        for (mood, text) in fields.iter().filter(|(_, text)| !text.is_empty()) {
            let span = self.span(*mood, text.clone());
            let gap = if line.spans.is_empty() { 0 } else { 2 };
            if gap > 0 && line.width() + gap + span.width() > self.width {
                break;
            }
            if gap > 0 {
                line.push_span("  ");
            }
            line.push_span(span);
        }
        line
    }

    /// A sentence on as many lines as it needs.
    fn wrapped(&self, mood: Mood, indent: usize, text: &str) -> Vec<Line<'static>> {
        let room = self.width.saturating_sub(indent).max(8);
        let mut lines: Vec<String> = vec![String::new()];
        for word in text.split(' ') {
            // A word that no line can hold is cut.
            for piece in pieces(word, room) {
                let last = lines.last_mut().expect("there is always one");
                let gap = usize::from(!last.is_empty());
                if wide(last) + gap + wide(&piece) > room && gap > 0 {
                    lines.push(piece);
                } else {
                    last.push_str(&" ".repeat(gap));
                    last.push_str(&piece);
                }
            }
        }
        let line = |text: String| Line::from(vec![Span::raw(" ".repeat(indent)), self.span(mood, text)]);
        lines.into_iter().map(line).collect()
    }

    /// A name, a plot, and its newest value.
    fn plot(&self, name: &str, values: &[Option<f64>], now: String) -> Line<'static> {
        let room = self.width.saturating_sub(name.len() + wide(&now) + 4).min(PLOT);
        let bars = sparkline(values, room);
        let line = vec![
            self.span(Mood::Soft, format!("{name:<9} ")),
            self.span(Mood::Good, format!("{bars:<room$}")),
            self.span(Mood::Plain, format!("  {now}")),
        ];
        Line::from(line)
    }
}

fn wide(text: &str) -> usize {
    Span::raw(text).width()
}

fn pieces(word: &str, room: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    for c in word.chars() {
        let last = all.last_mut().expect("there is always one");
        if wide(last) + wide(c.encode_utf8(&mut [0; 4])) > room {
            all.push(c.to_string());
        } else {
            last.push(c);
        }
    }
    all
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn many(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

// ------------------------------------------------------------------------------------------------------- the headline

/// How the device is, in one word and one sentence.
fn headline(view: &View, now: Instant) -> (Mood, &'static str, String) {
    match &view.contact {
        Contact::Lost { why, next } => {
            let wait = next.saturating_duration_since(now).as_secs_f64();
            return (Mood::Bad, "no connection", format!("{why}; trying again in {wait:.1} s"));
        }
        Contact::Refuses(why) => return (Mood::Warn, "refused", why.clone()),
        Contact::Asking | Contact::Answers => {}
    }
    if let Some(silent) = view.silent(now) {
        return (Mood::Bad, "no answer", format!("for {:.1} s", silent.as_secs_f64()));
    }
    let Some(status) = &view.status else {
        return (Mood::Soft, "asking", String::new());
    };
    let names = |all: &mut dyn Iterator<Item = &Value>| {
        let names: Vec<String> = all.map(|m| text(&m["name"])).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(reason) = status["safe_mode"]["reason"].as_str() {
        return (Mood::Bad, "safe mode", reason.to_owned());
    }
    if status["ready"] != true {
        return (Mood::Bad, "not serving", text(&status["initialization_error"]));
    }
    if let Some(bad) = names(&mut view.models().iter().filter(|m| m["state"] != "ready")) {
        return (Mood::Warn, "degraded", format!("not answering: {bad}"));
    }
    if let Some(aside) = names(&mut view.models().iter().filter(|m| !m["fallback"].is_null())) {
        return (Mood::Warn, "degraded", format!("on another engine than the preferred one: {aside}"));
    }
    if let Some(alert) = view.alerts.iter().find(|a| a["severity"] == "critical") {
        return (Mood::Warn, "degraded", text(&alert["sentence"]));
    }
    let up = status["uptime_s"].as_u64().map_or(String::new(), |s| format!(", up {}", show::age(s)));
    (Mood::Good, "healthy", format!("{} ready{up}", many(view.models().len(), "model")))
}

fn head(view: &View, width: u16, colours: bool, now: Instant) -> Vec<Line<'static>> {
    let pen = Pen { width: width.into(), colours, stale: false };
    let (mood, word, sentence) = headline(view, now);
    let version = view.status.as_ref().map_or(String::new(), |s| text(&s["version"]));
    let fresh = match view.stale(now) {
        Some(age) if view.paused => (Mood::Warn, format!("paused, shown is {} old", seconds(age))),
        Some(age) => (Mood::Bad, format!("STALE, shown is {} old", seconds(age))),
        None if view.heard_once() => (Mood::Soft, "live".to_owned()),
        None => (Mood::Soft, String::new()),
    };
    let mut lines =
        vec![pen.row(&[(mood, word.to_owned()), fresh, (Mood::Soft, format!("{} {version}", view.url))])];
    if !sentence.is_empty() {
        lines.extend(pen.wrapped(Mood::Plain, 0, &sentence).into_iter().take(2));
    }
    lines
}

fn seconds(age: Duration) -> String {
    if age < Duration::from_secs(10) {
        format!("{:.1} s", age.as_secs_f64())
    } else {
        show::age(age.as_secs())
    }
}

// -------------------------------------------------------------------------------------------------------- the sections

fn prediction(view: &View, pen: &Pen, now: Instant) -> Section {
    let source = view.sources.get(view.source);
    let name = source.map_or(String::new(), |s| format!(": {}", text(&s["name"])));
    let mut lines = Vec::new();
    let Some(source) = source else {
        lines.extend(pen.wrapped(Mood::Soft, 0, "no source of live input is configured"));
        return Section { title: "live prediction".into(), chosen: false, lines };
    };
    // What the stream says is newer than what was asked a second ago; both say why nothing comes.
    let trouble = [view.live.trouble.as_str(), source["problem"].as_str().unwrap_or_default()];
    let mut trouble = trouble.into_iter().find(|t| !t.is_empty()).unwrap_or_default().to_owned();
    if trouble.is_empty() && source["state"] != "live" {
        trouble = format!("{}: {}", words(&text(&source["state"])), text(&source["reason"]));
    }
    let latest =
        view.live.latest.as_ref().or_else(|| (!source["latest"].is_null()).then_some(&source["latest"]));
    let old = !trouble.is_empty();
    if old {
        lines.extend(pen.wrapped(Mood::Bad, 0, &format!("interrupted: {trouble}")));
    }
    if let Some(event) = latest {
        let sure = event["confidence"].as_f64().unwrap_or(0.0);
        let was = if old { "was " } else { "" };
        let mood = if old { Mood::Soft } else { Mood::Strong };
        let label = format!("{was}{}", text(&event["label"]));
        lines.push(pen.row(&[
            (mood, format!("{label:<14}")),
            (mood, format!("{:5.1} %", 100.0 * sure)),
            (if old { Mood::Soft } else { Mood::Good }, show::bar(sure)),
        ]));
        let heard = view.live.heard.map(|at| now.saturating_duration_since(at));
        let rate = match heard {
            Some(age) if old => format!("heard {} ago", seconds(age)),
            Some(_) => format!("{:.1} frames/s here", view.frames(now)),
            None => String::new(),
        };
        let took = event["latency_ms"].as_f64().map_or(String::new(), millis);
        lines.push(
            pen.row(&[(Mood::Soft, format!("{took} by {}", text(&event["backend"]))), (Mood::Soft, rate)]),
        );
        // What the gate lets through; a prediction alone moves nothing.
        let (command, gate, why) = match &view.live.latest {
            Some(event) if !old => (&event["command_label"], &event["gate"], &event["gate_reason"]),
            _ => (&source["gate"]["command_label"], &source["gate"]["state"], &source["gate"]["reason"]),
        };
        let gate = match (text(gate).as_str(), text(why)) {
            ("following", _) => "following".to_owned(),
            (gate, why) => format!("{}, {}", words(gate), words(&why)),
        };
        let command = command.as_str().map_or_else(|| "nothing".to_owned(), String::from);
        lines.push(pen.row(&[(mood, format!("to be acted on: {command}")), (Mood::Soft, gate)]));
        if !view.live.confidence.is_empty() {
            let values: Vec<Option<f64>> = view.live.confidence.iter().copied().collect();
            lines.push(pen.plot("sure", &values, String::new()));
        }
    } else if !old {
        lines.push(pen.row(&[(Mood::Soft, "nothing was recognised yet".into())]));
    }
    Section { title: format!("live prediction{name}"), chosen: false, lines }
}

fn sources(view: &View, pen: &Pen) -> Section {
    let mut lines = Vec::new();
    for (i, s) in view.sources.iter().enumerate() {
        let state = text(&s["state"]);
        let mood = match state.as_str() {
            "live" => Mood::Good,
            "starting" => Mood::Soft,
            "stale" | "over" => Mood::Warn,
            _ => Mood::Bad,
        };
        let count = |key: &str, word: &str| s[key].as_u64().map_or(String::new(), |n| format!("{n} {word}"));
        lines.push(pen.row(&[
            mark(view, Focus::Sources, i, &text(&s["name"])),
            (mood, words(&state)),
            (Mood::Soft, text(&s["kind"])),
            (Mood::Plain, count("windows", "windows")),
            (Mood::Plain, count("gaps", "gaps")),
            (Mood::Plain, count("dropped", "dropped")),
            (Mood::Soft, s["rate_hz"].as_f64().map_or(String::new(), |hz| format!("{hz} Hz"))),
        ]));
        for why in ["reason", "problem"].map(|key| text(&s[key])) {
            if !why.is_empty() {
                lines.extend(pen.wrapped(mood, 4, &why));
            }
        }
    }
    if lines.is_empty() {
        lines.push(pen.row(&[(Mood::Soft, "none".into())]));
    }
    Section { title: "sources".into(), chosen: view.focus == Focus::Sources, lines }
}

/// A name with the mark of what is chosen.
fn mark(view: &View, focus: Focus, place: usize, name: &str) -> (Mood, String) {
    let chosen = match focus {
        Focus::Sources => view.source,
        Focus::Models => view.model,
    };
    (Mood::Strong, format!("{} {name}", if chosen == place { '›' } else { ' ' }))
}

fn models(view: &View, pen: &Pen) -> Section {
    let mut lines = Vec::new();
    for (i, m) in view.models().iter().enumerate() {
        let state = text(&m["state"]);
        let ready = state == "ready";
        let failures = m["requests"]["failures"].as_object();
        let failed: u64 = failures.map_or(0, |f| f.values().filter_map(Value::as_u64).sum());
        let quantiles: Vec<String> = ["p50", "p95"]
            .iter()
            .filter_map(|q| m["compute_ms"][q].as_f64().map(|ms| format!("{q} {}", millis(ms))))
            .collect();
        let failed_mood = if failed == 0 { Mood::Soft } else { Mood::Warn };
        lines.push(pen.row(&[
            mark(view, Focus::Models, i, &text(&m["name"])),
            (if ready { Mood::Good } else { Mood::Bad }, words(&state)),
            (
                Mood::Plain,
                m["requests"]["success"].as_u64().map_or(String::new(), |n| format!("{n} answers")),
            ),
            (failed_mood, format!("{failed} failed")),
            (Mood::Plain, quantiles.join(" ")),
            (Mood::Soft, text(&m["engine"]["rung"])),
            (Mood::Soft, text(&m["version"])),
        ]));
        let reasons = [&m["reason"], &m["last_load_error"], &m["fallback"]];
        let worst = reasons.iter().find_map(|r| r.as_str().filter(|s| !s.is_empty()));
        let fallback = m["fallback"].as_object().and_then(|f| f.get("reason")).and_then(Value::as_str);
        for why in worst.into_iter().chain(fallback) {
            lines.extend(pen.wrapped(Mood::Warn, 4, why));
        }
        for breaker in m["breakers"].as_array().into_iter().flatten().filter(|b| b["state"] != "closed") {
            let why = format!(
                "breaker of {} {}: {}",
                text(&breaker["engine"]),
                words(&text(&breaker["state"])),
                text(&breaker["reason"])
            );
            lines.extend(pen.wrapped(Mood::Warn, 4, &why));
        }
    }
    for error in view.status.iter().flat_map(|s| s["load_errors"].as_array().into_iter().flatten()) {
        lines.extend(pen.wrapped(
            Mood::Bad,
            2,
            &format!("{}: {}", text(&error["model"]), text(&error["reason"])),
        ));
    }
    if lines.is_empty() {
        lines.push(pen.row(&[(Mood::Soft, "none".into())]));
    }
    Section { title: "models".into(), chosen: view.focus == Focus::Models, lines }
}

fn latency(view: &View, pen: &Pen) -> Section {
    let name = view.models().get(view.model).map_or(String::new(), |m| text(&m["name"]));
    let of = |pick: &dyn Fn(&Reading) -> Option<f64>| -> Vec<Option<f64>> {
        let of_one = |all: &Vec<Reading>| all.iter().find(|r| r.model == name).and_then(pick);
        VecDeque::iter(&view.readings).map(of_one).collect()
    };
    let line = |title: &str, values: &[Option<f64>], say: &dyn Fn(f64) -> String| {
        let now = values.last().copied().flatten().map_or_else(|| "unknown".to_owned(), say);
        pen.plot(title, values, now)
    };
    let lines = vec![
        line("p50", &of(&|r| r.compute_ms.map(|q| q[0])), &millis),
        line("p95", &of(&|r| r.compute_ms.map(|q| q[1])), &millis),
        line("p99", &of(&|r| r.compute_ms.map(|q| q[2])), &millis),
        line("answers", &of(&|r| r.rate), &|n| format!("{n:.1}/s")),
        line("queue", &of(&|r| Some(r.waiting)), &|n| format!("{n:.0} waiting")),
    ];
    let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
    Section { title: format!("compute time and queue{of}"), chosen: false, lines }
}

fn alerts(view: &View, pen: &Pen) -> Section {
    let mut lines = Vec::new();
    for alert in &view.alerts {
        let mood = if alert["severity"] == "critical" { Mood::Bad } else { Mood::Warn };
        let said = format!("{}: {}", text(&alert["severity"]), text(&alert["sentence"]));
        lines.extend(pen.wrapped(mood, 0, &said));
    }
    if lines.is_empty() {
        lines.push(pen.row(&[(Mood::Soft, "none".into())]));
    }
    Section { title: "alerts".into(), chosen: false, lines }
}

fn updates(view: &View, pen: &Pen) -> Section {
    let mut lines = Vec::new();
    if let Some(device) = &view.slots {
        lines.extend(pen.wrapped(Mood::Plain, 0, &slots::serving(device)));
        for slot in &device.slots {
            let product = slot.product.as_ref().zip(slot.version).map(|(p, v)| format!("{p} {v}"));
            lines.push(pen.row(&[
                (Mood::Strong, format!("  {}{}", slot.slot, if slot.active { "*" } else { " " })),
                (Mood::Plain, words(&slot.status)),
                (Mood::Plain, product.unwrap_or_default()),
                (Mood::Soft, format!("{} of {}", show::bytes(slot.len), show::bytes(slot.capacity))),
            ]));
        }
        if let Some(progress) = slots::install(device) {
            lines.extend(pen.wrapped(Mood::Strong, 0, &progress));
            if let Some((done, total)) = device.install.as_ref().and_then(|i| Some((i.done, i.total?))) {
                #[allow(clippy::cast_precision_loss)] // a share
                let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
                lines.push(pen.row(&[
                    (Mood::Good, show::bar(share)),
                    (Mood::Plain, format!("{:.0} %", 100.0 * share)),
                ]));
            }
        }
        lines.extend(slots::trial(device).iter().flat_map(|trial| pen.wrapped(Mood::Strong, 0, trial)));
        for warning in &device.warnings {
            lines.extend(pen.wrapped(Mood::Warn, 0, warning));
        }
        for verdict in device.verdicts.iter().rev().take(VERDICTS) {
            let mood = match verdict.outcome.as_str() {
                "pass" => Mood::Good,
                "refuse" | "reverse" => Mood::Bad,
                _ => Mood::Soft,
            };
            lines.extend(pen.wrapped(mood, 0, verdict.line().trim_start()));
        }
    } else {
        let updates = view.status.as_ref().map_or(&Value::Null, |s| &s["updates"]);
        let why = updates["reason"].as_str().unwrap_or("updates are not configured on this device");
        lines.extend(pen.wrapped(Mood::Soft, 0, if updates.is_null() { "not known" } else { why }));
    }
    Section { title: "slots and updates".into(), chosen: false, lines }
}

fn device(view: &View, pen: &Pen) -> Section {
    let mut fields = Vec::new();
    let sample = view.monitoring.as_ref().map_or(&Value::Null, |m| &m["sample"]);
    for (name, value) in [
        ("processor", &sample["cpu_percent"]),
        ("memory", &sample["memory"]["percent"]),
        ("disk", &sample["disk"]["percent"]),
    ] {
        if let Some(percent) = value.as_f64() {
            fields.push((Mood::Plain, format!("{name} {percent:.0} %")));
        }
    }
    for zone in sample["temperatures"].as_array().into_iter().flatten() {
        if let Some(celsius) = zone["celsius"].as_f64() {
            // `thermal_zone0:cpu-thermal`: the second half says more.
            let sensor = text(&zone["sensor"]);
            let name = sensor.split_once(':').map_or(sensor.as_str(), |(_, name)| name).to_owned();
            fields.push((Mood::Plain, format!("{name} {celsius:.1} °C")));
        }
    }
    if sample["power"]["under_voltage"] == true {
        fields.push((Mood::Bad, "under voltage".to_owned()));
    }
    let mut lines = Vec::new();
    // As many lines as it takes.
    let mut rest = fields.as_slice();
    while !rest.is_empty() {
        let many = (1..=rest.len()).rev().find(|n| *n == 1 || pen.row(&rest[..*n]).spans.len() == 2 * n - 1);
        let (now, later) = rest.split_at(many.unwrap_or(1));
        lines.push(pen.row(now));
        rest = later;
    }
    if lines.is_empty() {
        lines.push(pen.row(&[(Mood::Soft, "nothing was read yet".into())]));
    } else if sample["temperatures"].as_array().is_some_and(Vec::is_empty) {
        lines.push(pen.row(&[(Mood::Soft, "no temperature is told by this board".into())]));
    }
    Section { title: "device".into(), chosen: false, lines }
}

// ------------------------------------------------------------------------------------------------------------ the page

fn flow(sections: Vec<Section>, pen: &Pen) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for section in sections {
        let mark = if section.chosen { " ↑↓" } else { "" };
        let title = format!("─ {}{mark} ", section.title);
        let rule = "─".repeat(pen.width.saturating_sub(wide(&title)));
        let mood = if section.chosen { Mood::Strong } else { Mood::Soft };
        lines.push(Line::from(pen.span(mood, title + &rule)));
        lines.extend(section.lines);
    }
    lines
}

fn columns(view: &View, width: u16, colours: bool, now: Instant) -> Vec<Vec<Line<'static>>> {
    let stale = view.stale(now).is_some();
    let pen = |width: u16| Pen { width: width.into(), colours, stale };
    let sections = |pen: &Pen| {
        let first = vec![prediction(view, pen, now), sources(view, pen), models(view, pen)];
        (first, vec![alerts(view, pen), latency(view, pen), updates(view, pen), device(view, pen)])
    };
    if width < TWO_COLUMNS {
        let pen = pen(width);
        let (mut all, more) = sections(&pen);
        all.extend(more);
        return vec![flow(all, &pen)];
    }
    let pen = pen(width / 2 - 1);
    let (left, right) = sections(&pen);
    vec![flow(left, &pen), flow(right, &pen)]
}

const KEYS: [(&str, &str); 7] = [
    ("q", "quit"),
    ("?", "help"),
    ("p", "pause"),
    ("r", "reconnect"),
    ("tab", "models or sources"),
    ("↑↓", "choose"),
    ("PgUp PgDn", "scroll"),
];

/// Draws the whole screen.
pub fn screen(frame: &mut Frame<'_>, view: &mut View, colours: bool, now: Instant) {
    let area = frame.area();
    let head = head(view, area.width, colours, now);
    let [top, body, foot] = Layout::vertical([
        Constraint::Length(u16::try_from(head.len()).unwrap_or(3)),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    let columns = columns(view, area.width, colours, now);
    let longest = columns.iter().map(Vec::len).max().unwrap_or(0);
    let below = longest.saturating_sub(body.height.into());
    view.scroll = view.scroll.min(below);
    let many = u32::try_from(columns.len()).unwrap_or(1);
    let places = Layout::horizontal(vec![Constraint::Ratio(1, many); columns.len()]).spacing(1).split(body);
    for (lines, place) in columns.into_iter().zip(places.iter()) {
        let shown: Vec<Line<'_>> = lines.into_iter().skip(view.scroll).take(body.height.into()).collect();
        frame.render_widget(Paragraph::new(shown), *place);
    }
    let pen = Pen { width: area.width.into(), colours, stale: false };
    let mut keys = Vec::new();
    if below > view.scroll {
        keys.push((Mood::Strong, format!("PgDn {} more", below - view.scroll)));
    }
    keys.extend(KEYS.iter().map(|(key, what)| (Mood::Soft, format!("{key} {what}"))));
    frame.render_widget(pen.row(&keys), foot);
    if view.help {
        help(frame, area, colours);
    }
}

fn help(frame: &mut Frame<'_>, area: Rect, colours: bool) {
    let pen = Pen { width: area.width.into(), colours, stale: false };
    let mut lines = vec![pen.row(&[(Mood::Strong, "keys".into())])];
    lines.extend(KEYS.iter().map(|(key, what)| Line::raw(format!("  {key:<10} {what}"))));
    lines.extend(pen.wrapped(Mood::Soft, 0, "? or Esc closes this"));
    let height = u16::try_from(lines.len()).unwrap_or(area.height).min(area.height);
    let place = Rect { height, ..area };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines), place);
}

/// The same as plain text.
#[must_use]
pub fn plain(view: &View, width: u16, now: Instant) -> String {
    let pen = Pen { width: width.into(), colours: false, stale: false };
    let all = [
        prediction(view, &pen, now),
        sources(view, &pen),
        models(view, &pen),
        alerts(view, &pen),
        updates(view, &pen),
        device(view, &pen),
    ];
    let lines = head(view, width, false, now).into_iter().chain(flow(all.into(), &pen));
    let lines: Vec<String> = lines.map(|line| line.to_string().trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::feed::{News, What};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn status() -> Value {
        let model = |name: &str, state: &str, reason: &str| {
            json!({"name": name, "version": "1.0.0", "state": state, "reason": reason, "last_load_error": null,
                "fallback": null, "engine": {"rung": "cpu"}, "breakers": [], "queue": {"waiting": 3},
                "compute_ms": {"p50": 1.2, "p95": 2.5, "p99": 4.0},
                "requests": {"success": 195, "failures": {"timeout": 2, "panic": 1}}})
        };
        json!({"ready": true, "version": "0.1.0", "uptime_s": 300, "updates": {"enabled": true}, "load_errors": [],
            "models": [model("emg-gestures", "ready", ""), model("imu-motion", "ready", "")]})
    }

    fn sources(state: &str, reason: &str) -> Value {
        json!({"sources": [
            {"name": "arm", "kind": "serial", "state": state, "reason": reason, "problem": "", "windows": 197, "gaps": 1,
             "dropped": 0, "rate_hz": 2000.0, "latest": {"label": "Hand Close", "confidence": 0.952, "latency_ms": 1.3, "backend": "cpu"}},
            {"name": "phone", "kind": "push", "state": "stale", "reason": "nobody pushes samples", "problem": "", "latest": null}]})
    }

    fn slots() -> Value {
        json!({"serving": {"from": "slot", "slot": "A", "product": "collar", "version": 7},
            "slots": [{"slot": "A", "status": "committed", "active": true, "product": "collar", "version": 7, "len": 400_000, "capacity": 67_000_000},
                      {"slot": "B", "status": "empty", "active": false}],
            "install": {"way": "push", "product": "collar", "version": 8, "total": 1000, "done": 500},
            "verdicts": [{"number": 1, "gate": "floor", "outcome": "refuse", "code": "x", "sentence": "it is older"}]})
    }

    /// A device of which everything is known at this instant.
    fn known(now: Instant) -> View {
        let mut view = View::new("http://device.lan:9000".into());
        let mut hear = |what, page| drop(view.answered(what, Ok(page), now));
        hear(What::Status, status());
        hear(What::Sources, sources("live", ""));
        hear(What::Slots, slots());
        hear(What::Alerts, json!({"active": [{"severity": "warning", "sentence": "the board is at 81 °C"}]}));
        hear(
            What::Monitoring,
            json!({"sample": {"cpu_percent": 12.4, "memory": {"percent": 40.0}, "disk": {"percent": 57.0},
                "power": {}, "temperatures": [{"sensor": "thermal_zone0:cpu-thermal", "celsius": 61.2}]}}),
        );
        view
    }

    /// What stands on a screen of this size.
    fn shown(view: &mut View, width: u16, height: u16, colours: bool, now: Instant) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen(frame, view, colours, now)).unwrap();
        terminal
    }

    fn page(view: &mut View, width: u16, height: u16, now: Instant) -> String {
        let terminal = shown(view, width, height, true, now);
        let cells: Vec<&str> = terminal.backend().buffer().content.iter().map(|cell| cell.symbol()).collect();
        let lines = cells.chunks(width.into()).map(|line| line.concat().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    }

    const ALL: [&str; 12] = [
        "healthy",
        "Hand Close",
        "95.2 %",
        "arm",
        "nobody pushes samples",
        "emg-gestures",
        "3 failed",
        "the board is at 81 °C",
        "p95",
        "slot A serves collar 7",
        "it is older",
        "cpu-thermal 61.2 °C",
    ];

    #[test]
    fn a_wide_terminal_shows_everything_in_two_columns() {
        let now = Instant::now();
        let text = page(&mut known(now), 140, 36, now);
        for part in ALL {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let line = text.lines().find(|line| line.contains("live prediction")).unwrap();
        assert!(line.contains("alerts"), "side by side: {line}");
        assert!(text.contains("50 %"), "how far what is being received is\n{text}");
    }

    #[test]
    fn a_small_terminal_shows_what_matters_first_and_everything_else_by_scrolling() {
        let now = Instant::now();
        for (width, height) in [(80, 24), (40, 24), (40, 12), (30, 8)] {
            let mut view = known(now);
            let first = page(&mut view, width, height, now);
            for part in ["healthy", "Hand Close", "PgDn"] {
                assert!(first.contains(part), "{width}x{height}: {part}\n{first}");
            }
            let mut all = first;
            for _ in 0..40 {
                view.scroll += 1;
                all = all + "\n" + &page(&mut view, width, height, now);
            }
            for part in ["arm", "emg-gestures", "81 °C", "p95", "older", "61.2 °C"] {
                assert!(all.contains(part), "{width}x{height}: {part}\n{all}");
            }
            assert!(!page(&mut view, width, height, now).contains("PgDn"), "the end has nothing below it");
        }
    }

    #[test]
    fn no_size_is_too_small_to_be_drawn() {
        let now = Instant::now();
        let mut view = known(now);
        view.help = true;
        for (width, height) in [(1, 1), (2, 3), (10, 2), (200, 1), (300, 100)] {
            shown(&mut view, width, height, true, now);
        }
    }

    #[test]
    fn without_colours_nothing_is_coloured_and_what_is_wrong_still_stands_out() {
        let now = Instant::now();
        let mut view = known(now);
        view.answered(What::Sources, Ok(sources("unplugged", "the port is gone")), now);
        let coloured = |colours| {
            let mut view = known(now);
            view.answered(What::Sources, Ok(sources("unplugged", "the port is gone")), now);
            let terminal = shown(&mut view, 100, 30, colours, now);
            let cells = terminal.backend().buffer().content.clone();
            (cells.iter().any(|c| c.fg != Color::Reset || c.bg != Color::Reset), cells)
        };
        assert!(coloured(true).0);
        let (any, cells) = coloured(false);
        assert!(!any && cells.iter().any(|c| c.modifier.contains(Modifier::REVERSED)));
    }

    #[test]
    fn a_source_that_goes_is_said_at_once_and_its_last_prediction_is_no_longer_said_to_be_now() {
        let now = Instant::now();
        let mut view = known(now);
        view.listens(7);
        let event = json!({"label": "Pinch", "confidence": 0.5, "latency_ms": 1.0, "backend": "cpu"});
        view.hear(News::Live(7, Ok(event)), now);
        assert!(page(&mut view, 80, 24, now).contains("Pinch "));
        view.hear(News::Live(6, Err("of a source that was chosen before".into())), now);
        assert!(!page(&mut view, 80, 24, now).contains("interrupted"));
        view.hear(News::Live(7, Err("source arm: the port is gone".into())), now);
        let text = page(&mut view, 80, 24, now + Duration::from_millis(900));
        assert!(
            text.contains("interrupted: source arm: the port is gone") && text.contains("was Pinch"),
            "{text}"
        );
        assert!(text.contains("heard 0.9 s ago"), "{text}");
    }

    #[test]
    fn a_device_that_is_lost_is_said_to_be_and_what_was_known_stays_with_its_age() {
        let now = Instant::now();
        let mut view = known(now);
        assert!(page(&mut view, 80, 24, now).contains("live"));
        let later = now + Duration::from_secs(12);
        let silent = page(&mut view, 80, 24, later);
        assert!(silent.contains("no answer") && silent.contains("STALE, shown is 12 s old"), "{silent}");
        let lost = News::Lost { why: "nothing listens there".into(), pause: Duration::from_secs(2) };
        view.hear(lost, later);
        let text = page(&mut view, 80, 24, later);
        for part in [
            "no connection",
            "nothing listens there; trying again in 2.0 s",
            "12 s old",
            "Hand Close",
            "emg-gestures",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        view.answered(What::Status, Ok(status()), later);
        let back = page(&mut view, 80, 24, later);
        assert!(back.contains("healthy") && !back.contains("STALE"), "{back}");
    }

    #[test]
    fn a_pause_is_never_taken_for_a_device_that_is_lost() {
        let now = Instant::now();
        let mut view = known(now);
        view.paused = true;
        let text = page(&mut view, 80, 24, now + Duration::from_secs(60));
        assert!(text.contains("paused, shown is 60 s old") && !text.contains("no answer"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_said_first() {
        let now = Instant::now();
        let change = |change: &dyn Fn(&mut Value)| {
            let mut page = status();
            change(&mut page);
            page
        };
        let table = [
            (
                change(&|s| s["safe_mode"] = json!({"reason": "it ended 3 times"})),
                "safe mode",
                "it ended 3 times",
            ),
            (change(&|s| s["ready"] = json!(false)), "not serving", ""),
            (change(&|s| s["models"][1]["state"] = json!("down")), "degraded", "not answering: imu-motion"),
            (change(&|s| s["models"][0]["fallback"] = json!({"reason": "no GPU"})), "degraded", "no GPU"),
        ];
        for (page_of, word, sentence) in table {
            let mut view = known(now);
            view.answered(What::Status, Ok(page_of), now);
            let text = page(&mut view, 80, 30, now);
            assert!(text.starts_with(word) && text.contains(sentence), "{word}\n{text}");
        }
        let mut view = View::new("u".into());
        view.answered(What::Status, Err("401 a key is needed".into()), now);
        assert!(page(&mut view, 80, 24, now).starts_with("refused"));
    }

    #[test]
    fn a_long_word_is_cut_where_the_line_ends() {
        let pen = Pen { width: 10, colours: false, stale: false };
        let lines = pen.wrapped(Mood::Plain, 2, "開開開開開開 abcdefghijklmnop x");
        assert!(lines.len() > 3 && lines.iter().all(|line| line.width() <= 10), "{lines:?}");
    }

    #[test]
    fn a_snapshot_has_no_codes_in_it() {
        let now = Instant::now();
        let text = plain(&known(now), 100, now);
        for part in ["healthy", "Hand Close", "nobody pushes samples", "it is older", "cpu-thermal 61.2 °C"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
