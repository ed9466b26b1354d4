//! `inferctl root` and `inferctl permit`: the documents that say whom a device believes. No daemon is asked.
//!
//! Keys need not meet: each command signs with the secret keys that are here, prints how many signatures are still missing, and
//! `root sign` adds one more on the machine that holds it.

use crate::{
    client::Client,
    device::Device,
    fail::Failure,
    files::{self, read},
    show,
};
use inferd_bundle::{
    Digest, Envelope, Permit, PublicKey, Refusal, Revocations, Role, RoleKeys, Root, RootKey, SigningKey,
    Trust, keys, limits::MAX_ENVELOPE_BYTES,
};
use inferd_model::ModelName;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What to do with a document of trust.
#[derive(Debug, clap::Subcommand)]
pub enum RootCommand {
    /// Make the first root document: which keys may sign what, and how many of them must
    Create(Create),
    /// Make the next root document; it needs the signatures of both the old and the new root keys
    Rotate(Rotate),
    /// Make or extend the list of keys and bundles that are no longer believed
    Revoke(Revoke),
    /// Add signatures to a root document, a revocation list or a permit
    Sign(Sign),
    /// Show a document, its signatures, and how many are missing
    Show(Show),
}

/// Where a document goes, and who signs it here.
#[derive(Debug, clap::Args)]
struct Out {
    /// The document to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Sign with this secret key; repeatable, and more can sign later with `root sign`
    #[arg(long = "key", value_name = "NAME.key")]
    keys: Vec<PathBuf>,
}

/// Arguments of `root create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Who may sign what: ROLE=THRESHOLD:NAME.pub[,NAME.pub...]; roles are root, model-release, model-dev, revocation, system-release
    #[arg(long = "role", value_name = "ROLE=N:FILES", required = true, value_parser = grant)]
    roles: Vec<Grant>,
    #[command(flatten)]
    out: Out,
}

/// Arguments of `root rotate`.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// The root document that devices have now
    #[arg(value_name = "ROOT")]
    old: PathBuf,
    /// Roles that change, as for `root create`; `ROLE=none` takes one away; the others stay
    #[arg(long = "role", value_name = "ROLE=N:FILES", required = true, value_parser = grant)]
    roles: Vec<Grant>,
    #[command(flatten)]
    out: Out,
}

/// Arguments of `root revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// The list that devices have now; the new one holds all of it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A key to revoke: its id, or its public key's file; repeatable
    #[arg(long, value_name = "ID|NAME.pub", required_unless_present = "revoke_bundle")]
    revoke_key: Vec<String>,
    /// A bundle to revoke: its id, or the file; repeatable
    #[arg(long, value_name = "ID|FILE.imb")]
    revoke_bundle: Vec<String>,
    #[command(flatten)]
    out: Out,
}

/// Arguments of `root sign`.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The document; it is replaced by the same with more signatures
    file: PathBuf,
    /// A secret key to sign with; repeatable
    #[arg(long = "key", value_name = "NAME.key", required = true)]
    keys: Vec<PathBuf>,
    /// The root by which devices judge it, to say what is still missing
    #[arg(long, value_name = "ROOT")]
    root: Option<PathBuf>,
}

/// Arguments of `root show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The document
    file: PathBuf,
    /// The root by which devices judge it, to say what is still missing
    #[arg(long, value_name = "ROOT")]
    root: Option<PathBuf>,
}

/// Arguments of `permit`.
#[derive(Debug, clap::Args)]
pub struct PermitCommand {
    /// The device's id, as `inferctl slots` shows it [default: that of the device at --url]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The product
    #[arg(long, value_parser = name)]
    product: ModelName,
    /// The version that is allowed although it is older than one that was committed
    #[arg(long)]
    version: u64,
    /// Its number; it must be higher than that of any permit used on the device [default: the seconds since 1970]
    #[arg(long)]
    nonce: Option<u64>,
    #[command(flatten)]
    out: Out,
}

/// A role with its keys, as the command line gives it.
#[derive(Clone, Debug)]
struct Grant {
    role: Role,
    /// `None` takes the role away.
    holders: Option<(u32, Vec<PathBuf>)>,
}

/// Reads `ROLE=THRESHOLD:FILE[,FILE...]`.
fn grant(text: &str) -> Result<Grant, String> {
    let form = "ROLE=THRESHOLD:NAME.pub[,NAME.pub...], as in model-release=2:anna.pub,ben.pub,safe.pub";
    let (role, rest) = text.split_once('=').ok_or(form)?;
    let role: Role = role.parse().map_err(|e: inferd_bundle::RoleError| e.to_string())?;
    if rest == "none" {
        return Ok(Grant { role, holders: None });
    }
    let (threshold, files) = rest.split_once(':').ok_or(form)?;
    let threshold: u32 = threshold.parse().map_err(|_| format!("{threshold} is not a number of keys"))?;
    let files: Vec<PathBuf> = files.split(',').filter(|f| !f.is_empty()).map(PathBuf::from).collect();
    match usize::try_from(threshold) {
        Ok(n) if n >= 1 && n <= files.len() => Ok(Grant { role, holders: Some((threshold, files)) }),
        _ => Err(format!("{threshold} of {} keys: the threshold is 1 to the number of keys", files.len())),
    }
}

fn name(text: &str) -> Result<ModelName, String> {
    ModelName::new(text).map_err(|e| e.to_string())
}

impl RootCommand {
    /// Does it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(json),
            Self::Rotate(command) => command.run(json),
            Self::Revoke(command) => command.run(json),
            Self::Sign(command) => command.run(json),
            Self::Show(command) => command.run(json),
        }
    }
}

impl Create {
    fn run(&self, json: bool) -> Result<(), Failure> {
        let empty = Root { version: 1, keys: Vec::new(), roles: Vec::new() };
        let root = granted(empty, &self.roles)?;
        self.out.write(json, None, |signers| keys::sign_root(root, signers))
    }
}

impl Rotate {
    fn run(&self, json: bool) -> Result<(), Failure> {
        let old = root_file(&self.old)?;
        let version =
            old.version.checked_add(1).ok_or_else(|| Failure::Other("no version follows".into()))?;
        let next = granted(Root { version, ..old.clone() }, &self.roles)?;
        for role in dismissed(&old, &next) {
            eprintln!(
                "inferctl: keys of {role} lose it. A device whose bundle only they signed stops serving it when it takes this root: \
                 send it a bundle that the other keys signed first, or rotate in two steps"
            );
        }
        self.out.write(json, Some(&old), |signers| keys::sign_root(next, signers))
    }
}

/// The roles in which a bundle may serve, and whose keys are fewer, or more of whose keys must sign.
fn dismissed(old: &Root, next: &Root) -> Vec<Role> {
    let shrinks = |before: &&RoleKeys| {
        let after = next.roles.iter().find(|r| r.role == before.role);
        after
            .is_none_or(|a| a.threshold > before.threshold || !before.keys.iter().all(|k| a.keys.contains(k)))
    };
    let releases = |r: &&RoleKeys| !matches!(r.role, Role::Root | Role::Revocation);
    old.roles.iter().filter(releases).filter(shrinks).map(|r| r.role).collect()
}

/// A root with these roles in place of its own. Keys that no role needs any more are left out.
fn granted(mut root: Root, grants: &[Grant]) -> Result<Root, Failure> {
    let mut known: BTreeMap<Digest, RootKey> =
        root.keys.drain(..).map(|key| (key.public.id(), key)).collect();
    for (at, grant) in grants.iter().enumerate() {
        if grants[..at].iter().any(|g| g.role == grant.role) {
            return Err(Failure::Other(format!("--role {} is given twice", grant.role)));
        }
        root.roles.retain(|r| r.role != grant.role);
        let Some((threshold, files)) = &grant.holders else { continue };
        let mut ids = Vec::new();
        for file in files {
            let (public, note) = files::public(file)?;
            if ids.contains(&public.id()) {
                return Err(Failure::Other(format!(
                    "--role {}: the key in {} is named twice, and one key counts once",
                    grant.role,
                    file.display()
                )));
            }
            ids.push(public.id());
            known.insert(public.id(), RootKey { public, note });
        }
        root.roles.push(RoleKeys { role: grant.role, threshold: *threshold, keys: ids });
    }
    let needed = |id: &Digest| root.roles.iter().any(|r| r.keys.contains(id));
    root.keys = known.into_iter().filter(|(id, _)| needed(id)).map(|(_, key)| key).collect();
    Ok(root)
}

impl Revoke {
    fn run(&self, json: bool) -> Result<(), Failure> {
        let mut list = match &self.from {
            None => Revocations::default(),
            Some(path) => match document(&envelope(path)?)? {
                Document::Revocations(list) => list,
                other => {
                    return Err(Failure::Other(format!(
                        "{} is a {}, not a revocation list",
                        path.display(),
                        other.kind()
                    )));
                }
            },
        };
        list.version += 1;
        for key in &self.revoke_key {
            list.keys.push(id_or(key, |path| Ok(files::public(path)?.0.id()))?);
        }
        for bundle in &self.revoke_bundle {
            list.bundles.push(id_or(bundle, |path| Ok(crate::bundle::open(path)?.id()))?);
        }
        self.out.write(json, None, |signers| keys::sign_revocations(list, signers))
    }
}

/// An id of 64 hex digits, or that of what is in a file.
fn id_or(text: &str, of_file: impl FnOnce(&Path) -> Result<Digest, Failure>) -> Result<Digest, Failure> {
    match text.parse::<Digest>() {
        Ok(id) => Ok(id),
        Err(_) => of_file(Path::new(text)),
    }
}

impl Sign {
    fn run(&self, json: bool) -> Result<(), Failure> {
        let bytes = read(&self.file, MAX_ENVELOPE_BYTES as u64)?;
        let judge = self.root.as_deref().map(root_file).transpose()?;
        let signers = files::secrets(&self.keys)?;
        let signers: Vec<&SigningKey> = signers.iter().collect();
        let signed = keys::add_signatures(&bytes, &signers).map_err(|e| about(&self.file, &e))?;
        files::write(&self.file, &signed, true)?;
        tell(&self.file, &signed, judge.as_ref(), json)
    }
}

impl Show {
    fn run(&self, json: bool) -> Result<(), Failure> {
        let judge = self.root.as_deref().map(root_file).transpose()?;
        tell(&self.file, &read(&self.file, MAX_ENVELOPE_BYTES as u64)?, judge.as_ref(), json)
    }
}

impl PermitCommand {
    /// Makes a permit.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let device = match &self.device {
            Some(device) => device.clone(),
            None => Device::ask(client)?.device.ok_or_else(|| {
                Failure::Other(format!("{} does not say its id; give it with --device", client.base()))
            })?,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs());
        let nonce = self.nonce.unwrap_or(now);
        let permit = Permit { device, product: self.product.clone(), version: self.version, nonce };
        self.out.write(json, None, |signers| keys::sign_permit(&permit, signers))
    }
}

impl Out {
    /// Signs with the keys that are here, writes the document and shows it.
    fn write(
        &self,
        json: bool,
        judge: Option<&Root>,
        seal: impl FnOnce(&[&SigningKey]) -> Result<Vec<u8>, Refusal>,
    ) -> Result<(), Failure> {
        let signers = files::secrets(&self.keys)?;
        let signers: Vec<&SigningKey> = signers.iter().collect();
        let bytes = seal(&signers)?;
        files::write(&self.output, &bytes, self.force)?;
        tell(&self.output, &bytes, judge, json)
    }
}

// ------------------------------------------------------------------------------------------------------- reading back

/// What is in an envelope.
enum Document {
    Root(Root),
    Revocations(Revocations),
    Permit(Permit),
}

impl Document {
    fn kind(&self) -> &'static str {
        match self {
            Self::Root(_) => "root document",
            Self::Revocations(_) => "revocation list",
            Self::Permit(_) => "permit",
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Root(root) => json!(root),
            Self::Revocations(list) => json!(list),
            Self::Permit(permit) => json!(permit),
        }
    }
}

fn about(path: &Path, refusal: &Refusal) -> Failure {
    Failure::Other(format!(
        "{}: {}",
        path.display(),
        crate::words::explain(refusal.code(), &refusal.to_string())
    ))
}

fn envelope(path: &Path) -> Result<Envelope, Failure> {
    let bytes = read(path, MAX_ENVELOPE_BYTES as u64)?;
    Envelope::from_bytes(&bytes).map_err(|e| about(path, &e))
}

/// What is inside, whoever signed it: a document on its way from key to key is not complete yet.
fn document(envelope: &Envelope) -> Result<Document, Failure> {
    let form = |e: minicbor::decode::Error| Failure::from(Refusal::TrustForm(e.to_string()));
    let payload = &envelope.payload;
    Ok(match envelope.kind.as_str() {
        "root" => {
            let root: Root = minicbor::decode(payload).map_err(form)?;
            root.check()?;
            Document::Root(root)
        }
        "revocations" => Document::Revocations(minicbor::decode(payload).map_err(form)?),
        _ => Document::Permit(minicbor::decode(payload).map_err(form)?),
    })
}

/// A complete root document, as devices have it.
///
/// # Errors
/// [`Failure`] when it is not one, or its own root keys have not signed it.
pub fn root_file(path: &Path) -> Result<Root, Failure> {
    let bytes = read(path, MAX_ENVELOPE_BYTES as u64)?;
    Root::from_envelope(&bytes).map_err(|e| about(path, &e))
}

/// What a device believes that got these root documents, in order, and this revocation list.
///
/// # Errors
/// [`Failure`] of the first that does not fit.
pub fn trust(roots: &[PathBuf], revocations: Option<&Path>, allow_dev: bool) -> Result<Trust, Failure> {
    let (first, later) =
        roots.split_first().ok_or_else(|| Failure::Other("a root document is needed: --root FILE".into()))?;
    let mut trust = Trust::new(root_file(first)?, allow_dev);
    for path in later {
        let bytes = read(path, MAX_ENVELOPE_BYTES as u64)?;
        trust.rotate(&bytes).map_err(|e| about(path, &e))?;
    }
    if let Some(path) = revocations {
        trust.revoke(&read(path, MAX_ENVELOPE_BYTES as u64)?).map_err(|e| about(path, &e))?;
    }
    Ok(trust)
}

/// How many of a role's keys signed.
struct Standing {
    whose: String,
    role: Role,
    have: usize,
    need: u32,
}

impl Standing {
    fn of(root: &Root, whose: &str, role: Role, envelope: &Envelope) -> Self {
        let holders = root.role(role);
        let message = envelope.message();
        let counts = |key: &PublicKey| {
            let id = key.id();
            envelope.signatures.iter().any(|s| s.key == id && key.verifies(&message, &s.signature))
        };
        let have = holders.map_or(0, |h| {
            h.keys.iter().filter(|id| root.key(id).is_some_and(|key| counts(&key.public))).count()
        });
        Self { whose: whose.to_owned(), role, have, need: holders.map_or(0, |h| h.threshold) }
    }

    fn complete(&self) -> bool {
        self.need > 0 && self.have >= usize::try_from(self.need).unwrap_or(usize::MAX)
    }

    fn line(&self) -> String {
        match (self.need, self.complete()) {
            (0, _) => format!("{} gives role {} to nobody, so no device takes it", self.whose, self.role),
            (need, true) => {
                format!("{} of the {need} {} keys needed by {} signed", self.have, self.role, self.whose)
            }
            (need, false) => format!(
                "{} of the {need} {} keys needed by {} signed; `inferctl root sign` adds the others",
                self.have, self.role, self.whose
            ),
        }
    }
}

/// Shows a document and what its signatures come to.
fn tell(path: &Path, bytes: &[u8], judge: Option<&Root>, json: bool) -> Result<(), Failure> {
    let envelope = Envelope::from_bytes(bytes).map_err(|e| about(path, &e))?;
    let document = document(&envelope)?;
    let mut standings = Vec::new();
    match &document {
        Document::Root(root) => {
            if let Some(old) = judge.filter(|old| old.version != root.version) {
                standings.push(Standing::of(old, &format!("root {}", old.version), Role::Root, &envelope));
            }
            standings.push(Standing::of(root, &format!("root {}", root.version), Role::Root, &envelope));
        }
        Document::Revocations(_) | Document::Permit(_) => {
            let role =
                if matches!(document, Document::Permit(_)) { Role::ModelRelease } else { Role::Revocation };
            standings.extend(
                judge.map(|root| Standing::of(root, &format!("root {}", root.version), role, &envelope)),
            );
        }
    }
    let signers: Vec<Digest> = envelope.signatures.iter().map(|s| s.key).collect();
    if json {
        let standings: Vec<Value> = standings
            .iter()
            .map(|s| json!({ "judged_by": s.whose, "role": s.role, "signed": s.have, "needed": s.need, "complete": s.complete() }))
            .collect();
        show::json(&json!({
            "file": path, "kind": envelope.kind, "document": document.json(),
            "signed_by": signers, "standing": standings,
        }));
        return Ok(());
    }
    show::line(&page(path, &document, &signers));
    standings.iter().for_each(|s| show::line(&s.line()));
    Ok(())
}

fn page(path: &Path, document: &Document, signers: &[Digest]) -> String {
    let file = path.display();
    let signed = |id: &Digest| if signers.contains(id) { "signed" } else { "" };
    match document {
        Document::Root(root) => {
            let rows: Vec<Vec<String>> = root
                .keys
                .iter()
                .map(|key| {
                    let id = key.public.id();
                    let roles: Vec<&str> =
                        root.roles.iter().filter(|r| r.keys.contains(&id)).map(|r| r.role.name()).collect();
                    vec![short(&id), key.note.clone(), roles.join(", "), signed(&id).to_owned()]
                })
                .collect();
            let roles: Vec<String> = root
                .roles
                .iter()
                .map(|r| format!("{}: {} of {}", r.role, r.threshold, r.keys.len()))
                .collect();
            format!(
                "{file}: root {} ({})\n{}",
                root.version,
                roles.join(", "),
                show::table(&["key", "note", "roles", ""], &rows)
            )
        }
        Document::Revocations(list) => {
            let mut lines = vec![format!("{file}: revocation list {}", list.version)];
            lines.extend(list.keys.iter().map(|id| format!("  key {id}")));
            lines.extend(list.bundles.iter().map(|id| format!("  bundle {id}")));
            lines.extend(by(signers));
            lines.join("\n")
        }
        Document::Permit(p) => {
            let permit = format!(
                "{file}: permit {}: device {} may install {} {} once",
                p.nonce, p.device, p.product, p.version
            );
            std::iter::once(permit).chain(by(signers)).collect::<Vec<_>>().join("\n")
        }
    }
}

fn by(signers: &[Digest]) -> Option<String> {
    let ids: Vec<String> = signers.iter().map(short).collect();
    Some(if ids.is_empty() { "nobody signed it yet".into() } else { format!("signed by {}", ids.join(", ")) })
}

/// The beginning of an id: enough to tell keys apart.
#[must_use]
pub fn short(id: &Digest) -> String {
    id.to_string().chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_a_role_a_threshold_and_enough_keys() {
        let good = grant("model-release=2:a.pub,b.pub,c.pub").unwrap();
        assert_eq!((good.role, good.holders.unwrap().0), (Role::ModelRelease, 2));
        assert!(grant("model-dev=none").unwrap().holders.is_none());
        for (text, why) in [
            ("model-release", "ROLE=THRESHOLD"),
            ("boss=1:a.pub", "a role is"),
            ("root=a.pub", "ROLE=THRESHOLD"),
            ("root=x:a.pub", "not a number"),
            ("root=0:a.pub", "the threshold is 1"),
            ("root=2:a.pub", "the threshold is 1"),
            ("root=1:", "the threshold is 1"),
        ] {
            let error = grant(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
