//! Our filters give SciPy's numbers (`data/filters.py` wrote them).

use inferd_sources::prepare::{Filter, Preparation, Scaling};

const RATE: f64 = 2000.0;

/// As in `data/filters.py`.
#[allow(clippy::cast_possible_truncation, reason = "test data")]
fn signal(n: usize) -> Vec<f32> {
    let mut x = vec![0.0, 1.0];
    let mut state = 1u64;
    while x.len() < n {
        state = (state * 1_103_515_245 + 12_345) & 0x7fff_ffff;
        x.push((state as f64 / f64::from(0x4000_0000) - 1.0) as f32);
    }
    x
}

#[test]
fn filters_give_the_numbers_of_scipy() {
    let page = include_str!("data/filters.txt");
    let lines: Vec<&str> = page.lines().collect();
    for case in lines.chunks(2) {
        let words: Vec<&str> = case[0].split(' ').collect();
        let number = |i: usize| words[i].parse::<f64>().unwrap();
        let (one, two, order) = (number(2), number(3), words[4].parse().unwrap());
        let filter = match words[1] {
            "bandpass" => Filter::BandPass { low_hz: one, high_hz: two, order },
            "highpass" => Filter::HighPass { hz: one, order },
            "lowpass" => Filter::LowPass { hz: one, order },
            _ => Filter::Notch { hz: one, q: two },
        };
        let expected: Vec<f64> = case[1].split(' ').map(|v| v.parse().unwrap()).collect();
        let mut stream = Preparation::new(&[filter], Scaling::None, 1, RATE).unwrap().stream();
        for (n, (x, expected)) in signal(expected.len()).into_iter().zip(&expected).enumerate() {
            let mut y = [x];
            stream.filter(&mut y);
            let off = (f64::from(y[0]) - expected).abs();
            assert!(off < 1e-6, "{} sample {n}: {} instead of {expected}", case[0], y[0]);
        }
    }
    assert_eq!(lines.len(), 2 * (16 + 32 + 5));
}
