//! The twelve trajectories, and those that are none of them.
//!
//! Each function draws an animal's own parameters once and returns its pose over time. Amplitudes of rhythmic
//! movement are given as accelerations (what a sensor shows) and turned into displacements by `(2 pi f)^2`.
//! `app/train/README.md` has the table.

use super::{Draw, GRAVITY, Motion, Pose, Trajectory, Vec3};
use std::f64::consts::TAU;

pub(super) fn trajectory(motion: Motion, draw: &mut Draw) -> Trajectory {
    match motion {
        Motion::Sit => rest(draw, Rest { pitch: (20.0, 52.0), lean: (0.0, 6.0), sway: (0.4, 2.0) }),
        Motion::Stay => rest(draw, Rest { pitch: (-6.0, 14.0), lean: (0.0, 4.0), sway: (0.5, 2.4) }),
        Motion::Down => rest(draw, Rest { pitch: (-24.0, 2.0), lean: (14.0, 38.0), sway: (0.2, 1.2) }),
        Motion::Walk => gait(draw, Gait::WALK),
        Motion::Heel => gait(draw, Gait::HEEL),
        Motion::Come => come(draw),
        Motion::Shake => shake(draw),
        Motion::Spin => spin(draw),
        Motion::Jump => jump(draw),
        Motion::Bark => bark(draw),
        Motion::Sniff => sniff(draw),
        Motion::Play => play(draw),
    }
}

/// A smooth slow drift that never repeats: three sines whose frequencies share no period. Peak about 1.
struct Wander([(f64, f64); 3]);

impl Wander {
    fn draw(draw: &mut Draw, low_hz: f64, high_hz: f64) -> Self {
        Self([(); 3].map(|()| (TAU * draw.random.range(low_hz, high_hz), draw.random.phase())))
    }

    fn at(&self, t: f64) -> f64 {
        self.0.iter().zip([0.5, 0.3, 0.2]).map(|(&(w, p), a)| a * libm::sin(w * t + p)).sum()
    }
}

/// A rhythm that is never quite even: the phase runs ahead and falls behind.
struct Rhythm {
    omega: f64,
    phase: f64,
    uneven: f64,
    drift: Wander,
}

impl Rhythm {
    fn draw(draw: &mut Draw, low_hz: f64, high_hz: f64) -> Self {
        Self {
            omega: TAU * draw.range(low_hz, high_hz),
            phase: draw.random.phase(),
            uneven: draw.range(0.1, 0.5),
            drift: Wander::draw(draw, 0.2, 0.7),
        }
    }

    /// The phase in radians.
    fn at(&self, t: f64) -> f64 {
        self.omega * t + self.phase + self.uneven * self.drift.at(t)
    }

    /// The displacement whose second derivative has amplitude `a`.
    fn reach(&self, a: f64) -> f64 {
        a / (self.omega * self.omega)
    }
}

/// A bump once per turn of `phase`: a raised cosine that takes the share `width` of the turn, peak 1.
fn bump(phase: f64, width: f64) -> f64 {
    let turn = phase / TAU;
    let x = (turn - libm::floor(turn)) / width;
    if x < 1.0 { 0.5 - 0.5 * libm::cos(TAU * x) } else { 0.0 }
}

/// Breathing, and in some animals panting: small fore-and-aft and up-and-down movement.
struct Breath {
    slow: Rhythm,
    pitch: f64,
    pant: Option<(Rhythm, f64)>,
}

impl Breath {
    fn draw(draw: &mut Draw) -> Self {
        let slow = Rhythm::draw(draw, 0.3, 0.8);
        let pitch = draw.degrees(0.2, 1.0);
        let pant = draw.random.chance(0.35).then(|| (Rhythm::draw(draw, 3.0, 5.0), draw.range(0.08, 0.4)));
        Self { slow, pitch, pant }
    }

    fn add(&self, pose: &mut Pose, t: f64) {
        pose.pitch += self.pitch * libm::sin(self.slow.at(t));
        if let Some((rhythm, a)) = &self.pant {
            let d = rhythm.reach(*a) * libm::sin(rhythm.at(t));
            pose.position[0] += 0.5 * d;
            pose.position[2] += d;
        }
    }
}

/// A posture without movement. Degrees.
struct Rest {
    pitch: (f64, f64),
    lean: (f64, f64),
    sway: (f64, f64),
}

fn rest(draw: &mut Draw, kind: Rest) -> Trajectory {
    let pitch = draw.degrees(kind.pitch.0, kind.pitch.1);
    let lean = draw.random.sign() * draw.degrees(kind.lean.0, kind.lean.1);
    let sway = draw.degrees(kind.sway.0, kind.sway.1);
    let look = draw.degrees(1.0, 9.0);
    let [nod, tilt, turn] = [(); 3].map(|()| Wander::draw(draw, 0.2, 1.1));
    let breath = Breath::draw(draw);
    Box::new(move |t| {
        let mut pose = Pose {
            pitch: pitch + sway * nod.at(t),
            roll: lean + 0.7 * sway * tilt.at(t),
            yaw: look * turn.at(t),
            ..Pose::default()
        };
        breath.add(&mut pose, t);
        pose
    })
}

/// A walking gait: two steps in a stride. Accelerations in m/s^2, angles in degrees.
struct Gait {
    stride_hz: (f64, f64),
    bounce: (f64, f64),
    surge: (f64, f64),
    sway: (f64, f64),
    head: (f64, f64),
    nod: (f64, f64),
    roll: (f64, f64),
    /// Tilt of a head that is turned to someone at the side.
    turned: (f64, f64),
    strike: (f64, f64),
}

impl Gait {
    const WALK: Self = Self {
        stride_hz: (0.75, 1.25),
        bounce: (0.8, 2.4),
        surge: (0.4, 1.4),
        sway: (0.4, 1.4),
        head: (-16.0, 10.0),
        nod: (2.5, 7.0),
        roll: (2.5, 7.0),
        turned: (0.0, 4.0),
        strike: (0.5, 3.0),
    };
    const HEEL: Self = Self {
        stride_hz: (1.05, 1.7),
        bounce: (1.2, 3.4),
        surge: (0.6, 1.8),
        sway: (0.3, 1.2),
        head: (8.0, 30.0),
        nod: (1.0, 4.0),
        roll: (1.5, 4.5),
        turned: (3.0, 15.0),
        strike: (0.8, 4.0),
    };
}

fn gait(draw: &mut Draw, g: Gait) -> Trajectory {
    let stride = Rhythm::draw(draw, g.stride_hz.0, g.stride_hz.1);
    let step = 4.0 * stride.omega * stride.omega;
    let bounce = draw.range(g.bounce.0, g.bounce.1) / step;
    let surge = draw.range(g.surge.0, g.surge.1) / step;
    let sway = stride.reach(draw.range(g.sway.0, g.sway.1));
    let head = draw.degrees(g.head.0, g.head.1);
    let nod = draw.degrees(g.nod.0, g.nod.1);
    let roll = draw.degrees(g.roll.0, g.roll.1);
    let turned = draw.random.sign() * draw.degrees(g.turned.0, g.turned.1);
    let strike = draw.range(g.strike.0, g.strike.1);
    // The two feet are not alike, and each animal nods at its own point of the step.
    let (limp, lag) = (draw.range(0.0, 0.3), draw.random.range(-0.8, 0.8));
    let look = draw.degrees(1.0, 8.0);
    let [turn, drop] = [(); 2].map(|()| Wander::draw(draw, 0.2, 0.8));
    Box::new(move |t| {
        let p = stride.at(t);
        let foot = 1.0 + limp * libm::sin(p);
        Pose {
            position: [
                surge * libm::sin(2.0 * p + 1.2),
                sway * libm::sin(p),
                bounce * foot * libm::sin(2.0 * p),
            ],
            roll: turned + roll * libm::sin(p + 0.4),
            pitch: head + nod * libm::sin(2.0 * p + lag) + 0.03 * drop.at(t),
            yaw: look * turn.at(t) + 0.4 * roll * libm::sin(p + 1.0),
            push: [-0.4 * strike * bump(2.0 * p, 0.12), 0.0, strike * foot * bump(2.0 * p, 0.12)],
        }
    })
}

fn come(draw: &mut Draw) -> Trajectory {
    let stride = Rhythm::draw(draw, 1.9, 3.3);
    let bounce = stride.reach(draw.range(5.0, 13.0));
    let surge = stride.reach(draw.range(3.0, 8.0));
    let sway = stride.reach(draw.range(0.8, 2.5));
    let head = draw.degrees(-10.0, 14.0);
    let nod = draw.degrees(5.0, 14.0);
    let roll = draw.degrees(2.0, 7.0);
    let strike = draw.range(5.0, 25.0);
    let lag = draw.random.range(0.9, 2.2);
    let look = draw.degrees(2.0, 10.0);
    let turn = Wander::draw(draw, 0.3, 1.0);
    Box::new(move |t| {
        let p = stride.at(t);
        // Two front feet land shortly after each other.
        let landing = bump(p, 0.10) + 0.6 * bump(p - 0.9, 0.10);
        Pose {
            position: [surge * libm::cos(p), sway * libm::sin(p + 0.7), bounce * libm::sin(p)],
            roll: roll * libm::sin(p + 0.3),
            pitch: head + nod * libm::sin(p + lag),
            yaw: look * turn.at(t),
            push: [-0.5 * strike * landing, 0.0, strike * landing],
        }
    })
}

fn shake(draw: &mut Draw) -> Trajectory {
    let rhythm = Rhythm::draw(draw, 4.0, 7.0);
    let roll = draw.degrees(9.0, 27.0);
    let whip = rhythm.reach(draw.range(2.0, 9.0));
    let head = draw.degrees(-22.0, 8.0);
    let (nod, turn) = (draw.degrees(0.3, 1.2), draw.degrees(1.0, 5.0));
    let (swell, depth) = (Rhythm::draw(draw, 0.4, 0.9), draw.range(0.1, 0.45));
    Box::new(move |t| {
        let p = rhythm.at(t);
        let force = 1.0 - depth * (0.5 + 0.5 * libm::sin(swell.at(t)));
        Pose {
            position: [0.0, force * whip * libm::sin(p + 0.5), 0.3 * whip * libm::sin(2.0 * p)],
            roll: force * roll * libm::sin(p),
            pitch: head + nod * libm::sin(2.0 * p + 1.0),
            yaw: force * turn * libm::sin(p + 0.9),
            push: Vec3::default(),
        }
    })
}

fn spin(draw: &mut Draw) -> Trajectory {
    let turn = draw.random.sign() * draw.range(2.2, 6.5);
    let (uneven, drift) = (draw.range(0.1, 0.5), Wander::draw(draw, 0.3, 0.8));
    let start = draw.random.phase();
    let radius = draw.range(0.1, 0.35);
    let step = Rhythm::draw(draw, 1.8, 3.4);
    let bounce = step.reach(draw.range(0.8, 4.0));
    let lean = draw.degrees(2.0, 12.0);
    let head = draw.degrees(-14.0, 12.0);
    let nod = draw.degrees(1.0, 5.0);
    let roll = draw.degrees(1.0, 5.0);
    Box::new(move |t| {
        let yaw = start + turn * t + uneven * drift.at(t);
        let p = step.at(t);
        let inward = if turn > 0.0 { -lean } else { lean };
        Pose {
            // The body faces along the circle; its centre is at the inner side.
            position: [
                radius * libm::sin(yaw) * turn.signum(),
                -radius * libm::cos(yaw) * turn.signum(),
                bounce * libm::sin(p),
            ],
            roll: inward + roll * libm::sin(0.5 * p),
            pitch: head + nod * libm::sin(p + 0.6),
            yaw,
            push: Vec3::default(),
        }
    })
}

fn jump(draw: &mut Draw) -> Trajectory {
    let rhythm = Rhythm::draw(draw, 0.95, 1.5);
    // Share of the cycle in the air; the ground's push in the rest makes up for it, so that height does not drift.
    let air = draw.range(0.24, 0.42);
    let forward = draw.range(0.5, 4.0);
    let head = draw.degrees(-6.0, 22.0);
    let nod = draw.degrees(5.0, 20.0);
    let lag = draw.random.range(-0.7, 0.7);
    let (roll, look) = (draw.degrees(1.0, 6.0), draw.degrees(2.0, 10.0));
    let [tilt, turn] = [(); 2].map(|()| Wander::draw(draw, 0.4, 1.2));
    Box::new(move |t| {
        let p = rhythm.at(t);
        let turns = p / TAU;
        let x = turns - libm::floor(turns);
        let ground = 1.0 - air;
        let up =
            if x < ground { GRAVITY * air / ground * (1.0 - libm::cos(TAU * x / ground)) } else { -GRAVITY };
        // Braking on landing, pushing off before the flight.
        let along = if x < ground { -forward * libm::cos(TAU * 0.5 * x / ground) } else { 0.0 };
        Pose {
            pitch: head + nod * libm::sin(p + lag),
            roll: roll * tilt.at(t),
            yaw: look * turn.at(t),
            push: [along, 0.0, up],
            ..Pose::default()
        }
    })
}

fn bark(draw: &mut Draw) -> Trajectory {
    let rhythm = Rhythm::draw(draw, 1.5, 3.6);
    // A bark lasts 80 to 150 ms whatever the rhythm.
    let width = draw.range(0.08, 0.15) * rhythm.omega / TAU;
    let jerk = draw.degrees(1.0, 4.0);
    let recoil = draw.range(1.5, 6.0);
    let heave = draw.range(1.0, 4.0);
    let (buzz_hz, buzz) = (draw.range(13.0, 22.0), draw.range(0.4, 2.5));
    let head = draw.degrees(-4.0, 24.0);
    let sway = draw.degrees(0.5, 3.0);
    let [nod, turn] = [(); 2].map(|()| Wander::draw(draw, 0.2, 0.9));
    let breath = Breath::draw(draw);
    Box::new(move |t| {
        let b = bump(rhythm.at(t), width);
        let ring = buzz * b * libm::sin(TAU * buzz_hz * t);
        let mut pose = Pose {
            pitch: head + jerk * b + sway * nod.at(t),
            yaw: 2.0 * sway * turn.at(t),
            push: [-recoil * b + ring, 0.0, heave * b - 0.5 * ring],
            ..Pose::default()
        };
        breath.add(&mut pose, t);
        pose
    })
}

fn sniff(draw: &mut Draw) -> Trajectory {
    let rhythm = Rhythm::draw(draw, 3.8, 7.0);
    let draught = rhythm.reach(draw.range(0.15, 0.8));
    let nod = draw.degrees(0.2, 1.2);
    let head = draw.degrees(-58.0, -22.0);
    let (scan, scan_hz) = (draw.degrees(3.0, 22.0), Rhythm::draw(draw, 0.25, 0.7));
    let step = Rhythm::draw(draw, 0.7, 1.6);
    let bounce = step.reach(draw.range(0.1, 0.9));
    let lean = draw.degrees(1.0, 6.0);
    let [tilt, dip] = [(); 2].map(|()| Wander::draw(draw, 0.2, 0.9));
    Box::new(move |t| {
        let p = rhythm.at(t);
        Pose {
            position: [
                draught * libm::sin(p),
                0.0,
                0.6 * draught * libm::sin(p + 0.8) + bounce * libm::sin(step.at(t)),
            ],
            roll: lean * tilt.at(t),
            pitch: head + nod * libm::sin(p + 0.3) + 0.08 * dip.at(t),
            yaw: scan * libm::sin(scan_hz.at(t)),
            push: Vec3::default(),
        }
    })
}

fn play(draw: &mut Draw) -> Trajectory {
    let hop = Rhythm::draw(draw, 1.3, 3.2);
    let bounce = hop.reach(draw.range(3.0, 10.0));
    let lunge = draw.range(2.0, 7.0);
    let strike = draw.range(3.0, 18.0);
    let bow = draw.degrees(14.0, 38.0);
    let head = draw.degrees(-14.0, 12.0);
    let (turn, roll) = (draw.degrees(25.0, 80.0), draw.degrees(8.0, 22.0));
    let [along, across, dip, twist, tilt, mood] =
        [(0.7, 1.8), (0.7, 1.8), (0.5, 1.4), (0.5, 1.4), (0.8, 2.0), (0.4, 1.0)]
            .map(|(low, high)| Wander::draw(draw, low, high));
    Box::new(move |t| {
        let p = hop.at(t);
        // Hops come and go.
        let eager = 0.55 + 0.9 * mood.at(t);
        Pose {
            position: [0.0, 0.0, bounce * eager * libm::sin(p)],
            roll: roll * tilt.at(t),
            pitch: head + bow * dip.at(t),
            yaw: turn * twist.at(t),
            push: [
                2.0 * lunge * along.at(t),
                1.5 * lunge * across.at(t),
                strike * eager.max(0.0) * bump(p, 0.12),
            ],
        }
    })
}

/// What is none of the twelve.
pub(super) fn background(draw: &mut Draw) -> Trajectory {
    match draw.random.below(3) {
        0 => aside(draw),
        1 => tumble(draw),
        _ => engine(draw),
    }
}

/// An attitude that no animal of the table holds: at least 70 degrees from level.
fn odd_attitude(draw: &mut Draw) -> (f64, f64) {
    if draw.random.chance(0.5) {
        (draw.random.sign() * draw.degrees(70.0, 180.0), draw.degrees(-60.0, 60.0))
    } else {
        (draw.degrees(-180.0, 180.0), draw.random.sign() * draw.degrees(75.0, 90.0))
    }
}

/// A collar laid aside.
fn aside(draw: &mut Draw) -> Trajectory {
    let (roll, pitch) = odd_attitude(draw);
    Box::new(move |_| Pose { roll, pitch, ..Pose::default() })
}

/// A collar carried in a bag or thrown: it tumbles about all axes.
fn tumble(draw: &mut Draw) -> Trajectory {
    let rates = [(); 2].map(|()| draw.random.sign() * draw.range(2.0, 9.0));
    let (yaw0, roll0) = (draw.random.phase(), draw.random.phase());
    let a = draw.range(1.0, 8.0);
    let [x, y, z, p] = [(); 4].map(|()| Wander::draw(draw, 0.5, 4.0));
    Box::new(move |t| Pose {
        roll: roll0 + rates[0] * t,
        pitch: 1.2 * p.at(t),
        yaw: yaw0 + rates[1] * t,
        push: [a * x.at(t), a * y.at(t), a * z.at(t)],
        ..Pose::default()
    })
}

/// A collar lying in a vehicle: the engine shakes it.
fn engine(draw: &mut Draw) -> Trajectory {
    let (roll, pitch) = odd_attitude(draw);
    let omega = TAU * draw.range(14.0, 40.0);
    let a = [(); 3].map(|()| draw.range(0.3, 4.0));
    let phase = [(); 3].map(|()| draw.random.phase());
    Box::new(move |t| Pose {
        roll,
        pitch,
        push: [0, 1, 2].map(|i| a[i] * libm::sin(omega * t + phase[i])),
        ..Pose::default()
    })
}
