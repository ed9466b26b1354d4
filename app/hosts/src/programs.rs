//! Which engines this image has beside the built-in one: asked of the program that has them, once, when the daemon starts.
//!
//! Asking an engine runs the constructors of a vendor's library and opens its device, and any of that may crash, hang or print. So
//! each engine is asked in a process of its own, all at once, with little time and confined as a host of it is, memory included; and one
//! that does not answer is an engine with a problem: the others are there all the same. Nobody waits for an answer but models that name
//! that engine, and at a start those that come up behind one of them: a bundle's one after another, then the image's. The answer is
//! one line on a pipe that the library does not know.

use crate::{
    confine::{self, Stage},
    sys::{self, OwnMemory},
    words,
};
use inferd_engine::{CpuEngine, Engine as _};
use inferd_model::EngineKind;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

/// How long an engine may take: a library of 400 MB is read from a slow card.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer.
const MOST: u64 = 64 << 10;
/// What a library may use while it is only asked, in bytes.
const MEMORY: u64 = 1 << 30;
/// How long the last words of a process that has ended are waited for: one that it left behind may hold the pipe open.
const REST: Duration = Duration::from_millis(200);
/// How much of its last words is kept, in bytes.
const LAST_WORDS: usize = 1024;
/// The argument after an engine's name that leaves the filter of system calls out.
const UNFILTERED: &str = "unfiltered";

/// An engine of this image, and what is known of it before any model. A host program prints these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineHere {
    /// Which one.
    pub engine: EngineKind,
    /// Its library and version.
    pub version: Option<String>,
    /// Where its library is, when it is one loaded at run time.
    pub library: Option<PathBuf>,
    /// What it can compute on.
    pub providers: Vec<String>,
    /// Why it is not used.
    pub problem: Option<String>,
    /// The problem is its device's and may pass: where a device is known to be on the bus the engine is tried all the same.
    #[serde(default)]
    pub waits: bool,
    /// The problem is that its library is not installed, and nobody has said that it is: an image need not have every engine.
    #[serde(default)]
    pub absent: bool,
    /// Parts of it that must be of one release are not: which, and what to do. It may work all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

impl EngineHere {
    /// An engine of which nothing is known.
    #[must_use]
    pub fn unknown(engine: EngineKind) -> Self {
        Self {
            engine,
            version: None,
            library: None,
            providers: Vec::new(),
            problem: None,
            waits: false,
            absent: false,
            mismatch: None,
        }
    }

    /// The engine of the daemon's own program.
    #[must_use]
    pub fn built_in() -> Self {
        let version = Some(CpuEngine::new().version());
        Self { version, providers: vec!["cpu".to_owned()], ..Self::unknown(EngineKind::Cpu) }
    }

    /// An engine that is being asked.
    fn unanswered(engine: EngineKind) -> Self {
        let problem = Some("it was asked what works here and has not answered yet".to_owned());
        Self { problem, ..Self::unknown(engine) }
    }

    /// An engine that was asked and did not say anything. Whether its device or its library is to blame is not known.
    fn silent(engine: EngineKind, why: &str) -> Self {
        Self { problem: Some(format!("looking for it failed: {why}")), waits: true, ..Self::unknown(engine) }
    }

    fn tell(&self) {
        let engine = self.engine;
        match &self.problem {
            Some(problem) if self.absent => tracing::info!("engine {engine} is not installed: {problem}"),
            Some(problem) => tracing::warn!("engine {engine} is not used: {problem}"),
            None => tracing::info!(
                version = self.version.as_deref(),
                library = self.library.as_ref().map(|l| l.display().to_string()),
                "engine {engine}"
            ),
        }
    }
}

/// Engines that are being asked.
#[derive(Debug)]
pub struct Asking {
    engines: Vec<EngineKind>,
    answers: JoinSet<(EngineKind, Option<EngineHere>)>,
}

impl Asking {
    /// Asks the program, if there is one, about every engine. Within the runtime that serves.
    #[must_use]
    pub fn of(program: Option<&Path>, environment: &[(String, OsString)], seccomp: bool) -> Self {
        EngineHere::built_in().tell();
        let mut asking = Self { engines: Vec::new(), answers: JoinSet::new() };
        let Some(program) = program.filter(|p| p.exists()) else { return asking };
        asking.engines = EngineKind::ALL.into_iter().filter(|&e| e != EngineKind::Cpu).collect();
        for &engine in &asking.engines {
            let (program, environment) = (program.to_owned(), environment.to_owned());
            asking.answers.spawn(async move {
                let answer = ask(&program, engine, &environment, seccomp, PATIENCE).await;
                (engine, answer.unwrap_or_else(|why| Some(EngineHere::silent(engine, &why))))
            });
        }
        asking
    }

    /// The engines that were asked.
    #[must_use]
    pub fn asked(&self) -> &[EngineKind] {
        &self.engines
    }

    /// What is known before any of them has answered: the built-in engine first.
    #[must_use]
    pub fn known(&self) -> Vec<EngineHere> {
        let asked = self.engines.iter().map(|&engine| EngineHere::unanswered(engine));
        std::iter::once(EngineHere::built_in()).chain(asked).collect()
    }

    /// The next answer, in the order they come: `None` of an engine that the program does not have. At the end nothing.
    pub async fn next(&mut self) -> Option<(EngineKind, Option<EngineHere>)> {
        loop {
            // One whose task panicked is waited for by nobody but those who want it: they are told when all others have answered.
            let (engine, here) = match self.answers.join_next().await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) => continue,
                None => {
                    let engine = self.engines.pop()?;
                    (engine, Some(EngineHere::silent(engine, "asking it failed")))
                }
            };
            self.engines.retain(|e| *e != engine);
            if let Some(here) = &here {
                here.tell();
            }
            return Some((engine, here));
        }
    }
}

/// Asks a program about one engine; `None` when it does not have it.
async fn ask(
    program: &Path,
    engine: EngineKind,
    environment: &[(String, OsString)],
    seccomp: bool,
    patience: Duration,
) -> Result<Option<EngineHere>, String> {
    let mut command = Command::new(program);
    command
        .args(["engines", engine.name()])
        .args((!seccomp).then_some(UNFILTERED))
        .env_clear()
        .envs([confine::NO_REPORTS])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let parent = i32::try_from(std::process::id()).unwrap_or_default();
    sys::prepare(&mut command, sys::ChildSetup { inherit: Vec::new(), cgroup_procs: None, parent });
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let group = child.id().unwrap_or_default();
    let out = child.stdout.take().ok_or("it has no pipe")?;
    let said = tokio::spawn(last_line(child.stderr.take().ok_or("it has no pipe")?));
    let mut line = Vec::new();
    let reading = async {
        BufReader::new(out.take(MOST)).read_until(b'\n', &mut line).await?;
        // One that has answered is done with; how it ends is nobody's concern any more.
        Ok(if line.ends_with(b"\n") { None } else { Some(child.wait().await?) })
    };
    let ended = tokio::time::timeout(patience, reading).await;
    // Whatever is left of it, with what it has started. One that hangs in its driver is not waited for.
    sys::kill_group(group);
    match ended {
        Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
        Ok(Err::<_, io::Error>(e)) => Err(e.to_string()),
        Ok(Ok(Some(status))) => {
            let said = tokio::time::timeout(REST, said).await.ok().and_then(Result::ok).flatten();
            Err(how_it_ended(status, said))
        }
        Ok(Ok(None)) => match serde_json::from_slice::<Option<EngineHere>>(&line) {
            Ok(Some(here)) if here.engine != engine => Err(format!("it speaks of {}", here.engine)),
            Ok(answer) => Ok(answer),
            Err(e) => Err(format!("its answer is not what it should be: {e}")),
        },
    }
}

/// How a process that gave no answer ended.
fn how_it_ended(status: ExitStatus, said: Option<String>) -> String {
    let said: Vec<String> = said.into_iter().collect();
    match status.code() {
        Some(code) if code == i32::from(confine::TRAPPED) => {
            "it tried a system call that engines may not make".to_owned()
        }
        Some(code) => {
            words::not_loaded(code, &said).unwrap_or_else(|| format!("its process ended with {status}"))
        }
        None => format!("its process ended with {status}"),
    }
}

/// The last line of what is read, once it ends. All of it is read, so that nobody waits at a pipe that is full.
async fn last_line(mut from: impl AsyncRead + Unpin) -> Option<String> {
    let (mut last, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        last.extend_from_slice(&buffer[..n]);
        last.drain(..last.len().saturating_sub(LAST_WORDS));
    }
    let text = String::from_utf8_lossy(&last);
    text.lines().rev().map(words::plain).map(|line| line.trim().to_owned()).find(|line| !line.is_empty())
}

/// The main function of `PROGRAM engines [ENGINE]`: one line for an engine that is named (`null` when the program does not have it),
/// else a list of all, each looked at in this process. Call it before any thread is made.
///
/// Rights, memory and system calls are given up as in a host. What a library prints to standard output goes nowhere.
#[must_use]
pub fn engines_main(look: fn(EngineKind) -> Option<EngineHere>) -> ExitCode {
    let told = || -> io::Result<()> {
        let mut answer = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        let line = match std::env::args().nth(2) {
            Some(name) => {
                let named = EngineKind::ALL.into_iter().find(|e| e.name() == name);
                let engine = named.ok_or_else(|| io::Error::other(format!("there is no engine {name}")))?;
                confine_this(engine)?;
                serde_json::to_string(&look(engine))?
            }
            None => {
                confine_this(EngineKind::Ort)?;
                let all: Vec<EngineHere> = EngineKind::ALL.into_iter().filter_map(look).collect();
                serde_json::to_string(&all)?
            }
        };
        answer.write_all(format!("{line}\n").as_bytes())
    };
    match told() {
        // At once: the destructors of a vendor's library have nothing to say here.
        Ok(()) => sys::exit_now(0),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Confines this process to what a host of the engine may do while it loads.
fn confine_this(engine: EngineKind) -> io::Result<()> {
    static TRAPPED: AtomicU64 = AtomicU64::new(0);
    let own_memory = OwnMemory::open()?;
    confine::give_up_rights(engine)?;
    own_memory.cap(MEMORY)?;
    if std::env::args().nth(3).is_none_or(|a| a != UNFILTERED) {
        confine::limit_calls(engine, Stage::Loading, &TRAPPED).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that does as a script says; `$2` is the engine it is asked about.
    async fn of(script: &str) -> Vec<EngineHere> {
        let (_dir, program) = program(script);
        engines_here(Some(&program), &[("INFERD_ORT_LIB".into(), "/x/lib.so".into())]).await
    }

    /// Everything that is known when all have answered, in the order of the engines.
    async fn engines_here(program: Option<&Path>, environment: &[(String, OsString)]) -> Vec<EngineHere> {
        let mut asking = Asking::of(program, environment, true);
        let mut engines = vec![EngineHere::built_in()];
        while let Some((_, here)) = asking.next().await {
            engines.extend(here);
        }
        engines.sort_by_key(|e| EngineKind::ALL.iter().position(|k| *k == e.engine));
        engines
    }

    fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("host");
        let made = dir.path().join("made");
        std::fs::write(&made, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Copied by another process: a program that this one had open for writing could be started by nobody ("text file busy")
        // while a child that a test beside this one has just forked still holds the descriptor.
        let copied =
            std::process::Command::new("install").args(["-m", "755"]).args([&made, &program]).status();
        assert!(copied.unwrap().success());
        (dir, program)
    }

    fn kinds(engines: &[EngineHere]) -> Vec<EngineKind> {
        engines.iter().map(|e| e.engine).collect()
    }

    /// A script's answer for the engine ort, with a version.
    fn answer(version: &str) -> String {
        format!(
            r#"echo "{{\"engine\":\"ort\",\"version\":\"{version}\",\"library\":\"$INFERD_ORT_LIB\",\"providers\":[\"cpu\"],\"problem\":null}}""#
        )
    }

    #[tokio::test]
    async fn an_engine_that_does_not_answer_has_a_problem_and_the_built_in_one_is_there() {
        let bad = [
            ("exit 3", "exit status: 3"),
            ("echo no json", "not what it should be"),
            ("echo '{\"engine\":\"warp\"}'", "not what it should be"),
            ("kill -9 $$", "SIGKILL"),
            ("echo '{}'", "not what it should be"),
            ("", "exit status: 0"),
            ("printf null", "exit status: 0"),
            (
                "echo \"$0: error while loading shared libraries: libx.so.1: not there\" >&2; exit 127",
                "lacks libx.so.1",
            ),
            ("yes x | head -c 200000 >&2; exit 9", "exit status: 9"),
            ("yes | tr -d '\\n' | head -c 200000", "ended with"),
        ];
        for (script, said) in bad {
            let engines = of(script).await;
            assert_eq!(kinds(&engines), EngineKind::ALL, "{script}");
            assert_eq!(engines[0].problem, None);
            for engine in &engines[1..] {
                let problem = engine.problem.as_deref().unwrap();
                assert!(problem.contains(said) && engine.waits, "{script}: {problem}");
            }
        }
        assert_eq!(engines_here(Some(Path::new("/nowhere")), &[]).await.len(), 1);
        assert_eq!(engines_here(None, &[]).await.len(), 1);
    }

    #[tokio::test]
    async fn it_says_what_it_has_and_where() {
        let engines = of(&format!("[ $2 = ort ] && {} || echo null", answer("1.21.0"))).await;
        assert_eq!(kinds(&engines), [EngineKind::Cpu, EngineKind::Ort]);
        assert_eq!(engines[1].library.as_deref(), Some(Path::new("/x/lib.so")));
    }

    #[tokio::test]
    async fn one_engine_takes_no_other_away() {
        for fate in ["kill -SEGV $$", "echo null", "echo rubbish", "exit 1"] {
            let engines = of(&format!("[ $2 = ort ] && {} || {{ {fate}; }}", answer("1.21.0"))).await;
            let ort = engines.iter().find(|e| e.engine == EngineKind::Ort).unwrap();
            assert_eq!((ort.version.as_deref(), &ort.problem), (Some("1.21.0"), &None), "{fate}");
        }
        let crossed = of(&answer("1.21.0")).await;
        assert_eq!(crossed.iter().filter(|e| e.problem.is_none()).count(), 2, "only ort is told by ort");
    }

    #[tokio::test]
    async fn who_hangs_is_ended_with_all_it_started_and_who_has_answered_is_not_waited_for() {
        let (dir, hangs) = program("sleep 1000 & echo $! > \"$0.pid\"; wait");
        let late = ask(&hangs, EngineKind::Hailo, &[], true, Duration::from_secs(1)).await;
        assert_eq!(late.unwrap_err(), "no answer within 1 s");
        let pid = std::fs::read_to_string(dir.path().join("host.pid")).unwrap_or_default();
        // It may not have come so far; when it has, its child goes too.
        while !pid.is_empty() && is_alive(pid.trim()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (_dir, lingers) = program(&format!("{}; sleep 1000", answer("1.21.0")));
        let there = ask(&lingers, EngineKind::Ort, &[], true, Duration::from_secs(600)).await;
        assert_eq!(there.unwrap().unwrap().version.as_deref(), Some("1.21.0"));
    }

    /// Whether a process is there and no zombie that waits for its parent.
    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
    }

    #[tokio::test]
    async fn before_anybody_has_answered_the_built_in_engine_is_known_and_who_is_quick_waits_for_nobody() {
        let script = format!("[ $2 = ort ] && {{ {}; exit; }}; exec sleep 1000", answer("1.21.0"));
        let (_dir, program) = program(&script);
        let mut asking = Asking::of(Some(&program), &[], true);
        let known = asking.known();
        assert_eq!((kinds(&known), &known[0].problem), (EngineKind::ALL.to_vec(), &None));
        assert!(
            known[1..].iter().all(|e| e.problem.as_ref().is_some_and(|p| p.contains("not answered yet")))
        );
        let (engine, here) = asking.next().await.unwrap();
        assert_eq!((engine, here.unwrap().version.as_deref()), (EngineKind::Ort, Some("1.21.0")));
    }

    #[tokio::test]
    async fn the_program_is_told_to_report_nothing_to_anybody() {
        let script = format!("[ $2 = ort ] && {} || echo null", answer("$ORT_DISABLE_TELEMETRY"));
        assert_eq!(of(&script).await[1].version.as_deref(), Some("1"));
    }
}
