//! The door between the daemon, which has the network, and root, who installs systems: a Unix socket that `inferd system serve` listens on.
//!
//! One question a connection, a line of JSON; then one or two answers, a line each:
//!
//! | question | then | answers |
//! |---|---|---|
//! | `{"ask":"status"}` | | `status` |
//! | `{"ask":"install"}` | the bundle's bytes, then the end of what is sent | `writing` once it was judged, `staged` |
//! | `{"ask":"try"}` | | `trying`: the board is about to be restarted |
//!
//! Any may be answered `refused` instead, also in the middle of a bundle. The bundle is its own frame: it says how long it is, and an end before
//! that is no end but a cut. What the daemon says is not believed: root judges the bundle as if a stranger had brought it.

use crate::Slot;
use crate::board::View;
use crate::state::{About, MAX_SENTENCE, Reason, State};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Where root listens.
pub const SOCKET: &str = "/run/inferd/system/door";
/// The variable that says where instead.
pub const SOCKET_VARIABLE: &str = "INFERD_SYSTEM";
/// The longest question, in bytes.
pub const MAX_ASK: u64 = 256;
/// The longest answer, in bytes.
pub const MAX_ANSWER: u64 = 256 << 10;

/// How long root may take to answer what needs no partition to be read, or to take the next bytes.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long while it hashes partitions.
const HASHING: Duration = Duration::from_secs(1800);

/// How long one who is busy is asked again, and how often.
const AT_ITS_END: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);

/// What root is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// What is known.
    Status {},
    /// Write the bundle that follows into the slot that is not chosen.
    Install {},
    /// Restart the board to try what is staged.
    Try {},
}

/// What root answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// What is known.
    Status {
        /// All of it.
        told: Box<Told>,
    },
    /// The bundle was judged; the slot is being written.
    Writing {
        /// The slot.
        slot: Slot,
    },
    /// It is there, hashed from the medium.
    Staged {
        /// The slot.
        slot: Slot,
        /// Which system.
        about: About,
    },
    /// The board is about to be restarted.
    Trying,
    /// It is not done.
    Refused {
        /// Why.
        reason: Reason,
    },
}

/// What is known of a board's systems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What the board and its boot loader say; `None` where no board is described.
    pub board: Option<View>,
    /// What was begun, floors and verdicts; `None` where that cannot be known.
    pub state: Option<State>,
    /// Why a system is neither installed nor tried here.
    pub refused: Option<Reason>,
    /// The most bytes that a bundle for this board's partitions can have, roughly; 0 where they are not there.
    pub capacity: u64,
}

/// The question of a line.
///
/// # Errors
/// What is wrong with it.
pub fn question(line: &[u8]) -> Result<Ask, Reason> {
    let wrong = |why: String| Reason { code: "bad-request".into(), sentence: why };
    if line.len() as u64 > MAX_ASK {
        return Err(wrong(format!("a question has {MAX_ASK} bytes at most")));
    }
    serde_json::from_slice(line).map_err(|e| wrong(format!("that is no question: {e}")))
}

/// A line, with its end. `None`: nothing came any more.
///
/// # Errors
/// What the system says, or that the line is longer than `most`.
pub fn line(from: &mut impl BufRead, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let n = from.by_ref().take(most).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(Some(line)),
        _ if n as u64 == most => Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long")),
        _ => Ok(None),
    }
}

impl Answer {
    /// As it is sent. Sentences are cut, so that it is never longer than [`MAX_ANSWER`].
    #[must_use]
    pub fn line(mut self) -> Vec<u8> {
        let cut = |text: &mut String| text.truncate(text.floor_char_boundary(MAX_SENTENCE));
        match &mut self {
            Self::Refused { reason } => cut(&mut reason.sentence),
            Self::Status { told } => {
                told.refused.iter_mut().for_each(|reason| cut(&mut reason.sentence));
                told.board.iter_mut().flat_map(|view| &mut view.refused).for_each(|(_, why)| cut(why));
                let Some(state) = &mut told.state else { return self.text() };
                state.verdicts.iter_mut().for_each(|verdict| cut(&mut verdict.reason.sentence));
                if let crate::state::Phase::Trial { gave_up: Some(reason), .. } = &mut state.phase {
                    cut(&mut reason.sentence);
                }
            }
            Self::Writing { .. } | Self::Staged { .. } | Self::Trying => {}
        }
        self.text()
    }

    fn text(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The daemon's side. Everything blocks.
#[derive(Clone, Debug)]
pub struct Door(PathBuf);

/// A bundle on its way through the door. Dropped before its end, it is cut: its slot does not start.
#[derive(Debug)]
pub struct Delivery {
    answers: BufReader<UnixStream>,
    /// The slot it goes to.
    pub slot: Slot,
}

fn gone(why: impl std::fmt::Display) -> Reason {
    Reason {
        code: "system-gone".into(),
        sentence: format!("who installs systems on this device stopped in the middle: {why}"),
    }
}

fn unasked(answer: &Answer) -> Reason {
    gone(format!("{answer:?} is no answer to that"))
}

impl Door {
    /// The door of this device: [`SOCKET`], or what [`SOCKET_VARIABLE`] says.
    #[must_use]
    pub fn of_this_device() -> Self {
        Self::at(std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from))
    }

    /// The door at this place.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Whether somebody has opened it since the start.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// What is known of this device's systems.
    ///
    /// # Errors
    /// Why that cannot be had.
    pub fn status(&self) -> Result<Told, Reason> {
        match self.ask(Ask::Status {}, PATIENCE)? {
            Answer::Status { told } => Ok(*told),
            other => Err(unasked(&other)),
        }
    }

    /// Has the board restarted to try what is staged. Returns when that was ordered.
    ///
    /// # Errors
    /// Why it is not tried.
    pub fn try_it(&self) -> Result<(), Reason> {
        match self.ask(Ask::Try {}, HASHING)? {
            Answer::Trying => Ok(()),
            other => Err(unasked(&other)),
        }
    }

    /// Begins with the first bytes of a bundle, up to its payload. Returns when root has judged them. Root may still be at the end of an upload
    /// that was cut a moment ago; that is waited for.
    ///
    /// # Errors
    /// Why root does not take it.
    pub fn install(&self, prefix: &[u8]) -> Result<Delivery, Reason> {
        let end = Instant::now() + AT_ITS_END;
        loop {
            match self.begin(prefix) {
                Err(reason) if reason.code == "busy" && Instant::now() < end => thread::sleep(AGAIN),
                done => return done,
            }
        }
    }

    fn begin(&self, prefix: &[u8]) -> Result<Delivery, Reason> {
        let mut answers = self.open(Ask::Install {}, PATIENCE)?;
        // Refused while they are being sent: the answer is there.
        let sent = answers.get_mut().write_all(prefix);
        match answer(&mut answers) {
            Ok(Answer::Writing { slot }) => Ok(Delivery { answers, slot }),
            Ok(other) => Err(unasked(&other)),
            Err(reason) if reason.code != "system-gone" => Err(reason),
            Err(reason) => Err(sent.err().map_or(reason, gone)),
        }
    }

    fn ask(&self, what: Ask, patience: Duration) -> Result<Answer, Reason> {
        answer(&mut self.open(what, patience)?)
    }

    fn open(&self, what: Ask, patience: Duration) -> Result<BufReader<UnixStream>, Reason> {
        let mut stream = UnixStream::connect(&self.0).map_err(gone)?;
        stream.set_read_timeout(Some(patience)).map_err(gone)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(gone)?;
        let mut line = serde_json::to_vec(&what).map_err(gone)?;
        line.push(b'\n');
        // One that turns people away says so before it has read.
        let _ = stream.write_all(&line);
        Ok(BufReader::new(stream))
    }
}

impl Delivery {
    /// The next bytes. Returns when root has room for them: that is the flow control.
    ///
    /// # Errors
    /// Why root takes no more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        match self.answers.get_mut().write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.why(error)),
        }
    }

    /// That was all. Returns when the whole slot was hashed from the medium.
    ///
    /// # Errors
    /// Why it is not staged.
    pub fn finish(mut self) -> Result<About, Reason> {
        let stream = self.answers.get_mut();
        let told = stream.set_read_timeout(Some(HASHING)).and_then(|()| stream.shutdown(Shutdown::Write));
        if let Err(error) = told {
            return Err(self.why(error));
        }
        match answer(&mut self.answers)? {
            Answer::Staged { about, .. } => Ok(about),
            other => Err(unasked(&other)),
        }
    }

    /// What root said before it hung up.
    fn why(&mut self, error: io::Error) -> Reason {
        match answer(&mut self.answers) {
            Ok(other) => unasked(&other),
            Err(reason) if reason.code != "system-gone" => reason,
            Err(_) => gone(error),
        }
    }
}

fn answer(from: &mut BufReader<UnixStream>) -> Result<Answer, Reason> {
    let line = line(from, MAX_ANSWER).map_err(gone)?.ok_or_else(|| gone("it hung up"))?;
    match serde_json::from_slice(&line).map_err(gone)? {
        Answer::Refused { reason } => Err(reason),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Outcome, Phase, Tries, Verdict};
    use std::os::unix::net::UnixListener;

    fn reason(sentence: &str) -> Reason {
        Reason { code: "not-ready".into(), sentence: sentence.into() }
    }

    /// Somebody behind a door who says one of these to each who comes, and hangs up.
    fn saying(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Door) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                line(&mut BufReader::new(&stream), MAX_ASK).unwrap();
                // Who has heard enough may be gone.
                let _ = (&stream).write_all(&answer);
            }
        });
        (folder, Door::at(path))
    }

    fn refused(code: &str) -> Vec<u8> {
        Answer::Refused { reason: Reason { code: code.into(), sentence: String::new() } }.line()
    }

    #[test]
    fn what_is_no_answer_to_a_question_is_an_end_in_the_middle() {
        let wrong = [b"".to_vec(), b"{}\n".to_vec(), b"trying\n".to_vec(), vec![b' '; 300 << 10]];
        for said in wrong.into_iter().chain([Answer::Writing { slot: Slot::A }.line()]) {
            let (_folder, door) = saying(vec![said.clone(), said]);
            assert_eq!(door.status().unwrap_err().code, "system-gone");
            assert_eq!(door.try_it().unwrap_err().code, "system-gone");
        }
        let (_folder, door) = saying(vec![Answer::Trying.line()]);
        assert_eq!(door.install(b"x").unwrap_err().code, "system-gone");
        assert_eq!(door.status().unwrap_err().code, "system-gone", "nobody is there any more");
    }

    #[test]
    fn an_install_waits_for_one_who_is_at_the_end_of_another_and_for_nothing_else() {
        let writing = Answer::Writing { slot: Slot::B }.line();
        let (_folder, door) = saying(vec![refused("busy"), refused("busy"), writing.clone()]);
        assert_eq!(door.install(b"x").unwrap().slot, Slot::B);
        let (_folder, door) = saying(vec![refused("wrong-role"), writing]);
        assert_eq!(door.install(b"x").unwrap_err().code, "wrong-role");
    }

    #[test]
    fn a_refusal_in_the_middle_of_a_bundle_is_heard() {
        let said = [Answer::Writing { slot: Slot::B }.line(), refused("read-back-differs")].concat();
        let (_folder, door) = saying(vec![said]);
        let mut delivery = door.install(b"x").unwrap();
        let why = (0..10_000).find_map(|_| delivery.push(&[0; 4096]).err()).unwrap();
        assert_eq!(why.code, "read-back-differs");
    }

    #[test]
    fn a_question_is_one_of_three_and_nothing_beside() {
        assert_eq!(question(b"{\"ask\":\"status\"}\n"), Ok(Ask::Status {}));
        assert_eq!(question(b"{\"ask\":\"install\"}\n"), Ok(Ask::Install {}));
        assert_eq!(question(b" {\"ask\": \"try\"} \r\n"), Ok(Ask::Try {}));
        for bad in [
            &b""[..],
            b"\n",
            b"try",
            b"{\"ask\":\"commit\"}",
            b"{\"ask\":\"try\",\"slot\":\"a\"}",
            b"\xff",
            &[b' '; 300],
        ] {
            assert_eq!(question(bad).unwrap_err().code, "bad-request");
        }
    }

    #[test]
    fn a_line_is_not_read_beyond_its_end_nor_beyond_its_limit() {
        let mut from = BufReader::new(&b"{}\nrest"[..]);
        assert_eq!(line(&mut from, 10).unwrap().unwrap(), b"{}\n");
        let mut rest = Vec::new();
        from.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"rest");
        assert_eq!(line(&mut &b"half"[..], 10).unwrap(), None, "half a line is none");
        assert!(line(&mut &[b'x'; 100][..], 10).is_err());
    }

    #[test]
    fn the_longest_answer_fits_and_is_read_as_it_was_written() {
        let about = About {
            bundle: "0".repeat(64),
            product: "p".repeat(64),
            version: u64::MAX,
            label: "l".repeat(256),
            hold_s: 30,
        };
        // Every byte of these becomes six in JSON.
        let long = reason(&"\u{1}".repeat(100_000));
        let verdict = Verdict {
            number: u64::MAX,
            outcome: Outcome::Interrupted,
            about: about.clone(),
            slot: Slot::A,
            reason: long.clone(),
            boot: u64::MAX,
            tries: Tries::default(),
        };
        let phase = Phase::Trial {
            slot: Slot::B,
            about,
            tries: Tries::default(),
            boot: 1,
            gave_up: Some(long.clone()),
        };
        let state = State { phase, verdicts: vec![verdict; 16], ..State::default() };
        let told = Told { board: None, state: Some(state), refused: Some(long), capacity: 7 };
        let text = Answer::Status { told: Box::new(told) }.line();
        assert!((text.len() as u64) < MAX_ANSWER, "{}", text.len());
        let mut from = &text[..];
        let read = line(&mut from, MAX_ANSWER).unwrap().unwrap();
        let Answer::Status { told } = serde_json::from_slice(&read).unwrap() else { panic!() };
        let state = told.state.unwrap();
        assert_eq!(state.verdicts.len(), 16);
        assert!(matches!(state.phase, Phase::Trial { gave_up: Some(_), .. }), "also what lies deep");
    }
}
