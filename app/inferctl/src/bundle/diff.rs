//! `inferctl bundle diff`: what a device that holds one bundle would fetch for another.

use super::chunks;
use crate::{fail::Failure, show};
use inferd_bundle::{
    Chunk, Digest,
    delta::{self, Diff},
};
use serde_json::json;
use std::{collections::HashSet, path::PathBuf};

/// Unneeded bytes between two missing chunks that a device fetches along rather than ask twice; `inferd-fetch` has the same.
const GAP: u64 = 64 << 10;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct DiffCommand {
    /// The bundle that devices hold
    old: PathBuf,
    /// The bundle they are to get
    new: PathBuf,
}

impl DiffCommand {
    /// Compares their indexes.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let (old, old_chunks) = chunks(&self.old)?;
        let (new, new_chunks) = chunks(&self.new)?;
        let here: HashSet<Digest> = old_chunks.iter().map(|c| c.digest).collect();
        let of = |range: std::ops::Range<u64>| {
            new_chunks.iter().filter(move |c| range.contains(&c.number)).copied()
        };
        let total = delta::diff(old_chunks.iter().copied(), new_chunks.iter().copied());
        let plan = delta::plan(new_chunks.iter().copied(), |c: &Chunk| here.contains(&c.digest), GAP);
        // Header, manifest, signatures and index always come: they say what else is needed.
        let head = new.payload_range().start;
        let fetched = head + total.new_bytes;
        let models: Vec<(String, Diff)> = new
            .manifest()
            .models
            .iter()
            .map(|model| {
                let chunks = model.files.iter().flat_map(|f| of(f.first_chunk..f.first_chunk + f.chunks));
                (model.name.to_string(), delta::diff(old_chunks.iter().copied(), chunks))
            })
            .collect();
        if json {
            let models: Vec<_> = models
                .iter()
                .map(|(name, d)| {
                    json!({ "model": name, "fetched_bytes": d.new_bytes, "spared_bytes": d.shared_bytes + d.repeated_bytes,
                            "fetched_chunks": d.new_chunks, "spared_chunks": d.shared_chunks + d.repeated_chunks })
                })
                .collect();
            show::json(&json!({
                "old": old.id(), "new": new.id(), "total_bytes": new.total_len(), "head_bytes": head,
                "fetched_chunk_bytes": total.new_bytes, "fetched_bytes": fetched,
                "requests": plan.fetch.len(), "fetched_bytes_in_requests": head + plan.fetch_bytes, "models": models,
            }));
            return Ok(());
        }
        let mut rows: Vec<Vec<String>> = models
            .iter()
            .map(|(name, d)| {
                row(
                    name,
                    d.new_bytes,
                    d.shared_bytes + d.repeated_bytes,
                    d.new_chunks,
                    d.shared_chunks + d.repeated_chunks,
                )
            })
            .collect();
        rows.insert(0, row("(head and index)", head, 0, 0, 0));
        show::line(&show::table(&["model", "fetched", "of", "chunks"], &rows));
        show::line(&format!(
            "a device with {} {} fetches {} of {} ({} %) for {} {}",
            old.manifest().product,
            old.manifest().version,
            show::bytes(fetched),
            show::bytes(new.total_len()),
            percent(fetched, new.total_len()),
            new.manifest().product,
            new.manifest().version,
        ));
        let bridged = plan.fetch_bytes.saturating_sub(total.new_bytes);
        if bridged > 0 {
            show::line(&format!(
                "and {} more, to need {} requests only: gaps of up to 64 KiB are fetched along",
                show::bytes(bridged),
                plan.fetch.len()
            ));
        }
        Ok(())
    }
}

fn row(name: &str, fetched: u64, spared: u64, chunks: u64, spared_chunks: u64) -> Vec<String> {
    let of = format!("{} of {}", chunks, chunks + spared_chunks);
    let of = if chunks + spared_chunks == 0 { "-".to_owned() } else { of };
    vec![name.to_owned(), show::bytes(fetched), show::bytes(fetched + spared), of]
}

/// Rounded up: what is fetched is never told smaller than it is.
fn percent(part: u64, whole: u64) -> u128 {
    (u128::from(part) * 100).div_ceil(u128::from(whole.max(1)))
}
