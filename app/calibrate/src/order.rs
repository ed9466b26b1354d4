//! Are the channels where the model expects them?
//!
//! Each channel has a profile: how strong it is in each gesture, in logarithms, without its mean over the gestures, so that no gain
//! and no skin matters. Profiles are compared with those the model was trained on. Orders that a hand or a plug makes are tried: two
//! channels exchanged (up to three such pairs, one after the other), everything moved on by some places, everything the other way round.
//! One that fits clearly better than the order as it is, is told. Neighbours that see nearly the same muscles may be exchanged unseen.

use std::fmt;

/// What fits the recordings best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it is.
    AsExpected,
    /// These pairs are exchanged.
    Swapped(Vec<(usize, usize)>),
    /// What is expected on channel `c` comes on channel `c + places`, around the end.
    Moved {
        /// By how many, 1 to channels - 1.
        places: usize,
    },
    /// The last is the first.
    Reversed,
}

/// By how much a pair must fit better than it does as it is, in squared logarithms over all gestures: no synthetic person of
/// `orders_of_people` who wears everything rightly comes to it.
const CLEARLY: f64 = 2.5;
/// By how much an order of all channels must.
const CLEARLY_ALL: f64 = 6.0;
/// What is weaker than this part of the same channel in its strongest gesture is noise of the electrode and tells nothing.
const FLOOR: f64 = 1.0 / 16.0;

/// Compares strengths `[gesture][channel]` with what is expected in the same gestures. Dead channels (0) are left out.
#[must_use]
pub fn compare(strengths: &[Vec<f64>], expected: &[Vec<f64>]) -> Order {
    let channels = strengths.first().map_or(0, Vec::len);
    if channels < 2 || strengths.len() < 2 {
        return Order::AsExpected;
    }
    let (have, want) = (profiles(strengths, channels), profiles(expected, channels));
    // What it costs that channel `i` is where `j` is expected.
    let cost = |i: usize, j: usize| -> f64 {
        match (&have[i], &want[j]) {
            (Some(a), Some(b)) => a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum(),
            _ => 0.0,
        }
    };
    let whole = |at: &dyn Fn(usize) -> usize| -> f64 { (0..channels).map(|c| cost(at(c), c)).sum() };
    let as_is = whole(&|c| c);
    let moved = (1..channels).map(|n| (whole(&|c| (c + n) % channels), Order::Moved { places: n }));
    let reversed = (whole(&|c| channels - 1 - c), Order::Reversed);
    let (best, order) = moved
        .chain([reversed])
        .fold((f64::INFINITY, Order::AsExpected), |a, b| if b.0 < a.0 { b } else { a });
    let mut place: Vec<usize> = (0..channels).collect();
    let mut pairs = Vec::new();
    let mut gained = 0.0;
    while pairs.len() < 3 {
        let all = (0..channels).flat_map(|a| (a + 1..channels).map(move |b| (a, b)));
        let free = all.filter(|(a, b)| place[*a] == *a && place[*b] == *b);
        let gains = free.map(|(a, b)| (cost(a, a) + cost(b, b) - cost(b, a) - cost(a, b), a, b));
        let Some((gain, a, b)) = gains.max_by(|x, y| x.0.total_cmp(&y.0)) else { break };
        if gain < CLEARLY {
            break;
        }
        place.swap(a, b);
        pairs.push((a, b));
        gained += gain;
    }
    if as_is - best > CLEARLY_ALL && as_is - best > gained {
        return order;
    }
    if pairs.is_empty() { Order::AsExpected } else { Order::Swapped(pairs) }
}

/// Of each channel; `None` of a dead one.
fn profiles(strengths: &[Vec<f64>], channels: usize) -> Vec<Option<Vec<f64>>> {
    let of = |channel: usize| {
        let values: Vec<f64> = strengths.iter().map(|row| row[channel]).collect();
        let strongest = values.iter().copied().fold(0.0, f64::max);
        if strongest <= 1e-6 {
            return None;
        }
        let logs: Vec<f64> = values.iter().map(|v| v.max(FLOOR * strongest).ln()).collect();
        #[allow(clippy::cast_precision_loss, reason = "at most 1024")]
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        Some(logs.iter().map(|l| l - mean).collect())
    };
    (0..channels).map(of).collect()
}

impl Order {
    /// A sentence for the person, with the model's names of the channels; `None` when nothing is wrong.
    #[must_use]
    pub fn words(&self, names: &[String]) -> Option<String> {
        let name = |c: usize| names.get(c).cloned().unwrap_or_else(|| format!("channel {c}"));
        match self {
            Self::AsExpected => None,
            Self::Swapped(pairs) => {
                let pairs: Vec<String> =
                    pairs.iter().map(|(a, b)| format!("{} and {}", name(*a), name(*b))).collect();
                let pairs = pairs.join(", ");
                Some(format!("channels seem to be swapped: {pairs}; put them right and record again"))
            }
            Self::Moved { places } => Some(format!(
                "the order of the channels seems to be moved by {places}: what belongs on {} comes on {}; turn the sleeve or put the plugs right and record again",
                name(0),
                name(*places),
            )),
            Self::Reversed => Some(
                "the order of the channels seems to be reversed: put the plugs right and record again"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words(&[]).unwrap_or_else(|| "as expected".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_sources::synthetic::{CHANNELS, Conditions, EmgStream, Gesture, Script};

    /// The strengths of one person; filtered as nobody does, which is nearly the same.
    fn person(seed: u64) -> Vec<Vec<f64>> {
        let of = |gesture| {
            let stream = EmgStream::new(Script::Hold(gesture), seed, Conditions::USUAL);
            let mut powers = vec![0.0; CHANNELS];
            for sample in stream.take(800) {
                powers.iter_mut().zip(sample.values).for_each(|(p, v)| *p += f64::from(v).powi(2) / 800.0);
            }
            powers.into_iter().map(f64::sqrt).collect()
        };
        Gesture::ALL.into_iter().map(of).collect()
    }

    fn worn(strengths: &[Vec<f64>], at: impl Fn(usize) -> usize) -> Vec<Vec<f64>> {
        strengths.iter().map(|row| (0..CHANNELS).map(|c| row[at(c)]).collect()).collect()
    }

    fn expected() -> Vec<Vec<f64>> {
        let people: Vec<_> = (1000..1012).map(person).collect();
        let mean = |g: usize, c: usize| (people.iter().map(|p| p[g][c].ln()).sum::<f64>() / 12.0).exp();
        (0..7).map(|g| (0..CHANNELS).map(|c| mean(g, c)).collect()).collect()
    }

    #[test]
    fn orders_of_people() {
        let expected = expected();
        let (mut false_alarms, mut swaps, mut rotations, mut reversed) = (0, 0, 0, 0);
        for seed in 0..24_usize {
            let person = person(seed as u64);
            false_alarms += u32::from(compare(&person, &expected) != Order::AsExpected);
            let (a, b) = (seed % 8, 8 + (seed * 3 + 2) % 8);
            let swapped = |c: usize| {
                if c == a {
                    b
                } else if c == b {
                    a
                } else {
                    c
                }
            };
            swaps += u32::from(compare(&worn(&person, swapped), &expected) == Order::Swapped(vec![(a, b)]));
            let n = 1 + seed % 15;
            let found = compare(&worn(&person, |c| (c + 16 - n) % 16), &expected);
            rotations += u32::from(found == Order::Moved { places: n });
            reversed += u32::from(compare(&worn(&person, |c| 15 - c), &expected) == Order::Reversed);
        }
        assert!(
            false_alarms == 0 && swaps >= 21 && rotations >= 23 && reversed >= 23,
            "{false_alarms} {swaps} {rotations} {reversed}"
        );
    }

    #[test]
    fn a_gain_and_a_dead_channel_are_no_other_order() {
        let mut strengths = person(1);
        for row in &mut strengths {
            row[3] *= 3.0;
            row[9] = 0.0;
        }
        assert_eq!(compare(&strengths, &expected()), Order::AsExpected);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_models_names() {
        let names: Vec<String> = (0..16).map(|c| format!("e{c}")).collect();
        assert!(Order::Swapped(vec![(2, 9)]).words(&names).unwrap().contains("swapped: e2 and e9"));
        assert!(Order::Moved { places: 3 }.words(&names).unwrap().contains("belongs on e0 comes on e3"));
        assert_eq!(Order::AsExpected.words(&names), None);
    }
}
