//! The query of a path as a form, read strictly: a name that is none of the form's is a mistake, and so is one that comes twice.

use crate::Req;
use inferd_tasks::form::{Form, FormError};
use serde_json::{Map, Value};

/// The longest query: its fields are a few short ones.
const LONGEST: usize = 2048;

/// The fields of these names. Values are texts, which a form reads as the numbers and truths they stand for; `null` is null.
pub(crate) fn read(req: &Req, names: &'static [&'static str]) -> Result<Form, FormError> {
    let refused = |kind, msg: String| Err(FormError::field("query", kind, msg));
    let query = req.query.as_deref().unwrap_or_default();
    if query.len() > LONGEST {
        return refused("too_long", format!("A query of at most {LONGEST} characters is needed"));
    }
    let mut fields = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = names.iter().find(|known| **known == name) else {
            return refused("extra_forbidden", format!("Input should be of {}", names.join(", ")));
        };
        let Some(value) = decoded(value) else {
            return Err(FormError::field(
                name,
                "value_error",
                "Value error, this is no percent-encoded UTF-8",
            ));
        };
        let value = if value == "null" { Value::Null } else { Value::String(value) };
        if fields.insert((*name).to_owned(), value).is_some() {
            return Err(FormError::field(name, "value_error", "Value error, this comes twice"));
        }
    }
    Form::read(Value::Object(fields).to_string().as_bytes(), names)
}

/// The text that a value of a query stands for.
fn decoded(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes().iter();
    while let Some(&b) = rest.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;
    use bytes::Bytes;
    use hyper::{HeaderMap, Method};

    fn read_as(query: &str) -> Result<Form, FormError> {
        let headers = HeaderMap::new();
        let req = Req {
            method: Method::GET,
            path: String::new(),
            query: Some(query.to_owned()),
            id: RequestId::from_headers(&headers),
            headers,
            body: Bytes::new(),
            peer: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            received: std::time::Instant::now(),
        };
        read(&req, &["fps", "emg_mode", "duration_seconds"])
    }

    #[test]
    fn values_are_what_they_stand_for() {
        let form = read_as("fps=20&emg_mode=my%2Darm+1&duration_seconds=null").unwrap();
        assert_eq!(form.whole("fps", 1, 120).unwrap(), Some(20));
        assert_eq!(form.text("emg_mode").unwrap(), Some("my-arm 1"));
        assert_eq!(form.number_or_null("duration_seconds").unwrap(), Some(None));
        assert_eq!(read_as("").unwrap(), Form::default());
    }

    #[test]
    fn what_is_no_field_is_a_mistake_and_not_repeated() {
        for bad in ["key=secret", "FPS=1", "fps=1&fps=1", "emg_mode=%", "emg_mode=%zz", "emg_mode=%ff", "=1"]
        {
            let why = String::from_utf8(read_as(bad).unwrap_err().to_json()).unwrap();
            assert!(!why.contains("secret"), "{why}");
        }
        assert!(read_as(&"&".repeat(LONGEST + 1)).is_err());
    }
}
