//! `inferctl bundle build`: a bundle of model directories, or of a system.

use super::{parts, rootfs};
use crate::{
    fail::Failure,
    files::{self, Unwritten},
    model::check,
    root::short,
    show,
};
use inferd_bundle::{
    BOOT, BOOTS, Kind, MAGIC, Policy, ProbationPolicy, ROOTFS, Role, ShadowPolicy, SigningKey,
    build::{BuildError, BundleSpec, Content, FileSource, ModelSource, build},
};
use inferd_model::ModelName;
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;

/// The longest policy file.
const MAX_POLICY: u64 = 64 << 10;
/// What a system is called when nobody says otherwise.
const SYSTEM_PRODUCT: &str = "inferd-os";

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Build {
    /// A model directory; repeatable
    #[arg(long = "model", value_name = "DIR", required_unless_present = "system", conflicts_with = "system")]
    models: Vec<PathBuf>,
    /// What these models together, or this system, are called; devices count versions per product [default of a system: inferd-os]
    #[arg(long, value_parser = name, required_unless_present = "system")]
    product: Option<ModelName>,
    /// The number that must rise: a device takes none below the highest it has committed
    #[arg(long)]
    version: u64,
    /// The version for people, such as 1.2.3 [default: the number]
    #[arg(long)]
    label: Option<String>,
    /// One line about it
    #[arg(long, default_value = "")]
    summary: String,
    /// Where it comes from, such as a commit and a data set
    #[arg(long, default_value = "")]
    provenance: String,
    /// Sign with this secret key; repeatable, and more can sign later with `bundle sign`
    #[arg(long = "key", value_name = "NAME.key")]
    keys: Vec<PathBuf>,
    /// Whose keys must sign: model-release, or model-dev for devices that accept development; always system-release of a system
    /// [default: model-release]
    #[arg(long, value_parser = role, conflicts_with = "system")]
    role: Option<Role>,
    /// A board it may run on; repeatable [default: any]
    #[arg(long = "target", visible_alias = "board", value_name = "BOARD")]
    targets: Vec<String>,
    /// The least version of inferd that can run it
    #[arg(long, value_name = "X.Y.Z")]
    min_inferd: Option<String>,
    /// When it should no longer be installed, in seconds since 1970; advice, since a device may not know the time
    #[arg(long, value_name = "SECONDS")]
    not_after: Option<u64>,
    /// Compress chunks where that makes them shorter; weights rarely get shorter
    #[arg(long)]
    compress: bool,
    /// Do not run the models' golden vectors here before they are packed; of a system: whatever product and version its root filesystem says
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    system: SystemArguments,
    #[command(flatten)]
    policy: PolicyArguments,
    /// The bundle to write
    #[arg(short, long, value_name = "FILE.imb")]
    output: PathBuf,
}

/// A system in place of models: what `scripts/image --parts` leaves, byte for byte as it will lie on the partitions.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "System")]
struct SystemArguments {
    /// Build a system: a root filesystem and what starts it, for the boards of --target
    #[arg(long, requires_all = ["rootfs", "targets"])]
    system: bool,
    /// The root filesystem (squashfs)
    #[arg(long, value_name = "FILE", requires = "system")]
    rootfs: Option<PathBuf>,
    /// The boot partition, where it is the same for both slots
    #[arg(long, value_name = "FILE", requires = "system", conflicts_with_all = ["boot_a", "boot_b"])]
    boot: Option<PathBuf>,
    /// The boot partition of slot a, where each slot has its own (Raspberry Pi)
    #[arg(long, value_name = "FILE", requires_all = ["system", "boot_b"])]
    boot_a: Option<PathBuf>,
    /// The boot partition of slot b
    #[arg(long, value_name = "FILE", requires_all = ["system", "boot_a"])]
    boot_b: Option<PathBuf>,
}

impl SystemArguments {
    /// Its files, as a bundle calls them; none when it is not to be a system.
    fn files(&self) -> Vec<FileSource> {
        [(ROOTFS, &self.rootfs), (BOOT, &self.boot), (BOOTS[0], &self.boot_a), (BOOTS[1], &self.boot_b)]
            .into_iter()
            .filter_map(|(name, path)| {
                Some(FileSource { name: name.to_owned(), content: Content::Path(path.clone()?) })
            })
            .collect()
    }
}

/// What a device asks of the models before it keeps them; of a system: how long it must be ready to be kept, which is the time of the
/// probation. An option goes before the file, the file before the default.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Policy")]
struct PolicyArguments {
    /// A TOML file with the tables [shadow] and [probation] and their keys, as the options below name them
    #[arg(long = "policy", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Compare with the serving model on copies of so many live requests first; 0: on none [default: 0]
    #[arg(long, value_name = "N")]
    shadow_requests: Option<u32>,
    /// Least cosine similarity of outputs in the shadow [default: 0.9]
    #[arg(long, value_name = "X")]
    shadow_min_cosine: Option<f64>,
    /// Least share of shadow requests with the same largest output [default: 0.9]
    #[arg(long, value_name = "X")]
    shadow_min_agreement: Option<f64>,
    /// Largest ratio of compute times in the shadow [default: 2]
    #[arg(long, value_name = "X")]
    shadow_max_latency_ratio: Option<f64>,
    /// Largest share of shadow requests that fail [default: 0]
    #[arg(long, value_name = "X")]
    shadow_max_error_rate: Option<f64>,
    /// How long it is watched once it serves [default: 300]
    #[arg(long, value_name = "SECONDS")]
    probation_seconds: Option<u32>,
    /// After how many requests that may end early; 0: never early [default: 0]
    #[arg(long, value_name = "N")]
    probation_requests: Option<u32>,
    /// Largest share of requests that fail while it is watched [default: 0.01]
    #[arg(long, value_name = "X")]
    probation_max_error_rate: Option<f64>,
    /// Largest ratio of the 99th percentile of compute time to the old model's [default: 2]
    #[arg(long, value_name = "X")]
    probation_max_p99_ratio: Option<f64>,
    /// Largest drift of outputs from the old model's [default: 0.25]
    #[arg(long, value_name = "X")]
    probation_max_drift: Option<f64>,
}

/// The policy file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    shadow: ShadowFile,
    probation: ProbationFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ShadowFile {
    requests: Option<u32>,
    min_cosine: Option<f64>,
    min_agreement: Option<f64>,
    max_latency_ratio: Option<f64>,
    max_error_rate: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProbationFile {
    seconds: Option<u32>,
    requests: Option<u32>,
    max_error_rate: Option<f64>,
    max_p99_ratio: Option<f64>,
    max_drift: Option<f64>,
}

fn name(text: &str) -> Result<ModelName, String> {
    ModelName::new(text).map_err(|e| e.to_string())
}

fn role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(role @ (Role::ModelRelease | Role::ModelDev)) => Ok(role),
        _ => Err("models are signed by model-release or model-dev".into()),
    }
}

impl Build {
    /// Checks the models, builds, signs and writes.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let policy = self.policy.read()?;
        let signers = files::secrets(&self.keys)?;
        let signers: Vec<&SigningKey> = signers.iter().collect();
        let mut models = Vec::new();
        for dir in &self.models {
            if !self.unchecked && dir.is_dir() {
                let report = check::check(dir);
                if !report.passed() {
                    return Err(Failure::Other(format!(
                        "{}; `inferctl model check {}` shows every check, --unchecked packs it all the same",
                        report.failure(),
                        dir.display()
                    )));
                }
            }
            models.push(ModelSource::directory(dir)?);
        }
        let product = match &self.product {
            Some(product) => product.clone(),
            None => name(SYSTEM_PRODUCT).map_err(Failure::Other)?,
        };
        let uncompared = self.compared(product.as_str())?;
        let spec = if self.system.system {
            BundleSpec::system(product, self.version, self.targets.clone(), self.system.files())
        } else {
            BundleSpec {
                role: self.role.unwrap_or(Role::ModelRelease),
                targets: self.targets.clone(),
                compress: self.compress,
                ..BundleSpec::new(product, self.version, models)
            }
        };
        let spec = BundleSpec {
            label: self.label.clone().unwrap_or_else(|| self.version.to_string()),
            summary: self.summary.clone(),
            min_inferd: self.min_inferd.clone(),
            policy,
            not_after: self.not_after,
            provenance: self.provenance.clone(),
            ..spec
        };
        let mut built = None;
        files::replace(&self.output, &MAGIC, |out| {
            built = Some(build(&spec, &signers, out).map_err(|e| match e {
                BuildError::Write(e) => Unwritten::Io(e),
                other => Unwritten::Content(other.into()),
            })?);
            Ok(())
        })?;
        let Some(built) = built else { return Ok(()) };
        if let Some(note) = uncompared {
            eprintln!("inferctl: {note}");
        }
        let keys: Vec<_> = signers.iter().map(|s| s.id()).collect();
        if json {
            show::json(&json!({
                "file": self.output, "id": built.id, "len": built.len, "manifest": built.manifest,
                "compressed_chunks": built.compressed, "signed_by": keys,
            }));
            return Ok(());
        }
        let m = &built.manifest;
        let names: Vec<&str> = match m.kind {
            Kind::Models => m.models.iter().map(|m| m.name.as_str()).collect(),
            Kind::System => m.files().map(|(_, file)| file.name.as_str()).collect(),
        };
        let packed = if spec.compress {
            format!(", {} of {} chunks compressed", built.compressed, m.index.chunks)
        } else {
            format!(" in {} chunks", m.index.chunks)
        };
        show::line(&format!(
            "{}: {} {} ({}) with {}, {}{packed}",
            self.output.display(),
            m.product,
            m.version,
            m.label,
            names.join(", "),
            show::bytes(built.len)
        ));
        show::line(&format!("bundle {}", built.id));
        let keys: Vec<String> = keys.iter().map(short).collect();
        show::line(&if keys.is_empty() {
            format!(
                "nobody signed it, so no device takes it: `inferctl bundle sign` with keys of role {}",
                m.role
            )
        } else {
            format!("signed by {} as {}", keys.join(", "), m.role)
        });
        Ok(())
    }
}

impl Build {
    /// Whether the system calls itself as its bundle is to be called. What cannot be asked is packed; the sentence that tells of that.
    fn compared(&self, product: &str) -> Result<Option<String>, Failure> {
        let Some(path) = self.system.rootfs.as_deref().filter(|_| !self.unchecked) else { return Ok(None) };
        let boots =
            [(&self.system.boot, None), (&self.system.boot_a, Some('a')), (&self.system.boot_b, Some('b'))];
        let misplaced = boots
            .into_iter()
            .filter_map(|(file, slot)| parts::boot(file.as_deref()?, slot).err())
            .chain(parts::root(path).err())
            .next();
        if let Some(misplaced) = misplaced {
            return Err(Failure::Other(format!("{misplaced}; --unchecked packs it all the same")));
        }
        match rootfs::image(path) {
            Ok(image) => rootfs::compare(&image, product, self.version).map(|()| None).map_err(|other| {
                Failure::Other(format!("{}: {other}; --unchecked packs it all the same", path.display()))
            }),
            Err(why) => Ok(Some(format!("{}: which system it is was not compared: {why}", path.display()))),
        }
    }
}

impl PolicyArguments {
    fn read(&self) -> Result<Policy, Failure> {
        let file: PolicyFile = match &self.file {
            None => PolicyFile::default(),
            Some(path) => {
                let bytes = files::read(path, MAX_POLICY)?;
                toml::from_slice(&bytes).map_err(|e| {
                    let why = e.message();
                    Failure::Other(format!("{} is no policy: {why}", path.display()))
                })?
            }
        };
        let (s, p, default) = (file.shadow, file.probation, ProbationPolicy::default());
        let requests = self.shadow_requests.or(s.requests).unwrap_or(0);
        let shadow = ShadowPolicy {
            requests,
            min_cosine: self.shadow_min_cosine.or(s.min_cosine).unwrap_or(0.9),
            min_agreement: self.shadow_min_agreement.or(s.min_agreement).unwrap_or(0.9),
            max_latency_ratio: self.shadow_max_latency_ratio.or(s.max_latency_ratio).unwrap_or(2.0),
            max_error_rate: self.shadow_max_error_rate.or(s.max_error_rate).unwrap_or(0.0),
        };
        Ok(Policy {
            shadow: (requests > 0).then_some(shadow),
            probation: ProbationPolicy {
                seconds: self.probation_seconds.or(p.seconds).unwrap_or(default.seconds),
                requests: self.probation_requests.or(p.requests).unwrap_or(default.requests),
                max_error_rate: self
                    .probation_max_error_rate
                    .or(p.max_error_rate)
                    .unwrap_or(default.max_error_rate),
                max_p99_ratio: self
                    .probation_max_p99_ratio
                    .or(p.max_p99_ratio)
                    .unwrap_or(default.max_p99_ratio),
                max_drift: self.probation_max_drift.or(p.max_drift).unwrap_or(default.max_drift),
            },
        })
    }
}
