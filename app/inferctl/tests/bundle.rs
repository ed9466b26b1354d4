//! `inferctl keygen`, `root`, `permit` and `bundle`, through its command line.

use serde_json::Value;
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder of its own, gone at the end; commands run in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bundle-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the target folder is writable");
        Self(dir)
    }

    /// One more machine: a folder in it.
    fn machine(&self, name: &str) -> Self {
        let dir = self.0.join(name);
        std::fs::create_dir_all(&dir).expect("made");
        Self(dir)
    }

    fn run(&self, line: &str) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferctl"));
        command.args(line.split_whitespace()).current_dir(&self.0);
        for name in ["INFERD_URL", "INFERD_API_KEY"] {
            command.env_remove(name);
        }
        let output = command.output().expect("the program runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Said {
            line: line.into(),
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// What must go well; what it printed.
    fn ok(&self, line: &str) -> String {
        let said = self.run(line);
        assert_eq!(said.code, Some(0), "{}\n{}{}", said.line, said.out, said.err);
        said.out
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).expect("JSON")
    }

    /// What must be refused with exit code 1 in one sentence that has these words, and nothing on standard output.
    fn no(&self, line: &str, words: &[&str]) {
        let said = self.run(line);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{}\n{}", said.line, said.err);
        let mut lines = said.err.lines();
        assert!(lines.next().is_some_and(|l| l.starts_with("inferctl: ")), "{}: {}", said.line, said.err);
        assert!(lines.next().is_none(), "{}: {}", said.line, said.err);
        for word in words {
            assert!(said.err.contains(word), "{}: {word} is not in {}", said.line, said.err);
        }
    }

    fn carry(&self, file: &str, to: &Self) {
        std::fs::copy(self.0.join(file), to.0.join(file)).expect("carried");
    }

    fn keygen(&self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.ok(&format!("keygen {name}.key"))));
    }

    /// A root of one key for everything.
    fn simple_root(&self) {
        self.keygen(&["k", "dev"]);
        self.ok("root create -o root.imr --role root=1:k.pub --role model-release=1:k.pub --role revocation=1:k.pub --role model-dev=1:dev.pub --key k.key");
    }

    fn build(&self, model: &str, version: u32, options: &str, output: &str) -> String {
        let model = model_dir(model);
        self.ok(&format!(
            "bundle build --model {model} --product p --version {version} {options} -o {output}"
        ))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Said {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

fn model_dir(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = if name == "imu-motion" { root.join("app/inferd/models") } else { root.join("tests/models") };
    dir.join(name).display().to_string()
}

#[test]
fn a_secret_key_is_its_owners_alone_and_is_never_overwritten() {
    let folder = Folder::new("keygen");
    let said = folder.json("keygen anna.key --note Anna's_token");
    let mode = |file: &str| folder.0.join(file).metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!(mode("anna.key"), 0o600);
    let secret = std::fs::read_to_string(folder.0.join("anna.key")).expect("read");
    let digits = secret.split(' ').nth(2).expect("KIND ALGORITHM DIGITS NOTE").to_owned();
    folder.no("keygen anna.key", &["anna.key", "never overwritten"]);
    std::fs::remove_file(folder.0.join("anna.key")).expect("removed");
    folder.no("keygen anna.key", &["anna.pub", "never overwritten"]);
    let public = std::fs::read_to_string(folder.0.join("anna.pub")).expect("read");
    assert!(public.ends_with("Anna's_token\n") && digits.len() == 64 && !public.contains(&digits));
    assert_eq!(said["id"].as_str().map(str::len), Some(64));
    folder.no("keygen b.pub", &["NAME.key"]);
}

#[test]
fn a_key_that_does_not_fit_leaves_nothing_in_the_way_of_the_next_try() {
    let folder = Folder::new("full");
    let full = format!("trap '' XFSZ; ulimit -f 0; exec {} keygen a.key", env!("CARGO_BIN_EXE_inferctl"));
    let output = Command::new("sh").args(["-c", &full]).current_dir(&folder.0).output().expect("sh");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    folder.keygen(&["a"]);
}

#[test]
fn what_is_written_takes_the_place_of_its_own_kind_only_and_never_that_of_a_secret_key() {
    let folder = Folder::new("places");
    folder.simple_root();
    folder.keygen(&["safe"]);
    folder.build("imu-motion", 1, "--key k.key", "a.imb");
    let left = |file: &str| std::fs::read(folder.0.join(file)).expect("read");
    let before = ["safe.key", "root.imr", "a.imb"].map(left);
    let build =
        format!("bundle build --model {} --product p --version 1 --key k.key", model_dir("imu-motion"));
    let root =
        "root create --role root=1:k.pub --role model-release=1:k.pub --role revocation=1:k.pub --key k.key";
    folder.no(&format!("{build} -o safe.key"), &["safe.key", "secret key"]);
    folder.no("bundle sign a.imb --key k.key -o safe.key", &["safe.key", "secret key"]);
    folder.no("sign a.imb --key k.key --write-pub safe.key", &["safe.key", "secret key"]);
    folder.no(&format!("{root} --force -o safe.key"), &["safe.key", "secret key"]);
    folder.no(&format!("{build} -o root.imr"), &["root.imr", "something else"]);
    folder.no("bundle sign a.imb --key k.key -o root.imr", &["root.imr", "something else"]);
    assert_eq!(before, ["safe.key", "root.imr", "a.imb"].map(left));
    folder.ok(&format!("{build} --label other -o a.imb"));
    assert_ne!(before[2], left("a.imb"), "a bundle gives way to a bundle");
}

#[test]
fn two_of_three_keys_on_three_machines_make_rotate_and_revoke() {
    let office = Folder::new("ceremony");
    let (anna, ben, safe) = (office.machine("anna"), office.machine("ben"), office.machine("safe"));
    for (machine, name) in [(&anna, "anna"), (&ben, "ben"), (&safe, "safe")] {
        machine.keygen(&[name]);
        machine.carry(&format!("{name}.pub"), &office);
    }
    office.keygen(&["build", "build2"]);

    // The first root: made where no root key is, signed by two of three, each on its own machine.
    let holders = "anna.pub,ben.pub,safe.pub";
    let said = office.ok(&format!(
        "root create -o root.imr --role root=2:{holders} --role revocation=2:{holders} --role model-release=1:build.pub"
    ));
    assert!(said.contains("0 of the 2 root keys needed by root 1 signed"), "{said}");
    office.carry("root.imr", &anna);
    assert!(
        anna.ok("root sign root.imr --key anna.key").contains("1 of the 2 root keys"),
        "one is not enough"
    );
    anna.carry("root.imr", &ben);
    office.build("identity-fp32", 1, "--key build.key", "one.imb");
    office.carry("one.imb", &anna);
    anna.no("bundle verify one.imb --root root.imr", &["root.imr", "1 of 2 keys of role root"]);
    let said = ben.ok("root sign root.imr --key ben.key");
    assert!(said.contains("2 of the 2 root keys needed by root 1 signed"), "{said}");
    ben.carry("root.imr", &office);
    office.ok("bundle verify one.imb --root root.imr");

    // Signing twice with one key is one signature.
    let before = office.json("root show root.imr")["signed_by"].clone();
    anna.carry("root.imr", &safe);
    anna.ok("root sign root.imr --key anna.key");
    assert_eq!(anna.json("root show root.imr")["standing"][0]["signed"], 1);
    assert_eq!(before.as_array().map(Vec::len), Some(2));

    // Rotation: another release key, and Ben's root key gives way to a new one. Old and new root keys sign.
    office.keygen(&["carla"]);
    let next = "root rotate root.imr -o root2.imr --role root=2:anna.pub,carla.pub,safe.pub --role model-release=1:build2.pub";
    let told = office.run(&format!("{next} --key carla.key"));
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(
        told.err.contains("keys of model-release lose it"),
        "a trap for devices that serve: {}",
        told.err
    );
    let said = told.out;
    assert!(said.contains("0 of the 2 root keys needed by root 1 signed"), "{said}");
    assert!(said.contains("1 of the 2 root keys needed by root 2 signed"), "{said}");
    office.carry("root2.imr", &anna);
    anna.ok("root sign root2.imr --key anna.key");
    anna.carry("root2.imr", &office);
    let said = office.ok("root show root2.imr --root root.imr");
    assert!(
        said.contains("1 of the 2 root keys needed by root 1 signed")
            && said.contains("2 of the 2 root keys needed by root 2"),
        "{said}"
    );
    office.no("bundle verify one.imb --root root.imr --root root2.imr", &["1 of 2 keys of role root"]);
    office.carry("root2.imr", &safe);
    office.carry("root.imr", &safe);
    let said = safe.ok("root sign root2.imr --key safe.key --root root.imr");
    assert!(said.contains("2 of the 2 root keys needed by root 1 signed"), "{said}");
    safe.carry("root2.imr", &office);
    office.build("identity-fp32", 2, "--key build2.key", "two.imb");
    office.no("bundle verify two.imb --root root.imr", &["no signature is from a key"]);
    office.ok("bundle verify two.imb --root root.imr --root root2.imr");
    office.no("bundle verify one.imb --root root.imr --root root2.imr", &["no signature is from a key"]);
    office.no("bundle verify two.imb --root root.imr --root root.imr", &["root 1 is not newer"]);

    // Revocation of a key and of a bundle, then the list grows.
    office.ok("root revoke -o list.imr --revoke-key build.pub");
    for machine in [&anna, &safe] {
        office.carry("list.imr", machine);
        office.carry("root.imr", machine);
        let key = if machine.0 == anna.0 { "anna" } else { "safe" };
        machine.ok(&format!("root sign list.imr --key {key}.key --root root.imr"));
        machine.carry("list.imr", &office);
    }
    office.no("bundle verify one.imb --root root.imr --revocations list.imr", &["was revoked", "0 of 1"]);
    let id = office.json("bundle inspect two.imb")["id"].as_str().unwrap_or_default().to_owned();
    office.carry("list.imr", &anna);
    let list =
        anna.json(&format!("root revoke --from list.imr -o list2.imr --revoke-bundle {id} --key anna.key"));
    assert_eq!(list["document"]["version"], 2);
    assert_eq!(list["document"]["keys"].as_array().map(Vec::len), Some(1), "what was revoked stays so");
    anna.carry("list2.imr", &safe);
    safe.ok("root sign list2.imr --key safe.key");
    safe.carry("list2.imr", &office);
    let roots = "--root root.imr --root root2.imr";
    office.ok(&format!("bundle verify two.imb {roots} --revocations list.imr"));
    office.no(
        &format!("bundle verify two.imb {roots} --revocations list2.imr"),
        &["was revoked", "new version"],
    );
}

#[test]
fn a_document_is_not_overwritten_by_accident() {
    let folder = Folder::new("overwrite");
    folder.simple_root();
    let again = "root create -o root.imr --role root=1:k.pub --key k.key";
    folder.no(again, &["root.imr is there already", "--force"]);
    folder.ok(&format!("{again} --force"));
}

#[test]
fn a_bundle_is_the_same_bytes_each_time_and_says_what_it_is() {
    let folder = Folder::new("build");
    folder.simple_root();
    let options = "--label 1.2.3 --target rpi4 --target qemu-aarch64 --probation-seconds 60 --shadow-requests 20 --key k.key";
    let said = folder.build("imu-motion", 7, options, "a.imb");
    assert!(said.contains("p 7 (1.2.3) with imu-motion") && said.contains("as model-release"), "{said}");
    folder.build("imu-motion", 7, options, "b.imb");
    let read = |name: &str| std::fs::read(folder.0.join(name)).expect("read");
    assert!(read("a.imb") == read("b.imb"), "the same input gives the same bytes");

    let said = folder.json("bundle inspect a.imb");
    let manifest = &said["manifest"];
    assert_eq!((manifest["version"].as_u64(), manifest["label"].as_str()), (Some(7), Some("1.2.3")));
    assert_eq!(manifest["targets"], serde_json::json!(["qemu-aarch64", "rpi4"]));
    assert_eq!(manifest["policy"]["probation"]["seconds"], 60);
    assert_eq!(manifest["policy"]["shadow"]["requests"], 20);
    assert_eq!(manifest["models"][0]["files"].as_array().map(Vec::len), Some(2));
    let text = folder.ok("bundle inspect a.imb");
    for part in
        ["p 7 (1.2.3)", "qemu-aarch64, rpi4", "60 s", "20 requests", "model.onnx", "golden.safetensors"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let said = folder.ok("bundle verify a.imb --root root.imr");
    assert!(said.contains("a.imb is good") && said.contains("by root 1"), "{said}");
}

#[test]
fn a_compressed_bundle_is_verified_like_a_plain_one() {
    let folder = Folder::new("compress");
    folder.simple_root();
    folder.build("imu-motion", 1, "--key k.key", "plain.imb");
    folder.build("imu-motion", 1, "--key k.key --compress", "packed.imb");
    folder.ok("bundle verify packed.imb --root root.imr");
    let len = |name: &str| folder.json(&format!("bundle inspect {name}"))["len"].as_u64();
    assert!(len("packed.imb") <= len("plain.imb"));
}

#[test]
fn a_system_is_built_for_a_board_signed_as_one_and_verified_like_any_bundle() {
    let folder = Folder::new("system");
    folder.keygen(&["k", "s"]);
    folder.ok("root create -o root.imr --role root=1:k.pub --role model-release=1:k.pub --role system-release=1:s.pub --key k.key");
    for (file, fill) in [("root.squashfs", 1_u8), ("a.fat", 2), ("b.fat", 3)] {
        let bytes: Vec<u8> = (0..300_000).map(|n| if n < 100_000 { fill } else { 0 }).collect();
        std::fs::write(folder.0.join(file), bytes).expect("written");
    }
    let build = "bundle build --system --version 9 --rootfs root.squashfs";
    let out = folder.ok(&format!("{build} --boot-a a.fat --boot-b b.fat --board rpi4 --key s.key -o os.imb"));
    for word in ["inferd-os 9", "boot-a, boot-b, rootfs", "as system-release"] {
        assert!(out.contains(word), "{word} is not in {out}");
    }
    folder.ok("bundle verify os.imb --root root.imr");
    let page = folder.json("bundle inspect os.imb");
    assert_eq!(page["manifest"]["kind"], "system");
    assert_eq!(page["manifest"]["targets"], serde_json::json!(["rpi4"]));
    // Only what changed is fetched, as of models.
    std::fs::write(folder.0.join("b.fat"), vec![7; 300_000]).expect("written");
    folder.ok(&format!("{build} --boot-a a.fat --boot-b b.fat --board rpi4 --key s.key -o next.imb"));
    let diff = folder.json("bundle diff os.imb next.imb");
    let counted = |key: &str| diff["models"][0][key].as_u64().expect("a number");
    assert!(counted("fetched_chunks") > 0 && counted("spared_chunks") > 0, "{diff}");

    folder.ok(&format!("{build} --boot a.fat --board rpi4 --key k.key -o wrong.imb"));
    folder.no("bundle verify wrong.imb --root root.imr", &["system-release"]);
    folder.no(&format!("{build} --boot a.fat --board rpi4 --shadow-requests 5 -o x.imb"), &["shadow"]);
    let misused = |line: &str, option: &str| {
        let said = folder.run(line);
        assert!(said.code == Some(2) && said.err.contains(option), "{line}: {}", said.err);
    };
    misused(&format!("{build} --key s.key -o x.imb"), "--target");
    misused("bundle build --system --version 9 --board rpi4 -o x.imb", "--rootfs");
    misused(&format!("{build} --boot-a a.fat --board rpi4 -o x.imb"), "--boot-b");
    misused("bundle build --model . --product p --version 1 --rootfs root.squashfs -o x.imb", "--system");
    misused("bundle build --model . --version 1 -o x.imb", "--product");
}

#[test]
fn a_policy_file_is_overridden_by_options_and_misspelt_keys_are_named() {
    let folder = Folder::new("policy");
    let policy = folder.0.join("policy.toml");
    std::fs::write(&policy, "[shadow]\nrequests = 50\nmin_cosine = 0.99\n[probation]\nseconds = 30\n")
        .expect("written");
    folder.build("identity-fp32", 1, "--policy policy.toml --probation-seconds 45", "a.imb");
    let policy_of = folder.json("bundle inspect a.imb")["manifest"]["policy"].clone();
    assert_eq!(
        (policy_of["probation"]["seconds"].as_u64(), policy_of["shadow"]["min_cosine"].as_f64()),
        (Some(45), Some(0.99))
    );
    std::fs::write(&policy, "[probation]\nsecond = 30\n").expect("written");
    let model = model_dir("identity-fp32");
    folder.no(
        &format!("bundle build --model {model} --product p --version 1 --policy policy.toml -o b.imb"),
        &["policy.toml is no policy", "second"],
    );
}

#[test]
fn a_bundle_can_be_signed_later_and_keeps_its_id() {
    let folder = Folder::new("sign");
    folder.keygen(&["a", "b", "stranger"]);
    folder.ok("root create -o root.imr --role root=1:a.pub --role model-release=2:a.pub,b.pub --key a.key");
    let said = folder.build("identity-fp32", 1, "", "x.imb");
    assert!(said.contains("nobody signed it"), "{said}");
    folder.no("bundle verify x.imb --root root.imr", &["nobody signed it", "2 key(s) of role model-release"]);
    let id = folder.json("bundle inspect x.imb")["id"].clone();
    folder.ok("bundle sign x.imb --key stranger.key");
    folder.no("bundle verify x.imb --root root.imr", &["no signature is from a key"]);
    folder.ok("bundle sign x.imb --key a.key");
    folder.no("bundle verify x.imb --root root.imr", &["1 of 2 keys of role model-release signed"]);
    folder.ok("bundle sign x.imb --key b.key -o y.imb");
    folder.ok("bundle verify y.imb --root root.imr");
    assert_eq!(folder.json("bundle inspect y.imb")["id"], id);
    folder.no("bundle verify x.imb --root root.imr", &["1 of 2"]);
}

#[test]
fn a_development_bundle_is_good_only_where_development_is_accepted() {
    let folder = Folder::new("dev");
    folder.simple_root();
    folder.build("identity-fp32", 1, "--role model-dev --key dev.key", "d.imb");
    folder.no("bundle verify d.imb --root root.imr", &["signed for development", "--dev"]);
    folder.ok("bundle verify d.imb --root root.imr --allow-dev");
    folder.build("identity-fp32", 1, "--key dev.key", "r.imb");
    folder.no("bundle verify r.imb --root root.imr --allow-dev", &["does not have role model-release"]);
}

#[test]
fn a_diff_counts_what_a_device_would_fetch_per_model() {
    let folder = Folder::new("diff");
    let (fp32, int8, imu) = (model_dir("identity-fp32"), model_dir("identity-int8"), model_dir("imu-motion"));
    let build = |version: u32, models: &[&str], output: &str| {
        let models: String = models.iter().map(|m| format!("--model {m} ")).collect();
        folder.ok(&format!("bundle build {models} --product p --version {version} -o {output}"));
    };
    build(1, &[&fp32, &imu], "old.imb");
    build(2, &[&int8, &imu], "new.imb");
    let same = folder.json("bundle diff old.imb old.imb");
    assert_eq!((same["fetched_chunk_bytes"].as_u64(), same["requests"].as_u64()), (Some(0), Some(0)));
    assert_eq!(same["fetched_bytes"], same["head_bytes"]);
    let said = folder.json("bundle diff old.imb new.imb");
    let model = |name: &str| {
        let all = said["models"].as_array().expect("models");
        all.iter().find(|m| m["model"] == name).cloned().expect("in the list")
    };
    assert_eq!(model("imu-motion")["fetched_bytes"], 0);
    assert!(model("imu-motion")["spared_bytes"].as_u64() > Some(300_000));
    assert!(model("identity-int8")["fetched_bytes"].as_u64() > Some(0));
    assert_eq!(
        said["fetched_bytes"].as_u64(),
        said["head_bytes"].as_u64().zip(said["fetched_chunk_bytes"].as_u64()).map(|(a, b)| a + b)
    );
    let text = folder.ok("bundle diff old.imb new.imb");
    assert!(text.contains("a device with p 1 fetches") && text.contains("for p 2"), "{text}");
}

#[test]
fn damage_is_found_wherever_it_is() {
    let folder = Folder::new("damage");
    folder.simple_root();
    folder.build("imu-motion", 1, "--key k.key", "good.imb");
    let good = std::fs::read(folder.0.join("good.imb")).expect("read");
    let verify = "bundle verify bad.imb --root root.imr";
    let with = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(folder.0.join("bad.imb"), bad).expect("written");
    };
    with(3);
    folder.no(verify, &["bad.imb: this is not a bundle"]);
    with(20);
    folder.no(verify, &["header"]);
    with(4100);
    folder.no(verify, &["manifest is damaged"]);
    with(good.len() - 8192);
    folder.no(verify, &["chunk", "damaged"]);
    std::fs::write(folder.0.join("bad.imb"), &good[..good.len() - 4096]).expect("written");
    folder.no(verify, &["cut off"]);
    folder.no("push bad.imb --url http://127.0.0.1:9", &["cut off or damaged"]);
    std::fs::write(folder.0.join("bad.imb"), "PK").expect("written");
    folder.no("bundle inspect bad.imb", &["this is not a bundle", "bundle build"]);
}

#[test]
fn what_is_not_fit_to_be_served_is_not_packed_unless_asked_for() {
    let folder = Folder::new("unfit");
    let model = model_dir("refused-int8-conv");
    let build = format!("bundle build --model {model} --product p --version 1 -o x.imb");
    folder.no(&build, &["ConvInteger", "--unchecked"]);
    let left: Vec<_> = std::fs::read_dir(&folder.0).expect("read").collect();
    assert!(left.is_empty(), "{left:?}");
    folder.ok(&format!("{build} --unchecked"));
}

#[test]
fn a_permit_names_its_device_and_its_version() {
    let folder = Folder::new("permit");
    folder.simple_root();
    let permit = "permit --device inferd-a1b2c3 --product p --version 3 --nonce 5 --key k.key -o p.imr";
    let said = folder.ok(permit);
    assert!(said.contains("permit 5: device inferd-a1b2c3 may install p 3 once"), "{said}");
    let shown = folder.json("root show p.imr --root root.imr");
    assert_eq!(
        (shown["kind"].as_str(), &shown["standing"][0]["complete"]),
        (Some("permit"), &Value::Bool(true))
    );
    folder.no(permit, &["p.imr is there already"]);
}

#[test]
fn mistakes_are_told_in_one_sentence() {
    let folder = Folder::new("mistakes");
    folder.simple_root();
    folder.build("identity-fp32", 1, "--key k.key", "x.imb");
    let model = model_dir("identity-fp32");
    std::fs::write(folder.0.join("text"), "hello").expect("written");
    let table: &[(&str, &[&str])] = &[
        ("bundle inspect nothing.imb", &["nothing.imb cannot be read"]),
        ("bundle verify x.imb --root k.pub", &["k.pub", "trust document"]),
        ("bundle verify x.imb --root nothing", &["nothing cannot be read"]),
        ("bundle sign x.imb --key k.pub", &["k.pub", "this is a public key"]),
        ("bundle sign x.imb --key text", &["text", "one line"]),
        ("root create -o r.imr --role root=1:k.key", &["k.key", "keep this one to yourself"]),
        ("root create -o r.imr --role model-dev=1:k.pub --key k.key", &["role root"]),
        ("root create -o r.imr --role root=1:k.pub --role root=1:dev.pub", &["given twice"]),
        ("root create -o r.imr --role root=2:k.pub,k.pub", &["named twice"]),
        ("root rotate x.imb -o r.imr --role root=1:k.pub", &["x.imb"]),
        ("root revoke -o r.imr --from root.imr --revoke-key k.pub", &["is a root document"]),
        ("root revoke -o r.imr --revoke-bundle text", &["not a bundle"]),
        ("root sign text --key k.key", &["text", "trust document"]),
        ("push nothing.imb", &["nothing.imb cannot be read"]),
    ];
    for (line, words) in table {
        folder.no(line, words);
    }
    let build = format!("bundle build --model {model} --product p --version 1 -o y.imb");
    folder.no(&format!("{build} --min-inferd newest"), &["min_inferd"]);
    folder.no(&build.replace(&model, "nowhere"), &["nowhere", "manifest"]);
    folder.no(&format!("{build} --model {model}"), &["model"]);
    assert!(!folder.0.join("y.imb").exists() && !folder.0.join("r.imr").exists());
    for wrong in ["root create -o r.imr", "bundle build -o y.imb", "push", "permit --product p"] {
        assert_eq!(folder.run(wrong).code, Some(2), "{wrong}");
    }
}
