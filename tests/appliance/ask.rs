//! Asks the keeper of a booted appliance, as root: `ask JSON` prints the answer. BusyBox has nothing that speaks SOCK_SEQPACKET, and
//! the daemon asks only for devices of engines that it has.

use std::env::args;
use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd as _, OwnedFd};

const SOCKET: &[u8] = b"/run/inferd/keeper/ask";
const AF_UNIX: c_int = 1;
const SOCK_SEQPACKET: c_int = 5;

#[repr(C)]
struct Address {
    family: u16,
    path: [u8; 108],
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(socket: c_int, address: *const Address, length: u32) -> c_int;
    fn send(socket: c_int, bytes: *const c_void, length: usize, flags: c_int) -> isize;
    fn recv(socket: c_int, bytes: *mut c_void, length: usize, flags: c_int) -> isize;
}

fn main() {
    let question = args().nth(1).expect("a question");
    let mut address = Address { family: AF_UNIX as u16, path: [0; 108] };
    address.path[..SOCKET.len()].copy_from_slice(SOCKET);
    let mut answer = [0; 4096];
    // SAFETY: every pointer is to something that lives on, with its length.
    let length = unsafe {
        let keeper = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        assert!(keeper >= 0, "{}", std::io::Error::last_os_error());
        let _closed = OwnedFd::from_raw_fd(keeper);
        let connected = connect(keeper, &address, size_of::<Address>() as u32);
        assert_eq!(connected, 0, "{}", std::io::Error::last_os_error());
        send(keeper, question.as_ptr().cast(), question.len(), 0);
        recv(keeper, answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    let length = usize::try_from(length).expect("an answer");
    println!("{}", String::from_utf8_lossy(&answer[..length]));
}
