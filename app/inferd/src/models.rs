//! Which model directories there are.

use inferd_model::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

/// What the configured directories hold.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// Model directories, in the order of the configuration, by name within each.
    pub models: Vec<PathBuf>,
    /// Directories that could not be used, one sentence each.
    pub problems: Vec<String>,
}

/// Looks into the configured directories: each is a model directory, or holds some.
#[must_use]
pub fn find(dirs: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for dir in dirs {
        if is_model(dir) {
            found.models.push(dir.clone());
            continue;
        }
        let mut inside: Vec<PathBuf> = match std::fs::read_dir(dir) {
            Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_model(p)).collect(),
            Err(e) => {
                found.problems.push(format!("models.dirs: {} cannot be read: {e}.", dir.display()));
                continue;
            }
        };
        if inside.is_empty() {
            found.problems.push(format!(
                "models.dirs: {} holds no model; a model is a directory with {MANIFEST_FILE}.",
                dir.display()
            ));
        }
        inside.sort();
        found.models.append(&mut inside);
    }
    let mut seen = BTreeSet::new();
    found.models.retain(|dir| seen.insert(dir.clone()));
    found
}

/// Reads the manifest of a model directory.
///
/// # Errors
/// One sentence that names the file.
pub fn manifest(dir: &Path) -> Result<Manifest, String> {
    let path = dir.join(MANIFEST_FILE);
    let mut text = String::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Manifest::from_toml(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn is_model(dir: &Path) -> bool {
    dir.join(MANIFEST_FILE).is_file()
}

/// The models that are to be loaded: all but those `is_served` knows, and but those whose name an earlier directory has
/// (one sentence each). A directory whose manifest cannot be read is kept: loading it says why, where it is remembered.
#[must_use]
pub fn wanted(found: Vec<PathBuf>, is_served: impl Fn(&Manifest) -> bool) -> (Vec<PathBuf>, Vec<String>) {
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    let (mut wanted, mut problems) = (Vec::new(), Vec::new());
    for dir in found {
        let Ok(manifest) = manifest(&dir) else {
            wanted.push(dir);
            continue;
        };
        if let Some(first) = names.get(manifest.name.as_str()) {
            let (name, first, dir) = (&manifest.name, first.display(), dir.display());
            problems.push(format!(
                "models.dirs: model {name} stands in {first} and in {dir}; the second is ignored."
            ));
            continue;
        }
        names.insert(manifest.name.to_string(), dir.clone());
        if !is_served(&manifest) {
            wanted.push(dir);
        }
    }
    (wanted, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_model_or_holds_models() {
        let root = std::env::temp_dir().join(format!("inferd-find-{}", std::process::id()));
        for model in ["many/b", "many/a", "one"] {
            std::fs::create_dir_all(root.join(model)).unwrap();
            std::fs::write(root.join(model).join(MANIFEST_FILE), "").unwrap();
        }
        std::fs::create_dir_all(root.join("many/not-one")).unwrap();
        std::fs::create_dir_all(root.join("empty")).unwrap();
        let dirs = ["one", "many", "empty", "absent", "one"].map(|d| root.join(d));
        let found = find(&dirs);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.models, ["one", "many/a", "many/b"].map(|d| root.join(d)));
        assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
        assert!(found.problems[0].contains("empty holds no model"), "{:?}", found.problems);
        assert!(found.problems[1].contains("absent cannot be read"), "{:?}", found.problems);
    }

    #[test]
    fn each_name_is_loaded_once_and_only_when_it_is_not_served_as_it_stands() {
        let root = std::env::temp_dir().join(format!("inferd-wanted-{}", std::process::id()));
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/imu-motion").join(MANIFEST_FILE);
        let text = std::fs::read_to_string(shipped).unwrap();
        for (dir, content) in
            [("a", text.as_str()), ("b", &text), ("c", &text.replace("imu-motion", "other")), ("d", "?")]
        {
            std::fs::create_dir_all(root.join(dir)).unwrap();
            std::fs::write(root.join(dir).join(MANIFEST_FILE), content).unwrap();
        }
        let found = || ["a", "b", "c", "d"].map(|d| root.join(d)).to_vec();
        let (fresh, problems) = wanted(found(), |_| false);
        let (again, _) = wanted(found(), |manifest| manifest.name.as_str() == "imu-motion");
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(fresh, ["a", "c", "d"].map(|d| root.join(d)));
        assert_eq!(again, ["c", "d"].map(|d| root.join(d)));
        assert!(problems.len() == 1 && problems[0].contains("model imu-motion stands in"), "{problems:?}");
    }
}
