//! What servers, proxies and fleet servers answer to a device that fetches.

use inferd_fetch::Url;
use inferd_fetch::ddi::wire::{
    Base, Cancel, Confirmation, Deployment, Execution, Finished, config_data, feedback,
};
use inferd_fetch::header::{content_range, hours_minutes_seconds, retry_after, strong_etag};
use std::collections::BTreeMap;

/// Documents of a fleet server: links and ids become addresses of that server or of another, and nothing else.
pub fn ddi(data: &[u8]) {
    let base = Url::parse("http://fleet:8080/DEFAULT/controller/v1/dev-1").expect("it is an address");
    let plain = |id: &str| {
        assert!((1..=64).contains(&id.len()));
        assert!(
            id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
            "{id:?} goes into a path"
        );
        let body =
            feedback(id, Execution::Closed, Finished::Failure, &[String::from_utf8_lossy(data).into_owned()]);
        serde_json::from_slice::<serde_json::Value>(&body).expect("feedback is JSON");
    };
    if let Ok(poll) = serde_json::from_slice::<Base>(data) {
        let _ = poll.sleep();
        let links = poll.links;
        for link in [links.config_data, links.deployment_base, links.cancel_action, links.confirmation_base] {
            if let Some(Ok(url)) = link.map(|link| base.join(&link.href)) {
                again(&url);
            }
        }
    }
    if let Ok(deployment) = serde_json::from_slice::<Deployment>(data) {
        plain(&deployment.id);
        let _ = deployment.deployment.may_update();
        match deployment.deployment.choose(&base) {
            Ok(chosen) => again(&Url::parse(&chosen.url).expect("what was chosen is an address")),
            Err((code, sentence)) => assert!(!code.is_empty() && !sentence.is_empty()),
        }
    }
    if let Ok(cancel) = serde_json::from_slice::<Cancel>(data) {
        plain(&cancel.id);
        plain(&cancel.cancel_action.stop_id);
    }
    if let Ok(confirmation) = serde_json::from_slice::<Confirmation>(data) {
        plain(&confirmation.id);
    }
    let text = String::from_utf8_lossy(data);
    let attributes = BTreeMap::from([(text.clone().into_owned(), text.into_owned())]);
    serde_json::from_slice::<serde_json::Value>(&config_data(&attributes)).expect("attributes are JSON");
}

/// An address is its own text.
fn again(url: &Url) {
    let text = url.to_string();
    assert!(
        text.starts_with("http://") && !text.contains(['\r', '\n', ' ', '#']),
        "{text:?} goes into a request"
    );
    assert_eq!(Url::parse(&text).as_ref(), Ok(url));
    assert!(!url.authority().contains(['@', '/', '?']));
}

/// Lines of an answer's head: Content-Range, Retry-After, ETag, a poll interval, and a Location.
pub fn headers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    if let Some(range) = content_range(next()) {
        assert!(range.bytes.is_some() || range.total.is_some());
        if let Some((first, last)) = range.bytes {
            assert!(
                first <= last
                    && range.total.is_none_or(|total| last < total)
                    && last.checked_add(1).is_some()
            );
        }
    }
    let _ = retry_after(next());
    if let Some(tag) = strong_etag(next()) {
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() >= 2);
    }
    let _ = hours_minutes_seconds(next());
    let (base, location) = (next(), next());
    if let Ok(base) = Url::parse(base) {
        again(&base);
        if let Ok(url) = base.join(location) {
            again(&url);
        }
        if let Ok(below) = base.below("feedback") {
            again(&below);
            assert!(below.to_string().ends_with("/feedback"));
        }
    }
}
