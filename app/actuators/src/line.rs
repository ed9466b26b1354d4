//! `PWM:1500,1500,...` and a line feed: one pulse width in microseconds per joint, in ASCII.

use std::fmt::Write as _;

/// Characters of the longest line of so many joints.
#[must_use]
pub const fn longest(joints: usize) -> usize {
    "PWM:".len() + 5 * joints
}

/// Writes it.
pub fn write(into: &mut String, widths: impl IntoIterator<Item = u16>) {
    into.clear();
    into.push_str("PWM:");
    for (i, width) in widths.into_iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // A string takes everything.
        let _ = write!(into, "{comma}{width}");
    }
    into.push('\n');
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_has_these_bytes() {
        let mut line = "before".to_owned();
        super::write(&mut line, [1000, 1500, 2000]);
        assert_eq!(line, "PWM:1000,1500,2000\n");
        assert_eq!(line.len(), super::longest(3));
    }
}
