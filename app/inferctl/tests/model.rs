//! `inferctl model`, through its command line.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("model-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the target folder is writable");
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `inferctl model ...`, without a Python: these tests are about what happens here.
fn model(args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inferctl"));
    command.arg("model").args(args);
    if args[0] == "import" {
        command.args(["--python", "/nonexistent/python3"]);
    }
    let output = command.output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn json(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", said.out, said.err))
}

fn shared(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).display().to_string()
}

fn copy(name: &str, to: &Folder) -> PathBuf {
    let dir = to.0.join(name);
    std::fs::create_dir_all(&dir).expect("made");
    for file in ["manifest.toml", "model.onnx", "golden.safetensors"] {
        std::fs::copy(format!("{}/{file}", shared(&format!("tests/models/{name}"))), dir.join(file))
            .expect("copied");
    }
    dir
}

/// The row of the first check that did not pass.
fn failed(report: &serde_json::Value) -> (String, String) {
    let rows = report["checks"].as_array().expect("rows");
    let row = rows.iter().find(|r| r["verdict"] == "failed").expect("one failed");
    (row["check"].as_str().unwrap_or_default().into(), row["detail"].as_str().unwrap_or_default().into())
}

#[test]
fn a_good_directory_passes_every_check() {
    let said = model(&["check", &shared("tests/models/two-in-two-out")]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("answers") && said.out.trim_end().ends_with("is good."), "{}", said.out);
    let report = json(&model(&["check", "--json", &shared("tests/models/two-in-two-out")]));
    assert_eq!(report["passed"], true);
    assert_eq!(report["name"], "two-in-two-out");
}

#[test]
fn a_network_the_engine_computes_wrongly_fails_by_operator() {
    let said = model(&["check", "--json", &shared("tests/models/refused-int8-conv")]);
    assert_eq!(said.code, Some(1));
    let (check, detail) = failed(&json(&said));
    assert_eq!(check, "load");
    assert!(detail.contains("ConvInteger") && detail.contains("conv_quant"), "{detail}");
}

#[test]
fn a_changed_file_fails_by_its_digest_and_a_wrong_answer_by_its_distance() {
    let folder = Folder::new("changed");
    let dir = copy("identity-fp32", &folder);
    let golden = dir.join("golden.safetensors");
    let mut bytes = std::fs::read(&golden).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 0x01;
    std::fs::write(&golden, &bytes).expect("written");
    let report = json(&model(&["check", "--json", &dir.display().to_string()]));
    let (check, detail) = failed(&report);
    assert!(check == "golden file" && detail.contains("SHA-256"), "{check}: {detail}");

    // The same wrong vectors, with their right digest.
    let digest =
        detail.split_whitespace().find(|w| w.len() >= 64).expect("the digest found").trim_end_matches(',');
    let manifest = std::fs::read_to_string(dir.join("manifest.toml")).expect("read");
    let old = manifest.split("golden.safetensors\"\nsha256 = \"").nth(1).expect("a digest")[..64].to_owned();
    std::fs::write(dir.join("manifest.toml"), manifest.replace(&old, digest)).expect("written");
    let said = model(&["check", "--json", &dir.display().to_string()]);
    assert_eq!(said.code, Some(1));
    let (check, detail) = failed(&json(&said));
    assert!(check == "answers" && detail.contains("golden case"), "{check}: {detail}");
}

#[test]
fn a_directory_without_a_model_fails_in_one_line() {
    let folder = Folder::new("empty");
    let said = model(&["check", &folder.path("nothing")]);
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("manifest.toml") && said.out.contains("not fit"), "{}", said.out);
}

#[test]
fn an_import_makes_a_directory_that_passes() {
    let folder = Folder::new("import");
    let (file, dir) = (shared("tests/models/two-in-two-out/model.onnx"), folder.path("two"));
    let said = model(&["import", "--json", &file, "--name", "two", "-o", &dir]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let report = json(&said);
    assert_eq!(report["task"], "tensor");
    assert_eq!(report["check"]["passed"], true);
    assert_eq!(report["onnxruntime"]["result"], "unavailable");
    assert_eq!(model(&["check", &dir]).code, Some(0));

    let again = model(&["import", &file, "--name", "two", "-o", &dir]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("--force"), "{}", again.err);
    let golden = std::fs::read(format!("{dir}/golden.safetensors")).expect("read");
    assert_eq!(model(&["import", &file, "--name", "two", "-o", &dir, "--force"]).code, Some(0));
    let second = std::fs::read(format!("{dir}/golden.safetensors")).expect("read");
    assert_eq!(golden, second, "the same seed records the same vectors");
}

#[test]
fn force_replaces_models_and_nothing_else() {
    let folder = Folder::new("force");
    std::fs::write(folder.0.join("thesis.txt"), "years of work").expect("written");
    let file = shared("tests/models/identity-fp32/model.onnx");
    let said = model(&["import", &file, "--name", "x", "-o", &folder.0.display().to_string(), "--force"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("not a model directory"), "{}", said.err);
    assert!(folder.0.join("thesis.txt").is_file());
}

#[test]
fn what_is_no_network_leaves_nothing_behind() {
    let folder = Folder::new("dummy");
    let file = folder.path("encoder.onnx");
    std::fs::write(&file, "DUMMY_HEF_CONTENT_FOR_TESTING").expect("written");
    let said = model(&["import", &file, "-o", &folder.path("model")]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("DUMMY_HEF_CONTEN") && said.err.contains("not an ONNX network"),
        "{}",
        said.err
    );
    let left: Vec<_> = std::fs::read_dir(&folder.0).expect("read").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_no_engine_here_could_be_held_to_is_refused_in_a_sentence() {
    let folder = Folder::new("refused");
    let good = std::fs::read(shared("tests/models/identity-fp32/model.onnx")).expect("read");
    let opset = |version: u8| {
        let mut network = good.clone();
        *network.last_mut().expect("the version of its operator set") = version;
        network
    };
    // One more field at the end of the graph: what it has already, once more.
    let again = |field: u8| {
        let graph = good.iter().position(|b| *b == 0x3a).expect("a graph");
        let end = graph + 2 + usize::from(good[graph + 1]);
        let at = good[..end].windows(4).position(|w| w[0] == field && w[2..] == [0x0a, 1]).expect("a tensor");
        let tensor = good[at..at + 2 + usize::from(good[at + 1])].to_vec();
        let mut network = [&good[..end], &tensor, &good[end..]].concat();
        network[graph + 1] += u8::try_from(tensor.len()).expect("short");
        network
    };
    for (network, said) in [
        (opset(99), "operator set 99: 7 to 26 are taken"),
        (opset(27), "operator set 27"),
        (opset(6), "operator set 6"),
        (again(0x5a), "two inputs called \"x\""),
        (again(0x62), "two outputs called \"y\""),
    ] {
        let file = folder.path("network.onnx");
        std::fs::write(&file, network).expect("written");
        let done = model(&["import", &file, "-o", &folder.path("model")]);
        assert!(done.code == Some(1) && done.err.contains(said), "{said}: {}", done.err);
        assert!(!folder.0.join("model").exists());
    }
    for version in [7, 26] {
        let (file, dir) = (folder.path("network.onnx"), folder.path(&format!("set-{version}")));
        std::fs::write(&file, opset(version)).expect("written");
        let done = model(&["import", &file, "-o", &dir]);
        assert_eq!(done.code, Some(0), "{}", done.err);
    }
}

#[test]
fn dynamic_dimensions_are_asked_for_by_name() {
    let folder = Folder::new("dynamic");
    let (file, dir) = (shared("tests/models/dynamic-shape/model.onnx"), folder.path("d"));
    let said = model(&["import", &file, "--name", "d", "-o", &dir]);
    assert!(said.code == Some(1) && said.err.contains("--dim length=SIZE"), "{}", said.err);
    let said = model(&["import", &file, "--name", "d", "-o", &dir, "--dim", "length=7", "--dim", "width=2"]);
    assert!(said.code == Some(1) && said.err.contains("width"), "{}", said.err);
    let said = model(&["import", "--json", &file, "--name", "d", "-o", &dir, "--dim", "length=7"]);
    let report = json(&said);
    assert_eq!(report["inputs"][0], "x FP32 [1, 7]", "a batch is 1 unless given");
    assert_eq!(report["outputs"][0], "y FP32 [1, 2]", "the output's shape is what came out");
    assert_eq!(report["check"]["passed"], true);
}

#[test]
fn a_published_configuration_makes_an_encoder_with_units_and_limits() {
    let folder = Folder::new("imu");
    let config = folder.path("config.json");
    let page = serde_json::json!({
        "export_info": {"export_version": "2.1.0", "model_accuracy": "72.13%"},
        "normalization": {
            "method": "z_score_per_channel",
            "mean": [0.12, -0.08, 9.78, 0.002, -0.001, 0.003, 22.4, -8.7, 43.2],
            "std": [3.92, 3.87, 2.45, 1.24, 1.31, 0.98, 28.5, 31.2, 24.8],
            "channel_order": ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"],
        },
        "deployment": {"anything": "else"},
    });
    std::fs::write(&config, page.to_string()).expect("written");
    let (file, dir) = (shared("app/inferd/models/imu-motion/model.onnx"), folder.path("imu"));
    let said = model(&["import", "--json", &file, "--config", &config, "--name", "imu", "-o", &dir]);
    let report = json(&said);
    assert_eq!((said.code, report["task"].as_str()), (Some(0), Some("imu-encoder")), "{}", said.err);
    let text = std::fs::read_to_string(format!("{dir}/manifest.toml")).expect("read");
    let manifest = inferd_model::Manifest::from_toml(&text).expect("valid");
    assert_eq!(manifest.version, "2.1.0");
    let input = &manifest.inputs[0];
    assert_eq!(input.channels.as_ref().expect("named").units[8], "uT");
    assert_eq!(input.limit_per_channel()[3], Some(("Gyroscope", 35.0)));
    assert_eq!(input.normalization.as_ref().expect("normalised").mean[2], 9.78);
    let imu = manifest.imu.expect("an encoder");
    assert_eq!(imu.latent, "latent_embeddings");
    assert_eq!(imu.motif.expect("it has a motif head").labels().len(), 12);

    std::fs::write(&config, page.to_string().replace("z_score_per_channel", "min_max")).expect("written");
    let said = model(&["import", &file, "--config", &config, "--name", "imu", "-o", &folder.path("no")]);
    assert!(said.code == Some(1) && said.err.contains("min_max"), "{}", said.err);
}
