//! What to do about a refusal. What happened is the device's sentence, or the format's; this adds what helps.

/// Every code that a refusal, a verdict or an answer may carry, and what to do about it. Empty: the sentence says it already.
///
/// A test compares the list with the sources that give codes; a device of another version may send others.
const ADVICE: &[(&str, &str)] = &[
    // --- the bundle's form
    ("truncated", ""),
    ("trailing-bytes", "Build it again"),
    ("not-a-bundle", "Give the .imb file that `inferctl bundle build` wrote"),
    ("format-version", ""),
    ("header-digest", DAMAGED),
    ("header", DAMAGED),
    ("too-large", "Ship fewer or smaller models in one bundle"),
    ("padding", DAMAGED),
    ("manifest-digest", DAMAGED),
    ("manifest-form", DAMAGED),
    ("manifest", "Build it again with another value"),
    (
        "kind-unsupported",
        "Root installs it on the device: `inferd system install FILE`; bundles of models are sent",
    ),
    ("model-manifest", "`inferctl model check DIR` shows what is wrong with the model"),
    ("signatures-digest", DAMAGED),
    ("signatures-form", DAMAGED),
    ("page-table-digest", DAMAGED),
    ("page-digest", DAMAGED),
    ("page", DAMAGED),
    ("no-such-page", DAMAGED),
    ("file-length", "Build it again"),
    ("file-digest", "Build it again"),
    ("chunk-digest", DAMAGED),
    ("chunk-length", DAMAGED),
    ("compression", "Build it again without --compress"),
    ("index-memory", "Ship it as several bundles"),
    ("spent", ""),
    // --- keys, roles, revocation
    ("unsigned", "`inferctl bundle sign FILE --key NAME.key` adds a signature"),
    (
        "unknown-keys",
        "`inferctl bundle inspect` shows who signed; sign with a key of the device's root, or send the device its next roots with `inferctl trust`",
    ),
    ("signature-wrong", "Build and sign it again"),
    ("key-revoked", "Sign with keys that were not revoked"),
    ("wrong-role", "Sign with keys of that role, or build it with the --role these keys have"),
    (
        "below-threshold",
        "Have the other key holders sign too: `inferctl bundle sign` or `inferctl root sign`",
    ),
    (
        "role-unassigned",
        "Give the role to keys with `inferctl root rotate`, and send the new root with `inferctl trust`",
    ),
    (
        "dev-role",
        "Build it with --role model-release and sign with release keys; only an image made with --dev takes development bundles",
    ),
    ("bundle-revoked", "Build a new version"),
    // --- trust documents
    ("trust-form", "Give a document that `inferctl root` or `inferctl permit` wrote"),
    ("trust-kind", ""),
    ("trust-document", "Make it again with `inferctl root` or `inferctl permit`"),
    ("root-replayed", "The device has it already or is further; `inferctl slots` shows its version"),
    ("root-skipped", ""),
    ("revocations-replayed", "Extend the newest list: `inferctl root revoke --from LIST`"),
    ("revocations-shrunk", "Extend the newest list: `inferctl root revoke --from LIST`"),
    ("permit-device", "`inferctl slots` shows the device's id; make a permit for it"),
    ("permit-replayed", ""),
    ("trust-went-back", "Send the newest document"),
    ("document-too-long", "Give a document that `inferctl root` or `inferctl permit` wrote"),
    // --- the slots
    ("medium-failed", "Replace the card or disk if it happens again"),
    ("no-room", "Free space where the slot files lie, or make them smaller in the configuration"),
    ("medium-read-only", "A card that became read-only is worn out: replace it"),
    ("slot-too-small", "Ship fewer or smaller models, or make an image with larger slots"),
    ("state-too-small", "Restore the device's data partition"),
    ("install-running", "Wait until it is over: `inferctl slots` shows it"),
    ("state-lost", "Push the bundle again: the device verifies its slots first"),
    ("read-back-differs", "Replace the card or disk"),
    ("state-read-back-differs", "Replace the card or disk"),
    ("incomplete", ""),
    ("index-page-missing", "Send the bundle again from its first byte"),
    ("foreign-piece", "Send the bundle again from its first byte"),
    ("no-bundle", "Push a bundle first"),
    ("rot", ""),
    ("other-bundle", "Send the bundle from its first byte"),
    ("no-such-file", "Build the bundle again"),
    ("in-use", "Stop the other daemon, or give this one slots of its own"),
    ("slot-active", "Roll back first, or push to the other slot: a device does that by itself"),
    ("trial-running", "Wait until the trial is over: `inferctl slots` shows it"),
    ("no-trial", "`inferctl slots` shows what serves"),
    ("slot-status", "`inferctl slots` shows what the slots hold"),
    ("nothing-active", "Push a bundle first"),
    ("trial-phase", "Wait until the trial is over: `inferctl slots` shows it"),
    ("goes-back", "Build it with a higher --version"),
    ("only-install", ""),
    ("too-many-products", "Use fewer product names: a device remembers each for ever"),
    ("name-too-long", "Use a shorter name"),
    // --- the device's own downloads
    ("bad-url", "Give an address such as http://server.lan/model.imb"),
    ("https-unsupported", "Serve it over http: what counts is its signature"),
    ("redirect-loop", "Give the address it should lead to"),
    ("too-many-redirects", "Give the address it should lead to"),
    ("bad-redirect", "Give the address it should lead to"),
    ("redirect-expired", "Start it again"),
    ("name-unknown", ""),
    ("no-connection", "Is the server up, and does the device reach its network?"),
    ("timeout", "Start it again: what has come is kept"),
    ("too-slow", "Start it again: what has come is kept"),
    ("cut", "Start it again: what has come is kept"),
    ("server-busy", "Start it again later: what has come is kept"),
    ("unauthorized", ""),
    ("not-found", "Check the address"),
    ("server-refused", "Check the address"),
    ("content-encoded", "Serve .imb files as they are, without compression"),
    ("captive-portal", "Log in to that network, or use another"),
    ("too-long", "Serve the bundle itself, without anything around it"),
    ("wrong-range", "Serve it from a server whose Range requests work, or push it"),
    ("content-changed", "Start it again when the file no longer changes"),
    ("too-many-bytes", "Start it again later"),
    ("took-too-long", "Start it again: what has come is kept"),
    ("wrong-digest", "Check which file lies at that address"),
    ("bad-document", "Is that a hawkBit server, of a version that speaks DDI v1?"),
    ("stick-removed", ""),
    ("stick-unreadable", "Copy the bundle to another stick"),
    // --- not now
    ("busy-starting", ""),
    (
        "busy-transfer",
        "Wait until it is over: `inferctl slots` shows it; `inferctl pull --cancel` ends one by URL",
    ),
    ("busy-trial", "`inferctl slots` shows how far it is, `inferctl rollback` ends it"),
    ("busy-stopping", "Try again when it is back"),
    // --- the way in
    ("updates-off", ""),
    ("updates-broken", "The device's log says more; the models of its image serve"),
    ("length-required", "Send it with `inferctl push` or `curl -T`"),
    ("unsupported-encoding", ""),
    ("nothing-to-resume", ""),
    ("gap", ""),
    ("interrupted", "Push it again: what has come is kept"),
    ("bad-request", ""),
    ("unexpected-error", "The device's log says more"),
    ("pull-off", ""),
    ("pull-cancelled", ""),
    ("no-pull", "`inferctl slots` shows what arrives, and what is on trial"),
    ("listeners", "Try again later"),
    ("misused", "Send it with `inferctl push` or curl, which keep to the order of a transfer"),
    // --- gates
    (
        "no-root",
        "Make the image with a root document (--root FILE; Buildroot: BR2_PACKAGE_INFERD_ROOT, Yocto: INFERD_ROOT); a daemon started by hand reads `root.imr` in its --updates-dir at its start",
    ),
    (
        "older-version",
        "For models `inferctl permit` makes one and `inferctl trust` sends it; or build it with a higher --version",
    ),
    ("wrong-board", "Build it with this board as a --target"),
    ("inferd-too-old", "Update the device's software first"),
    ("engine-version", "Update the device's software, or build the model for the engine it has"),
    ("engine-missing", "Ship the model for an engine this device has"),
    ("memory-limit", MEMORY),
    ("memory-free", MEMORY),
    ("memory-over-budget", "Raise the memory budget in the model's manifest, or make the model smaller"),
    ("load-failed", "`inferctl model check DIR` loads it here, on the same engine"),
    (
        "golden-differs",
        "`inferctl model check DIR` runs them here; a model that differs on the device only is not for its engine",
    ),
    ("golden-recheck", BAD_MODEL),
    ("promote-failed", "Push it again; the device's log says more"),
    ("already-serving", ""),
    ("permitted", ""),
    // --- ends of a trial
    ("daemon-crashed", BAD_MODEL),
    ("kernel-panic", BAD_MODEL),
    ("watchdog-reset", BAD_MODEL),
    (
        "old-not-started",
        "Push a system again: it is written over the one that does not start. Does that come back, change the medium",
    ),
    ("interrupted-too-often", "Push it again where the power is steady"),
    ("displaced", "Push it again; change models by bundles only"),
    ("host-ended", BAD_MODEL),
    ("error-rate", BAD_MODEL),
    ("non-finite", BAD_MODEL),
    ("slower", "Make the model faster, or build the bundle with a larger --probation-max-p99-ratio"),
    ("drift", "If it is meant to answer otherwise, build the bundle with a larger --probation-max-drift"),
    ("shadow-host-ended", BAD_MODEL),
    ("shadow-error-rate", BAD_MODEL),
    ("shadow-non-finite", BAD_MODEL),
    (
        "shadow-cosine",
        "If it is meant to answer otherwise, build the bundle with a lower --shadow-min-cosine",
    ),
    (
        "shadow-agreement",
        "If it is meant to answer otherwise, build the bundle with a lower --shadow-min-agreement",
    ),
    ("shadow-slower", "Make the model faster, or build the bundle with a larger --shadow-max-latency-ratio"),
    ("shadow-thin", ""),
    ("trial-interrupted", ""),
    ("transfer-interrupted", "Send it again: what has come is kept"),
    ("ok-rechecked", ""),
    ("rollback-asked", ""),
    ("nothing-to-go-back-to", ""),
    ("restored-factory", ""),
    ("nothing-left", "Push a bundle that serves; the verdicts before say what became of the others"),
    ("state-recovered", ""),
    // --- systems
    ("same-version", "Build it with a higher --version"),
    ("other-product", "Build it with the --product of the system that runs"),
    ("probation", "Build it with other --probation-seconds"),
    (
        "firmware-too-old",
        "Update the board's firmware first, as its maker says; that cannot be taken back by a trial",
    ),
    ("boot-backend", "Write an image of this version to the medium: `inferctl flash`"),
    ("wrong-parts", "Build it from the parts of an image for this board"),
    ("busy", "Try again when it is over"),
    ("system-on-trial", "`inferctl slots` shows how far it is"),
    ("system-gone", "Push it again: it is started anew"),
    ("nothing-staged", "Push a bundle of a system first"),
    ("no-keeper", ""),
    ("not-allowed", "Send it over the network, where a key says who may, or be root on the device"),
    ("no-door", ""),
    ("not-started", "Find out on a bench, with a console, where its start ends"),
    ("not-ready", BAD_SYSTEM),
    ("safe-mode", BAD_SYSTEM),
    ("no-rootfs", "Build it again from the parts of one image"),
];

const DAMAGED: &str = "Copy or build it again; `inferctl bundle verify` tells whether a file is whole";
const MEMORY: &str =
    "Lower the memory budget in the models' manifests, ship fewer models, or raise updates.memory_limit_mib";
const BAD_SYSTEM: &str =
    "Find out why before it is shipped again: the old system is back, and the history says more";
const BAD_MODEL: &str =
    "Find out why before it is shipped again: the verdict's evidence and the device's log say more";

/// What to do about a code; nothing for one that is not known here, or whose sentence says it.
#[must_use]
pub fn advice(code: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(known, _)| *known == code).map(|(_, advice)| *advice).filter(|a| !a.is_empty())
}

/// What happened, and what to do.
#[must_use]
pub fn explain(code: &str, sentence: &str) -> String {
    let sentence = match sentence.trim_end_matches('.') {
        "" => code,
        sentence => sentence,
    };
    let end = if sentence.ends_with(['?', '!']) { "" } else { "." };
    match advice(code) {
        Some(advice) => format!("{sentence}{end} {advice}"),
        None => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Rooms whose codes stand in one `match` of a `fn code`.
    const MATCHES: &[(&str, &str)] = &[
        ("bundle", include_str!("../../bundle/src/refusal.rs")),
        ("slots", include_str!("../../slots/src/error.rs")),
        ("slots", include_str!("../../slots/src/state.rs")),
        ("fetch", include_str!("../../fetch/src/error.rs")),
        ("rollout", include_str!("../../rollout/src/install.rs")),
    ];

    /// Rooms that give codes here and there: there every text of words joined by hyphens is one, but for [`NO_CODES`].
    const SCATTERED: &[(&str, &str)] = &[
        ("rollout", include_str!("../../rollout/src/gates.rs")),
        ("rollout", include_str!("../../rollout/src/judge.rs")),
        ("rollout", include_str!("../../rollout/src/trial.rs")),
        ("rollout", include_str!("../../rollout/src/serve.rs")),
        ("rollout", include_str!("../../rollout/src/core.rs")),
        ("rollout", include_str!("../../rollout/src/shell.rs")),
        ("rollout", include_str!("../../rollout/src/install.rs")),
        ("rollout", include_str!("../../rollout/src/systems.rs")),
        ("system", include_str!("../../system/src/systems.rs")),
        ("system", include_str!("../../system/src/state.rs")),
        ("inferd", include_str!("../../inferd/src/system.rs")),
        ("inferd", include_str!("../../inferd/src/system/serve.rs")),
        ("api", include_str!("../../api/src/updates.rs")),
    ];
    const NO_CODES: &[&str] = &["kebab-case", "x-accel-buffering", "last-event-id"];

    /// The source of a room without its tests and comments.
    fn code_of(source: &str) -> String {
        let body = source.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = body.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_code(text: &str) -> bool {
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.split('-').all(|word| !word.is_empty())
    }

    /// The codes in the first `fn code` of a source.
    fn matched(source: &str) -> BTreeSet<String> {
        let source = code_of(source);
        let from = source.find("fn code(").unwrap_or(0);
        let mut found = BTreeSet::new();
        // A source may have several, one after the other.
        for line in source[from..].lines() {
            let Some((_, rest)) = line.split_once("=> \"") else { continue };
            found.extend(rest.split_once('"').map(|(code, _)| code.to_owned()).filter(|c| is_code(c)));
        }
        found
    }

    /// Every text of words joined by hyphens.
    fn hyphenated(source: &str) -> BTreeSet<String> {
        let source = code_of(source);
        let texts = source.lines().flat_map(|line| line.split('"').skip(1).step_by(2));
        let codes = texts.filter(|t| t.contains('-') && is_code(t) && !NO_CODES.contains(t));
        codes.map(str::to_owned).collect()
    }

    #[test]
    fn every_code_that_can_be_given_has_its_advice() {
        let matched = MATCHES.iter().map(|(room, source)| (room, matched(source)));
        let scattered = SCATTERED.iter().map(|(room, source)| (room, hyphenated(source)));
        for (room, given) in matched.chain(scattered) {
            assert!(!given.is_empty(), "{room}: codes are looked for where there are none");
            let missing: Vec<_> =
                given.iter().filter(|code| ADVICE.iter().all(|(known, _)| known != code)).collect();
            assert!(missing.is_empty(), "{room} gives codes without advice: {missing:?}");
        }
    }

    #[test]
    fn a_code_is_listed_once() {
        let mut seen = BTreeSet::new();
        for (code, _) in ADVICE {
            assert!(seen.insert(code), "{code}");
        }
    }

    #[test]
    fn what_to_do_follows_what_happened() {
        assert_eq!(
            explain("bundle-revoked", "bundle ab was revoked"),
            "bundle ab was revoked. Build a new version"
        );
        assert_eq!(
            explain("unknown-keys", "who signed?").split(' ').take(3).collect::<Vec<_>>(),
            ["who", "signed?", "`inferctl"]
        );
        assert_eq!(explain("of-tomorrow", "something new"), "something new");
        assert_eq!(explain("of-tomorrow", ""), "of-tomorrow");
    }
}
