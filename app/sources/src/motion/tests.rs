use super::*;
use sha2::{Digest, Sha256};

/// Statistics of a window that tell motions apart: forward and sideways share of gravity, how much the acceleration's
/// magnitude varies, and how fast it turns.
fn statistics(w: &[Sample]) -> [f64; 4] {
    #[allow(clippy::cast_precision_loss)]
    let n = w.len() as f64;
    let mean = |f: &dyn Fn(&Sample) -> f64| w.iter().map(f).sum::<f64>() / n;
    let length =
        |s: &Sample, at: usize| s[at..at + 3].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let size = mean(&|s| length(s, 0));
    [
        mean(&|s| f64::from(s[0])),
        mean(&|s| f64::from(s[1])).abs(),
        mean(&|s| (length(s, 0) - size).powi(2)).sqrt(),
        mean(&|s| length(s, 3).powi(2)).sqrt(),
    ]
}

/// Mean and deviation of each statistic over `n` windows.
fn summary(motion: Motion, n: u32) -> [(f64, f64); 4] {
    let all: Vec<_> =
        (0..n).map(|seed| statistics(&window(motion, seed.into(), Conditions::Usual))).collect();
    [0, 1, 2, 3].map(|i| {
        let mean = all.iter().map(|s| s[i]).sum::<f64>() / f64::from(n);
        (mean, (all.iter().map(|s| (s[i] - mean).powi(2)).sum::<f64>() / f64::from(n)).sqrt())
    })
}

/// The table in app/train/README.md.
const DOCUMENTED: [(Motion, [f64; 4]); 12] = [
    (Motion::Sit, [5.7, 0.7, 0.1, 0.2]),
    (Motion::Stay, [0.6, 0.8, 0.1, 0.2]),
    (Motion::Heel, [3.1, 1.6, 2.4, 0.7]),
    (Motion::Come, [-0.5, 0.9, 6.1, 2.1]),
    (Motion::Down, [-1.6, 4.1, 0.1, 0.2]),
    (Motion::Shake, [-1.4, 0.9, 5.3, 6.7]),
    (Motion::Spin, [-1.9, 3.6, 2.3, 4.3]),
    (Motion::Jump, [1.9, 0.7, 6.5, 1.3]),
    (Motion::Bark, [1.2, 0.7, 1.9, 0.5]),
    (Motion::Sniff, [-6.1, 0.6, 1.0, 0.6]),
    (Motion::Walk, [-0.6, 0.7, 2.0, 0.9]),
    (Motion::Play, [-1.0, 1.1, 3.5, 2.9]),
];

#[test]
fn every_motion_has_the_statistics_of_the_table_and_differs_from_the_others() {
    let found = DOCUMENTED.map(|(m, _)| summary(m, 120));
    for ((motion, documented), found) in DOCUMENTED.iter().zip(&found) {
        for (want, (mean, deviation)) in documented.iter().zip(found) {
            // Rounding of the table, and three standard errors of a mean of 120.
            let slack = 0.05 + 3.0 * deviation / 120_f64.sqrt();
            assert!((want - mean).abs() <= slack, "{motion}: documented {documented:?}, found {found:?}");
        }
    }
    for (i, a) in found.iter().enumerate() {
        for (j, b) in found.iter().enumerate().skip(i + 1) {
            let apart = |(a, b): (&(f64, f64), &(f64, f64))| (a.0 - b.0).abs() / a.1.hypot(b.1);
            let most = a.iter().zip(b).map(apart).fold(0.0, f64::max);
            assert!(most > 0.8, "{} and {} are {most:.2} deviations apart", DOCUMENTED[i].0, DOCUMENTED[j].0);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_every_platform() {
    let mut all = Sha256::new();
    let mut feed = |w: Vec<Sample>| w.as_flattened().iter().for_each(|v| all.update(v.to_le_bytes()));
    for motion in Motion::ALL {
        feed(window(motion, 1, Conditions::Usual));
        feed(window(motion, 2, Conditions::Hard));
    }
    feed(MotionStream::background(1, Conditions::Usual).take(STEPS).collect());
    let digest: String = all.finalize().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, "cf708cdd2d0fe1dd990be1dbf22bbc4f0e4b580cc42d39de70019138f171ec2d");
}

#[test]
fn another_seed_gives_another_window() {
    for motion in Motion::ALL {
        assert_ne!(window(motion, 1, Conditions::Usual), window(motion, 2, Conditions::Usual), "{motion}");
    }
}

#[test]
fn a_window_is_the_start_of_the_endless_recording() {
    let long: Vec<Sample> = MotionStream::new(Motion::Heel, 5, Conditions::Usual).take(3 * STEPS).collect();
    assert_eq!(long[..STEPS], window(Motion::Heel, 5, Conditions::Usual));
    assert_ne!(long[..STEPS], long[STEPS..2 * STEPS], "it goes on, it does not repeat");
}

#[test]
fn values_are_finite_and_inside_what_the_service_accepts() {
    let recordings = |seed| {
        let motions = Motion::ALL.into_iter().flat_map(move |m| {
            [Conditions::Usual, Conditions::Hard].map(|c| (m.name(), MotionStream::new(m, seed, c)))
        });
        motions.chain([("background", MotionStream::background(seed, Conditions::Hard))])
    };
    for (name, recording) in (0..10).flat_map(recordings) {
        for s in recording.take(STEPS) {
            for (channel, v) in s.iter().enumerate() {
                let limit = [500.0, 35.0, 2000.0][channel / 3];
                assert!(v.is_finite() && v.abs() <= limit, "{name}: channel {channel} is {v}");
            }
        }
    }
}

/// A body in usual conditions, without a sensor's errors.
fn body(motion: Motion, seed: u64) -> Body {
    MotionStream::new(motion, seed, Conditions::Usual).body
}

fn length(v: Vec3) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn the_magnetic_field_turns_exactly_as_the_gyroscope_says() {
    for motion in Motion::ALL {
        let b = body(motion, 11);
        for i in 0..50 {
            let (t, h) = (0.02 * f64::from(i), 1e-4);
            let (before, now, after) = (b.at(t - h).field, b.at(t), b.at(t + h).field);
            // A vector that stands still in space moves in turning axes by -w x v.
            let (w, v) = (now.rate, now.field);
            let cross = [v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0]];
            let change = scale(sub(after, before), 1.0 / (2.0 * h));
            let off = length(sub(change, cross));
            assert!(off < 0.01 * (1.0 + length(change)), "{motion} at {t}: {change:?} against {cross:?}");
            assert!((45.0..=60.0).contains(&length(v)), "{motion}: field {v:?}");
        }
    }
}

#[test]
fn what_stays_in_place_feels_gravity_on_average() {
    for motion in Motion::ALL {
        if motion == Motion::Spin {
            continue; // Its axes turn with it; gravity is checked on its vertical axis by the statistics.
        }
        let b = body(motion, 3);
        // Mean over 20 s of the acceleration seen from the ground; nothing walks away, so only gravity remains.
        let mut sum = [0.0; 3];
        for i in 0..2000 {
            let t = 0.01 * f64::from(i);
            let p = (b.trajectory)(t);
            let seen =
                math::times(&from_euler(p.roll, p.pitch, p.yaw), math::times(&b.mount, b.at(t).acceleration));
            sum = add(sum, scale(seen, 1.0 / 2000.0));
        }
        // Impacts and lunges are given as pushes without a return; they add at most a few m/s^2.
        let extra = length(sub(sum, [0.0, 0.0, GRAVITY]));
        let allowed = match motion {
            Motion::Come | Motion::Play => 4.0,
            Motion::Bark => 1.5,
            _ => 0.7,
        };
        assert!(extra < allowed, "{motion}: mean {sum:?}");
    }
}

#[test]
fn a_jump_has_a_flight_without_weight() {
    for seed in 0..20 {
        let b = body(Motion::Jump, seed);
        let least =
            (0..150).map(|i| length(b.at(0.01 * f64::from(i)).acceleration)).fold(f64::INFINITY, f64::min);
        assert!(least < 0.35 * GRAVITY, "seed {seed}: {least}");
    }
}

#[test]
fn a_motion_has_one_name() {
    for motion in Motion::ALL {
        assert_eq!(motion.name().parse(), Ok(motion));
        assert_eq!(Motion::ALL[motion.index()], motion);
    }
    let unknown = "run".parse::<Motion>().unwrap_err();
    assert!(unknown.to_string().contains("walk"), "the message lists what there is: {unknown}");
}
