//! What a device says is not trusted to be text: nothing of it may steer the terminal it is shown on.

use serde_json::Value;

/// The same, with a mark in place of every character that moves a cursor, turns the direction of text, or cannot be seen.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if unseen(c) { '\u{fffd}' } else { c }).collect()
}

/// Control characters (C0, C1, DEL), separators of lines, marks and overrides of direction, and what has no width.
fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Every text in it, [`clean`].
pub fn clean_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = clean(text),
        Value::Array(items) => items.iter_mut().for_each(clean_all),
        Value::Object(fields) => {
            if fields.keys().any(|key| key.chars().any(unseen)) {
                let old = std::mem::take(fields);
                fields.extend(old.into_iter().map(|(key, value)| (clean(&key), value)));
            }
            fields.values_mut().for_each(clean_all);
        }
        _ => {}
    }
}

/// A machine's word as people write it.
#[must_use]
pub fn words(text: &str) -> String {
    text.replace(['_', '-'], " ")
}

/// Milliseconds in the unit that reads best.
#[must_use]
pub fn millis(ms: f64) -> String {
    crate::show::micros(ms * 1e3)
}

/// The newest values as a line of bars, the highest as tall as the line; a hole where nothing was measured.
#[must_use]
pub fn sparkline(values: &[Option<f64>], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let top = shown.iter().flatten().copied().fold(0.0, f64::max);
    let bar = |v: &f64| {
        let place = (1..8_u8).filter(|i| *v > top * f64::from(*i) / 8.0).count();
        BARS[place]
    };
    shown.iter().map(|v| v.as_ref().map_or(' ', bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_a_device_says_can_steer_a_terminal() {
        let mut said =
            json!({"a\u{1b}[2J": ["\u{1b}]0;title\u{7}", {"b": "x\r\ny\u{9b}31m\u{202e}z\u{200b}"}], "n": 1});
        clean_all(&mut said);
        let text = said.to_string();
        assert!(!text.chars().any(unseen), "{text:?}");
        assert_eq!(said["n"], 1);
        assert_eq!(said["a\u{fffd}[2J"][0], "\u{fffd}]0;title\u{fffd}", "what can be seen stays");
        assert_eq!(clean("Faust öffnen 開 ✋"), "Faust öffnen 開 ✋");
    }

    #[test]
    fn a_line_of_bars_has_its_highest_value_at_full_height_and_a_hole_where_nothing_was_measured() {
        let line = |values: &[Option<f64>], width| sparkline(values, width);
        assert_eq!(line(&[Some(0.0), Some(4.0), None, Some(8.0)], 9), "▁▄ █");
        assert_eq!(line(&[Some(9.0), Some(1.0), Some(1.0)], 2), "██", "what is not shown has no part in it");
        assert_eq!(line(&[Some(0.0), Some(0.0)], 2), "▁▁");
        assert_eq!(line(&[], 5), "");
    }
}
