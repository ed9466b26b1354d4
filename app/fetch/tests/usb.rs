//! Sticks: what is taken, in which order, and what is never tried twice.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_fetch::usb::{INTERRUPTIONS, Seen, Sticks, UsbConfig};
use inferd_fetch::{About, Clock, Standing, Way};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A clock that stands still until it is set.
struct Still(Mutex<Duration>);

impl Clock for Still {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    fn sleep(&self, _how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
    fn random(&self) -> f64 {
        0.5
    }
}

struct Bench {
    root: tempfile::TempDir,
    device: Double,
    clock: Arc<Still>,
    sticks: Sticks<Double>,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let device = Double::default();
        let clock = Arc::new(Still(Mutex::new(Duration::from_secs(3600))));
        let config = UsbConfig { root: root.path().to_owned(), ..UsbConfig::default() };
        let sticks = Sticks::new(config, Arc::new(device.clone()), clock.clone());
        Self { root, device, clock, sticks }
    }

    /// The same device after a restart: what was learned in this boot is gone.
    fn restarted(self) -> Self {
        let config = UsbConfig { root: self.root.path().to_owned(), ..UsbConfig::default() };
        let sticks = Sticks::new(config, Arc::new(self.device.clone()), self.clock.clone());
        Self { sticks, ..self }
    }

    fn put(&self, name: &str, made: &Made) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &made.bytes[..]).unwrap();
        path
    }

    fn unplug(&self, stick: &str) {
        std::fs::remove_dir_all(self.root.path().join(stick)).unwrap();
    }

    async fn look(&mut self) -> Vec<String> {
        let all = self.sticks.look().await;
        all.iter()
            .map(|seen| match seen {
                Seen::Installed { name, offer, .. } => format!("{name} {}", offer.version),
                Seen::Failed { name, error, .. } => format!("{name} {}", error.code()),
            })
            .collect()
    }

    fn judged(&self, made: &Made, standing: Standing) {
        self.device.shelf().standings.insert(made.id(), standing);
    }
}

fn no() -> inferd_fetch::Refused {
    refused("golden", About::Bundle)
}

#[tokio::test]
async fn the_newest_bundle_of_a_stick_is_installed() {
    let mut bench = Bench::new();
    let newest = usual(12);
    bench.put("sda1/a.imb", &usual(9));
    bench.put("sda1/B.IMB", &newest);
    bench.put("sdb/c.imb", &usual(10));
    assert_eq!(bench.look().await, ["B.IMB 12"]);
    assert!(bench.device.has(&newest));
    assert_eq!(bench.device.shelf().finished, [(Way::Usb, newest.id())]);
    // On trial, then committed: nothing more is taken, and nothing older.
    assert!(bench.look().await.is_empty());
    bench.judged(&newest, Standing::Committed);
    assert!(bench.look().await.is_empty());
    assert_eq!(bench.device.shelf().opened, 1);
}

#[tokio::test]
async fn only_regular_visible_files_in_the_root_are_looked_at() {
    let mut bench = Bench::new();
    let outside = bench.root.path().parent().unwrap().join("outside.imb");
    let made = usual(1);
    bench.put("sda1/._m.imb", &made);
    bench.put("sda1/m.imb.bak", &made);
    bench.put("sda1/folder/m.imb", &made);
    bench.put("top.imb", &made);
    let elsewhere = bench.put("elsewhere/x", &made);
    std::fs::create_dir(bench.root.path().join("sda1/dir.imb")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, bench.root.path().join("sda1/link.imb")).unwrap();
    std::os::unix::fs::symlink(bench.root.path().join("sda1"), bench.root.path().join("sdlink")).unwrap();
    nix::unistd::mkfifo(&bench.root.path().join("sda1/pipe.imb"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(bench.look().await.is_empty());
    assert_eq!(bench.device.shelf().opened, 0);
    assert!(!outside.exists());
}

#[tokio::test]
async fn nothing_is_taken_soon_after_a_start() {
    let mut bench = Bench::new();
    bench.put("sda1/m.imb", &usual(1));
    *bench.clock.0.lock().unwrap() = Duration::from_secs(299);
    assert!(bench.look().await.is_empty());
    *bench.clock.0.lock().unwrap() = Duration::from_secs(300);
    assert_eq!(bench.look().await, ["m.imb 1"]);
}

#[tokio::test]
async fn a_bundle_that_failed_is_never_tried_again_and_the_next_is() {
    for standing in [Standing::Refused(no()), Standing::Returned(no())] {
        let mut bench = Bench::new();
        let (bad, old) = (usual(2), usual(1));
        bench.put("sda1/bad.imb", &bad);
        assert_eq!(bench.look().await, ["bad.imb 2"]);
        bench.judged(&bad, standing.clone());
        // Neither now nor after a restart, nor from another stick under another name.
        assert!(bench.look().await.is_empty());
        let mut bench = bench.restarted();
        assert!(bench.look().await.is_empty());
        bench.put("sdb1/renamed.imb", &bad);
        assert!(bench.look().await.is_empty());
        bench.put("sdb1/old.imb", &old);
        assert_eq!(bench.look().await, ["old.imb 1"]);
        assert_eq!(bench.device.shelf().opened, 2);
    }
}

#[tokio::test]
async fn a_refusal_counts_for_the_boot_even_if_no_journal_knows_it() {
    let mut bench = Bench::new();
    bench.put("sda1/m.imb", &usual(1));
    bench.device.shelf().refuse_begin = Some(refused("floor", About::Bundle));
    assert_eq!(bench.look().await, ["m.imb floor"]);
    for _ in 0..3 {
        assert!(bench.look().await.is_empty());
        bench.unplug("sda1");
        assert!(bench.look().await.is_empty());
        bench.put("sda1/m.imb", &usual(1));
    }
    assert_eq!(bench.device.shelf().opened, 1);
}

#[tokio::test]
async fn a_busy_device_is_asked_again() {
    let mut bench = Bench::new();
    let made = usual(1);
    bench.put("sda1/m.imb", &made);
    bench.device.shelf().refuse_open = Some(refused("busy-transfer", About::Device));
    for _ in 0..20 {
        assert_eq!(bench.look().await, ["m.imb busy-transfer"]);
    }
    bench.device.shelf().refuse_open = None;
    assert_eq!(bench.look().await, ["m.imb 1"]);
}

/// Takes the stick away when `after` more chunks were stored.
fn pull_out(bench: &Bench, path: &Path, after: usize) {
    let path = path.to_owned();
    let end = bench.device.shelf().chunks + after;
    bench.device.shelf().on_chunk = Some(Box::new(move |chunks| {
        if chunks == end {
            // What is read after this ends early, and the file is gone.
            std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    }));
}

#[tokio::test]
async fn a_stick_that_was_pulled_out_goes_on_when_it_is_back() {
    let mut bench = Bench::new();
    let made = usual(1);
    for _ in 0..3 {
        let path = bench.put("sda1/m.imb", &made);
        pull_out(&bench, &path, 2);
        assert_eq!(bench.look().await, ["m.imb stick-removed"]);
        assert!(bench.look().await.is_empty());
    }
    bench.put("sda1/m.imb", &made);
    bench.device.shelf().on_chunk = None;
    assert_eq!(bench.look().await, ["m.imb 1"]);
    assert!(bench.device.has(&made));
    // Not one chunk was stored twice.
    assert_eq!(bench.device.shelf().chunks, made.chunks.len());
}

#[tokio::test]
async fn a_stick_with_a_loose_contact_is_given_up() {
    let mut bench = Bench::new();
    let made = usual(1);
    for _ in 0..=INTERRUPTIONS {
        let path = bench.put("sda1/m.imb", &made);
        pull_out(&bench, &path, 1);
        assert_eq!(bench.look().await, ["m.imb stick-removed"]);
    }
    bench.device.shelf().on_chunk = None;
    bench.put("sda1/m.imb", &made);
    assert!(bench.look().await.is_empty());
    // The next boot begins to count anew.
    let mut bench = bench.restarted();
    assert_eq!(bench.look().await, ["m.imb 1"]);
}

#[tokio::test]
async fn what_is_no_bundle_is_said_once() {
    let mut bench = Bench::new();
    let good = usual(1);
    bench.put("sda1/good.imb", &good);
    let rubbish = bench.root.path().join("sda1/a.imb");
    std::fs::write(&rubbish, noise(1, 100_000)).unwrap();
    std::fs::write(bench.root.path().join("sda1/empty.imb"), "").unwrap();
    let short = bench.root.path().join("sda1/short.imb");
    std::fs::write(&short, &usual(5).bytes[..50_000]).unwrap();
    let seen = bench.look().await;
    assert_eq!(seen, ["a.imb not-a-bundle", "empty.imb not-a-bundle", "short.imb truncated", "good.imb 1"]);
    bench.judged(&good, Standing::Committed);
    assert!(bench.look().await.is_empty());
}

#[tokio::test]
async fn a_file_whose_payload_is_cut_off_is_truncated_and_not_tried_again() {
    let mut bench = Bench::new();
    let made = usual(1);
    let path = bench.put("sda1/m.imb", &made);
    let short = made.index() + 100_000;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(short).unwrap();
    assert_eq!(bench.look().await, ["m.imb truncated"]);
    assert!(bench.look().await.is_empty());
    assert_eq!(bench.device.shelf().opened, 1);
}

#[tokio::test]
async fn damage_on_the_stick_is_found_by_its_digest() {
    let mut bench = Bench::new();
    let made = usual(1);
    let path = bench.put("sda1/m.imb", &made);
    let mut bytes = made.bytes.to_vec();
    let at = usize::try_from(made.chunks[3].offset).unwrap() + 5;
    bytes[at] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let seen = bench.look().await;
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("m.imb ") && seen[0] != "m.imb 1", "{seen:?}");
    assert!(bench.device.shelf().finished.is_empty());
    // A stick may be read better another time, but not for ever.
    let mut tries = 1;
    while !bench.look().await.is_empty() {
        tries += 1;
    }
    assert_eq!(tries, INTERRUPTIONS + 1);
}
