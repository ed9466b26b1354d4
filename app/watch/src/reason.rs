//! Why the board was started, from what outlived the reset.
//!
//! | evidence | reason |
//! |---|---|
//! | a dump of a kernel panic in pstore | `panic`; `oom` when the kernel panicked because it was out of memory |
//! | the mark of an intended end | `request`, also when the watchdog had to finish what was asked for |
//! | the watchdog's boot status, or the keeper's own note that it let go, and no keeper came behind it in that boot | `watchdog` |
//! | a directory that lasts, and none of these | `power` |
//! | no such directory | `unknown` |
//!
//! Dumps are taken out of pstore, so that one is not counted twice: the end of each, [`MAX_TAIL`] bytes, is kept as a file, the last
//! [`MAX_TAILS`] of them.
//!
//! **The console**: a kernel with `PSTORE_CONSOLE` writes what it says also to a ring in ramoops' memory. Where the reset was none that
//! somebody asked for and there is no dump, the end of that are the last words of the boot before, kept with this one. They are told
//! apart from a panic's ([`Source`]) and never decide the reason: a kernel's console holds whatever a program wrote there. The file stays in
//! pstore: taking it out would clear the ring that the running kernel writes to, with all it has said so far (`ramoops_pstore_erase`), and
//! the next kernel makes room for itself.
//!
//! That the ring is there and whole says one thing more: the memory was refreshed again before it forgot, so power was away for seconds at
//! most. That is told, and is not taken for a reset by the watchdog: a reset line, a dip of the supply and a restart that
//! nobody announced leave the same.

use crate::history::{self, Entry, Kind, ResetReason};
use crate::loops::BootRecord;
use crate::state::Reset;
use crate::watchdog::CARDRESET;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes kept of one dump.
pub const MAX_TAIL: usize = 16 * 1024;
/// Dumps kept.
pub const MAX_TAILS: usize = 4;
/// Bytes read of one dump: a pstore record is never longer.
const MAX_DUMP: u64 = 1 << 20;
/// Dumps read in one boot; of a firmware that cuts a panic into many, the first ones. All are taken away.
const MAX_DUMPS: usize = 16;
/// Bytes read of any other small file.
const MAX_SMALL: u64 = 64 * 1024;
/// Lines of a dump, or of a console, that the history shows.
const WORDS: usize = 30;

/// How the kernel begins its own sentence about a panic.
const PANIC_LINE: &str = "Kernel panic - not syncing";
/// How the files begin that hold the console of the kernel before, in memory that a power cut empties; other stores' last.
const CONSOLE: &str = "console-ramoops";
/// How ramoops begins its own line at the end of a file, where its memory is checked.
const ECC: &str = "ECC: ";
/// That line where nothing was wrong.
const ECC_WELL: &str = "ECC: No errors detected";
/// How the keeper begins its line about a start, before the boot's number.
const BOOT_LINE: &str = "keeper: boot ";

const INTENT: &str = "intent";
const BOOT: &str = "boot.json";

/// Where evidence lies.
#[derive(Clone, Debug)]
pub struct Places {
    /// The keeper's directory, which outlives resets; `None` where nothing lasts.
    pub data: Option<PathBuf>,
    /// The kernel's persistent store.
    pub pstore: PathBuf,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: PathBuf,
}

impl Places {
    /// Where the record of the boot lies.
    #[must_use]
    pub fn boot_record(&self) -> Option<PathBuf> {
        self.data.as_ref().map(|data| data.join(BOOT))
    }

    /// Where the mark of an intended end lies.
    #[must_use]
    pub fn intent(&self) -> Option<PathBuf> {
        self.data.as_ref().map(|data| data.join(INTENT))
    }

    /// Where the history lies.
    #[must_use]
    pub fn history(&self) -> Option<PathBuf> {
        self.data.as_ref().map(|data| data.join(history::FILE))
    }
}

/// The mark of an end that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The boot that was to end.
    pub boot_id: String,
    /// One sentence: who asked, and for what.
    pub why: String,
}

/// A dump that the kernel left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Its name in pstore.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What the kernel before this one said on its console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// The end of it, [`MAX_TAIL`] bytes at most, of whole lines.
    pub text: String,
    /// Every byte is one that a kernel writes: the memory has forgotten nothing.
    pub whole: bool,
}

/// Whose the last words of a boot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A dump that the kernel made because it panicked.
    Panic,
    /// The console, up to whatever ended it.
    Console,
}

/// The last words of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// Whose they are.
    pub of: Source,
    /// Lines, oldest first.
    pub lines: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Somebody asked for the end of the boot before.
    pub intent: Option<String>,
    /// The keeper let go in the boot before: its sentence.
    pub let_go: Option<String>,
    /// `WDIOC_GETBOOTSTATUS`; `None` where there is no watchdog.
    pub boot_status: Option<u32>,
    /// The dumps in pstore.
    pub dumps: Vec<Dump>,
    /// The console of the kernel before.
    pub console: Option<Console>,
    /// Whether there is a directory that outlives resets.
    pub lasting: bool,
}

/// What a start of the keeper found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record of this boot.
    pub record: BootRecord,
    /// Why the board was started.
    pub reset: Reset,
    /// What the kernel said at its end.
    pub words: Option<Words>,
    /// This boot has had a keeper before.
    pub again: bool,
    /// Whether there is a directory that outlives resets.
    pub lasting: bool,
}

/// Looks at everything, takes the mark of an intended end and the dumps away, and decides. Blocking: the medium may be slow.
#[must_use]
pub fn look(places: &Places, boot_status: Option<u32>) -> Found {
    let boot_id = small(&places.boot_id).unwrap_or_default().trim().to_owned();
    let lasting = places.data.as_ref().is_some_and(|data| data.is_dir());
    let before: Option<BootRecord> =
        places.boot_record().and_then(|path| small(&path)).and_then(|text| serde_json::from_str(&text).ok());
    let intent: Option<Intent> = places.intent().and_then(|path| {
        let text = small(&path)?;
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, "the mark of an intended end stays: a later reset may be taken for one");
        }
        serde_json::from_str(&text).ok()
    });
    // One that a medium kept although it was taken away names a boot that was over long ago.
    let intent = intent.filter(|mark| before.as_ref().is_none_or(|last| last.boot_id == mark.boot_id));
    if let Some(record) = before.clone().filter(|record| !boot_id.is_empty() && record.boot_id == boot_id) {
        let sentence = "the keeper was started again in the same boot".to_owned();
        let reset = Reset { reason: ResetReason::Unknown, sentence };
        return Found { record, reset, words: None, again: true, lasting };
    }
    let number = before.as_ref().map_or(1, |record| record.boot.saturating_add(1));
    let dumps = take_dumps(places, number);
    let let_go = before.as_ref().zip(places.history()).and_then(|(last, path)| {
        let (entries, _) = history::read(&path);
        // A keeper that came after it says that the board lived on: systemd ends one that has let go, and starts another.
        let end = |entry: &Entry| entry.boot == last.boot && matches!(entry.kind, Kind::LetGo | Kind::Keeper);
        entries.into_iter().rev().find(end).filter(|entry| entry.kind == Kind::LetGo).map(|e| e.sentence)
    });
    let console = console(&places.pstore).filter(|console| is_newest(console, before.as_ref()));
    let intent = intent.map(|intent| intent.why);
    let evidence = Evidence { intent, let_go, boot_status, dumps, console, lasting };
    let (reset, words) = decide(&evidence);
    if let (Some(data), Some(console), Some(Words { of: Source::Console, .. })) =
        (&places.data, &evidence.console, &words)
    {
        keep_tail(data, "console-", &format!("{number:010}"), &console.text);
    }
    let mut record = BootRecord::after(before.as_ref(), &boot_id, reset.reason);
    if !lasting {
        // The next one would be called the same.
        record.boot = 0;
    }
    Found { record, reset, words, again: false, lasting }
}

/// The reason, and what the kernel said at its end where that was no end that it was asked for.
#[must_use]
pub fn decide(evidence: &Evidence) -> (Reset, Option<Words>) {
    let by_watchdog = evidence.boot_status.is_some_and(|status| status & CARDRESET != 0);
    if let Some((line, dump)) = evidence.dumps.iter().find_map(|d| panic_line(&d.text).map(|line| (line, d)))
    {
        let oom = ["Out of memory", "deadlocked on memory"].iter().any(|sign| line.contains(sign));
        let reason = if oom { ResetReason::Oom } else { ResetReason::Panic };
        let words = Words { of: Source::Panic, lines: around_panic(&dump.text) };
        return (Reset { reason, sentence: line }, Some(words));
    }
    let (reason, sentence) = match evidence {
        Evidence { intent: Some(why), .. } if by_watchdog => {
            (ResetReason::Request, format!("{why}; the watchdog had to finish it"))
        }
        Evidence { intent: Some(why), .. } => {
            return (Reset { reason: ResetReason::Request, sentence: why.clone() }, None);
        }
        Evidence { let_go: Some(why), .. } => (ResetReason::Watchdog, why.clone()),
        _ if by_watchdog => {
            let sentence =
                "the watchdog was not fed in time, and nobody left word: the kernel or the keeper hung";
            (ResetReason::Watchdog, sentence.to_owned())
        }
        Evidence { lasting: true, console: Some(Console { whole: true, .. }), .. } => {
            let sentence = "nothing tells what ended the boot before; power was away for seconds at most, for memory kept what the \
                            kernel had said: a reset button, a dip of the supply, a restart that nobody announced, or a watchdog that \
                            does not say so";
            (ResetReason::Power, sentence.to_owned())
        }
        Evidence { lasting: true, .. } => {
            let sentence = "power came, or the reset button was pressed: nothing tells otherwise";
            (ResetReason::Power, sentence.to_owned())
        }
        _ => (ResetReason::Unknown, "nothing outlives a reset here that could tell".to_owned()),
    };
    let words =
        evidence.console.as_ref().map(|console| Words { of: Source::Console, lines: last_of(console) });
    (Reset { reason, sentence }, words)
}

/// The kernel's own sentence about its panic.
fn panic_line(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.split_once(PANIC_LINE));
    if let Some((_, rest)) = line {
        return Some(format!("the kernel panicked{}", rest.trim_end()));
    }
    // The first line of a record says what made the kernel write it: an oops need not be the end.
    text.lines().next().filter(|line| line.starts_with("Panic#")).map(|_| "the kernel panicked".to_owned())
}

/// The lines of a dump around the panic, a third of them before it; its last lines where no panic is named.
fn around_panic(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let panic = lines.iter().position(|line| line.contains(PANIC_LINE));
    let from = panic.map_or(lines.len().saturating_sub(WORDS), |at| at.saturating_sub(WORDS / 3));
    lines.iter().skip(from).take(WORDS).map(|line| plain(line)).collect()
}

/// The last lines of a console.
fn last_of(console: &Console) -> Vec<String> {
    let lines: Vec<String> = console.text.lines().map(plain).filter(|line| !line.trim().is_empty()).collect();
    lines.into_iter().rev().take(WORDS).rev().collect()
}

/// A line of the kernel's log without its level.
fn plain(line: &str) -> String {
    let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map(|(_, rest)| rest);
    rest.unwrap_or(line).chars().filter(|c| !c.is_control()).collect()
}

/// Reads the end of what the kernel before this one said on its console.
fn console(pstore: &Path) -> Option<Console> {
    let entries = fs::read_dir(pstore).ok()?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(CONSOLE))
        .collect();
    names.sort();
    let (bytes, cut) = end_of(&pstore.join(names.first()?), MAX_TAIL)?;
    Some(console_of(&bytes, cut)).filter(|console| !console.text.trim().is_empty())
}

/// What the bytes of a console's file say. `cut`: there were more before them.
fn console_of(bytes: &[u8], cut: bool) -> Console {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    let (text, check) = match text.rsplit_once('\n') {
        Some((before, last)) if last.starts_with(ECC) => (before.trim_end_matches('\n'), last),
        _ => (text, ""),
    };
    // A ring that was full begins anywhere, also within a character.
    let broken = cut || text.starts_with(char::REPLACEMENT_CHARACTER);
    let text = if broken { text.split_once('\n').map_or(text, |(_, rest)| rest) } else { text };
    let lost = check.contains("unrecoverable") && !check.contains(" 0 unrecoverable");
    let strange =
        |c: char| c == char::REPLACEMENT_CHARACTER || (c.is_control() && !"\n\r\t\u{1b}".contains(c));
    let whole = !lost && !text.chars().any(strange);
    // What was mended or could not be is said with the words that it may have spoiled.
    let check = if check.is_empty() || check == ECC_WELL { String::new() } else { format!("\n{check}") };
    Console { text: format!("{text}{check}"), whole }
}

/// Whether no keeper of a boot before the last one speaks in it: a kernel that keeps no console (another slot's) leaves what one
/// before it has written.
fn is_newest(console: &Console, last: Option<&BootRecord>) -> bool {
    let said = console.text.rsplit_once(BOOT_LINE).and_then(|(_, rest)| rest.split_once(':'));
    let boot = said.and_then(|(number, _)| number.parse::<u64>().ok());
    boot.zip(last).is_none_or(|(boot, last)| boot >= last.boot)
}

/// Reads the dumps, keeps their ends in the keeper's directory, and takes them out of pstore.
fn take_dumps(places: &Places, boot: u64) -> Vec<Dump> {
    let Ok(entries) = fs::read_dir(&places.pstore) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("dmesg-"))
        .collect();
    names.sort();
    let mut dumps = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let path = places.pstore.join(&name);
        let text = if number < MAX_DUMPS { limited(&path, MAX_DUMP) } else { None };
        if let (Some(data), Some(text)) = (&places.data, &text) {
            keep_tail(data, "kernel-", &format!("{boot:010}-{name}"), text);
        }
        // Also when its end was not kept: a store that is full takes no new one, and what stays is a panic of the next boot.
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(name, %error, "a dump stays in pstore and will be taken for a new one");
        }
        dumps.extend(text.map(|text| Dump { name, text }));
    }
    dumps
}

/// Keeps the end of a text, and of all of its kind that were kept the newest. Names sort by their boot.
fn keep_tail(data: &Path, kind: &str, name: &str, text: &str) {
    let mut from = text.len().saturating_sub(MAX_TAIL);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let file = data.join(format!("{kind}{name}.txt"));
    if let Err(error) = inferd_slots::replace(&file, text.get(from..).unwrap_or_default().as_bytes()) {
        tracing::warn!(name, %error, "what the kernel said at its end cannot be kept");
    }
    let Ok(entries) = fs::read_dir(data) else { return };
    let mut tails: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(kind))
        .collect();
    tails.sort();
    let excess = tails.len().saturating_sub(MAX_TAILS);
    for old in tails.iter().take(excess) {
        // One that stays is tried again with the next one.
        let _ = fs::remove_file(data.join(old));
    }
}

fn small(path: &Path) -> Option<String> {
    limited(path, MAX_SMALL)
}

fn limited(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last bytes of a file, and whether there were more before them.
fn end_of(path: &Path, most: usize) -> Option<(Vec<u8>, bool)> {
    let mut file = File::open(path).ok()?;
    let most = u64::try_from(most).ok()?;
    let before = file.metadata().ok()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(before)).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some((bytes, before > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Event, History};
    use crate::store::Writer;
    use std::time::Duration;

    const PANIC: &str = "Panic#1 Part1\n<4>[   12.3] before\n<0>[   12.4] Kernel panic - not syncing: sysrq triggered crash\n<4>[   12.5] CPU: 0\n";
    const OOM: &str =
        "Panic#2 Part1\n<0>[    9.1] Kernel panic - not syncing: System is deadlocked on memory\n";

    fn evidence() -> Evidence {
        Evidence { lasting: true, boot_status: Some(0), ..Evidence::default() }
    }

    fn reason(evidence: &Evidence) -> ResetReason {
        decide(evidence).0.reason
    }

    fn dump(text: &str) -> Vec<Dump> {
        vec![Dump { name: "dmesg-ramoops-0".into(), text: text.into() }]
    }

    #[test]
    fn each_evidence_gives_its_reason_and_a_panic_outweighs_the_rest() {
        assert_eq!(reason(&evidence()), ResetReason::Power);
        assert_eq!(reason(&Evidence::default()), ResetReason::Unknown);
        assert_eq!(reason(&Evidence { boot_status: Some(CARDRESET), ..evidence() }), ResetReason::Watchdog);
        let let_go = Evidence { let_go: Some("no progress".into()), ..evidence() };
        assert_eq!(
            decide(&let_go).0,
            Reset { reason: ResetReason::Watchdog, sentence: "no progress".into() }
        );
        let asked = Evidence { intent: Some("an update".into()), ..evidence() };
        assert_eq!(decide(&asked).0.sentence, "an update");
        let hung = Evidence { boot_status: Some(CARDRESET), ..asked.clone() };
        assert_eq!(decide(&hung).0.reason, ResetReason::Request);
        assert!(decide(&hung).0.sentence.contains("the watchdog had to finish it"));
        let panicked = Evidence { dumps: dump(PANIC), ..hung };
        let (reset, words) = decide(&panicked);
        assert_eq!(reset.reason, ResetReason::Panic);
        assert_eq!(reset.sentence, "the kernel panicked: sysrq triggered crash");
        let Words { of, lines: words } = words.unwrap();
        assert_eq!((of, words.last().unwrap().as_str()), (Source::Panic, "[   12.5] CPU: 0"));
        let (before, after) = ("<4>before\n".repeat(100), "<4>trace\n".repeat(100));
        let long = format!("Panic#1 Part1\n{before}<0>Kernel panic - not syncing: x\n{after}");
        let words = decide(&Evidence { dumps: dump(&long), ..evidence() }).1.unwrap().lines;
        assert_eq!((words.len(), words[WORDS / 3].as_str()), (WORDS, "Kernel panic - not syncing: x"));
    }

    #[test]
    fn a_panic_for_lack_of_memory_is_told_apart_and_an_oops_alone_is_no_panic() {
        assert_eq!(reason(&Evidence { dumps: dump(OOM), ..evidence() }), ResetReason::Oom);
        let oops = Evidence { dumps: dump("Oops#1 Part1\n<1>BUG: unable to handle\n"), ..evidence() };
        assert_eq!(reason(&oops), ResetReason::Power);
        let cut = Evidence { dumps: dump("Panic#1 Part2\n<4>much earlier\n"), ..evidence() };
        assert_eq!(reason(&cut), ResetReason::Panic);
    }

    fn console(text: &str) -> Option<Console> {
        Some(console_of(text.as_bytes(), false))
    }

    #[test]
    fn a_console_gives_the_last_words_of_a_reset_that_nobody_asked_for_and_never_its_reason() {
        let said = "[    1.0] inferd: begin\n[   20.4] Kernel panic - not syncing: what a program wrote to the log\n[   21.0] the last line\n";
        let of = |evidence: Evidence| {
            let (reset, words) = decide(&Evidence { console: console(said), ..evidence });
            (reset.reason, words.map(|words| (words.of, words.lines.last().unwrap().clone())))
        };
        let last = Some((Source::Console, "[   21.0] the last line".to_owned()));
        let hung = Evidence { boot_status: Some(CARDRESET), ..evidence() };
        let asked = Evidence { intent: Some("an update".into()), ..evidence() };
        assert_eq!(of(hung.clone()), (ResetReason::Watchdog, last.clone()));
        let let_go = Evidence { let_go: Some("no progress".into()), ..evidence() };
        assert_eq!(of(let_go), (ResetReason::Watchdog, last.clone()));
        assert_eq!(of(evidence()), (ResetReason::Power, last.clone()));
        assert_eq!(of(asked.clone()), (ResetReason::Request, None));
        let finished = Evidence { boot_status: Some(CARDRESET), ..asked };
        assert_eq!(of(finished), (ResetReason::Request, last));
        let panicked = of(Evidence { dumps: dump(PANIC), ..hung });
        assert_eq!(panicked, (ResetReason::Panic, Some((Source::Panic, "[   12.5] CPU: 0".to_owned()))));
        let long = format!("{}[    9.9] \u{1b}[31mred\u{7}\n\n", "[    1.0] earlier\n".repeat(1000));
        let words = decide(&Evidence { console: console(&long), ..evidence() }).1.unwrap().lines;
        assert_eq!((words.len(), words.last().unwrap().as_str()), (WORDS, "[    9.9] [31mred"));
    }

    #[test]
    fn memory_that_kept_a_console_whole_says_that_power_was_away_for_seconds_at_most_and_no_other_does() {
        let says = |bytes: &[u8]| {
            let found = Evidence { console: Some(console_of(bytes, false)), ..evidence() };
            decide(&found).0.sentence.contains("power was away for seconds at most")
        };
        let said = "[    1.0] begin\n[    2.0] caf\u{e9}\n";
        assert!(says(said.as_bytes()));
        assert!(says(format!("{said}\nECC: No errors detected\n").as_bytes()));
        assert!(says(format!("{said}\nECC: 3 Corrected bytes, 0 unrecoverable blocks\n").as_bytes()));
        assert!(!says(format!("{said}\nECC: 90 Corrected bytes, 2 unrecoverable blocks\n").as_bytes()));
        assert!(!says(b"[    1.0] begin\n[    2.0] m\xe5mory\x00 that forg\xf0t\n"));
        assert!(!decide(&evidence()).0.sentence.contains("at most"));
    }

    #[test]
    fn of_a_console_whole_lines_are_kept_and_the_check_of_its_memory_only_where_it_found_something() {
        let text = |bytes: &str| console_of(bytes.as_bytes(), false).text;
        // Not every kernel says when it said something.
        assert_eq!(text("a\nb\n"), "a\nb");
        assert_eq!(text("[    1.0] a\n[    2.0] b\n\nECC: No errors detected\n"), "[    1.0] a\n[    2.0] b");
        let mended = "ECC: 3 Corrected bytes, 0 unrecoverable blocks";
        assert_eq!(text(&format!("[    1.0] a\n\n{mended}\n")), format!("[    1.0] a\n{mended}"));
        assert_eq!(text("\nECC: No errors detected\n"), "");
        let cut = console_of("\u{e9} rest\n[    1.0] a\n".as_bytes().get(1..).unwrap(), true);
        assert_eq!(cut, Console { text: "[    1.0] a".into(), whole: true });
        let wrapped = console_of(b"\xa9 rest\n[    1.0] a\n", false);
        assert_eq!(wrapped, Console { text: "[    1.0] a".into(), whole: true });
    }

    #[test]
    fn a_console_is_kept_shortened_with_the_newest_and_stays_in_pstore() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let file = places.pstore.join("console-ramoops-0");
        for boot in 1..=6_u64 {
            let said =
                format!("{}[   99.9] boot {boot} ends here\n", "[    1.0] \u{e9} earlier\n".repeat(5000));
            fs::write(&file, &said).unwrap();
            next_boot(&places, &boot.to_string());
            let found = look(&places, Some(CARDRESET));
            let words = found.words.clone().unwrap();
            assert_eq!((found.record.boot, words.of, words.lines.len()), (boot, Source::Console, WORDS));
            assert_eq!(words.lines.last().unwrap(), &format!("[   99.9] boot {boot} ends here"));
            assert_eq!(
                fs::read_to_string(&file).unwrap(),
                said,
                "taking it out clears what this kernel has said"
            );
            store(&places, &found);
            let again = look(&places, Some(CARDRESET));
            assert!(again.again && again.words.is_none());
        }
        let names = || {
            let entries = fs::read_dir(places.data.as_ref().unwrap()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name.starts_with("console-"));
            names.sort();
            names
        };
        let kept: Vec<_> = (3..=6).map(|boot| format!("console-{boot:010}.txt")).collect();
        assert_eq!(names(), kept);
        let newest = fs::read_to_string(places.data.as_ref().unwrap().join(kept.last().unwrap())).unwrap();
        assert!(
            newest.len() <= MAX_TAIL
                && newest.starts_with("[    1.0]")
                && newest.ends_with("boot 6 ends here")
        );
        // One that was asked for has no last words, and costs no write.
        fs::write(places.intent().unwrap(), r#"{"boot_id":"6","why":"asked"}"#).unwrap();
        next_boot(&places, "7");
        assert_eq!(look(&places, Some(0)).words, None);
        assert_eq!(names(), kept);
    }

    #[test]
    fn what_a_boot_before_the_last_one_said_on_its_console_is_nobodys_last_words() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let said = |boot: u64| {
            let line = format!("[    5.0] keeper: boot {boot}: power: power came\n[    9.0] on and on\n");
            fs::write(places.pstore.join("console-ramoops-0"), line).unwrap();
        };
        for boot in 1..=3 {
            next_boot(&places, &boot.to_string());
            store(&places, &look(&places, Some(0)));
        }
        next_boot(&places, "4");
        said(2);
        let found = look(&places, Some(0));
        assert_eq!(found.words, None);
        assert!(!found.reset.sentence.contains("at most"), "{found:?}");
        said(3);
        assert_eq!(look(&places, Some(0)).words.unwrap().lines.len(), 2);
        // Its record did not reach the medium.
        said(4);
        assert_eq!(look(&places, Some(0)).words.unwrap().lines.len(), 2);
        // Not memory: nothing empties it but the next kernel.
        fs::rename(places.pstore.join("console-ramoops-0"), places.pstore.join("console-pstore_blk-0"))
            .unwrap();
        assert_eq!(look(&places, Some(0)).words, None);
    }

    fn places(root: &Path) -> Places {
        for folder in ["data", "pstore"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        fs::write(root.join("boot_id"), "one\n").unwrap();
        Places { data: Some(root.join("data")), pstore: root.join("pstore"), boot_id: root.join("boot_id") }
    }

    fn store(places: &Places, found: &Found) {
        fs::write(places.boot_record().unwrap(), serde_json::to_string(&found.record).unwrap()).unwrap();
    }

    fn next_boot(places: &Places, id: &str) {
        fs::write(&places.boot_id, id).unwrap();
    }

    #[test]
    fn a_mark_of_intent_is_believed_once() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let first = look(&places, Some(0));
        assert_eq!((first.record.boot, first.reset.reason), (1, ResetReason::Power));
        store(&places, &first);
        let intent = Intent { boot_id: "one".into(), why: "asked".into() };
        fs::write(places.intent().unwrap(), serde_json::to_string(&intent).unwrap()).unwrap();
        next_boot(&places, "two");
        let second = look(&places, Some(0));
        assert_eq!((second.record.boot, second.reset.reason), (2, ResetReason::Request));
        store(&places, &second);
        next_boot(&places, "three");
        assert_eq!(look(&places, Some(0)).reset.reason, ResetReason::Power);
    }

    #[test]
    fn a_mark_that_names_another_boot_than_the_last_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let first = look(&places, Some(0));
        store(&places, &first);
        fs::write(places.intent().unwrap(), r#"{"boot_id":"long ago","why":"asked"}"#).unwrap();
        next_boot(&places, "two");
        assert_eq!(look(&places, Some(0)).reset.reason, ResetReason::Power);
    }

    #[test]
    fn more_dumps_than_are_read_are_taken_away_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        for part in 0..MAX_DUMPS + 24 {
            fs::write(places.pstore.join(format!("dmesg-efi-{part:03}")), "Panic#1 Part1\n").unwrap();
        }
        let first = look(&places, None);
        assert_eq!(first.reset.reason, ResetReason::Panic);
        store(&places, &first);
        next_boot(&places, "two");
        assert_eq!(look(&places, None).reset.reason, ResetReason::Power, "one panic counted twice");
    }

    #[test]
    fn a_keeper_that_is_started_again_counts_no_boot_and_takes_the_mark_away() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let first = look(&places, None);
        store(&places, &first);
        fs::write(places.intent().unwrap(), r#"{"boot_id":"one","why":"asked"}"#).unwrap();
        let again = look(&places, None);
        assert!(again.again && again.record == first.record);
        next_boot(&places, "two");
        assert_eq!(look(&places, None).reset.reason, ResetReason::Power);
    }

    #[test]
    fn the_note_of_the_boot_before_is_found_in_the_history_and_an_older_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let first = look(&places, None);
        store(&places, &first);
        let history = History::open(places.history(), 1, Writer::start());
        history.add(Event::new(Kind::LetGo, "the daemon hung"));
        assert!(history.flush(Duration::from_secs(30)));
        next_boot(&places, "two");
        let second = look(&places, None);
        assert_eq!(second.reset, Reset { reason: ResetReason::Watchdog, sentence: "the daemon hung".into() });
        store(&places, &second);
        next_boot(&places, "three");
        assert_eq!(look(&places, None).reset.reason, ResetReason::Power);
    }

    #[test]
    fn a_let_go_that_the_board_has_outlived_is_no_reason_of_a_later_reset() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        store(&places, &look(&places, None));
        let history = History::open(places.history(), 1, Writer::start());
        history.add(Event::new(Kind::LetGo, "the daemon hung"));
        history.add(Event::new(Kind::Keeper, "started again"));
        assert!(history.flush(Duration::from_secs(30)));
        next_boot(&places, "two");
        assert_eq!(look(&places, None).reset.reason, ResetReason::Power);
        history.add(Event::new(Kind::LetGo, "it hung once more"));
        assert!(history.flush(Duration::from_secs(30)));
        assert_eq!(look(&places, None).reset.sentence, "it hung once more");
    }

    #[test]
    fn dumps_are_kept_shortened_and_taken_out_of_pstore() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        for boot in 0..6 {
            let long = format!(
                "Panic#1 Part1\n{}Kernel panic - not syncing: number {boot}\n",
                "é earlier\n".repeat(5000)
            );
            fs::write(places.pstore.join("dmesg-ramoops-0"), &long).unwrap();
            next_boot(&places, &boot.to_string());
            let found = look(&places, None);
            assert_eq!(found.reset.sentence, format!("the kernel panicked: number {boot}"));
            assert_eq!(fs::read_dir(&places.pstore).unwrap().count(), 0);
            store(&places, &found);
        }
        let data = places.data.as_ref().unwrap();
        let tails: Vec<_> = fs::read_dir(data)
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name().to_str().unwrap().starts_with("kernel-"))
            .collect();
        assert_eq!(tails.len(), MAX_TAILS);
        assert!(tails.iter().all(|t| t.metadata().unwrap().len() <= MAX_TAIL as u64));
        let newest = tails.iter().map(fs::DirEntry::path).max().unwrap();
        assert!(fs::read_to_string(newest).unwrap().ends_with("number 5\n"));
    }

    #[test]
    fn rubbish_in_every_file_is_no_panic() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        for path in [places.boot_record(), places.intent(), places.history()].into_iter().flatten() {
            fs::write(path, [0xff, 0, b'{', b'\n', 7]).unwrap();
        }
        fs::write(places.pstore.join("dmesg-x"), [0xff; 100]).unwrap();
        fs::write(places.pstore.join("console-ramoops-0"), [0xff; 100]).unwrap();
        let found = look(&places, Some(u32::MAX));
        assert_eq!((found.record.boot, found.reset.reason), (1, ResetReason::Watchdog));
        let nowhere = Places { data: None, pstore: "/nowhere".into(), boot_id: "/nowhere".into() };
        let found = look(&nowhere, None);
        assert_eq!((found.lasting, found.record.boot), (false, 0), "a boot that nobody counts has a number");
    }
}
