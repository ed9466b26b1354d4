//! OpenMetrics 1.0 and Prometheus text 0.0.4: one is written, the other made from it line by line.

use hyper::header::{self, HeaderMap};

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `text/plain; version=0.0.4`, what everyone reads.
    Text,
    /// `application/openmetrics-text`, ends with `# EOF`.
    OpenMetrics,
}

impl Format {
    /// What `Accept` prefers; the classic text when it does not name OpenMetrics.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let mut best = (0.0, Self::Text);
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
        for item in values.flat_map(|v| v.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let format = match parts.next() {
                Some(t) if t.eq_ignore_ascii_case("application/openmetrics-text") => Self::OpenMetrics,
                Some(t) if t.eq_ignore_ascii_case("text/plain") => Self::Text,
                _ => continue,
            };
            let q = parts.find_map(|p| p.strip_prefix("q=")).map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
            if q > best.0 {
                best = (q, format);
            }
        }
        best.1
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// OpenMetrics names a counter `x` and its sample `x_total`; the classic text names both `x_total`. It has no units, no end mark
/// and no type `unknown`.
pub(super) fn text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.extend([line, "\n"]);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(name), rest) => help = Some((name, rest.unwrap_or_default())),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "unknown" => ("", "untyped"),
                    "info" => ("_info", "gauge"),
                    other => ("", other),
                };
                if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                    out.extend(["# HELP ", name, suffix, " ", help, "\n"]);
                }
                out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn the_classic_text_is_made_of_the_same_samples() {
        let openmetrics = "# HELP a Things done.\n# TYPE a counter\na_total{x=\"1\"} 3\n\
                           # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                           b_seconds_sum 1.5\nb_seconds_count 2\nb_seconds_bucket{le=\"+Inf\"} 2\n\
                           # HELP c Old.\n# TYPE c unknown\nc 1\n# EOF\n";
        assert_eq!(
            text(openmetrics),
            "# HELP a_total Things done.\n# TYPE a_total counter\na_total{x=\"1\"} 3\n\
             # HELP b_seconds Time.\n# TYPE b_seconds histogram\n\
             b_seconds_sum 1.5\nb_seconds_count 2\nb_seconds_bucket{le=\"+Inf\"} 2\n\
             # HELP c Old.\n# TYPE c untyped\nc 1\n"
        );
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let wanted = |accept: &str| {
            let mut h = HeaderMap::new();
            h.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            Format::wanted(&h)
        };
        // What Prometheus 2 and 3 and curl really send.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(wanted(prometheus), Format::OpenMetrics);
        assert_eq!(wanted("*/*"), Format::Text);
        assert_eq!(wanted("application/openmetrics-text"), Format::OpenMetrics);
        assert_eq!(wanted("application/openmetrics-text;q=0"), Format::Text);
        assert_eq!(wanted("application/openmetrics-text;q=0.2, text/plain;q=0.9"), Format::Text);
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Text);
    }
}
