//! Serial ports, opened as this device uses them: raw, 8N1, never waited for.

use nix::fcntl::OFlag;
use nix::sys::termios::{
    BaudRate, ControlFlags, FlushArg, SetArg, cfmakeraw, cfsetspeed, tcflush, tcgetattr, tcsetattr,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The baud rates there are.
pub(super) const BAUDS: [(u32, BaudRate); 17] = [
    (9_600, BaudRate::B9600),
    (19_200, BaudRate::B19200),
    (38_400, BaudRate::B38400),
    (57_600, BaudRate::B57600),
    (115_200, BaudRate::B115200),
    (230_400, BaudRate::B230400),
    (460_800, BaudRate::B460800),
    (500_000, BaudRate::B500000),
    (576_000, BaudRate::B576000),
    (921_600, BaudRate::B921600),
    (1_000_000, BaudRate::B1000000),
    (1_152_000, BaudRate::B1152000),
    (1_500_000, BaudRate::B1500000),
    (2_000_000, BaudRate::B2000000),
    (2_500_000, BaudRate::B2500000),
    (3_000_000, BaudRate::B3000000),
    (4_000_000, BaudRate::B4000000),
];

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// They are read.
    In,
    /// They are written.
    Out,
}

/// Whether this baud rate can be set.
#[must_use]
pub fn can_be(baud: u32) -> bool {
    BAUDS.iter().any(|(n, _)| *n == baud)
}

/// Opens it; neither reading nor writing ever waits.
///
/// # Errors
/// The system's reason, or that it is no serial port, in a few words.
pub fn open(path: &Path, baud: u32, direction: Direction) -> Result<File, String> {
    let port = OpenOptions::new()
        .read(direction == Direction::In)
        .write(direction == Direction::Out)
        .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(|e| e.to_string())?;
    let rate = BAUDS.iter().find(|(n, _)| *n == baud).map(|(_, rate)| *rate);
    let rate = rate.ok_or_else(|| format!("{baud} baud cannot be set"))?;
    let set = || {
        let mut terminal = tcgetattr(&port)?;
        cfmakeraw(&mut terminal);
        terminal.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
        terminal.control_flags -= ControlFlags::CSTOPB | ControlFlags::CRTSCTS;
        cfsetspeed(&mut terminal, rate)?;
        tcsetattr(&port, SetArg::TCSANOW, &terminal)?;
        // What lies there is from before.
        tcflush(&port, FlushArg::TCIOFLUSH)
    };
    set().map_err(|e| match e {
        nix::Error::ENOTTY => "it is no serial port".to_owned(),
        other => other.desc().to_owned(),
    })?;
    Ok(port)
}
