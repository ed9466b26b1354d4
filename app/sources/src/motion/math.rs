//! The little linear algebra of a rigid body. Matrices are rows of rows; `R` takes body axes to the ground frame.

pub(super) type Vec3 = [f64; 3];
pub(super) type Mat3 = [Vec3; 3];

pub(super) fn add(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

pub(super) fn sub(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub(super) fn scale(a: Vec3, s: f64) -> Vec3 {
    a.map(|v| v * s)
}

fn dot(a: Vec3, b: Vec3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// `R v`.
pub(super) fn times(r: &Mat3, v: Vec3) -> Vec3 {
    r.map(|row| dot(row, v))
}

fn column(r: &Mat3, c: usize) -> Vec3 {
    [r[0][c], r[1][c], r[2][c]]
}

/// `R^T v`: a vector of the ground frame as the body sees it.
pub(super) fn transpose_times(r: &Mat3, v: Vec3) -> Vec3 {
    [dot(column(r, 0), v), dot(column(r, 1), v), dot(column(r, 2), v)]
}

/// Yaw about z, then pitch (nose up) about y, then roll about x.
pub(super) fn from_euler(roll: f64, pitch: f64, yaw: f64) -> Mat3 {
    let (sr, cr) = (libm::sin(roll), libm::cos(roll));
    // y points left, so a right-handed turn about it is nose down.
    let (sp, cp) = (libm::sin(-pitch), libm::cos(-pitch));
    let (sy, cy) = (libm::sin(yaw), libm::cos(yaw));
    [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
}

/// The rotation rate in body axes: the vector of the skew matrix `R^T (R2 - R0) * rate`.
pub(super) fn cross_difference(r: &Mat3, r2: &Mat3, r0: &Mat3, rate: f64) -> Vec3 {
    let d = [sub(r2[0], r0[0]), sub(r2[1], r0[1]), sub(r2[2], r0[2])];
    let s = |i: usize, j: usize| dot(column(r, i), column(&d, j));
    scale([s(2, 1) - s(1, 2), s(0, 2) - s(2, 0), s(1, 0) - s(0, 1)], rate / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Vec3, b: Vec3) {
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() < 1e-6, "{a:?} is not {b:?}");
        }
    }

    #[test]
    fn up_is_seen_in_front_when_the_nose_points_up() {
        let up = [0.0, 0.0, 1.0];
        near(transpose_times(&from_euler(0.0, std::f64::consts::FRAC_PI_2, 1.0), up), [1.0, 0.0, 0.0]);
        near(transpose_times(&from_euler(std::f64::consts::FRAC_PI_2, 0.0, 2.0), up), [0.0, 1.0, 0.0]);
        near(times(&from_euler(0.3, 0.4, 0.5), transpose_times(&from_euler(0.3, 0.4, 0.5), up)), up);
    }

    #[test]
    fn a_turn_about_one_axis_is_a_rate_about_that_axis() {
        let h = 1e-4;
        let at = |f: fn(f64) -> Mat3| cross_difference(&f(0.2), &f(0.2 + h), &f(0.2 - h), 1.0 / (2.0 * h));
        near(at(|a| from_euler(0.0, 0.0, a)), [0.0, 0.0, 1.0]);
        near(at(|a| from_euler(a, 0.0, 0.0)), [1.0, 0.0, 0.0]);
        near(at(|a| from_euler(0.0, a, 0.0)), [0.0, -1.0, 0.0]);
    }
}
