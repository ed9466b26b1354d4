//! The Open Inference Protocol v2, everything under `/v2`.

use crate::{App, Reply, Req};

/// Answers every path under `/v2`.
pub async fn handle(_app: &App, _req: &Req) -> Reply {
    Reply::not_found()
}

mod compress;
mod error;
mod reply;
mod request;
mod tensors;
#[cfg(test)]
mod testing;
