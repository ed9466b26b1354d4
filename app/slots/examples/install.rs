//! Install speed against the medium's own: `cargo run --release -p inferd-slots --example install -- DIRECTORY [MIB]`.
//!
//! In one run and by turns, so that both see the same medium: writing plain bytes in blocks of an average chunk with a sync every 4 MiB, and
//! installing a bundle of as many bytes (verify, write, sync, read back, compare). Then the memory the process needed at most.

use inferd_bundle::build::{BundleSpec, Content, FileSource, ModelSource, build};
use inferd_bundle::{Bundle, Digest, Stream};
use inferd_slots::{Config, FileMedium, Medium, SlotId, Step, Store};
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: install DIRECTORY [MIB]")?);
    let mib: u64 = arguments.next().map_or(Ok(256), |mib| mib.parse())?;
    let work = directory.join("install-example");
    fs::create_dir_all(&work)?;
    let done = measure(&work, mib);
    fs::remove_dir_all(&work)?;
    done
}

fn measure(work: &Path, mib: u64) -> Result<(), Box<dyn Error>> {
    let imb = work.join("bundle.imb");
    make(&imb, mib)?;
    let len = fs::metadata(&imb)?.len();
    let config = Config { slots: [work.join("a"), work.join("b")], data: work.join("data"), capacity: len };
    let store = Store::at(&config)?;
    let plain = FileMedium::open(&work.join("plain"), len)?;
    plain.reserve(len)?;
    println!("{len} bytes, direct reads: {}", plain.is_direct());
    // The peak of building the bundle is not ours.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = kib("VmRSS")?;
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let began = Instant::now();
        write_plain(&plain, len)?;
        let raw = began.elapsed();
        let began = Instant::now();
        let finishing = install(&store, &imb)?;
        let installed = began.elapsed();
        let hashing = hash(&imb)?;
        if round == 0 {
            // Files and their caches are made.
            continue;
        }
        #[allow(clippy::cast_precision_loss)]
        let rate = |time: Duration| len as f64 / 1e6 / time.as_secs_f64();
        let ratio = raw.as_secs_f64() / installed.as_secs_f64();
        println!(
            "round {round}: medium {:.0} MB/s, install {:.0} MB/s, ratio {ratio:.2} (finishing took {:.1} %; hashing the bundle once from memory {:.1} %)",
            rate(raw),
            rate(installed),
            100.0 * finishing.as_secs_f64() / installed.as_secs_f64(),
            100.0 * hashing.as_secs_f64() / installed.as_secs_f64(),
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ratios.len() / 2]);
    println!(
        "memory: {} KiB before, at most {} KiB (1.3 MiB of it this example's buffers)",
        before,
        kib("VmHWM")?
    );
    Ok(())
}

fn kib(what: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("no such line")?;
    Ok(line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?)
}

/// Blocks of 64 KiB, a sync every 4 MiB.
fn write_plain(medium: &impl Medium, len: u64) -> Result<(), Box<dyn Error>> {
    let block = noise(1, 64 * 1024);
    for at in (0..len - block.len() as u64).step_by(block.len()) {
        medium.write(at, &block)?;
        if at % (4 << 20) == 0 {
            medium.sync()?;
        }
    }
    Ok(medium.sync()?)
}

/// Installs from a file; how long the end of it takes.
fn install(store: &Store<FileMedium>, imb: &Path) -> Result<Duration, Box<dyn Error>> {
    // Nothing may be found there, and the slot must not be the one that is skipped.
    if let Some(slot) = store.state().slots.iter().position(|slot| slot.bundle.is_some()) {
        store.step(&Step::Erase { slot: SlotId::BOTH[slot] })?;
    }
    let mut file = BufReader::with_capacity(1 << 20, File::open(imb)?);
    let mut head = vec![0; 4096];
    file.read_exact(&mut head)?;
    let header: &[u8; 4096] = head.first_chunk().ok_or("short")?;
    let mut prefix = vec![0; usize::try_from(Bundle::prefix_len(header)?)?];
    prefix[..4096].copy_from_slice(&head);
    file.read_exact(&mut prefix[4096..])?;
    let mut install = store.begin_install(&prefix)?;
    let mut stream = Stream::resume(Bundle::parse(&prefix)?, install.place(), &mut install)?;
    let mut part = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut part)?;
        if read == 0 {
            break;
        }
        stream.push(&part[..read], &mut install)?;
    }
    stream.finish()?;
    let began = Instant::now();
    install.finish()?;
    Ok(began.elapsed())
}

/// Hashing as many bytes from memory.
fn hash(imb: &Path) -> Result<Duration, Box<dyn Error>> {
    let mut file = File::open(imb)?;
    let mut part = vec![0; 64 * 1024];
    let mut time = Duration::ZERO;
    while file.read(&mut part)? > 0 {
        let began = Instant::now();
        std::hint::black_box(Digest::of(&part));
        time += began.elapsed();
    }
    Ok(time)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    use rand_pcg::rand_core::{Rng, SeedableRng};
    let mut bytes = vec![0; len];
    rand_pcg::Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// One model of so many MiB, from a generator, so that it is never in memory.
fn make(path: &Path, mib: u64) -> Result<(), Box<dyn Error>> {
    let network = path.with_extension("onnx");
    let mut out = BufWriter::new(File::create(&network)?);
    for part in 0..mib {
        out.write_all(&noise(part, 1 << 20))?;
    }
    out.flush()?;
    drop(out);
    let digest = {
        use std::process::Command;
        let output = Command::new("sha256sum").arg(&network).output()?;
        String::from_utf8(output.stdout)?[..64].to_owned()
    };
    let golden = noise(u64::MAX, 1000);
    let manifest = format!(
        "schema = 1\nname = \"large\"\nversion = \"1\"\ntask = \"tensor\"\nengines = [\"cpu\"]\n\
         [budget]\nmemory_mib = 64\ndeadline_ms = 1000\n\
         [onnx]\nfile = \"model.onnx\"\nsha256 = \"{digest}\"\n\
         [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{}\"\ncosine = 0.9999\nmax_abs = 0.001\n\
         [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [1]\n\
         [[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [1]\n",
        Digest::of(&golden),
    );
    let files = vec![
        FileSource { name: "model.onnx".to_owned(), content: Content::Path(network.clone()) },
        FileSource { name: "golden.safetensors".to_owned(), content: Content::Bytes(golden) },
    ];
    let model = ModelSource { manifest, files };
    let spec = BundleSpec::new(inferd_model::ModelName::new("large")?, 1, vec![model]);
    build(&spec, &[], &mut BufWriter::new(File::create(path)?))?;
    fs::remove_file(network)?;
    Ok(())
}
