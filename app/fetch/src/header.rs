//! Header fields of answers, parsed strictly: what is not understood is `None`, never guessed.

use std::time::Duration;

/// A `Content-Range` (RFC 9110, 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First and last byte, both included; `None` in an answer that no range could be given.
    pub bytes: Option<(u64, u64)>,
    /// Length of the whole, when it is known.
    pub total: Option<u64>,
}

/// Digits only: `u64::from_str` would take a plus sign.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `bytes 0-499/1234`, `bytes 0-499/*` or `bytes */1234`.
#[must_use]
pub fn content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    if range == "*" {
        return total.map(|total| ContentRange { bytes: None, total: Some(total) });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let fits = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
    fits.then_some(ContentRange { bytes: Some((first, last)), total })
}

/// Seconds of a `Retry-After`. A date is passed over: the device may not know what time it is.
#[must_use]
pub fn retry_after(text: &str) -> Option<u64> {
    number(text.trim())
}

/// A strong entity tag (RFC 9110, 8.8.3), quotes included. A weak one may stand for other bytes, so it is none.
#[must_use]
pub fn strong_etag(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let good =
        inner.len() <= 256 && inner.bytes().all(|b| b == 0x21 || (0x23..=0x7e).contains(&b) || b >= 0x80);
    good.then_some(text)
}

/// hawkBit's `HH:MM:SS`.
#[must_use]
pub fn hours_minutes_seconds(text: &str) -> Option<Duration> {
    let mut parts = text.trim().split(':');
    let (hours, minutes, seconds) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    if parts.next().is_some() || minutes > 59 || seconds > 59 {
        return None;
    }
    Some(Duration::from_secs(hours.checked_mul(3600)?.checked_add(minutes * 60 + seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_says_what_came_and_of_how_much() {
        let whole = |a, b, total| Some(ContentRange { bytes: Some((a, b)), total });
        assert_eq!(content_range("bytes 0-499/1234"), whole(0, 499, Some(1234)));
        assert_eq!(content_range(" Bytes 7-7/* "), whole(7, 7, None));
        assert_eq!(content_range("bytes */1234"), Some(ContentRange { bytes: None, total: Some(1234) }));
    }

    #[test]
    fn a_content_range_that_makes_no_sense_is_none() {
        for bad in [
            "",
            "bytes",
            "bytes ",
            "bytes 0-499",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-/10",
            "bytes -5/10",
            "bytes */*",
            "lines 0-1/2",
            "bytes +0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes 0-18446744073709551616/*",
            "bytes 0-1/2/3",
        ] {
            assert_eq!(content_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_seconds_are_a_retry_after() {
        assert_eq!(retry_after(" 120 "), Some(120));
        for bad in ["", "-1", "+1", "1.5", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999999999999"] {
            assert_eq!(retry_after(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_weak_tag_is_none() {
        assert_eq!(strong_etag("\"a-1\""), Some("\"a-1\""));
        for bad in ["W/\"a\"", "a", "\"", "\"a\"b\"", "", "\"a b\""] {
            assert_eq!(strong_etag(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_poll_interval_is_hours_minutes_seconds() {
        assert_eq!(hours_minutes_seconds("01:05:05"), Some(Duration::from_secs(3905)));
        assert_eq!(hours_minutes_seconds("100:00:00"), Some(Duration::from_secs(360_000)));
        for bad in ["", "05:05", "1:2:3:4", "00:60:00", "00:00:61", "a:b:c", "18446744073709551615:00:00"] {
            assert_eq!(hours_minutes_seconds(bad), None, "{bad:?}");
        }
    }
}
