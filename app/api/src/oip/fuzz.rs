//! Doors into the Open Inference Protocol's parsers for `tests/fuzz`; no build but a fuzzer's has them.

use super::compress::Coding;
use super::route::Route;
use super::tensors::Slots;
use super::{reply, request, tensors};
use inferd_model::Manifest;

struct Buffers(Vec<Vec<u8>>);

impl Slots for Buffers {
    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        &mut self.0[i]
    }
}

/// What an accepted request came to.
#[derive(Debug, PartialEq)]
pub struct Accepted {
    /// The model's inputs.
    pub inputs: Vec<Vec<u8>>,
    /// The reply to it when every byte of the model's outputs is 0: the body, and how much of it is JSON.
    pub reply: Result<(Vec<u8>, Option<usize>), String>,
}

/// From a body to filled slots, whose every byte is `background` before, and to a reply.
///
/// # Errors
/// The sentence the client is told.
pub fn infer(
    body: &[u8],
    header_length: &[&[u8]],
    model: &Manifest,
    background: u8,
) -> Result<Accepted, String> {
    let header = request::header_length(header_length.iter().copied()).map_err(|e| e.to_string())?;
    let request = request::parse(body, header).map_err(|e| e.to_string())?;
    let plan = reply::plan(&request, model).map_err(|e| e.to_string())?;
    let mut slots = Buffers(model.inputs.iter().map(|s| vec![background; s.byte_len()]).collect());
    tensors::fill(&request, model, &mut slots).map_err(|e| e.to_string())?;
    let outputs: Vec<Vec<u8>> = model.outputs.iter().map(|s| vec![0; s.byte_len()]).collect();
    let written = plan.write(model, |i| outputs[i].as_slice());
    let reply = written.map(|b| (b.bytes, b.header_length)).map_err(|e| e.to_string());
    Ok(Accepted { inputs: slots.0, reply })
}

/// Decodes a body as its `Content-Encoding` says.
///
/// # Errors
/// The sentence the client is told.
pub fn decode(content_encoding: &[u8], body: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    let coding = Coding::of_request([content_encoding]).map_err(|e| e.to_string())?;
    coding.decode(body, limit).map_err(|e| e.to_string())
}

/// Encodes a body as `Accept-Encoding` asks, and decodes it again.
///
/// # Errors
/// The sentence a client would be told of such a body.
pub fn there_and_back(accept_encoding: &[u8], body: &[u8]) -> Result<Vec<u8>, String> {
    let coding = Coding::of_reply([accept_encoding]);
    coding.decode(&coding.encode(body), body.len()).map_err(|e| e.to_string())
}

/// Reads a path, and the bodies of the requests to the repository; whether each was accepted.
pub fn small(path: &str, body: &[u8]) -> (bool, bool, bool) {
    (Route::of(path).is_ok(), request::index(body).is_ok(), request::control(body).is_ok())
}
