//! From here to there: the trapezoid of velocities of each joint, step by step.
//!
//! A step moves a joint by its velocity. The next velocity is the greatest towards the target from which it can still stop there: with
//! `a` the most a velocity may change in a step, `D` the way that is left and `n` the greatest whole number with `a n (n + 1) / 2 <= D`,
//! that is `(D + a n (n + 1) / 2) / (n + 1)`; braking from it by `a` each step ends exactly at the target. So a joint never overshoots a
//! target that stays; one that changes while it moves is passed only as far as braking takes, which lies before the target from before.
//! Every place therefore lies between the first one and the targets there were.

/// How fast joints move, per step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Microseconds of pulse width in a step.
    pub velocity: f64,
    /// By how much that may change from one step to the next.
    pub acceleration: f64,
}

impl Limits {
    /// From microseconds a second, those a second squared, and steps a second.
    #[must_use]
    pub fn per_step(velocity: f64, acceleration: f64, steps_per_s: f64) -> Self {
        Self { velocity: velocity / steps_per_s, acceleration: acceleration / (steps_per_s * steps_per_s) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Joint {
    at: f64,
    velocity: f64,
}

/// The joints of an actuator.
#[derive(Clone, Debug, PartialEq)]
pub struct Motion {
    limits: Limits,
    joints: Vec<Joint>,
}

impl Motion {
    /// At rest in a pose.
    #[must_use]
    pub fn at_rest(limits: Limits, pose: &[u16]) -> Self {
        let joints = pose.iter().map(|at| Joint { at: f64::from(*at), velocity: 0.0 }).collect();
        Self { limits, joints }
    }

    /// One step towards a pose.
    pub fn step(&mut self, pose: &[u16]) {
        for (joint, target) in self.joints.iter_mut().zip(pose) {
            joint.step(f64::from(*target), self.limits);
        }
    }

    /// What came to a stop by itself: the next step begins without a velocity.
    pub fn halt(&mut self) {
        self.joints.iter_mut().for_each(|joint| joint.velocity = 0.0);
    }

    /// The pulse widths, in microseconds.
    pub fn widths(&self) -> impl Iterator<Item = u16> + '_ {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between two that were u16
        self.joints.iter().map(|joint| joint.at.round() as u16)
    }

    /// Whether every joint rests in a pose.
    #[must_use]
    pub fn rests_in(&self, pose: &[u16]) -> bool {
        let still = |(joint, at): (&Joint, &u16)| joint.velocity == 0.0 && joint.at == f64::from(*at);
        self.joints.iter().zip(pose).all(still)
    }
}

impl Joint {
    fn step(&mut self, target: f64, limits: Limits) {
        let way = target - self.at;
        // Everything as seen in the direction of the target.
        let side = if way < 0.0 { -1.0 } else { 1.0 };
        let (left, velocity, most) = (way * side, self.velocity * side, limits.acceleration);
        let steps = (((1.0 + 8.0 * left / most).sqrt() - 1.0) / 2.0).floor();
        let stops = (left + most * steps * (steps + 1.0) / 2.0) / (steps + 1.0);
        let wanted = stops.min(limits.velocity);
        let next = wanted.clamp(velocity - most, velocity + most);
        self.velocity = next * side;
        self.at += self.velocity;
        // The dust of rounding: nobody has a millionth of a microsecond.
        if (self.at - target).abs() < 1e-6 {
            self.at = target;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_sources::random::Random;

    fn widths(motion: &Motion) -> Vec<u16> {
        motion.widths().collect()
    }

    #[test]
    fn a_joint_goes_by_a_trapezoid_and_rests_exactly_there() {
        let limits = Limits { velocity: 10.0, acceleration: 4.0 };
        let mut motion = Motion::at_rest(limits, &[1500]);
        let mut places = Vec::new();
        while !motion.rests_in(&[1560]) {
            motion.step(&[1560]);
            places.extend(widths(&motion));
        }
        assert_eq!(places, [1504, 1512, 1522, 1532, 1542, 1552, 1558, 1560, 1560]);
    }

    #[test]
    fn a_halted_joint_begins_anew() {
        let mut motion = Motion::at_rest(Limits { velocity: 10.0, acceleration: 4.0 }, &[1500]);
        (0..5).for_each(|_| motion.step(&[2000]));
        let before = widths(&motion)[0];
        motion.halt();
        motion.step(&[2000]);
        assert_eq!(widths(&motion)[0], before + 4);
    }

    /// Whatever is wanted whenever: no line breaks a limit, no place lies outside of the targets, and a target that stays is reached
    /// without being passed.
    #[test]
    fn no_limit_is_ever_broken_and_no_target_that_stays_is_passed() {
        for seed in 0..300 {
            let mut random = Random::new(seed, 11);
            let limits = Limits { velocity: random.range(0.3, 60.0), acceleration: random.range(0.01, 30.0) };
            let place = |random: &mut Random| 1000 + u16::try_from(random.below(1001)).unwrap();
            let start = place(&mut random);
            let mut motion = Motion::at_rest(limits, &[start]);
            let (mut low, mut high) = (start, start);
            for change in 0..12 {
                let target = place(&mut random);
                (low, high) = (low.min(target), high.max(target));
                // The last one stays until it is reached.
                let patience = if change == 11 { 100_000 } else { random.below(120) };
                // Where the target lay when the joint rested last; until then it may be braking from what was wanted before.
                let mut rested: Option<f64> = None;
                for _ in 0..patience {
                    let before = motion.joints[0];
                    motion.step(&[target]);
                    let after = motion.joints[0];
                    assert!(after.velocity.abs() <= limits.velocity + 1e-9, "seed {seed}");
                    assert!(
                        (after.velocity - before.velocity).abs() <= limits.acceleration + 1e-9,
                        "seed {seed}"
                    );
                    let between = f64::from(low) - 1e-6..=f64::from(high) + 1e-6;
                    assert!(between.contains(&after.at), "seed {seed}: {after:?}");
                    let way = |joint: Joint| f64::from(target) - joint.at;
                    if before.velocity == 0.0 {
                        rested = Some(way(before));
                    }
                    assert!(rested.is_none_or(|side| side * way(after) >= 0.0), "seed {seed}: it is passed");
                    if motion.rests_in(&[target]) {
                        break;
                    }
                }
            }
            assert!(motion.joints[0].velocity == 0.0, "seed {seed}: it came to rest");
        }
    }
}
