"""inferctl against a running daemon: what an operator types and sees."""

import json
import platform
import shutil
import subprocess

import hosttools
import places
import pytest
from helpers import until

MODELS = places.ROOT / "tests/models"
WALK = places.ROOT / "tests/data/imu_walk.json"


def test_status_of_a_ready_daemon_names_its_models(inferctl, daemon):
    done = inferctl("status", url=daemon.url)
    assert done.returncode == 0, done.stderr
    assert f"{daemon.url} is ready" in done.stdout
    assert "imu-motion" in done.stdout
    assert f"device {platform.node()}" in done.stdout


def test_status_as_json_holds_the_daemons_own_words(inferctl, daemon):
    status = json.loads(inferctl("--json", "status", url=daemon.url).stdout)
    assert status["ready"] is True
    assert status["status"]["model_name"] == daemon.request("/status").json()["model_name"]


def test_the_url_may_come_from_the_environment(inferctl, daemon):
    assert inferctl("status", env={"INFERD_URL": daemon.url}).returncode == 0


def test_nobody_at_the_url_is_exit_code_3_and_says_what_to_try(inferctl, nobody):
    for command in (["status"], ["models"], ["infer", WALK], ["bench"]):
        done = inferctl(*command, url=nobody)
        assert done.returncode == 3, command
        assert "nothing listens there" in done.stderr and "--url" in done.stderr


def test_a_model_that_cannot_be_loaded_is_listed_with_its_reason(inferctl, native):
    daemon = native(models=[places.DEFAULT_MODEL, MODELS / "refused-int8-conv"])

    def states():
        return {model["name"]: model["state"] for model in json.loads(inferctl("--json", "models", url=daemon.url).stdout)}

    until(lambda: states().get("refused-int8-conv") == "UNAVAILABLE", daemon)
    text = inferctl("models", url=daemon.url).stdout
    assert "refused-int8-conv: " in text and "ConvInteger" in text


def test_infer_shows_the_motion_it_was_given(inferctl, daemon):
    done = inferctl("infer", WALK, url=daemon.url)
    assert done.returncode == 0, done.stderr
    best = done.stdout.splitlines()[2]
    assert best.startswith("walk"), done.stdout


def test_infer_as_json_is_the_servers_answer(inferctl, daemon, walk):
    answer = json.loads(inferctl("--json", "infer", WALK, url=daemon.url).stdout)
    assert answer == daemon.request("/infer", walk).json()


@pytest.mark.parametrize("wrap", [lambda x: {"x": x}, lambda x: x], ids=["x", "array"])
def test_infer_reads_standard_input(inferctl, daemon, walk, wrap):
    done = inferctl("infer", "-", url=daemon.url, stdin=json.dumps(wrap(walk["x"])))
    assert done.returncode == 0, done.stderr
    assert "walk" in done.stdout


def test_the_open_inference_protocol_gives_the_same_scores(inferctl, daemon, walk):
    answer = json.loads(inferctl("--json", "infer", WALK, "--oip", url=daemon.url).stdout)
    scores = next(output["data"] for output in answer["outputs"] if output["name"] == "motif_scores")
    assert scores == pytest.approx(daemon.request("/infer", walk).json()["motif_scores"], abs=1e-6)


def test_a_plain_array_fills_a_tensor_model(inferctl, native):
    daemon = native(models=[places.DEFAULT_MODEL, MODELS / "identity-int8"])
    values = [-128, -1, 0, 1, 2, 127]
    until(lambda: daemon.request("/v2/models/identity-int8/ready").status == 200, daemon)
    done = inferctl("--json", "infer", "-", "--model", "identity-int8", url=daemon.url, stdin=json.dumps(values))
    assert json.loads(done.stdout)["outputs"][0]["data"] == values, done.stderr


def test_a_window_with_105_rows_is_refused_in_the_servers_words(inferctl, daemon, walk):
    long = {"x": walk["x"] + walk["x"][:5]}
    done = inferctl("infer", "-", url=daemon.url, stdin=json.dumps(long))
    assert done.returncode == 1
    assert "422" in done.stderr and "Expected 100 timesteps, got 105" in done.stderr


def test_text_that_is_no_json_is_left_to_the_server_to_refuse(inferctl, daemon):
    done = inferctl("infer", "-", url=daemon.url, stdin='{"x": [[1,')
    assert done.returncode == 1
    assert "422" in done.stderr


def test_an_unknown_model_is_answered_with_those_there_are(inferctl, daemon):
    done = inferctl("infer", WALK, "--model", "nope", url=daemon.url)
    assert done.returncode == 1
    assert "no model is called nope" in done.stderr and "imu-motion" in done.stderr


def test_a_file_that_is_not_there_is_named(inferctl, daemon, tmp_path):
    done = inferctl("infer", tmp_path / "absent.json", url=daemon.url)
    assert done.returncode == 1
    assert "absent.json cannot be read" in done.stderr


def test_wrong_arguments_are_exit_code_2(inferctl):
    for wrong in (["nonsense"], ["bench", "-c", "0"], ["status", "--url"], ["status", "--url", "https://x"]):
        assert inferctl(*wrong).returncode == 2, wrong


@pytest.mark.parametrize("form", ["infer", "oip-json", "oip-binary", "oip-raw"])
def test_bench_counts_every_request_of_every_form(inferctl, daemon, form):
    done = inferctl("--json", "bench", "-c", "1,3", "-n", "40", "--warm-up", "0", "--form", form, url=daemon.url)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [run["connections"] for run in runs] == [1, 3]
    for run in runs:
        assert (run["requests"], run["ok"], run["errors"]) == (40, 40, {})
        latency = run["latency_us"]
        order = [latency[name] for name in ("min", "p50", "p90", "p95", "p99", "p99_9", "max")]
        assert order == sorted(order) and order[0] > 0


def test_bench_accounts_for_the_daemon_and_its_hosts(inferctl, daemon):
    done = inferctl("--json", "bench", "-c", "2", "-n", "40", "--warm-up", "0", url=daemon.url)
    server = json.loads(done.stdout)["runs"][0]["server"]
    assert server["pid"] == daemon.process.pid
    assert server["processes"] >= 2
    assert server["cpu_us_per_request"] > 0


def test_bench_sends_a_file_as_it_is_and_quotes_the_refusal(inferctl, daemon, walk, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"x": walk["x"][:99]}))
    done = inferctl("bench", wrong, "-c", "1", "-n", "5", "--warm-up", "0", url=daemon.url)
    assert done.returncode == 1
    assert "http_422 5" in done.stdout and "Expected 100 timesteps, got 99" in done.stdout


def test_bench_measures_any_path_with_any_body(inferctl, daemon, tmp_path):
    arguments = ["--json", "bench", "-c", "1", "-n", "5", "--warm-up", "0", "--path"]
    health = json.loads(inferctl(*arguments, "/livez", url=daemon.url).stdout)
    assert (health["method"], health["runs"][0]["ok"]) == ("GET", 5)
    body = tmp_path / "body"
    body.write_bytes(b"\x00" * 100)
    refused = inferctl(*arguments, "/nowhere", "--body", body, "--header", "Content-Type: image/x", url=daemon.url)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["runs"][0]["errors"] == {"http_404": 5}


def test_a_reader_that_leaves_early_is_no_error(inferctl, daemon):
    command = f"'{inferctl.program}' --url {daemon.url} --json status | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


@pytest.fixture
def system(inferctl, tmp_path):
    """Builds a bundle of a system whose root filesystem has these files, or is these bytes."""
    mksquashfs = hosttools.Tools(["squashfs-tools"]).path("mksquashfs")
    (tmp_path / "boot").write_bytes(b"boot" * 1024)

    def build(files, *options, packing="zstd"):
        rootfs = tmp_path / "rootfs"
        rootfs.unlink(missing_ok=True)
        if isinstance(files, bytes):
            rootfs.write_bytes(files)
        else:
            shutil.rmtree(tmp_path / "stage", ignore_errors=True)
            for name, content in files.items():
                file = tmp_path / "stage" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.symlink_to(content[3:]) if content.startswith("-> ") else file.write_text(content)
            subprocess.run([mksquashfs, tmp_path / "stage", rootfs, "-noappend", "-quiet", "-no-progress", "-comp", packing], check=True, capture_output=True)
        given = ["--rootfs", rootfs, "--boot", tmp_path / "boot", "--board", "qemu-aarch64", "-o", tmp_path / "os.imb"]
        return inferctl("bundle", "build", "--system", *given, *options)

    return build


SAYS_5 = "NAME=x\nID=inferd\nIMAGE_ID=inferd-os\nIMAGE_VERSION=5\n"
# Directories and inodes in more than one block of metadata, and data in more than one of its own.
CROWD = {f"usr/share/{number:04}-of-many": f"{number}\n" * 40 for number in range(1500)}


@pytest.mark.parametrize("packing", ["zstd", "gzip"])
@pytest.mark.parametrize(
    "files",
    [
        {"etc/os-release": SAYS_5},
        {"etc/os-release": "-> ../usr/lib/os-release", "usr/lib/os-release": SAYS_5},
        {"etc/os-release": SAYS_5 + "# a long one\n" * 15000},
        {**CROWD, "etc/os-release": SAYS_5, "zzz": "last"},
    ],
    ids=["small", "link", "large", "among many"],
)
def test_a_system_is_bundled_under_the_name_that_its_root_filesystem_says(system, files, packing):
    fits = system(files, "--version", "5", packing=packing)
    assert fits.returncode == 0 and "not compared" not in fits.stderr, fits
    for options, said in (
        (("--version", "6"), "says that it is version 5, the bundle would be version 6"),
        (("--version", "5", "--product", "door-os"), "a system called inferd-os, the bundle would be one of door-os"),
    ):
        other = system(files, *options, packing=packing)
        assert other.returncode == 1 and said in other.stderr and "--unchecked packs it" in other.stderr, other
        assert system(files, *options, "--unchecked", packing=packing).returncode == 0


@pytest.mark.parametrize(
    ("files", "packing", "said"),
    [
        (b"another file system" * 999, "", "it is no squashfs"),
        (b"hsqs", "", "it is no squashfs"),
        ({"etc/os-release": SAYS_5}, "xz", "compression (number 4"),
        ({"etc/os-release": "ID=inferd\n"}, "zstd", "no IMAGE_ID and IMAGE_VERSION"),
        ({"etc/hosts": "\n"}, "zstd", "no IMAGE_ID and IMAGE_VERSION"),
    ],
)
def test_a_root_filesystem_that_does_not_say_which_system_it_is_is_bundled_and_that_told(system, files, packing, said):
    done = system(files, "--version", "6", packing=packing)
    assert done.returncode == 0 and "was not compared" in done.stderr and said in done.stderr, done


def test_a_root_filesystem_that_is_cut_off_or_damaged_ends_in_words(system, tmp_path):
    system({"etc/os-release": SAYS_5}, "--version", "5")
    whole = (tmp_path / "rootfs").read_bytes()
    used = int.from_bytes(whole[40:48], "little")
    for place in range(0, used, 11):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        done = system(bytes(broken), "--version", "5")
        assert done.returncode in (0, 1) and "panicked" not in done.stderr, (place, done)
    assert "it cannot be read" in system(whole[: used // 2], "--version", "5").stderr
