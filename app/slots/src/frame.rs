//! Lines that tell when they were damaged: `{"crc":"1a2b3c4d","NAME":{...}}`, the CRC-32 of the value's own bytes.
//!
//! One flipped bit costs one line: it is skipped and counted, and the others are read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A value as its line, with the line's end. `name` is a plain word.
#[must_use]
pub fn line<V: Serialize>(name: &str, value: &V) -> Vec<u8> {
    let value = serde_json::to_string(value).unwrap_or_default();
    format!("{{\"crc\":\"{}\",\"{name}\":{value}}}\n", checksum(&value)).into_bytes()
}

/// The values in lines, and how many lines were damaged. Never fails: they are read as far as they can be.
#[must_use]
pub fn parse<V: DeserializeOwned>(name: &str, bytes: &[u8]) -> (Vec<V>, u64) {
    let mut values = Vec::new();
    let mut damaged = 0;
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match parse_line(name, line) {
            Some(value) => values.push(value),
            None => damaged += 1,
        }
    }
    (values, damaged)
}

fn parse_line<V: DeserializeOwned>(name: &str, line: &[u8]) -> Option<V> {
    let line: BTreeMap<&str, &RawValue> = serde_json::from_slice(line).ok()?;
    let (crc, raw) = (line.get("crc")?.get(), line.get(name)?.get());
    if crc.trim_matches('"') != checksum(raw) {
        return None;
    }
    serde_json::from_str(raw).ok()
}

fn checksum(raw: &str) -> String {
    format!("{:08x}", crc32fast::hash(raw.as_bytes()))
}
