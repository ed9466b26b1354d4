//! Tables of what is said in the layers and what must come out.

use super::*;

const FILE: &str = "/etc/inferd/test.toml";

/// Variables of the environment.
type Env<'a> = &'a [(&'a str, &'a str)];

fn load(file: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_with(&Arguments::default(), file, env)
}

fn load_with(arguments: &Arguments, file: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Loaded::from_layers(arguments, env, Some((Path::new(FILE), file)))
}

fn shown(loaded: &Loaded, key: &str) -> (String, String) {
    let entry = loaded.entries.iter().find(|e| e.key == key).expect("a known key");
    (entry.value.clone(), entry.source.to_string())
}

#[test]
fn nothing_said_gives_the_defaults() {
    let loaded = Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None).unwrap();
    assert_eq!(loaded.config.server.listen, ["0.0.0.0:9000".parse().unwrap()]);
    assert_eq!(loaded.config.server.max_request_bytes, 10 << 20);
    assert_eq!(loaded.config.logging.level, tracing::Level::INFO);
    assert_eq!(loaded.config.security.api_key, None);
    assert_eq!(loaded.notes, Vec::<String>::new());
    assert!(loaded.entries.iter().all(|e| e.source == Source::Default));
}

#[test]
fn the_upper_layer_wins() {
    let file = "[server]\nlisten = [\"127.0.0.1:1\"]\n";
    let file_says = ("[\"127.0.0.1:1\"]".to_owned(), "/etc/inferd/test.toml:2".to_owned());
    let fastapi = ("FASTAPI_PORT", "2");
    let sidecar = ("SIDECAR_PORT", "3");
    let own = ("INFERD_SERVER_LISTEN", "127.0.0.1:4, [::1]:4");
    let arguments = Arguments { listen: vec!["127.0.0.1:5".parse().unwrap()], ..Arguments::default() };
    let none = Arguments::default();
    type Row<'a> = (&'a Arguments, Env<'a>, (String, String));
    let said = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    let table: &[Row<'_>] = &[
        (&none, &[], file_says),
        (&none, &[fastapi], said("[\"0.0.0.0:2\"]", "environment FASTAPI_PORT")),
        (&none, &[fastapi, sidecar], said("[\"0.0.0.0:3\"]", "environment SIDECAR_PORT")),
        (&none, &[sidecar, own], said("[\"127.0.0.1:4\", \"[::1]:4\"]", "environment INFERD_SERVER_LISTEN")),
        (&arguments, &[sidecar, own], said("[\"127.0.0.1:5\"]", "argument --listen")),
    ];
    for (arguments, env, expected) in table {
        let loaded = load_with(arguments, file, env).unwrap();
        assert_eq!(&shown(&loaded, "server.listen"), expected, "{env:?}");
    }
}

#[test]
fn values_of_every_kind_are_read_from_file_and_environment() {
    let table: &[(&str, &str, &str, &str, &str)] = &[
        // key, in the file, in the environment, what it is from the file, from the environment
        ("server.threads", "threads = 2", "3", "2", "3"),
        ("server.threads", "threads = 0x10", " 4 ", "16", "4"),
        ("server.docs_enabled", "docs_enabled = false", "no", "false", "false"),
        ("logging.level", "level = \"Debug\"", "TRACE", "\"debug\"", "\"trace\""),
        ("logging.format", "format = \"json\"", "Text", "\"json\"", "\"text\""),
        ("models.default", "default = \"imu-motion\"", "", "\"imu-motion\"", "\"imu-motion\""),
        ("models.dirs", "dirs = [\"/a\", \"/b\"]", "/c,/d", "[\"/a\", \"/b\"]", "[\"/c\", \"/d\"]"),
        ("models.dirs", "dirs = \"/a\"", "/c", "[\"/a\"]", "[\"/c\"]"),
        ("models.dirs", "dirs = []", "/c", "[]", "[\"/c\"]"),
        ("hosts.cgroup_root", "cgroup_root = \"\"", "/sys/fs/cgroup/x", "\"\"", "\"/sys/fs/cgroup/x\""),
        ("server.allow_origins", "allow_origins = []", "http://a:3000", "[]", "[\"http://a:3000\"]"),
    ];
    for (key, line, env, from_file, from_env) in table {
        let (section, _) = key.split_once('.').unwrap();
        let file = format!("[{section}]\n{line}\n");
        assert_eq!(shown(&load(&file, &[]).unwrap(), key).0, *from_file, "{line}");
        let loaded = load(&file, &[(&env_name(key), env)]).unwrap();
        assert_eq!(shown(&loaded, key).0, *from_env, "{key} {env:?}");
    }
}

#[test]
fn a_value_that_is_not_allowed_names_key_value_range_and_source() {
    let table: &[(&str, Env<'_>, &str)] = &[
        (
            "[server]\nthreads = 0",
            &[],
            "server.threads is 0 (from /etc/inferd/test.toml:2), allowed is a whole number from 1 to 64.",
        ),
        (
            "[server]\nthreads = \"2\"",
            &[],
            "server.threads is \"2\" (from /etc/inferd/test.toml:2), allowed is a whole number from 1 to 64.",
        ),
        (
            "[server]\nthreads = 1.5",
            &[],
            "server.threads is a TOML float (from /etc/inferd/test.toml:2), allowed is a whole number from 1 to 64.",
        ),
        (
            "",
            &[("INFERD_SERVER_THREADS", "many")],
            "server.threads is \"many\" (from environment INFERD_SERVER_THREADS), allowed is a whole number from 1 to 64.",
        ),
        (
            "[logging]\nlevel = \"loud\"",
            &[],
            "logging.level is \"loud\" (from /etc/inferd/test.toml:2), allowed is one of error, warn, info, debug, trace.",
        ),
        (
            "",
            &[("LOG_LEVEL", "loud")],
            "logging.level is \"loud\" (from environment LOG_LEVEL), allowed is one of error, warn, info, debug, trace.",
        ),
        (
            "[server]\nlisten = [\"9000\"]",
            &[],
            "server.listen is [\"9000\"] (from /etc/inferd/test.toml:2), allowed is one or more ADDRESS:PORT, IPv6 in brackets.",
        ),
        (
            "[server]\nlisten = []",
            &[],
            "server.listen is [] (from /etc/inferd/test.toml:2), allowed is one or more ADDRESS:PORT, IPv6 in brackets.",
        ),
        (
            "",
            &[("SIDECAR_HOST", "device.lan")],
            "server.listen is \"device.lan:9000\" (from environment SIDECAR_HOST), allowed is one or more ADDRESS:PORT, IPv6 in brackets.",
        ),
        (
            "",
            &[("SIDECAR_PORT", "99999")],
            "server.listen is \"0.0.0.0:99999\" (from environment SIDECAR_PORT), allowed is one or more ADDRESS:PORT, IPv6 in brackets.",
        ),
        (
            "",
            &[("WORKERS", "-1")],
            "hosts.workers is \"-1\" (from environment WORKERS), allowed is a whole number from 0 to 64.",
        ),
        (
            "",
            &[("NUM_MOTIFS", "0.1")],
            "inference.motifs_without_head is \"0.1\" (from environment NUM_MOTIFS), allowed is a whole number from 1 to 1024.",
        ),
        (
            "",
            &[("INFER_MODE", "stub")],
            "INFER_MODE is \"stub\" (from environment): this program never makes answers up. \
             Unset it, or use any other value to run the real model.",
        ),
        ("[server\n", &[], "/etc/inferd/test.toml:1: this is not TOML: "),
        (
            "[server]\nthreads = 1\nthreads = 2\n",
            &[],
            "/etc/inferd/test.toml:3: this is not TOML: duplicate key",
        ),
    ];
    for (file, env, sentence) in table {
        let error = load(file, env).unwrap_err().to_string();
        assert!(error.starts_with(sentence), "{file:?} {env:?}\n said    {error}\n want {sentence}");
    }
}

#[test]
fn everything_wrong_is_said_at_once() {
    let error = load("[server]\nthreads = 0\nkeep_alive_s = 0", &[("INFER_MODE", "stub")]).unwrap_err();
    assert_eq!(error.0.len(), 3, "{error}");
}

#[test]
fn the_old_names_mean_what_they_meant() {
    let table: &[(Env<'_>, &str, &str)] = &[
        (&[("SIDECAR_HOST", "127.0.0.1")], "server.listen", "[\"127.0.0.1:9000\"]"),
        (&[("SIDECAR_HOST", "localhost"), ("FASTAPI_PORT", "8000")], "server.listen", "[\"127.0.0.1:8000\"]"),
        (&[("FASTAPI_HOST", "::1"), ("FASTAPI_PORT", "8000")], "server.listen", "[\"[::1]:8000\"]"),
        (&[("LOG_LEVEL", "WARNING")], "logging.level", "\"warn\""),
        (&[("LOG_LEVEL", "critical")], "logging.level", "\"error\""),
        (&[("WORKERS", "2")], "hosts.workers", "2"),
        (&[("BACKEND_TIMEOUT_MS", "150")], "inference.timeout_ms", "150"),
        (&[("NUM_MOTIFS", "8")], "inference.motifs_without_head", "8"),
        (&[("RESOURCE_MONITOR_INTERVAL", "10.0")], "monitor.interval_s", "10"),
        (&[("RESOURCE_MONITOR_INTERVAL", "0.5")], "monitor.interval_s", "1"),
        (&[("HIGH_CPU_THRESHOLD", "80.0")], "monitor.cpu_percent", "80"),
        (&[("HIGH_MEMORY_THRESHOLD", "85.5")], "monitor.memory_percent", "85"),
        // An empty variable is how compose files say "not set".
        (&[("SIDECAR_PORT", ""), ("LOG_LEVEL", "")], "server.listen", "[\"0.0.0.0:9000\"]"),
    ];
    for (env, key, value) in table {
        let loaded = load("", env).unwrap();
        assert_eq!(shown(&loaded, key).0, *value, "{env:?}");
        assert_eq!(loaded.notes, Vec::<String>::new(), "{env:?}");
    }
}

#[test]
fn the_old_defaults_are_accepted_in_silence() {
    let compose = [("NUM_MOTIFS", "12"), ("MAX_BATCH_SIZE", "1"), ("INFER_MODE", "hailo"), ("WORKERS", "1")];
    assert_eq!(load("", &compose).unwrap().notes, Vec::<String>::new());
}

#[test]
fn what_is_not_used_is_reported_by_name() {
    let table: &[(&str, Env<'_>, &str)] = &[
        (
            "[server]\nthread = 2",
            &[],
            "/etc/inferd/test.toml:2: unknown key server.thread is ignored; did you mean server.threads?",
        ),
        (
            "[sever]\nlisten = []",
            &[],
            "/etc/inferd/test.toml:2: unknown key sever.listen is ignored; did you mean server.listen?",
        ),
        (
            "[inference]\nworkers = 2",
            &[],
            "/etc/inferd/test.toml:2: unknown key inference.workers is ignored; did you mean hosts.workers?",
        ),
        (
            "[hardware]\ntemperature_warning = 70",
            &[],
            "/etc/inferd/test.toml:2: unknown key hardware.temperature_warning is ignored.",
        ),
        ("port = 9000", &[], "/etc/inferd/test.toml:1: unknown key port is ignored."),
        (
            "",
            &[("INFERD_SERVER_LISTN", "x")],
            "environment: unknown variable INFERD_SERVER_LISTN is ignored; did you mean INFERD_SERVER_LISTEN?",
        ),
        ("", &[("HEF_PATH", "/nowhere/tcn.hef")], "HEF_PATH=/nowhere/tcn.hef is not used: "),
        ("", &[("MODEL_ACCURACY", "72")], "MODEL_ACCURACY=72 is not used: "),
        ("", &[("BATCH_SIZE", "4")], "BATCH_SIZE=4 is not used: "),
        ("", &[("HEALTH_CHECK_INTERVAL", "30")], "HEALTH_CHECK_INTERVAL=30 is not used: "),
        ("", &[("INFER_MODE", "gpu")], "INFER_MODE=gpu is not used: "),
    ];
    for (file, env, sentence) in table {
        let notes = load(file, env).unwrap().notes;
        assert_eq!(notes.len(), 1, "{file:?} {env:?}: {notes:?}");
        assert!(notes[0].starts_with(sentence), "{file:?} {env:?}\n said {}\n want {sentence}", notes[0]);
    }
}

#[test]
fn variables_of_the_other_programs_are_not_reported() {
    let env = [("INFERD_CONFIG", "/x"), ("INFERD_URL", "http://device:9000"), ("PATH", "/bin")];
    assert_eq!(load("", &env).unwrap().notes, Vec::<String>::new());
}

#[test]
fn a_model_directory_in_hef_path_is_served() {
    let dir = std::env::temp_dir().join(format!("inferd-hef-path-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(inferd_model::MANIFEST_FILE), "").unwrap();
    let loaded = load("", &[("HEF_PATH", dir.to_str().unwrap())]);
    std::fs::remove_dir_all(&dir).unwrap();
    let loaded = loaded.unwrap();
    assert_eq!(loaded.config.models.dirs, [dir]);
    assert_eq!(loaded.notes, Vec::<String>::new());
}

#[test]
fn a_secret_is_never_shown() {
    let key = "correct-horse-battery";
    let loaded = load("", &[("INFERD_SECURITY_API_KEY", key)]).unwrap();
    assert_eq!(loaded.config.security.api_key.as_deref(), Some(key));
    assert!(!loaded.to_toml().contains(key));
    let error = load("", &[("INFERD_SECURITY_API_KEY", "short")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "security.api_key from environment INFERD_SECURITY_API_KEY is not allowed: 16 to 256 printable characters, or empty."
    );
    let error = load(&format!("[security]\napi_key = [\"{key}\"]"), &[]).unwrap_err().to_string();
    assert!(!error.contains(key), "{error}");
}

#[test]
fn keys_of_each_role_are_taken_whole_or_as_digests_and_never_shown() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let file = format!(
        "[security]\nviewer_keys = [\"look-at-everything\"]\nadmin_keys = [\"{digest}\", \"do-everything-here\"]\napi_key = \"one-more-admin-key\""
    );
    let loaded =
        load(&file, &[("INFERD_SECURITY_OPERATOR_KEYS", "load-and-unload-it, infer-on-and-on-it")]).unwrap();
    let security = &loaded.config.security;
    assert_eq!(security.operator_keys, ["load-and-unload-it", "infer-on-and-on-it"]);
    assert_eq!(security.admin_keys.len(), 2);
    assert_eq!(security.keys().len(), 6);
    let printed = loaded.to_toml();
    for secret in [
        "look-at-everything",
        "do-everything-here",
        "one-more-admin-key",
        "load-and-unload-it",
        "0123456789abcdef",
    ] {
        assert!(!printed.contains(secret), "{printed}");
        assert!(!format!("{:?}", security.keys()).contains(secret));
    }
    for bad in ["short", "sha256:0123", "with a space in it", "with-a,comma-inside-it"] {
        let error = load(&format!("[security]\nadmin_keys = [\"{bad}\"]"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("security.admin_keys from ") && !error.contains(bad), "{error}");
    }
}

#[test]
fn the_hash_is_of_what_is_in_effect_and_not_of_where_it_was_said() {
    let plain = load("", &[]).unwrap().sha256;
    let same = load("[server]\nthreads = 1", &[]).unwrap().sha256;
    let other = load("[server]\nthreads = 2", &[]).unwrap().sha256;
    let by_env = load("", &[("INFERD_SERVER_THREADS", "2")]).unwrap().sha256;
    assert_eq!(plain, same);
    assert_ne!(plain, other);
    assert_eq!(other, by_env);
    let expecting = load(&format!("[config]\nexpected_sha256 = \"{plain}\""), &[]).unwrap();
    assert_eq!(expecting.sha256, plain);
    assert_eq!(expecting.config.expected_sha256, Some(plain));
}

#[test]
fn sources_are_tables_and_what_is_wrong_with_one_is_named() {
    let said = load(
        "[[sources]]\nname = \"arm\"\nkind = \"serial\"\npath = \"/dev/ttyUSB0\"\nscale = 0.195\n[[sources]]\nname = \"demo\"\nkind = \"synthetic\"\ngesture = \"hand open\"\nhop = 40\n",
        &[],
    )
    .unwrap();
    assert_eq!(
        said.config.sources.iter().map(|s| s.spec.kind.name()).collect::<Vec<_>>(),
        ["serial", "synthetic"]
    );
    let again = load(&said.to_toml(), &[]).unwrap();
    assert_eq!((again.config, again.sha256), (said.config, said.sha256));
    let environment =
        [("INFERD_SOURCES", "[{ name = \"phone\", kind = \"push\", channels = 9, rate_hz = 100 }]")];
    assert_eq!(load("", &environment).unwrap().config.sources[0].spec.channels, 9);
    let gates = load(
        "[[sources]]\nname = \"a\"\nkind = \"push\"\ngate = { of = 10, confidence = 0.4, rest_rms = 4, safe = \"Relax\" }\n",
        &[],
    );
    let gate = gates.unwrap().config.sources[0].gate.clone();
    assert_eq!((gate.agree, gate.of, gate.confidence, gate.keep), (8, 10, 0.4, 0.4));
    assert_eq!((gate.rest_rms, gate.safe.as_deref()), (4.0, Some("Relax")));
    for (table, why) in [
        ("name = \"a\"", "kind"),
        ("name = \"a\"\nkind = \"camera\"", "camera"),
        ("name = \"A b\"\nkind = \"push\"", "name"),
        ("name = \"a\"\nkind = \"push\"\nbaud = 9600", "only a serial source"),
        ("name = \"a\"\nkind = \"serial\"", "path"),
        ("name = \"a\"\nkind = \"serial\"\npath = \"/dev/x\"\nbaud = 12345", "baud"),
        ("name = \"a\"\nkind = \"serial\"\npath = \"dev/x\"", "absolute"),
        ("name = \"a\"\nkind = \"synthetic\"\nchannels = 8", "16 channels"),
        ("name = \"a\"\nkind = \"synthetic\"\ngesture = \"wave\"", "wave"),
        ("name = \"a\"\nkind = \"synthetic\"\nmotion = \"run\"", "motion: \"run\""),
        ("name = \"a\"\nkind = \"synthetic\"\nmotion = \"walk\"\nchannels = 6", "9 channels"),
        ("name = \"a\"\nkind = \"synthetic\"\nmotion = \"walk\"\ngesture = \"Rest\"", "gesture"),
        ("name = \"a\"\nkind = \"push\"\nmotion = \"walk\"", "only a synthetic source"),
        ("name = \"a\"\nkind = \"push\"\nchannels = 33", "channels"),
        ("name = \"a\"\nkind = \"push\"\nhop = 0", "hop"),
        ("name = \"a\"\nkind = \"push\"\nbuad = 1", "buad"),
        ("name = \"a\"\nkind = \"push\"\ngate = { confidence = 1.5 }", "gate: confidence"),
        ("name = \"a\"\nkind = \"push\"\ngate = { of = 4, agree = 2 }", "gate: agree"),
        ("name = \"a\"\nkind = \"push\"\ngate = { hold_ms = 0 }", "gate: hold_ms"),
        ("name = \"a\"\nkind = \"push\"\ngate = { rms = 3 }", "rms"),
    ] {
        let e = load(&format!("[[sources]]\n{table}\n"), &[]).unwrap_err().to_string();
        assert!(e.starts_with("sources[0] (from ") && e.contains(why), "{table}: {e}");
    }
    let twice = "[[sources]]\nname = \"a\"\nkind = \"push\"\n".repeat(2);
    assert!(load(&twice, &[]).unwrap_err().to_string().contains("two"));
    let port =
        |name: &str| format!("[[sources]]\nname = \"{name}\"\nkind = \"serial\"\npath = \"/dev/ttyACM0\"\n");
    let shared = load(&(port("a") + &port("b")), &[]).unwrap_err().to_string();
    assert!(shared.contains("port of \"b\""), "{shared}");
    let motion = "[[sources]]\nname = \"collar\"\nkind = \"synthetic\"\nmotion = \"walk\"\n";
    let spec = load(motion, &[]).unwrap().config.sources[0].spec.clone();
    assert!(spec.is_motion() && (spec.channels, spec.rate.hz()) == (9, 100.0));
    let hand =
        "[[actuators]]\nname = \"hand\"\nsource = \"collar\"\npath = \"/dev/ttyACM1\"\nneutral = [1500]\n";
    assert!(load(&(motion.to_owned() + hand), &[]).unwrap_err().to_string().contains("which there is not"));
    assert!(load("sources = 3\n", &[]).unwrap_err().to_string().contains("up to 8 tables"));
}

#[test]
fn the_printed_configuration_is_one_that_can_be_read_again() {
    let said = load("[server]\nthreads = 2\n[models]\ndirs = [\"/a\\\\b\", \"/c \\\"d\\\"\"]", &[]).unwrap();
    let again = load(&said.to_toml(), &[]).unwrap();
    assert_eq!(again.config, said.config);
    assert_eq!(again.sha256, said.sha256);
    assert_eq!(again.notes, Vec::<String>::new());
}

fn defaults() -> Vec<Entry> {
    Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None).unwrap().entries
}

/// Compares a file of the repository with what the declarations say, or writes it when `UPDATE_REFERENCE` is set.
fn assert_file_is(path: &str, expected: impl Fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let expected = expected(&text);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, expected).unwrap();
    } else {
        assert_eq!(
            text,
            expected,
            "run the tests of inferd once with UPDATE_REFERENCE=1: {}",
            path.display()
        );
    }
}

#[test]
fn the_reference_in_the_readme_is_the_one_in_the_code() {
    assert_file_is("README.md", |text| {
        let (begin, end) = ("<!-- reference: begin -->\n", "<!-- reference: end -->");
        let (head, rest) = text.split_once(begin).expect("a begin mark");
        let (_, tail) = rest.split_once(end).expect("an end mark");
        format!("{head}{begin}{}{end}{tail}", reference())
    });
}

#[test]
fn the_shipped_file_shows_every_setting_with_its_default() {
    let mut file = String::from(
        "# Configuration of inferd. Every setting stands here with its default; take the `#` away to change one.\n\
         # The environment (INFERD_SECTION_KEY) and the command line go before this file.\n\
         # `inferd --print-config` shows what is in effect and where it came from; `inferd --check` checks this file.\n",
    );
    let mut section = "";
    file.push('\n');
    for e in defaults() {
        let (head, key) = e.key.split_once('.').unwrap_or(("", e.key));
        if head != section {
            let _ = write!(file, "\n[{head}]\n");
            section = head;
        }
        let _ = write!(file, "# {}\n# Allowed: {}.\n#{key} = {}\n", e.meaning, e.allowed, e.default);
    }
    assert_file_is("../../rootfs-overlay/etc/inferd/inferd.toml", |_| file.clone());

    let uncommented: String = file
        .lines()
        .map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let loaded = load(&uncommented, &[]).unwrap();
    assert_eq!(loaded.notes, Vec::<String>::new());
    assert_eq!(loaded.config, load("", &[]).unwrap().config);
}

#[test]
fn a_critical_threshold_below_its_warning_is_told_and_taken() {
    let notes = |file: &str| {
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((Path::new(FILE), file)))
            .unwrap()
            .notes
    };
    assert_eq!(notes("[monitor]\ncpu_percent = 95\ncpu_critical_percent = 95\n"), [""; 0]);
    let told = notes("[monitor]\ncpu_percent = 80\ncpu_critical_percent = 50\ndisk_critical_percent = 1\n");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("monitor.cpu_critical_percent is below monitor.cpu_percent"), "{told:?}");
    assert!(told[1].starts_with("monitor.disk_critical_percent"), "{told:?}");
}

#[test]
fn actuators_are_tables_and_what_is_wrong_with_one_is_named() {
    let source = "[[sources]]\nname = \"arm\"\nkind = \"serial\"\npath = \"/dev/ttyACM0\"\n";
    let table = |more: &str| format!("{source}[[actuators]]\nname = \"hand\"\n{more}\n");
    let usual = "path = \"/dev/ttyUSB1\"\nneutral = [1500]\n";
    let said = load(&table(&format!("{usual}poses = {{ \"Hand Open\" = [1700] }}\n")), &[]).unwrap();
    let again = load(&said.to_toml(), &[]).unwrap();
    assert_eq!(again.config, said.config);
    let spec = &said.config.actuators[0].spec;
    assert_eq!((spec.baud, spec.rate_hz, spec.velocity, spec.acceleration), (115_200, 50, 500.0, 2000.0));
    assert!(!spec.autostart && spec.pose_of("hand open").is_some());
    for (more, why) in [
        ("path = \"/dev/ttyUSB1\"", "neutral"),
        ("path = \"/dev/ttyUSB1\"\nneutral = [999]", "1000 to 2000 microseconds, not 999"),
        (&format!("{usual}poses = {{ Pinch = [1500, 1500] }}"), "Pinch: 2 joints"),
        (&format!("{usual}velocity_us_s = 0.0"), "velocity_us_s"),
        (&format!("{usual}baud = 1200"), "baud"),
        (&format!("{usual}torque = 1"), "torque"),
        (&format!("{usual}source = \"leg\""), "source \"leg\", which there is not"),
        ("path = \"/dev/ttyACM0\"\nneutral = [1500]", "port of \"hand\""),
    ] {
        let e = load(&table(more), &[]).unwrap_err().to_string();
        assert!(e.contains(why), "{more}: {e}");
    }
    let pushed = "[[sources]]\nname = \"phone\"\nkind = \"push\"\n";
    let by_push = table(usual).replace(source, pushed);
    let e = load(&by_push, &[]).unwrap_err().to_string();
    assert!(e.contains("anybody in the network") && e.contains("open_inference = false"), "{e}");
    assert!(load(&format!("{by_push}source = \"phone\"\n"), &[]).is_err());
    assert!(load(&format!("{by_push}[security]\nopen_inference = false\n"), &[]).is_ok());
    assert!(load(&format!("{pushed}{}", table(&format!("{usual}source = \"arm\""))), &[]).is_ok());
    let alone = table(usual).replace(source, "");
    assert!(load(&alone, &[]).unwrap_err().to_string().contains("no source to follow"));
    let two = table(usual) + &table(&usual.replace("USB1", "USB2")).replace(source, "");
    assert!(load(&two, &[]).unwrap_err().to_string().contains("two"));
}
