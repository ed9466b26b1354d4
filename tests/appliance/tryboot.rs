//! Restarts the board with an argument for its firmware, as `reboot ARGUMENT` does where BusyBox's does not: `tryboot "0 tryboot"`.

use std::env::args;
use std::ffi::{CString, c_char, c_int, c_long};

// <linux/reboot.h>; 142 is reboot's number on arm64.
const SYS_REBOOT: c_long = 142;
const MAGIC: (c_int, c_int) = (0xfee1_deadu32 as c_int, 672_274_793);
const RESTART2: c_int = 0xa1b2_c3d4u32 as c_int;

unsafe extern "C" {
    fn sync();
    fn syscall(number: c_long, magic: c_int, second: c_int, command: c_int, argument: *const c_char) -> c_long;
}

fn main() {
    let argument = CString::new(args().nth(1).expect("an argument")).expect("no zero in it");
    // SAFETY: the string outlives the call, which returns only to say that it failed.
    unsafe {
        sync();
        syscall(SYS_REBOOT, MAGIC.0, MAGIC.1, RESTART2, argument.as_ptr());
    }
    panic!("{}", std::io::Error::last_os_error());
}
