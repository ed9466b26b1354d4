//! Messages of the DNS (RFC 1035), as far as Multicast DNS needs them.
//!
//! Reading borrows the datagram and allocates nothing. Every pointer of a compressed name must lead to before the place where that part of
//! the name began, so that no name is without an end, and a name has [`MAX_HOPS`] of them at most, so that none is long to read; a message
//! that says more than it holds ends where it ends.

/// The longest message there is (RFC 6762, section 17), in bytes.
pub const MAX_MESSAGE: usize = 9000;
/// The longest name, in bytes with its lengths (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
/// Records and questions that are read of one message; ours has 12.
const MAX_ITEMS: usize = 256;
/// Pointers in one name. Whoever compresses a name needs one; 9000 bytes hold chains of thousands, which a question of six bytes leads into.
const MAX_HOPS: u8 = 16;
const HEADER: usize = 12;

/// Types of records.
#[allow(missing_docs)]
pub mod kind {
    pub const A: u16 = 1;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const NSEC: u16 = 47;
    pub const ANY: u16 = 255;
}

/// The class of the internet.
pub const IN: u16 = 1;
const ANY_CLASS: u16 = 255;
/// In a question: answer me alone. In a record: forget what you knew of this name and type.
pub const TOP: u16 = 0x8000;
const RESPONSE: u16 = 0x8000;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const OPCODE_AND_RCODE: u16 = 0x780f;

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    flags: u16,
    counts: [u16; 4],
}

/// A name within a message.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Of whom.
    pub name: Name<'a>,
    /// See [`kind`].
    pub kind: u16,
    /// Whoever asks wants the answer for itself.
    pub unicast: bool,
    /// The question as it was sent, to be repeated to those who speak no Multicast DNS.
    pub class: u16,
}

/// A record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Whose.
    pub name: Name<'a>,
    /// See [`kind`].
    pub kind: u16,
    /// Seconds it is good for; 0 takes it back.
    pub ttl: u32,
    /// Which part of the message it is in.
    pub section: Section,
    message: &'a [u8],
    data: (usize, usize),
}

/// Parts of a message that hold records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl<'a> Message<'a> {
    /// The head of a message; `None` for what is none that Multicast DNS knows.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_MESSAGE {
            return None;
        }
        let flags = short(bytes, 2)?;
        let count = |n: usize| short(bytes, 4 + 2 * n);
        let counts = [count(0)?, count(1)?, count(2)?, count(3)?];
        (flags & OPCODE_AND_RCODE == 0).then_some(Self { bytes, flags, counts })
    }

    /// Whether it answers.
    #[must_use]
    pub fn is_response(&self) -> bool {
        self.flags & RESPONSE != 0
    }

    /// Whether more of what the asker knows comes in the next message.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.flags & TRUNCATED != 0
    }

    /// The number that those who speak no Multicast DNS know their question by.
    #[must_use]
    pub fn id(&self) -> u16 {
        short(self.bytes, 0).unwrap_or(0)
    }

    /// Whether somebody asks whether a name is free.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        !self.is_response() && self.counts[2] > 0
    }

    /// What is asked, up to the first thing that makes no sense.
    pub fn questions(&self) -> impl Iterator<Item = Question<'a>> + use<'a> {
        let (bytes, mut at, mut left) = (self.bytes, HEADER, usize::from(self.counts[0]).min(MAX_ITEMS));
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let name = Name { bytes, at };
            at = name.end()?;
            let (kind, class) = (short(bytes, at)?, short(bytes, at + 2)?);
            at += 4;
            Some(Question { name, kind, unicast: class & TOP != 0, class })
        })
        .filter(|question| matches!(question.class & !TOP, IN | ANY_CLASS))
    }

    /// Its records, up to the first thing that makes no sense.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let (bytes, counts, asked) = (self.bytes, self.counts, self.counts[0]);
        // A message of that many questions has no place for a record.
        let begin = if usize::from(asked) > MAX_ITEMS { None } else { behind(bytes, asked) };
        let (mut at, mut read) = (begin, 0);
        let [_, answers, authority, additional] = counts.map(usize::from);
        let all = (answers + authority + additional).min(MAX_ITEMS);
        std::iter::from_fn(move || {
            if read == all {
                return None;
            }
            let section = match read {
                n if n < answers => Section::Answer,
                n if n < answers + authority => Section::Authority,
                _ => Section::Additional,
            };
            read += 1;
            let name = Name { bytes, at: at? };
            let head = name.end()?;
            let (kind, class) = (short(bytes, head)?, short(bytes, head + 2)?);
            let ttl = u32::from_be_bytes(bytes.get(head + 4..head + 8)?.try_into().ok()?);
            let begin = head + 10;
            let end = begin + usize::from(short(bytes, head + 8)?);
            bytes.get(begin..end)?;
            at = Some(end);
            Some((class, Record { name, kind, ttl, section, message: bytes, data: (begin, end) }))
        })
        .filter(|(class, _)| class & !TOP == IN)
        .map(|(_, record)| record)
    }
}

/// Where the records begin.
fn behind(bytes: &[u8], questions: u16) -> Option<usize> {
    (0..questions).try_fold(HEADER, |at, _| Some(Name { bytes, at }.end()? + 4))
}

impl<'a> Name<'a> {
    /// Its labels, the empty one at the end left out; `None` where it makes no sense.
    fn labels(&self) -> Labels<'a> {
        Labels { bytes: self.bytes, at: self.at, bound: self.at, length: 0, hops: 0, done: false }
    }

    /// Where the message goes on behind it; `None` where it makes no sense.
    fn end(&self) -> Option<usize> {
        let mut at = self.at;
        loop {
            match *self.bytes.get(at)? {
                0 => break at += 1,
                n if n < 64 => at += 1 + usize::from(n),
                n if n >= 192 => break at += 2,
                _ => return None,
            }
        }
        self.labels().all(|label| label.is_some()).then_some(at)
    }

    /// Whether it is this one, whatever the case of its letters; `other` as [`encode`] gives it.
    #[must_use]
    pub fn is(&self, other: &[u8]) -> bool {
        let mut theirs = labels_of(other);
        let same = self.labels().all(|label| match (label, theirs.next()) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
            _ => false,
        });
        same && theirs.next().is_none()
    }

    /// Without pointers.
    fn plain(&self) -> Option<Vec<u8>> {
        let labels: Option<Vec<&[u8]>> = self.labels().collect();
        Some(encode(&labels?))
    }
}

/// The labels of a name, one after the other; `None` once, at the end, where it makes no sense.
struct Labels<'a> {
    bytes: &'a [u8],
    at: usize,
    /// A pointer must lead to before here.
    bound: usize,
    /// Bytes of the name so far, with its lengths.
    length: usize,
    /// Pointers so far.
    hops: u8,
    done: bool,
}

impl<'a> Labels<'a> {
    /// The next label, the empty one at the end too; `None` where it makes no sense.
    fn step(&mut self) -> Option<&'a [u8]> {
        loop {
            #[cfg(test)]
            tests::STEPS.set(tests::STEPS.get() + 1);
            match *self.bytes.get(self.at)? {
                n if n < 64 => {
                    let label = self.bytes.get(self.at + 1..self.at + 1 + usize::from(n))?;
                    self.at += 1 + label.len();
                    self.length += 1 + label.len();
                    return (self.length <= MAX_NAME).then_some(label);
                }
                n if n >= 192 => {
                    let to = usize::from(short(self.bytes, self.at)? & 0x3fff);
                    if to < HEADER || to >= self.bound || self.hops == MAX_HOPS {
                        return None;
                    }
                    self.hops += 1;
                    (self.at, self.bound) = (to, to);
                }
                _ => return None,
            }
        }
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let label = self.step();
        self.done = label.is_none_or(<[u8]>::is_empty);
        (label != Some(&[])).then_some(label)
    }
}

impl Record<'_> {
    /// What it says, as it was sent.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.message[self.data.0..self.data.1]
    }

    /// What it says without pointers, as [`Plain`] has it: names of SRV and PTR are written out.
    #[must_use]
    pub fn plain(&self) -> Option<Vec<u8>> {
        let name_at = match self.kind {
            kind::PTR => 0,
            kind::SRV => 6,
            _ => return Some(self.data().to_vec()),
        };
        let mut plain = self.data().get(..name_at)?.to_vec();
        plain.extend(Name { bytes: self.message, at: self.data.0 + name_at }.plain()?);
        Some(plain)
    }
}

/// A name of these labels as the wire has it. Labels that are too long are cut: whoever names a device has seen to that.
#[must_use]
pub fn encode(labels: &[&[u8]]) -> Vec<u8> {
    let mut name = Vec::with_capacity(MAX_NAME);
    for label in labels {
        let label = &label[..label.len().min(63)];
        name.push(u8::try_from(label.len()).unwrap_or(63));
        name.extend_from_slice(label);
    }
    name.push(0);
    name
}

fn labels_of(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (&length, more) = rest.split_first()?;
        let (label, behind) = more.split_at_checked(usize::from(length)).filter(|_| length > 0)?;
        rest = behind;
        Some(label)
    })
}

/// A record of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Whose, as [`encode`] gives it.
    pub name: Vec<u8>,
    /// See [`kind`].
    pub kind: u16,
    /// No other device has a record of this name and type.
    pub unique: bool,
    /// Seconds it is good for.
    pub ttl: u32,
    /// What it says; names in it are written out.
    pub data: Vec<u8>,
}

/// Puts a message together.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Names that stand in it, and where.
    known: Vec<(Vec<u8>, u16)>,
    counts: [u16; 4],
}

impl Writer {
    /// A question to everybody.
    #[must_use]
    pub fn query() -> Self {
        Self::new(0, 0)
    }

    /// An answer; `id` is that of the question of those who speak no Multicast DNS, else 0.
    #[must_use]
    pub fn response(id: u16) -> Self {
        Self::new(id, RESPONSE | AUTHORITATIVE)
    }

    fn new(id: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(id.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([0; 8]);
        Self { bytes, known: Vec::new(), counts: [0; 4] }
    }

    /// Before every record.
    pub fn question(&mut self, name: &[u8], kind: u16, class: u16) {
        self.name(name);
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(class.to_be_bytes());
        self.counts[0] += 1;
    }

    /// Sections in their order.
    pub fn record(&mut self, section: Section, record: &Plain, flush: bool, ttl: u32) {
        self.name(&record.name);
        self.bytes.extend(record.kind.to_be_bytes());
        let top = if flush && record.unique { TOP } else { 0 };
        self.bytes.extend((IN | top).to_be_bytes());
        self.bytes.extend(ttl.to_be_bytes());
        let length = u16::try_from(record.data.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(&record.data);
        self.counts[match section {
            Section::Answer => 1,
            Section::Authority => 2,
            Section::Additional => 3,
        }] += 1;
    }

    /// The message.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        for (n, count) in self.counts.iter().enumerate() {
            self.bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&count.to_be_bytes());
        }
        self.bytes
    }

    fn name(&mut self, name: &[u8]) {
        if let Some((_, at)) = self.known.iter().find(|(known, _)| known == name) {
            self.bytes.extend((0xc000 | at).to_be_bytes());
            return;
        }
        if let Ok(at @ 0..0x4000) = u16::try_from(self.bytes.len()) {
            self.known.push((name.to_vec(), at));
        }
        self.bytes.extend(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// Labels and pointers that this thread has read.
        pub(super) static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    fn named(text: &str) -> Vec<u8> {
        encode(&text.split('.').map(str::as_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn a_message_is_read_as_it_was_written_and_a_name_stands_in_it_once() {
        let name = named("Bench._inferd._tcp.local");
        let record = |kind, data: Vec<u8>| Plain { name: name.clone(), kind, unique: true, ttl: 120, data };
        let mut writer = Writer::response(7);
        writer.question(&name, kind::ANY, IN);
        writer.record(Section::Answer, &record(kind::TXT, b"\x01a".to_vec()), true, 4500);
        let srv = [&[0, 0, 0, 0, 0x23, 0x28][..], &named("bench.local")].concat();
        writer.record(Section::Additional, &record(kind::SRV, srv.clone()), true, 0);
        let bytes = writer.finish();
        assert_eq!(bytes.windows(5).filter(|w| w == b"Bench").count(), 1);
        let message = Message::read(&bytes).unwrap();
        assert!(message.is_response() && message.id() == 7 && !message.is_truncated());
        let questions: Vec<_> = message.questions().collect();
        assert!(questions.len() == 1 && questions[0].name.is(&named("bENCH._inferd._tcp.LOCAL")));
        let records: Vec<_> = message.records().collect();
        assert_eq!(records.len(), 2);
        assert!(records.iter().all(|record| record.name.is(&name)));
        assert_eq!(
            (records[0].section, records[0].ttl, records[0].data()),
            (Section::Answer, 4500, &b"\x01a"[..])
        );
        assert_eq!((records[1].section, records[1].plain()), (Section::Additional, Some(srv)));
    }

    #[test]
    fn a_name_is_another_when_a_label_is_more_or_less() {
        let bytes = [&[0; HEADER][..], &named("a.b.local")].concat();
        let name = Name { bytes: &bytes, at: HEADER };
        assert!(name.is(&named("A.B.local")));
        for other in ["a.b", "a.b.local.x", "b.local", "a.b.locam", "ab.local"] {
            assert!(!name.is(&named(other)), "{other}");
        }
    }

    #[test]
    fn a_name_that_leads_to_itself_onward_or_nowhere_is_none() {
        let at = |name: &[u8]| {
            let bytes = [&[0; HEADER][..], name].concat();
            Name { bytes: &bytes, at: HEADER }.end()
        };
        assert_eq!(at(b"\x01a\0"), Some(HEADER + 3));
        assert_eq!(at(&[0xc0, 12]), None, "to itself");
        assert_eq!(at(&[1, b'a', 0xc0, 12]), None, "round and round");
        assert_eq!(at(&[0xc0, 14, 1, b'a', 0]), None, "onward");
        assert_eq!(at(&[0xc0, 4]), None, "into the head");
        assert_eq!(at(&[0xc0]), None, "half a pointer");
        assert_eq!(at(&[0x40, 0]), None, "no kind of label");
        assert_eq!(at(&[9, b'a']), None, "beyond the end");
        assert_eq!(at(&[[63; 64].as_slice(); 5].concat()), None, "longer than a name may be");
    }

    /// A query for `name`, for names that nobody has with `pointers` pointers in them, each leading to the one before, and `asked` times for
    /// what the last one leads to, `name` at the end.
    fn chained(name: &[u8], pointers: usize, asked: u16) -> Vec<u8> {
        let mut bytes = [&[0; HEADER][..], name, &[0, 1, 0, 1]].concat();
        let pointer = |to: usize| (0xc000 | u16::try_from(to).unwrap()).to_be_bytes();
        let (mut to, mut questions) = (HEADER, 1 + asked);
        for begin in (0..pointers).step_by(31) {
            let within = (pointers - begin).min(31);
            bytes.push(u8::try_from(2 * within).unwrap());
            for _ in 0..within {
                let at = bytes.len();
                bytes.extend(pointer(to));
                to = at;
            }
            bytes.extend([0, 0, 1, 0, 1]);
            questions += 1;
        }
        for _ in 0..asked {
            bytes.extend(pointer(to));
            bytes.extend([0, 1, 0, 1]);
        }
        bytes[4..6].copy_from_slice(&questions.to_be_bytes());
        bytes
    }

    #[test]
    fn a_name_has_sixteen_pointers_at_most() {
        let name = named("bench.local");
        // One more than the chain has leads into it.
        let asked = |pointers| {
            let bytes = chained(&name, pointers, 3);
            Message::read(&bytes).unwrap().questions().filter(|q| q.name.is(&name)).count()
        };
        assert_eq!((asked(1), asked(15)), (4, 4));
        assert_eq!(asked(16), 1, "what stands before the first that makes no sense");
    }

    #[test]
    fn no_message_takes_more_steps_to_read_than_its_questions_have_labels_and_pointers() {
        let steps_of = |bytes: &[u8]| {
            assert!(bytes.len() <= MAX_MESSAGE);
            let message = Message::read(bytes).unwrap();
            STEPS.set(0);
            let questions = message.questions().count();
            assert_eq!(message.records().count(), 0);
            (questions, STEPS.get())
        };
        // Each question is gone over twice, once for what stands behind them.
        let most = 2 * MAX_ITEMS * (MAX_NAME / 2 + 1 + usize::from(MAX_HOPS));
        let long = encode(&[b"a".as_slice(); 127]);
        let (questions, steps) = steps_of(&chained(&long, 15, 254));
        assert_eq!(questions, MAX_ITEMS, "the most that one may ask for is read");
        assert!(steps > most / 2 && steps <= most, "{steps} of {most}");
        let (questions, steps) = steps_of(&chained(&named("bench.local"), 3658, 134));
        assert!(questions == 119 && steps < 1000, "a chain of thousands is left at its beginning: {steps}");
    }

    #[test]
    fn whatever_comes_is_read_to_an_end() {
        let name = named("bench._inferd._tcp.local");
        let mut writer = Writer::query();
        writer.question(&name, kind::ANY, IN);
        writer.record(
            Section::Authority,
            &Plain { name, kind: kind::TXT, unique: true, ttl: 1, data: vec![1, b'x'] },
            false,
            1,
        );
        let good = writer.finish();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut read = 0_usize;
        for round in 0..200_000_u32 {
            let mut bytes = good.clone();
            for _ in 0..=round % 4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let [at, value, ..] = state.to_le_bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - usize::from(round % 7 == 0) * (round as usize % good.len()));
            let Some(message) = Message::read(&bytes) else { continue };
            read += message.questions().filter(|q| !q.name.is(b"\0")).count();
            read += message.records().filter_map(|r| r.plain()).map(|plain| plain.len()).sum::<usize>();
        }
        assert!(read > 200_000, "most of it is still a message");
    }
}
