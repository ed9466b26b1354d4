//! The command, from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use inferd_sources::motion::{Conditions, Motion, Sample, window};
use std::path::Path;
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inferd-train")).args(args).output().unwrap()
}

#[derive(serde::Deserialize)]
struct Body {
    x: Vec<Sample>,
}

#[test]
fn windows_are_printed_as_clients_send_them() {
    let out = run(&["windows", "--motion", "walk", "--seed", "7", "--count", "3"]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    let bodies: Vec<Body> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(bodies.len(), 3);
    for (body, seed) in bodies.iter().zip(7..) {
        assert_eq!(body.x, window(Motion::Walk, seed, Conditions::Usual), "every bit survives the text");
    }
}

#[test]
fn the_windows_in_tests_data_are_those_of_the_generator() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    for (file, motion) in [("imu_walk.json", "walk"), ("imu_sit.json", "sit")] {
        let out = run(&["windows", "--motion", motion, "--seed", "7"]);
        let made = String::from_utf8(out.stdout).unwrap();
        let kept = std::fs::read_to_string(data.join(file)).unwrap();
        assert!(made == kept, "{file}: make it again with `inferd-train windows --motion {motion} --seed 7`");
    }
}

#[test]
fn an_unknown_motion_is_refused_with_those_there_are() {
    let out = run(&["windows", "--motion", "fly"]);
    assert_eq!(out.status.code(), Some(2));
    let message = String::from_utf8(out.stderr).unwrap();
    assert!(message.contains("fly") && message.contains("sniff"), "{message}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named_before_training() {
    for model in ["imu-motion", "emg-gestures"] {
        let out = run(&[model, "-o", "/dev/null/model"]);
        assert_eq!(out.status.code(), Some(1));
        let message = String::from_utf8(out.stderr).unwrap();
        assert!(message.contains("/dev/null/model") && !message.contains("epoch"), "{message}");
    }
}
