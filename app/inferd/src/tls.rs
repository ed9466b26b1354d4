//! Which certificate the endpoint shows: the operator's, or one that the device makes for itself on its first start.

use crate::config::Config;
use inferd_api::Tls;
use inferd_tls::{Identity, MAX_PEM, TlsError, made};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Why there is no certificate to show; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// One of the two settings is missing.
    #[error("tls.cert and tls.key belong together: {missing} is not set")]
    Half {
        /// Its key.
        missing: &'static str,
    },
    /// Two answers to one question.
    #[error("tls.cert and tls.self_signed exclude each other: unset one")]
    Both,
    /// A file cannot be read.
    #[error("{setting} {path}: {why}", path = path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The system's reason.
        why: io::Error,
    },
    /// What is in the files cannot be used.
    #[error("{setting} {path}: {why}", path = path.display())]
    Content {
        /// The setting that names it.
        setting: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The reason.
        why: TlsError,
    },
    /// Nothing can be made.
    #[error("no certificate can be made in {path}: {why}", path = path.display())]
    Make {
        /// Where it was to be kept.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// Where certificate and key come from.
struct Files {
    certificate: (&'static str, PathBuf),
    key: (&'static str, PathBuf),
    made: bool,
}

/// The files of this configuration; `None`: no TLS is wanted.
fn files(config: &Config) -> Result<Option<Files>, CertificateError> {
    let tls = &config.tls;
    match (&tls.cert, &tls.key) {
        (Some(_), Some(_)) if tls.self_signed => Err(CertificateError::Both),
        (Some(cert), Some(key)) => Ok(Some(Files {
            certificate: ("tls.cert", cert.clone()),
            key: ("tls.key", key.clone()),
            made: false,
        })),
        (Some(_), None) => Err(CertificateError::Half { missing: "tls.key" }),
        (None, Some(_)) => Err(CertificateError::Half { missing: "tls.cert" }),
        (None, None) if tls.self_signed => Ok(Some(own_files(config))),
        (None, None) => Ok(None),
    }
}

/// The device's own certificate, made where there is none yet: what the first boot does, whether TLS is wanted already or not. For a process of
/// the data directory's owner.
///
/// # Errors
/// [`CertificateError`].
pub fn own(config: &Config) -> Result<Identity, CertificateError> {
    let files = own_files(config);
    make_once(config, &files)?;
    read(&files)
}

/// Where the certificate is that the device makes for itself.
fn own_files(config: &Config) -> Files {
    let dir = config.updates.data_dir.join("tls");
    Files {
        certificate: ("the device's own certificate", dir.join("cert.pem")),
        key: ("the device's own key", dir.join("key.pem")),
        made: true,
    }
}

/// Whether the configuration wants TLS.
pub fn wanted(config: &Config) -> bool {
    config.tls.self_signed || config.tls.cert.is_some() || config.tls.key.is_some()
}

/// What a start would find wrong; makes nothing.
///
/// # Errors
/// [`CertificateError`].
pub fn check(config: &Config) -> Result<(), CertificateError> {
    match files(config)? {
        Some(files) if files.made && !files.certificate.1.exists() => Ok(()),
        Some(files) => read(&files).map(|_| ()),
        None => Ok(()),
    }
}

/// The certificate to show now, made where there is none yet; a failure leaves `before`.
pub fn load(config: &Config, before: &Tls) -> Tls {
    let loaded = files(config).and_then(|files| match files {
        Some(files) => {
            if files.made {
                make_once(config, &files)?;
            }
            read(&files).map(|identity| (Some(identity), files.made))
        }
        None => Ok((None, false)),
    });
    match loaded {
        Ok((identity, self_signed)) => Tls { identity, self_signed, error: None },
        Err(e) => Tls { error: Some(e.to_string()), ..before.clone() },
    }
}

fn read(files: &Files) -> Result<Identity, CertificateError> {
    let bytes = |(setting, path): &(&'static str, PathBuf)| {
        let read = || {
            if files.made {
                let bytes = inferd_slots::read_regular(path, MAX_PEM + 1)?;
                return bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
            }
            let mut bytes = Vec::new();
            fs::File::open(path)?.take(MAX_PEM + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let short = |bytes: Vec<u8>| match bytes.len() as u64 > MAX_PEM {
            true => Err(io::Error::other(format!("it is larger than {MAX_PEM} bytes"))),
            false => Ok(bytes),
        };
        read().and_then(short).map_err(|why| CertificateError::File { setting, path: path.clone(), why })
    };
    let (certificate, key) = (bytes(&files.certificate)?, bytes(&files.key)?);
    Identity::from_pem(&certificate, &key).map_err(|why| {
        let (setting, path) = match why {
            TlsError::NoCertificate => &files.certificate,
            _ => &files.key,
        };
        CertificateError::Content { setting, path: path.clone(), why }
    })
}

/// Makes key and certificate where there is no certificate. The key is there first: a cut between the two leaves a key that
/// the next start replaces together with its certificate.
fn make_once(config: &Config, files: &Files) -> Result<(), CertificateError> {
    if files.certificate.1.exists() {
        return Ok(());
    }
    let failed = |why: &dyn std::fmt::Display| CertificateError::Make {
        path: files.certificate.1.clone(),
        why: why.to_string(),
    };
    let made = made(&names(config)).map_err(|e| failed(&e))?;
    let dir = files.certificate.1.parent().unwrap_or_else(|| Path::new("."));
    let write = || -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if !fs::symlink_metadata(dir)?.is_dir() {
            return Err(io::Error::other("it is a link"));
        }
        // Also one that was there already: nobody else may look for the key, whatever mode it is written with.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        inferd_slots::replace(&files.key.1, made.key.as_bytes())?;
        fs::set_permissions(&files.key.1, fs::Permissions::from_mode(0o600))?;
        inferd_slots::replace(&files.certificate.1, made.certificate.as_bytes())
    };
    write().map_err(|e| failed(&e))
}

/// What the device is called: its host name, also as mDNS says it, its name in permits, and what the configuration adds.
fn names(config: &Config) -> Vec<String> {
    let word = |path: &Path| {
        let mut text = String::new();
        fs::File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
        text.split_whitespace().next().map(str::to_owned)
    };
    let host = word(Path::new("/proc/sys/kernel/hostname"));
    let mut names = Vec::new();
    if let Some(host) = host {
        names.extend([host.clone(), format!("{}.local", inferd_announce::host_label(&host))]);
    }
    names.extend(config.updates.device_file.as_deref().and_then(word));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.extend(config.tls.names.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Arguments, Loaded};
    use std::collections::BTreeMap;

    fn config(dir: &Path, tls: &str) -> Config {
        let file = format!("[updates]\ndata_dir = \"{}\"\n[tls]\n{tls}\n", dir.display());
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((Path::new("t.toml"), &file)))
            .unwrap()
            .config
    }

    #[test]
    fn a_certificate_is_made_once_and_kept_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "self_signed = true\nnames = [\"gate.lan\", \"10.1.2.3\"]");
        check(&config).unwrap();
        assert!(!dir.path().join("tls").exists(), "a check makes nothing");
        let first = load(&config, &Tls::default());
        assert_eq!(first.error, None);
        assert!(first.self_signed);
        let again = load(&config, &Tls::default());
        let print = |tls: &Tls| tls.identity.as_ref().unwrap().fingerprint;
        assert_eq!(print(&first), print(&again));
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("tls"), mode("tls/key.pem")), (0o700, 0o600));
        // Power was cut between the two files.
        fs::remove_file(dir.path().join("tls/cert.pem")).unwrap();
        let other = load(&config, &Tls::default());
        assert_ne!(print(&first), print(&other));
        // A broken one is told, and what was there before is kept.
        fs::write(dir.path().join("tls/cert.pem"), "nothing").unwrap();
        let kept = load(&config, &other);
        assert_eq!(print(&kept), print(&other));
        assert!(kept.error.unwrap().contains("holds no certificate"));
        assert!(check(&config).is_err());
    }

    #[test]
    fn what_somebody_planted_in_place_of_the_certificate_or_the_key_is_told_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "self_signed = true");
        let elsewhere = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let own = load(&config, &Tls::default());
        let print = |tls: &Tls| tls.identity.as_ref().map(|identity| identity.fingerprint);
        for name in ["cert.pem", "key.pem"] {
            let (file, kept) = (tls.join(name), elsewhere.path().join(name));
            fs::rename(&file, &kept).unwrap();
            for planted in ["link", "pipe", "directory"] {
                match planted {
                    "pipe" => nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap(),
                    "link" => std::os::unix::fs::symlink(&kept, &file).unwrap(),
                    _ => fs::create_dir(&file).unwrap(),
                }
                let (tell, told) = std::sync::mpsc::channel();
                let (of, before) = (config.clone(), own.clone());
                std::thread::spawn(move || tell.send((check(&of).is_err(), load(&of, &before))));
                let wait = std::time::Duration::from_secs(300);
                let (refused, now) =
                    told.recv_timeout(wait).unwrap_or_else(|_| panic!("a {planted} is waited for"));
                assert!(refused && now.error.is_some_and(|why| why.contains(name)), "a {planted}");
                assert_eq!(
                    now.identity.map(|identity| identity.fingerprint),
                    print(&own),
                    "what was there stays"
                );
                let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
            }
            fs::rename(&kept, &file).unwrap();
        }
        assert_eq!(print(&load(&config, &Tls::default())), print(&own));
        // Where a link leads nowhere there is no certificate: the new one takes the link's place and nobody else's.
        fs::remove_file(tls.join("cert.pem")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("new"), tls.join("cert.pem")).unwrap();
        assert_eq!(load(&config, &Tls::default()).error, None);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let why = |tls: &str| check(&config(dir.path(), tls)).unwrap_err().to_string();
        assert_eq!(why("cert = \"/a\""), "tls.cert and tls.key belong together: tls.key is not set");
        assert_eq!(why("key = \"/a\""), "tls.cert and tls.key belong together: tls.cert is not set");
        assert!(why("cert = \"/a\"\nkey = \"/b\"\nself_signed = true").contains("exclude each other"));
        assert!(why("cert = \"/nowhere/c\"\nkey = \"/nowhere/k\"").starts_with("tls.cert /nowhere/c: "));
        let (c, k) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let one = made(&["a".to_owned()]).unwrap();
        let other = made(&["a".to_owned()]).unwrap();
        fs::write(&c, &one.certificate).unwrap();
        fs::write(&k, &other.key).unwrap();
        let pair = format!("cert = {c:?}\nkey = {k:?}");
        assert!(why(&pair).starts_with("tls.key "), "{}", why(&pair));
        fs::write(&k, &one.key).unwrap();
        check(&config(dir.path(), &pair)).unwrap();
    }
}
