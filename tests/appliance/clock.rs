//! A time server for the booted board: answers NTP with the time that a file says it had when this program started, and what has gone by
//! since then by a clock that nobody sets. Without the file it is silent. `clock FILE`.

use std::{env, fs, net::UdpSocket, time::Instant};

fn main() {
    let file = env::args().nth(1).expect("a file with seconds since 1970");
    let socket = UdpSocket::bind("0.0.0.0:123").expect("the port");
    let began = Instant::now();
    let mut asked = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut asked) {
        let Some(base) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok()) else { continue };
        if length < 48 {
            continue;
        }
        let gone = began.elapsed();
        // Seconds since 1900, modulo 2^32, and their fraction.
        let now = ((base + 2_208_988_800 + gone.as_secs()) << 32) | (u64::from(gone.subsec_nanos()) << 32) / 1_000_000_000;
        // Version 4, a server, of stratum 1.
        let mut answer = vec![0x24, 1, 6, 0xec, 0, 0, 0, 0, 0, 0, 0, 0];
        answer.extend(b"TEST");
        answer.extend(now.to_be_bytes());
        answer.extend(&asked[40..48]);
        answer.extend(now.to_be_bytes());
        answer.extend(now.to_be_bytes());
        let _ = socket.send_to(&answer, from);
    }
}
