//! What the keeper and who installs systems read: history, notifications, questions, and the daemon's log.

use inferd_system::door;
use inferd_watch::ask::Ask;
use inferd_watch::history;
use inferd_watch::keeper::{sockets, words};
use serde_json::Value;

/// A history. The first byte: 0 its bytes, else lines that are put into frames whose checksums fit.
pub fn history(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut bytes = Vec::new();
    if how == 0 {
        bytes.extend_from_slice(rest);
    } else {
        for part in rest.split(|&byte| byte == b'\n') {
            bytes.extend(format!("{{\"crc\":\"{:08x}\",\"entry\":", crc32fast::hash(part)).bytes());
            bytes.extend_from_slice(part);
            bytes.extend(b"}\n");
        }
    }
    let (entries, damaged) = history::parse(&bytes);
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(entries.len() as u64 + damaged, lines as u64);
    let written: Vec<u8> = entries.iter().flat_map(history::line).collect();
    let (read, torn) = history::parse(&written);
    assert_eq!(
        (without_fractions(read), torn),
        (without_fractions(entries.clone()), 0),
        "what it wrote, it reads"
    );
    assert_eq!(history::merge(vec![entries.clone(), entries.clone()]).len(), 2 * entries.len());
}

/// serde_json reads a fraction to within its last digit only. The keeper writes whole numbers.
fn without_fractions(mut entries: Vec<history::Entry>) -> Vec<history::Entry> {
    fn strip(value: &mut Value) {
        match value {
            Value::Number(number) if number.is_f64() => *value = Value::Null,
            Value::Array(items) => items.iter_mut().for_each(strip),
            Value::Object(map) => map.values_mut().for_each(strip),
            _ => {}
        }
    }
    entries.iter_mut().for_each(|entry| strip(&mut entry.detail));
    entries
}

/// A datagram, a question and a log, in pieces of a length that the first byte says.
pub fn keeper(data: &[u8]) {
    let Some((&pieces, rest)) = data.split_first() else { return };
    let said = sockets::parse(rest);
    assert!(said.len() <= rest.split(|&byte| byte == b'\n').count());
    if let Ok(ask) = serde_json::from_slice::<Ask>(rest) {
        let written = serde_json::to_vec(&ask).expect("it was read");
        assert_eq!(serde_json::from_slice::<Ask>(&written).expect("it was written"), ask);
    }
    if let Ok(ask) = door::question(rest) {
        let written = serde_json::to_vec(&ask).expect("it was read");
        assert_eq!(door::question(&written), Ok(ask));
    }
    if let Ok(answer) = serde_json::from_slice::<door::Answer>(rest) {
        let line = answer.line();
        assert!(line.ends_with(b"}\n") && line.len() as u64 <= door::MAX_ANSWER);
        assert!(serde_json::from_slice::<door::Answer>(&line).is_ok(), "what it wrote, it reads");
    }
    let (mut whole, mut cut) = (words::Words::default(), words::Words::default());
    let mut lines = whole.take(rest);
    lines.extend(whole.finish());
    let mut same: Vec<String> =
        rest.chunks(usize::from(pieces).max(1)).flat_map(|piece| cut.take(piece)).collect();
    same.extend(cut.finish());
    assert_eq!(lines, same, "the same lines however the log is cut");
    let kept = whole.last();
    assert!(kept.len() <= words::MAX_LINES);
    assert!(kept.iter().map(String::len).sum::<usize>() <= words::MAX_BYTES);
}
