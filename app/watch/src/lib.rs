//! Staying alive.
//!
//! ```text
//! initramfs ── arms ──► /dev/watchdog0 ◄── feeds ── keeper (root) ◄── sd_notify: READY, WATCHDOG, STATUS ── daemon (not root)
//!                                                     │ starts, judges crash loops, keeps evidence,
//!                                                     │ and does the few things only root may ([`ask`])
//! ```
//!
//! The **keeper** is a small process of its own (`inferd keeper`): it opens the hardware watchdog, starts the daemon, and feeds
//! the watchdog only while the daemon proves progress. The daemon speaks sd_notify and nothing else about its health, so
//! the same daemon runs under systemd. What the keeper knows of this boot the daemon reads from one file
//! ([`state::KeeperState`]); what it did is in the history ([`history`]), which outlives resets.

#![deny(unsafe_code)]

pub mod alerts;
pub mod ask;
pub mod capture;
pub mod history;
pub mod journal;
pub mod keeper;
pub mod loops;
pub mod monitor;
pub mod notify;
pub mod panel;
pub mod permit;
pub mod progress;
pub mod reason;
pub mod shed;
pub mod shelf;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod watchdog;
pub mod wear;
