//! `judge ROOT LIST`: what a device that starts from ROOT says to each bundle whose path is a line of the file LIST; one line
//! each: `ok ID` or the code of the refusal. For `tests/bundle`, which asks another reader the same.

use inferd_bundle::{Bundle, Chunk, Digest, IndexPage, Refusal, Root, Sink, Stream, Trust};
use std::collections::BTreeMap;
use std::path::Path;

/// Authorises, unpacks every chunk and puts the files together.
struct Device {
    trust: Trust,
    files: BTreeMap<(String, String), Vec<u8>>,
}

impl Sink for Device {
    type Error = Refusal;
    fn prefix(&mut self, bundle: &Bundle, _: &[u8]) -> Result<(), Refusal> {
        bundle.authorize(&self.trust).map(drop)
    }
    fn page(&mut self, _: &Bundle, _: &IndexPage, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn chunk(&mut self, bundle: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Refusal> {
        let mut raw = Vec::new();
        chunk.unpack(stored, &mut raw)?;
        if let Some((model, file)) = bundle.manifest().owner(chunk.number) {
            self.files.entry((model.name.to_string(), file.name.clone())).or_default().append(&mut raw);
        }
        Ok(())
    }
}

fn judge(bytes: &[u8], trust: &Trust) -> Result<Bundle, Refusal> {
    let mut device = Device { trust: trust.clone(), files: BTreeMap::new() };
    let mut stream = Stream::new();
    stream.push(bytes, &mut device)?;
    let bundle = stream.finish()?;
    for (model, file) in bundle.manifest().files() {
        let content = device.files.remove(&(model.name.to_string(), file.name.clone())).unwrap_or_default();
        file.check(Digest::of(&content))?;
    }
    Ok(bundle)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, list] = arguments.as_slice() else { return Err("usage: judge ROOT LIST".into()) };
    let trust = Trust::new(Root::from_envelope(&std::fs::read(root)?)?, false);
    for path in std::fs::read_to_string(list)?.lines() {
        match judge(&std::fs::read(Path::new(path))?, &trust) {
            Ok(bundle) => println!("ok {}", bundle.id()),
            Err(refusal) => println!("{}", refusal.code()),
        }
    }
    Ok(())
}
