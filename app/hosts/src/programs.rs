//! Which engines this image has beside the built-in one: asked of the program that has them, once, before models are loaded.
//!
//! The answer is a program's, and the program opens libraries of vendors: it gets little time, and what it says is taken with care.

use crate::confine;
use inferd_engine::{CpuEngine, Engine as _};
use inferd_model::EngineKind;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// How long the program may take: a library of 400 MB is read from a slow card.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer.
const MOST: u64 = 64 << 10;

/// An engine of this image, and what is known of it before any model. A host program prints a list of these.
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
    match ask(program, environment).await {
        Ok(others) => engines.extend(others.into_iter().filter(|e| e.engine != EngineKind::Cpu)),
        Err(why) => tracing::error!("{} does not say which engines it has: {why}", program.display()),
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

async fn ask(program: &Path, environment: &[(String, OsString)]) -> Result<Vec<EngineHere>, String> {
    let mut child = Command::new(program)
        .arg("engines")
        .env_clear()
        .envs([confine::NO_REPORTS])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let reading = async {
        if let Some(out) = child.stdout.take() {
            out.take(MOST).read_to_end(&mut answer).await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(PATIENCE, reading)
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
        .map_err(|e| e.to_string())?;
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    serde_json::from_slice(&answer).map_err(|e| format!("its answer is not what it should be: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    async fn of(script: &str) -> Vec<EngineHere> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("host");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        engines_here(Some(&program), &[("INFERD_ORT_LIB".into(), "/x/lib.so".into())]).await
    }

    #[tokio::test]
    async fn the_built_in_engine_is_there_whatever_the_other_program_does() {
        let bad = ["exit 3", "echo no json", "echo '[{\"engine\":\"warp\"}]'", "kill -9 $$", "echo '{}'", ""];
        for script in bad {
            let engines = of(script).await;
            assert_eq!(engines.len(), 1, "{script}");
            assert_eq!(engines[0].engine, EngineKind::Cpu);
        }
        assert_eq!(engines_here(Some(Path::new("/nowhere")), &[]).await.len(), 1);
        assert_eq!(engines_here(None, &[]).await.len(), 1);
    }

    #[tokio::test]
    async fn it_says_what_it_has_and_where() {
        let answer = r#"[{\"engine\":\"ort\",\"version\":\"onnxruntime 1.21.0\",\"library\":\"$INFERD_ORT_LIB\",\"providers\":[\"cpu\"],\"problem\":null}]"#;
        let engines = of(&format!("echo \"{answer}\"")).await;
        assert_eq!(engines.len(), 2);
        assert_eq!(engines[1].library.as_deref(), Some(Path::new("/x/lib.so")));
        let crowd = of("yes | head -c 200000").await;
        assert_eq!(crowd.len(), 1, "a long answer is cut, and then none");
    }

    #[tokio::test]
    async fn the_program_is_told_to_report_nothing_to_anybody() {
        let answer = r#"[{\"engine\":\"ort\",\"version\":\"$ORT_DISABLE_TELEMETRY\",\"library\":null,\"providers\":[],\"problem\":null}]"#;
        assert_eq!(of(&format!("echo \"{answer}\"")).await[1].version.as_deref(), Some("1"));
    }
}
