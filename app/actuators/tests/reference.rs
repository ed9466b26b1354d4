//! The receiver for microcontrollers takes our lines, nothing else, and knows when they end.

#![allow(clippy::unwrap_used, reason = "tests")]

use inferd_actuators::line;
use inferd_sources::random::Random;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Reads times and bytes; writes `line` with its pulse widths, or `lost`, whenever something changes.
const DRIVER: &str = r#"
#include "inferd_pwm.h"
#include <stdio.h>
int main(void) {
    inferd_pwm pwm;
    unsigned joints, timeout, ms;
    int byte, alive = 0;
    if (scanf("%u %u", &joints, &timeout) != 2) return 1;
    inferd_pwm_begin(&pwm, (uint8_t)joints, timeout);
    while (scanf("%u %d", &ms, &byte) == 2) {
        if (byte >= 0 && inferd_pwm_push(&pwm, (uint8_t)byte, ms)) {
            printf("line");
            for (unsigned i = 0; i < joints; i++) printf(" %u", (unsigned)pwm.us[i]);
            printf("\n");
        }
        if (alive && !inferd_pwm_alive(&pwm, ms)) printf("lost\n");
        alive = inferd_pwm_alive(&pwm, ms);
    }
    printf("refused %u\n", (unsigned)pwm.refused);
    return 0;
}
"#;

/// What the receiver says of so many joints to bytes at times; a byte of `None` only lets time pass. `None`: there is no compiler.
fn receiver(joints: usize, events: &[(u32, Option<u8>)]) -> Option<Vec<String>> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("skipped: there is no C compiler ({compiler})");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("driver.c"), DRIVER).unwrap();
    let run = |command: &mut Command| {
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let strict = "-std=c99 -pedantic -Wall -Wextra -Werror -Wconversion -ffreestanding -O2 -c -o";
    run(Command::new(&compiler).args(strict.split(' ')).arg(at("pwm.o")).arg(reference.join("inferd_pwm.c")));
    let link = [at("program"), at("driver.c"), at("pwm.o")];
    run(Command::new(&compiler).arg("-I").arg(&reference).arg("-o").args(link));
    let mut input = format!("{joints} 250\n");
    for (ms, byte) in events {
        let _ = writeln!(input, "{ms} {}", byte.map_or(-1, i32::from));
    }
    let mut child = Command::new(at("program")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || to.write_all(input.as_bytes()).unwrap());
    let done = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(done.status.success());
    Some(String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect())
}

fn bytes(ms: u32, text: &str) -> Vec<(u32, Option<u8>)> {
    text.bytes().map(|b| (ms, Some(b))).collect()
}

#[test]
fn our_lines_are_taken_and_damaged_ones_change_nothing() {
    let mut random = Random::new(3, 1);
    let (mut events, mut expected, mut damaged) = (Vec::new(), Vec::new(), 0);
    let mut text = String::new();
    for i in 0..400 {
        let widths: Vec<u16> = (0..17).map(|_| 1000 + u16::try_from(random.below(1001)).unwrap()).collect();
        line::write(&mut text, widths.iter().copied());
        if i % 3 == 2 {
            // A byte that is lost, another, or one too many: of the ones that leave a good line none.
            let place = random.below(text.len() - 1);
            let mut bad = text.clone().into_bytes();
            match i % 4 {
                0 => drop(bad.remove(place)),
                1 => bad[place] = b'x',
                2 => bad.insert(place, b'-'),
                _ => bad[place] ^= 0x80,
            }
            events.extend(bad.iter().map(|b| (i, Some(*b))));
            damaged += 1;
        } else {
            events.extend(bytes(i, &text));
            let told: Vec<String> = widths.iter().map(ToString::to_string).collect();
            expected.push(format!("line {}", told.join(" ")));
        }
    }
    expected.push(format!("refused {damaged}"));
    if let Some(told) = receiver(17, &events) {
        assert_eq!(told, expected);
    }
}

#[test]
fn a_line_that_is_another_is_refused() {
    let bad = [
        "PWM:1500\n",
        "PWM:1500,1500,1500\n",
        "PWM:1500,1500,\n",
        "PWM:,1500,1500\n",
        "PWM:999,1500\n",
        "PWM:0999,1500\n",
        "PWM:2001,1500\n",
        "PWM:11500,1500\n",
        "PWM:1500,1500 \n",
        "PWM 1500,1500\n",
        "pwm:1500,1500\n",
        "PWM:1500,PWM:1500,1500\n",
        "\n",
    ];
    let text = format!("{}PWM:1000,2000\n", bad.concat());
    if let Some(told) = receiver(2, &bytes(0, &text)) {
        assert_eq!(told, ["line 1000 2000".to_owned(), format!("refused {}", bad.len())]);
    }
}

#[test]
fn the_link_is_lost_after_its_time_also_over_the_wrap_of_the_clock_and_until_the_next_line() {
    let near = u32::MAX - 100;
    let mut events = bytes(near, "PWM:1500\n");
    events.extend([(near + 100, None), (148, None), (149, None), (near, None)]);
    // Bytes that are no line keep nothing alive.
    events.extend(bytes(400, "PWM:1500"));
    events.extend(bytes(410, "x\nPWM:1600\n"));
    events.push((660, None));
    if let Some(told) = receiver(1, &events) {
        assert_eq!(told, ["line 1500", "lost", "line 1600", "lost", "refused 1"]);
    }
}
