//! What a server on this machine costs: CPU time and memory of a process and all its descendants.
//!
//! CPU time comes from each process's own clock (nanoseconds, threads that ended included); what ended and reaped children
//! used is added from `/proc/PID/stat`, so a host that was restarted in between is not forgotten.

use nix::{time::ClockId, unistd::Pid};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// utime + stime in ticks.
    own: u64,
    /// cutime + cstime in ticks.
    reaped: u64,
}

/// What a process tree has used up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all processes since they started.
    pub cpu: Duration,
    /// Resident memory now, pages shared between processes counted once per process.
    pub rss_bytes: u64,
    /// How many processes there are.
    pub processes: usize,
}

/// The usage of a process and its descendants; `None` when it is not there.
#[must_use]
pub fn usage(root: i32) -> Option<Usage> {
    let all = snapshot();
    all.get(&root)?;
    let mut total = Usage::default();
    for pid in tree(&all, root) {
        let stat = all[&pid];
        total.cpu += clock(pid).unwrap_or_else(|| ticks(stat.own)) + ticks(stat.reaped);
        total.rss_bytes += rss(pid).unwrap_or(0);
        total.processes += 1;
    }
    Some(total)
}

/// CPU time of this process.
#[must_use]
pub fn own_cpu() -> Duration {
    ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map(Duration::from).unwrap_or_default()
}

/// The process that listens on this TCP port of this machine, if it can be seen: the topmost one when several share the socket.
#[must_use]
pub fn listener(port: u16) -> Option<i32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let sockets: BTreeSet<String> = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| listening(&text, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let all = snapshot();
    let holders: BTreeSet<i32> = all.keys().copied().filter(|pid| holds(*pid, &sockets)).collect();
    holders.iter().copied().find(|pid| !holders.contains(&all[pid].parent))
}

/// Inodes of the sockets in a `/proc/net/tcp` table that listen on a port.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (local.ends_with(&suffix) && *state == "0A").then(|| inode.parse().ok())?
        })
        .collect()
}

fn holds(pid: i32, sockets: &BTreeSet<String>) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target.to_str().is_some_and(|t| sockets.contains(t)))
}

/// Every process there is.
fn snapshot() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
        })
        .collect()
}

/// Takes a line of `/proc/PID/stat` apart; the name in parentheses may hold anything, also spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let field = |n: usize| rest.split_ascii_whitespace().nth(n); // 0 is the state, field 3 of proc(5)
    let number = |n: usize| field(n)?.parse::<u64>().ok();
    Some(Stat {
        parent: field(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        reaped: number(13)? + number(14)?,
    })
}

fn tree(all: &BTreeMap<i32, Stat>, root: i32) -> BTreeSet<i32> {
    let mut members = BTreeSet::from([root]);
    loop {
        let before = members.len();
        members.extend(
            all.iter().filter(|(_, s)| members.contains(&s.parent)).map(|(p, _)| *p).collect::<Vec<_>>(),
        );
        if members.len() == before {
            return members;
        }
    }
}

fn clock(pid: i32) -> Option<Duration> {
    nix::time::clock_getcpuclockid(Pid::from_raw(pid)).ok()?.now().ok().map(Duration::from)
}

fn ticks(count: u64) -> Duration {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(100);
    Duration::from_nanos(count.saturating_mul(1_000_000_000 / per_second))
}

fn rss(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_anything() {
        let line = "42 (a) b (c) 1) S 7 42 42 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 99 1 1";
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, own: 33, reaped: 77 }));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n\
            1: 0100007F:2328 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0\n\
            2: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table, 9000), [111]);
    }

    #[test]
    fn a_tree_is_a_process_and_all_below_it() {
        let stat = |parent| Stat { parent, own: 0, reaped: 0 };
        let all = BTreeMap::from([(1, stat(0)), (10, stat(1)), (5, stat(10)), (11, stat(5)), (20, stat(1))]);
        assert_eq!(tree(&all, 10), BTreeSet::from([5, 10, 11]));
    }

    #[test]
    fn the_listener_of_a_port_of_this_process_is_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listener(port), i32::try_from(std::process::id()).ok());
        drop(socket);
        assert_eq!(listener(port), None);
    }

    #[test]
    fn the_usage_of_this_process_grows_with_work() {
        let me = i32::try_from(std::process::id()).unwrap();
        let before = usage(me).unwrap();
        let work = (0..20_000_000_u64).fold(0_u64, |a, b| std::hint::black_box(a ^ b));
        let after = usage(me).unwrap();
        assert!(after.cpu > before.cpu, "{work}");
        assert!(after.rss_bytes > 0 && after.processes >= 1);
        assert_eq!(usage(i32::MAX), None);
    }
}
