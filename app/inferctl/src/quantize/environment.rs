//! The Python the tools run in: one that is named, or an environment of our own that is made once.

use crate::fail::Failure;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exactly what is installed.
const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Stands in an environment that is complete.
const READY: &str = "ready";

/// Which Python.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A Python that has onnx, onnxruntime, numpy and safetensors; without it an environment is made once in INFERD_CACHE, or in
    /// ~/.cache/inferd
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
}

/// A Python that has the tools.
pub struct Python(PathBuf);

impl Python {
    /// What to run.
    pub fn program(&self) -> &Path {
        &self.0
    }
}

impl Options {
    /// The one that is named, or the environment, which is made when it is not there. `tell` hears what is done.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn find(&self, tell: impl Fn(&str)) -> Result<Python, Failure> {
        match &self.python {
            Some(program) => Ok(Python(program.clone())),
            None => made(&cache()?, tell),
        }
    }
}

fn cache() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".cache/inferd"));
    let none = || Failure::Other("there is no folder for the Python environment: set INFERD_CACHE".into());
    set("INFERD_CACHE").or_else(home).ok_or_else(none)
}

fn made(cache: &Path, tell: impl Fn(&str)) -> Result<Python, Failure> {
    let digest: String = Sha256::digest(REQUIREMENTS).iter().take(5).map(|b| format!("{b:02x}")).collect();
    let dir = cache.join(format!("quantize-{digest}"));
    let file = |path: &Path, e: std::io::Error| Failure::Other(format!("{}: {e}", path.display()));
    fs::create_dir_all(cache).map_err(|e| file(cache, e))?;
    // Who comes second waits for who makes it.
    let lock = cache.join(format!("quantize-{digest}.lock"));
    let held = fs::File::create(&lock).and_then(|f| f.lock().map(|()| f)).map_err(|e| file(&lock, e))?;
    let python = dir.join("bin/python");
    if !dir.join(READY).exists() {
        tell(&format!("making a Python environment in {} (once; some 100 MB are downloaded)", dir.display()));
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(file(&dir, e)),
            _ => {}
        }
        let hint =
            "install python3 with its venv module, or name a Python that has the packages with --python";
        step(Command::new("python3").args(["-m", "venv"]).arg(&dir), "python3 -m venv", hint)?;
        let list = dir.join("requirements.txt");
        fs::write(&list, REQUIREMENTS).map_err(|e| file(&list, e))?;
        tell("installing onnx, onnxruntime, numpy and safetensors");
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        let hint = "the packages of onnxruntime's tools are needed once: is there a network? --python names a Python that has them";
        step(Command::new(&python).args(pip).arg(&list), "pip install", hint)?;
        fs::write(dir.join(READY), "").map_err(|e| file(&dir, e))?;
    }
    drop(held);
    Ok(Python(python))
}

fn step(command: &mut Command, what: &str, hint: &str) -> Result<(), Failure> {
    let output = command.output().map_err(|e| Failure::Other(format!("{what}: {e}; {hint}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let last =
        said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
    Err(Failure::Other(format!("{what} failed: {last}; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_that_is_ready_is_used_and_one_that_cannot_be_made_says_what_to_do() {
        let cache = std::env::temp_dir().join(format!("inferctl-environment-{}", std::process::id()));
        let digest: String =
            Sha256::digest(REQUIREMENTS).iter().take(5).map(|b| format!("{b:02x}")).collect();
        let dir = cache.join(format!("quantize-{digest}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(READY), "").unwrap();
        let found = made(&cache, |_| panic!("nothing is to be done")).map_err(|e| e.to_string()).unwrap();
        assert_eq!(found.program(), dir.join("bin/python"));
        fs::remove_dir_all(&cache).unwrap();
        let e = step(&mut Command::new("/nowhere/python3"), "python3 -m venv", "install it")
            .unwrap_err()
            .to_string();
        assert!(e.contains("python3 -m venv") && e.contains("install it"), "{e}");
        let mut broken = Command::new("sh");
        broken.args(["-c", "echo no network >&2; exit 1"]);
        let e = step(&mut broken, "pip install", "is there a network?").unwrap_err().to_string();
        assert_eq!(e, "pip install failed: no network; is there a network?");
    }
}
