//! The encoder for microcontrollers writes the same bytes as ours.

use inferd_sources::frame::{Header, MAX_FRAME, encode};
use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Reads cases from standard input and writes their frames to standard output.
const DRIVER: &str = r#"
#include "inferd_frame.h"
#include <stdio.h>
int main(void) {
    unsigned channels, steps, flags, sequence, timestamp, room;
    static int16_t samples[65536];
    static uint8_t out[INFERD_FRAME_MAX_BYTES];
    while (scanf("%u %u %u %u %u %u", &channels, &steps, &flags, &sequence, &timestamp, &room) == 6) {
        for (unsigned i = 0; i < channels * steps; i++) { int v; if (scanf("%d", &v) != 1) return 1; samples[i] = (int16_t)v; }
        size_t n = inferd_frame_encode(out, room, sequence, timestamp, (uint8_t)channels, (uint8_t)steps, (uint8_t)flags, samples);
        printf("%u", (unsigned)n);
        for (size_t i = 0; i < n; i++) printf(" %u", (unsigned)out[i]);
        printf("\n");
    }
    return 0;
}
"#;

#[test]
#[allow(clippy::cast_possible_truncation, reason = "test data")]
fn the_encoder_for_microcontrollers_writes_the_same_bytes() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("skipped: there is no C compiler ({compiler})");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference");
    let (object, driver, program) =
        (folder.path().join("frame.o"), folder.path().join("driver.c"), folder.path().join("driver"));
    std::fs::write(&driver, DRIVER).unwrap();
    let run = |arguments: &[&std::ffi::OsStr]| {
        let done = Command::new(&compiler).args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let strict = "-std=c99 -pedantic -Wall -Wextra -Werror -Wconversion -ffreestanding -O2 -c -o";
    let mut arguments: Vec<&std::ffi::OsStr> = strict.split(' ').map(AsRef::as_ref).collect();
    let source = reference.join("inferd_frame.c");
    arguments.extend([object.as_os_str(), source.as_os_str()]);
    run(&arguments);
    let include = format!("-I{}", reference.display());
    run(&[include.as_ref(), "-o".as_ref(), program.as_os_str(), driver.as_os_str(), object.as_os_str()]);

    let mut random = Pcg64::new(4, 2);
    let (mut cases, mut expected) = (String::new(), String::new());
    let sizes =
        [(0, 1), (1, 0), (33, 1), (32, 17), (255, 255), (32, 16), (1, 255), (2, 255), (3, 255), (1, 1)];
    for i in 0..300 {
        let r = random.next_u32();
        let (channels, steps) = sizes.get(i).copied().unwrap_or(((r % 34) as u8, (r >> 8) as u8 % 34));
        let header = Header {
            channels,
            steps,
            flags: (r >> 16) as u8,
            sequence: random.next_u32(),
            timestamp_us: random.next_u32(),
        };
        // Every tenth has one byte of room too little.
        let room = if i % 10 == 9 { header.frame_bytes().min(MAX_FRAME + 1) - 1 } else { MAX_FRAME };
        let samples: Vec<i16> = (0..header.values()).map(|_| random.next_u32() as i16).collect();
        cases += &format!(
            "{channels} {steps} {} {} {} {room}",
            header.flags, header.sequence, header.timestamp_us
        );
        samples.iter().for_each(|v| cases += &format!(" {v}"));
        cases.push('\n');
        let mut out = vec![0; room];
        let length = encode(&header, &samples, &mut out).unwrap_or(0);
        expected += &length.to_string();
        out[..length].iter().for_each(|b| expected += &format!(" {b}"));
        expected.push('\n');
    }
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(cases.as_bytes()).unwrap());
    let done = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(done.status.success());
    assert_eq!(String::from_utf8(done.stdout).unwrap(), expected);
    assert!(expected.lines().filter(|line| *line == "0").count() > 10, "some are refused by both");
}
