//! Live output: joints that are moved to the pose of a gesture, by lines on a serial port.
//!
//! | module | what |
//! |---|---|
//! | [`spec`] | what an actuator is, checked |
//! | [`motion`] | from here to there within a velocity and an acceleration, without overshooting: pure |
//! | [`line`](mod@line) | the `PWM:` line: pure |
//! | [`live`] | the thread that owns the port, asks what may be done, and writes |
//!
//! What it promises: every line lies within 1000 to 2000 microseconds; from one line to the next no joint moves faster or changes
//! its velocity more than its limits; whenever nobody says what to do, the joints go to the neutral pose by the same limits, and
//! when nobody can be asked any more the lines end, so that the receiver's own fail-safe acts; a port that takes nothing holds up
//! this thread's line and nothing else. What it never does: decide which gesture is meant, or keep a person safe. It is no
//! certified safety function, and no real servo was met.

#![forbid(unsafe_code)]

pub mod line;
pub mod live;
pub mod motion;
pub mod spec;

pub use live::{Actuator, Ask, Counts, State, View};
pub use spec::{Pose, Spec, SpecError, SpecLimits};
