//! What a benchmark is asked for, and what is kept of one.

use inferd_bench::report::{Format, View, render};
use inferd_bench::{Constraint, Kept, Record, Request};

/// The first byte chooses: 0 a request, 1 a constraint, else a record or a kept job.
pub fn benchmark(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind {
        0 => {
            if let Ok(request) = Request::parse(bytes) {
                assert!(request.rungs.len() <= 16 && request.iterations <= 10_000 && request.soak_s <= 3600);
                let again = serde_json::to_vec(&request).expect("it is JSON");
                assert_eq!(Request::parse(&again).as_ref(), Ok(&request), "what it wrote, it reads");
            }
        }
        1 => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Ok(constraint) = text.parse::<Constraint>() {
                assert_eq!(constraint.to_string().parse::<Constraint>().as_ref(), Ok(&constraint));
            }
        }
        _ => {
            if let Ok(kept) = Kept::parse(bytes) {
                let again = serde_json::to_vec(&kept).expect("it is JSON");
                assert_eq!(Kept::parse(&again).as_ref(), Ok(&kept), "what it wrote, it reads");
            }
            if let Ok(record) = Record::parse(bytes) {
                record_is_sound(&record);
            }
        }
    }
}

fn record_is_sound(record: &Record) {
    let text = record.to_json();
    assert_eq!(Record::parse(text.as_bytes()).as_ref(), Ok(record), "what it wrote, it reads");
    let decision = record.replay();
    let mut turned = record.clone();
    turned.rungs.reverse();
    assert_eq!(turned.replay(), decision, "the order of the rungs does not matter");
    for format in [Format::Html, Format::Markdown, Format::Csv] {
        for view in [View::Technical, View::Simple] {
            let page = render(record, format, view);
            if format == Format::Html {
                assert!(!page.contains("<script") && !page.contains("src="), "{page}");
            }
        }
    }
}
