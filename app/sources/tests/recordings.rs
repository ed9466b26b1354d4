//! Recordings that SciPy and NumPy really wrote (`data/recordings.py`).

use inferd_sources::recording::{Limits, Recording, RecordingError, labels};
use std::fs::File;
use std::path::Path;

fn file(name: &str) -> File {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/recordings").join(name);
    File::open(path).expect("data/recordings.py wrote it")
}

fn open(name: &str) -> Result<Recording, RecordingError> {
    Recording::read(file(name), &Limits::default())
}

fn check(name: &str, scale: f32) -> Recording {
    let recording = open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!((recording.rows(), recording.channels()), (12, 5), "{name}");
    for (at, value) in recording.values().iter().enumerate() {
        let expected = (100.0 * (at / 5) as f32 + (at % 5) as f32 - 250.0) * scale;
        assert_eq!(*value, expected, "{name}: row {}, channel {}", at / 5, at % 5);
    }
    recording
}

#[test]
fn files_of_scipy_are_read_as_they_were_written() {
    for (name, scale) in [("plain", 0.125), ("compressed", 0.125), ("single", 0.125), ("int16", 1.0)] {
        let recording = check(&format!("{name}.mat"), scale);
        let labels: Vec<i32> = (0..12).filter_map(|row| recording.label(row)).collect();
        assert_eq!(labels, [0, 0, 0, 0, 1, 1, 1, 3, 3, 3, 0, 0], "restimulus, one row later than stimulus");
        let repetitions: Vec<i32> = (0..12).filter_map(|row| recording.repetition(row)).collect();
        assert_eq!(repetitions, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        assert_eq!((recording.rate_hz(), recording.window_rows()), (Some(2000.0), None));
    }
    let windows = check("windows.mat", 0.125);
    assert_eq!((windows.window_rows(), windows.label(3), windows.label(4)), (Some(4), Some(4), Some(5)));
}

#[test]
fn files_of_numpy_are_read_as_they_were_written() {
    for name in ["f4-little", "f4-big", "f8-little", "f8-big", "fortran", "version2", "version3"] {
        assert_eq!(check(&format!("{name}.npy"), 0.125).window_rows(), None);
    }
    for name in ["i2-little", "i2-big", "i4-little", "i8-little"] {
        check(&format!("{name}.npy"), 1.0);
    }
    for name in ["windows", "windows-fortran"] {
        assert_eq!(check(&format!("{name}.npy"), 0.125).window_rows(), Some(4));
    }
    for name in ["savetxt.csv", "default.txt"] {
        check(name, 0.125);
    }
}

#[test]
fn labels_of_another_file_are_put_beside_a_recording() {
    let labels = labels(file("labels.npy"), &Limits::default()).unwrap();
    let recording = open("f4-little.npy").unwrap().with_labels(labels).unwrap();
    assert_eq!([0, 3, 6, 11].map(|row| recording.label(row)), [Some(0), Some(1), Some(3), Some(0)]);
}

#[test]
fn what_is_not_read_is_refused_with_the_reason() {
    assert!(matches!(open("object.npy"), Err(RecordingError::Type(_))));
    assert!(matches!(open("level4.mat"), Err(RecordingError::Unsupported(_))));
    let few = Limits { values: 59, ..Limits::default() };
    for name in ["plain.mat", "f4-little.npy", "savetxt.csv"] {
        let read = Recording::read(file(name), &few);
        assert_eq!(read, Err(RecordingError::TooLarge { found: 60, most: 59 }), "{name}");
    }
}
