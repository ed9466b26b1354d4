//! What a recording or a generator says is being done, kept beside the samples: for measuring how well it is recognised, never for
//! recognising it.

use crate::synthetic::Gesture;
use std::collections::{BTreeMap, VecDeque};

/// What is being done in a window, by the word of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// As the file has it; a gesture's place among the scores for the generator.
    pub number: i32,
    /// What the source calls it; files of recordings have numbers only.
    pub name: Option<&'static str>,
}

impl From<Gesture> for Label {
    fn from(gesture: Gesture) -> Self {
        // There are seven.
        Self { number: i32::try_from(gesture.index()).unwrap_or(i32::MAX), name: Some(gesture.name()) }
    }
}

/// Labels of samples whose numbers only grow: where each begins. No more of them than samples that are kept.
#[derive(Debug, Default)]
pub(super) struct Labels(VecDeque<(u64, Option<Label>)>);

impl Labels {
    /// A sample's; nothing before `oldest` is asked for any more.
    pub(super) fn push(&mut self, sequence: u64, label: Option<Label>, oldest: u64) {
        if self.0.back().map_or(label.is_some(), |(_, last)| *last != label) {
            self.0.push_back((sequence, label));
        }
        while self.0.get(1).is_some_and(|(begins, _)| *begins <= oldest) {
            self.0.pop_front();
        }
    }

    /// That of most samples of a window, of two that share it the greater number; `None` where the source has none.
    pub(super) fn most(&self, from: u64, length: usize) -> Option<Label> {
        let end = from.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let mut counts = BTreeMap::new();
        for (i, (begins, label)) in self.0.iter().enumerate() {
            let until = self.0.get(i + 1).map_or(end, |(next, _)| *next).min(end);
            let samples = until.saturating_sub((*begins).max(from));
            if let (Some(label), 1..) = (label, samples) {
                counts.entry(label.number).or_insert((0, *label)).0 += samples;
            }
        }
        counts.into_values().max_by_key(|(samples, label)| (*samples, label.number)).map(|(_, label)| label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: i32) -> Option<Label> {
        Some(Label { number, name: None })
    }

    #[test]
    fn a_window_has_the_label_of_most_of_its_samples() {
        let mut labels = Labels::default();
        for n in 0..100 {
            labels.push(n, number(if n < 30 { 1 } else { 4 }), 0);
        }
        for (from, length, label) in [(0, 30, 1), (20, 20, 4), (19, 20, 1), (0, 100, 4), (90, 10, 4)] {
            assert_eq!(labels.most(from, length), number(label), "{from}, {length}");
        }
        labels.push(100, number(4), 30);
        assert_eq!(labels.0.len(), 1, "what is not asked for any more is not kept");
    }

    #[test]
    fn what_has_no_label_gets_none() {
        let mut labels = Labels::default();
        (0..10).for_each(|n| labels.push(n, None, 0));
        assert_eq!((labels.most(0, 10), labels.0.len()), (None, 0));
        labels.push(10, Some(Gesture::Point.into()), 0);
        assert_eq!(labels.most(0, 11).and_then(|l| l.name), Some("Point"));
        assert_eq!(labels.most(0, 10), None);
    }
}
