//! `inferctl bundle inspect`: what a bundle says of itself.

use super::open;
use crate::{fail::Failure, root::short, show};
use inferd_bundle::{Bundle, Kind};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// The bundle
    file: PathBuf,
}

impl Inspect {
    /// Shows it.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let bundle = open(&self.file)?;
        if json {
            let signed_by: Vec<_> = bundle.signatures().iter().map(|s| s.key).collect();
            show::json(&json!({
                "file": self.file, "id": bundle.id(), "len": bundle.total_len(), "pages": bundle.pages(),
                "prefix_len": bundle.prefix_bytes(), "manifest": bundle.manifest(), "signed_by": signed_by,
            }));
        } else {
            show::line(&page(&bundle));
        }
        Ok(())
    }
}

/// Everything a person wants to know before it is sent.
fn page(bundle: &Bundle) -> String {
    let m = bundle.manifest();
    let mut rows = Vec::new();
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            rows.push(format!("{key:<11} {value}"));
        }
    };
    row("bundle", bundle.id().to_string());
    row("product", format!("{} {} ({})", m.product, m.version, m.label));
    row("summary", m.summary.clone());
    let size = show::bytes(bundle.total_len());
    row(
        "size",
        format!(
            "{size}, {} chunks, {} before the first",
            m.index.chunks,
            show::bytes(bundle.payload_range().start)
        ),
    );
    row("boards", if m.targets.is_empty() { "any".into() } else { m.targets.join(", ") });
    row("needs", m.min_inferd.as_ref().map_or(String::new(), |v| format!("inferd {v} or newer")));
    row("not after", m.not_after.map_or(String::new(), |s| format!("{s} s since 1970 (advice)")));
    let p = &m.policy.probation;
    let early = if p.requests == 0 { String::new() } else { format!(" or {} requests", p.requests) };
    row(
        "probation",
        format!(
            "{}{early}; at most {} of requests fail, p99 {} times the old, drift {}",
            show::age(p.seconds.into()),
            p.max_error_rate,
            p.max_p99_ratio,
            p.max_drift
        ),
    );
    let system = m.kind == Kind::System;
    row("kind", if system { "a system".into() } else { String::new() });
    row(
        "shadow",
        m.policy.shadow.as_ref().map_or("none".into(), |s| {
            format!(
                "{} requests; cosine at least {}, agreement {}, {} times as slow, {} fail",
                s.requests, s.min_cosine, s.min_agreement, s.max_latency_ratio, s.max_error_rate
            )
        }),
    );
    let signers: Vec<String> = bundle.signatures().iter().map(|s| short(&s.key)).collect();
    row("signed by", if signers.is_empty() { "nobody".into() } else { signers.join(", ") });
    row("as", m.role.to_string());
    row("from", m.provenance.replace('\n', "\n            "));
    let files: Vec<Vec<String>> = m
        .files()
        .map(|(model, file)| {
            vec![
                model.name.to_string(),
                file.name.clone(),
                show::bytes(file.len),
                file.chunks.to_string(),
                short(&file.sha256),
            ]
        })
        .collect();
    format!("{}\n\n{}", rows.join("\n"), show::table(&["model", "file", "size", "chunks", "sha256"], &files))
}
