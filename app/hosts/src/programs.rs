//! Which engines this image has beside the built-in one: asked of the program that has them, once, before models are loaded.
//!
//! Asking an engine runs the constructors of a vendor's library and opens its device, and any of that may crash, hang or print. So
//! each engine is asked in a process of its own, all at once, without rights and with little time, and one that does not answer is
//! an engine with a problem: the others are there all the same. The answer is one line on a pipe that the library does not know.

use crate::{confine, sys};
use inferd_engine::{CpuEngine, Engine as _};
use inferd_model::EngineKind;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

/// How long an engine may take: a library of 400 MB is read from a slow card.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer.
const MOST: u64 = 64 << 10;

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
}

/// Every engine of this image, the built-in one first. Those with a problem are named and not used.
pub async fn engines_here(program: Option<&Path>, environment: &[(String, OsString)]) -> Vec<EngineHere> {
    let mut engines = vec![EngineHere {
        engine: EngineKind::Cpu,
        version: Some(CpuEngine::new().version()),
        library: None,
        providers: vec!["cpu".to_owned()],
        problem: None,
        waits: false,
    }];
    let Some(program) = program.filter(|p| p.exists()) else { return engines };
    let vendors = EngineKind::ALL.into_iter().filter(|&e| e != EngineKind::Cpu);
    let asked: Vec<_> = vendors
        .map(|engine| {
            let (program, environment) = (program.to_owned(), environment.to_owned());
            let asking = async move { ask(&program, engine, &environment, PATIENCE).await };
            (engine, tokio::spawn(asking))
        })
        .collect();
    for (engine, asking) in asked {
        let answer = asking.await.unwrap_or_else(|e| Err(e.to_string()));
        engines.extend(answer.unwrap_or_else(|why| Some(silent(engine, &why))));
    }
    for engine in &engines {
        match &engine.problem {
            Some(problem) => tracing::warn!("engine {} is not used: {problem}", engine.engine),
            None => tracing::info!(
                version = engine.version.as_deref(),
                library = engine.library.as_ref().map(|l| l.display().to_string()),
                "engine {}",
                engine.engine
            ),
        }
    }
    engines
}

/// An engine that was asked and did not say anything. Whether its device or its library is to blame is not known.
fn silent(engine: EngineKind, why: &str) -> EngineHere {
    let problem = Some(format!("looking for it failed: {why}"));
    EngineHere { engine, version: None, library: None, providers: Vec::new(), problem, waits: true }
}

/// Asks a program about one engine; `None` when it does not have it.
async fn ask(
    program: &Path,
    engine: EngineKind,
    environment: &[(String, OsString)],
    patience: Duration,
) -> Result<Option<EngineHere>, String> {
    let mut command = Command::new(program);
    command
        .args(["engines", engine.name()])
        .env_clear()
        .envs([confine::NO_REPORTS])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let parent = i32::try_from(std::process::id()).unwrap_or_default();
    sys::prepare(&mut command, sys::ChildSetup { inherit: Vec::new(), cgroup_procs: None, parent });
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let group = child.id().unwrap_or_default();
    let out = child.stdout.take().ok_or("it has no pipe")?;
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
        Ok(Ok(Some(status))) => Err(format!("its process ended with {status}")),
        Ok(Ok(None)) => match serde_json::from_slice::<Option<EngineHere>>(&line) {
            Ok(Some(here)) if here.engine != engine => Err(format!("it speaks of {}", here.engine)),
            Ok(answer) => Ok(answer),
            Err(e) => Err(format!("its answer is not what it should be: {e}")),
        },
    }
}

/// The main function of `PROGRAM engines [ENGINE]`: one line for an engine that is named (`null` when the program does not have it),
/// else a list of all, each looked at in this process. Call it before any thread is made.
///
/// Rights are given up as in a host. What a library prints to standard output goes nowhere.
#[must_use]
pub fn engines_main(look: fn(EngineKind) -> Option<EngineHere>) -> ExitCode {
    let told = || -> io::Result<()> {
        let mut answer = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        let line = match std::env::args().nth(2) {
            Some(name) => {
                let named = EngineKind::ALL.into_iter().find(|e| e.name() == name);
                let engine = named.ok_or_else(|| io::Error::other(format!("there is no engine {name}")))?;
                confine::give_up_rights(engine)?;
                serde_json::to_string(&look(engine))?
            }
            None => {
                confine::give_up_rights(EngineKind::Ort)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A program that does as a script says; `$2` is the engine it is asked about.
    async fn of(script: &str) -> Vec<EngineHere> {
        let (_dir, program) = program(script);
        engines_here(Some(&program), &[("INFERD_ORT_LIB".into(), "/x/lib.so".into())]).await
    }

    fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("host");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
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
        let late = ask(&hangs, EngineKind::Hailo, &[], Duration::from_secs(1)).await;
        assert_eq!(late.unwrap_err(), "no answer within 1 s");
        let pid = std::fs::read_to_string(dir.path().join("host.pid")).unwrap_or_default();
        // It may not have come so far; when it has, its child goes too.
        while !pid.is_empty() && is_alive(pid.trim()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (_dir, lingers) = program(&format!("{}; sleep 1000", answer("1.21.0")));
        let there = ask(&lingers, EngineKind::Ort, &[], Duration::from_secs(600)).await;
        assert_eq!(there.unwrap().unwrap().version.as_deref(), Some("1.21.0"));
    }

    /// Whether a process is there and no zombie that waits for its parent.
    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
    }

    #[tokio::test]
    async fn the_program_is_told_to_report_nothing_to_anybody() {
        let script = format!("[ $2 = ort ] && {} || echo null", answer("$ORT_DISABLE_TELEMETRY"));
        assert_eq!(of(&script).await[1].version.as_deref(), Some("1"));
    }
}
