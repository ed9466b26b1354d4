//! The device on its LAN: `_inferd._tcp` by Multicast DNS (RFC 6762) and DNS-SD (RFC 6763), with health in the TXT record.
//!
//! | module | what |
//! |---|---|
//! | [`wire`] | messages of the DNS: read in place without a copy, written with names once |
//! | [`names`] | what a device may be called, what comes next when somebody else is called so, and its properties |
//! | [`responder`] | the protocol: probing, announcing, answering, conflicts, goodbye; without a clock or a socket |
//! | [`interfaces`] | where it is announced |
//! | [`thread`] | the one thread with the sockets |
//!
//! It announces and answers, and asks for nothing but its own names: **nothing that a stranger sends is kept**. What is held is of a size
//! that the device's own records give; datagrams beyond [`thread::PER_SLICE`], or beyond [`thread::LOOKING`] spent with them, in one
//! [`thread::SLICE`] are left to the kernel, which drops them.
//!
//! Sockets are bound to the group's address, not to all addresses: replies to questions that avahi or systemd-resolved asked on the same
//! machine stay theirs, and nobody who cannot send to the group gets an answer. So questions that are sent to the device's own address are
//! not answered.

#![forbid(unsafe_code)]

pub mod interfaces;
pub mod names;
pub mod responder;
pub mod thread;
pub mod wire;

pub use interfaces::Choice;
pub use names::{Properties, Wanted, host_label};
pub use thread::{Announcer, View};
