"""Builds everything, boots the appliance in QEMU (or starts the daemon here) and asks it a first question.

What it starts believes this machine's developer keys (`devkeys`), so that the commands it prints at its end work as they
stand: a bundle is built, signed, pushed and served. `--root FILE` starts what is shipped instead.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import board as boards
import debian
import devkeys
import engines
import image
import places
import programs
import qemu
import rust
import targets
from steps import Failure, main, say, step

DEFAULT_PORT = 9000
TLS_PORT = 9443
WINDOW = places.ROOT / "tests/data/imu_walk.json"
LATENT, MOTIFS = 64, 12
READY_TIMEOUT_S = 240
ANSWER_TIMEOUT_S = 60
NATIVE = {"amd64": "x86_64", "arm64": "aarch64"}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/run",
        description="Build the daemon and an appliance image, boot it in QEMU, wait until it is ready, let it judge one "
        "second of motion, print the answer and stop. Nothing is installed but, as root, a missing C linker.",
        epilog=f"Downloads are kept in {places.cache()} ($INFERD_CACHE), images and logs in {places.images()}.",
    )
    parser.add_argument("--board", default="qemu-aarch64", choices=boards.emulated(), help="which board (default: %(default)s)")
    parser.add_argument("--native", action="store_true", help="no image and no QEMU: run the daemon on this machine")
    parser.add_argument("--keep", action="store_true", help="stay up until interrupted (Ctrl-C); a reset starts it again")
    parser.add_argument("--port", type=int, help=f"port on this machine (default: {DEFAULT_PORT}, or a free one if it is taken)")
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="DIR", help="serve this model as well; repeatable")
    parser.add_argument(
        "--root", type=Path, metavar="FILE", help="an image as it is shipped, that believes this root document: no root shell, no "
        "developer's keys (default: an image made with --dev)",
    )
    parser.add_argument("--minimal", action="store_true", help=image.MINIMAL)
    parser.add_argument("--kvm", action="store_true", help="use KVM if it really runs this image here (default: emulation)")
    parser.add_argument(
        "--card", type=Path, metavar="FILE", help="build nothing: boot this flashed card (a file that `scripts/flash --board BOARD FILE --file` has "
        "written, with your inferd.toml on it) and stay; what it writes stays in FILE. A fixed address must be 10.0.2.15/24",
    )
    options = parser.parse_args()
    if options.card and (options.native or options.root or options.model or options.minimal or options.kvm):
        parser.error("--card boots what is on the card; --board, --port and --keep may stand beside it")
    if options.native and (options.root or options.kvm):
        parser.error("--root and --kvm are about the appliance in QEMU; leave out --native")
    return options


def cli():
    """scripts/run"""
    # A terminated script stops what it started, like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    started = time.monotonic()
    port = choose_port(options.port)
    if options.card:
        card(boards.load(options.board), options.card, port)
        return 0
    models = [*places.SHIPPED_MODELS, *options.model]
    image.named_models(models)
    rust.ensure_toolchain()
    if options.native:
        native(options, port, models, started)
    else:
        appliance(options, port, models, started)
    return 0


def appliance(options, port, models, started):
    """The whole way: image, QEMU, first answer."""
    board = boards.load(options.board)
    with beside_inferctl() as wait_for_inferctl:
        inferd = image.built_daemon(board)
        vendors = None if options.minimal else engines.prepare(board.architecture_in_rust)
        carried = None if options.minimal else programs.prepare(board)
        inferctl = wait_for_inferctl()
    dev = options.root is None
    root, api_key = image.trusted(options.root, dev, inferctl)
    output = image.default_output(board, dev=dev, minimal=options.minimal)
    output.parent.mkdir(parents=True, exist_ok=True)
    image.assemble(image.Recipe(board, inferd, models, vendors, carried, dev=dev, root=root, api_key=api_key), output)
    kvm = options.kvm and probe_kvm(board, output)
    serial = output.with_suffix(".console.log")
    # One that stays comes back after a reset, as a board does, on what it has written.
    tls_port = TLS_PORT if options.keep and qemu.port_is_free(TLS_PORT) else None
    machine = qemu.Machine(board, output, port=port, tls_port=tls_port, dev=dev, kvm=kvm, serial=serial, restarts=options.keep)
    with machine:
        with step(f"Booting {output.name} in QEMU ({'KVM' if kvm else 'emulated'}; console in {serial})"):
            machine.wait_ready(READY_TIMEOUT_S, progress=lambda state: after_power_on(machine, state))
        with step("Asking it for the first inference") as remark:
            answer = first_answer(machine.url, serial)
            remark.append(f"{machine.seconds():.1f} s after power-on")
        report(answer, machine.url, inferctl, options, started)
        if dev:
            update_commands(machine.url, inferctl, devkeys.ensure(inferctl), with_key=True)
            say(f"\nA root shell in it{'' if options.keep else ', while it stays'}:\n  {shell_command(machine)}")
        if tls_port:
            say(f"Its TLS port, for when its inferd.toml asks for TLS, is https://127.0.0.1:{tls_port}.")
        if options.keep:
            say("\nThe appliance runs until you press Ctrl-C. A reset starts it again with what it has written; Ctrl-C ends that, too.")
            watch(machine)
    say("The appliance is switched off.")


def card(board, file, port):
    """A flashed card as it is, until Ctrl-C."""
    if not file.is_file():
        raise Failure(f"{file}: there is no such file; `truncate -s 8G {file} && scripts/flash --board {board.name} {file} --file` makes a card")
    tls_port = TLS_PORT if qemu.port_is_free(TLS_PORT) else None
    serial = places.images() / "card.console.log"
    machine = qemu.Machine(board, file, port=port, tls_port=tls_port, keep_writes=True, serial=serial, restarts=True)
    with machine:
        say(f"{file} is switched on; its console is in {serial}.")
        say(f"It answers at {machine.url}{f' and, if it speaks TLS, https://127.0.0.1:{tls_port}' if tls_port else ''} once it is ready. Ctrl-C pulls the plug.")
        watch(machine, "no answer yet")
    say("The card can be read now: inferd-report.txt on its first partition says what became of its inferd.toml.")


def after_power_on(machine, what):
    """Says what happens to the machine, and when."""
    say(f"    {machine.seconds():5.1f} s  {what}")


def shell_command(machine):
    """What starts a root shell in the appliance from another terminal."""
    return f"{relative(places.ROOT / 'scripts/shell')} {machine.folder}/shell.sock"


def watch(machine, told=""):
    """Until interrupted, or until the appliance switches itself off; tells of resets and of what it says until it is ready again, or, with what
    was `told` last, for the first time."""
    events, ready = machine.qmp, "ready" if told else "ready again"
    resets = watchdogs = 0
    try:
        while machine.process.poll() is None:
            time.sleep(0.2)
            if len(events.told("RESET")) > resets:
                resets = len(events.told("RESET"))
                expired = len(events.told("WATCHDOG"))
                by = "its watchdog has reset it" if expired > watchdogs else "it was restarted"
                watchdogs, told = expired, "no answer yet"
                after_power_on(machine, f"{by}; it starts again")
            state = qemu.readiness(machine.url) if told else ""
            if state != told:
                after_power_on(machine, ready if state == "ready" else state)
                told, ready = ("", "ready again") if state == "ready" else (state, ready)
    except KeyboardInterrupt:
        say()
        return
    if machine.process.returncode:
        raise Failure(f"QEMU ended by itself with status {machine.process.returncode}", machine.folder / "qemu.log")
    say("It has switched itself off.")


def native(options, port, models, started):
    """The daemon alone, on this machine."""
    architecture = NATIVE.get(debian.host_architecture())
    if architecture is None:
        raise Failure("--native works on amd64 and arm64")
    target = f"{architecture}-unknown-linux-musl"
    targets.ensure([target])
    # The slots are files here, and what serves is judged by the developer's keys of this machine.
    environment = {**os.environ, "INFERD_UPDATES_ALLOW_DEV": "true"}
    with beside_inferctl() as wait_for_inferctl:
        with step(f"Building the daemon for {target} (static; the first build takes some minutes)"):
            inferd = rust.build("inferd", target)
        if not options.minimal:
            with step(f"Building {engines.PACKAGE} for this machine"):
                host = rust.build_for_host(engines.PACKAGE, release=True)
            # What the caller names goes before.
            environment.setdefault("INFERD_HOSTS_ENGINE_HOST", str(host))
            environment.setdefault("INFERD_HOSTS_ONNXRUNTIME", str(engines.onnxruntime(architecture).library))
        inferctl = wait_for_inferctl()
    log = places.target() / "run" / "inferd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    keys = devkeys.ensure(inferctl)
    command = [str(inferd), "--listen", f"127.0.0.1:{port}", "--updates-dir", str(slots_folder(keys))]
    for folder in models:
        command += ["--models", str(folder)]
    url = f"http://127.0.0.1:{port}"
    with (
        open(log, "wb") as out,
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process,
    ):
        try:
            with step(f"Starting the daemon (log in {log})"):
                wait_native(process, url, log)
            with step("Asking it for the first inference"):
                answer = first_answer(url, log)
            report(answer, url, inferctl, options, started)
            update_commands(url, inferctl, keys, with_key=False)
            if options.keep:
                say("\nThe daemon runs until you press Ctrl-C.")
                stay(process)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
    say("The daemon has ended.")


def slots_folder(keys):
    """Where a daemon on this machine keeps its slots; they outlive it, as those of an appliance do."""
    folder = keys.folder / "native"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(keys.root, folder / "root.imr")
    return folder


def wait_native(process, url, log, timeout=60):
    """Waits until the daemon is ready."""
    end, state = time.monotonic() + timeout, ""
    while (state := qemu.readiness(url)) != "ready":
        if process.poll() is not None:
            raise Failure(f"the daemon ended with status {process.returncode}", log)
        if time.monotonic() > end or "up without a model" in log.read_text(errors="replace"):
            raise Failure(f"the daemon is not ready: {state}", log)
        time.sleep(0.05)


@contextlib.contextmanager
def beside_inferctl():
    """Builds inferctl, the operator's tool, beside what the block does: the daemon's last, long step uses one core only.

    Yields a function that waits for it and returns the program.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        building = pool.submit(rust.build_for_host, "inferctl")

        def wait():
            with step("Building inferctl, the operator's tool, for this machine (begun beside the daemon)"):
                return building.result()

        yield wait


def choose_port(wanted):
    """The port on this machine: the one asked for, else 9000, else a free one."""
    if wanted is not None:
        if not 1 <= wanted <= 65535:
            raise Failure(f"--port {wanted}: a port is a number from 1 to 65535")
        if not qemu.port_is_free(wanted):
            raise Failure(f"port {wanted} of this machine is taken; choose another with --port, or leave it out")
        return wanted
    if qemu.port_is_free(DEFAULT_PORT):
        return DEFAULT_PORT
    port = qemu.free_port()
    say(f"Port {DEFAULT_PORT} of this machine is taken; using {port}.")
    return port


def probe_kvm(board, output):
    """Whether to use KVM; says so when it cannot be."""
    with step("Trying whether KVM runs this image's kernel here") as remark:
        works = qemu.kvm_works(board, output)
        remark.append("it does" if works else "it does not; emulating instead")
    return works


def first_answer(url, log):
    """Sends one second of motion and checks that the answer is one: 64 latent numbers and 12 scores in [0, 1].

    "Not now" (503) is taken as a client should: the reason is shown, and asked again after the time the answer names.
    """
    body = WINDOW.read_bytes()
    end = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        request = urllib.request.Request(f"{url}/infer", data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.loads(response.read())
            break
        except urllib.error.HTTPError as error:
            reason = error.read(2000).decode("utf-8", "replace")
            if error.code != 503 or time.monotonic() > end:
                raise Failure(f"POST {url}/infer was answered {error.code}: {reason}", log) from error
            wait = error.headers.get("Retry-After", "1")
            wait = int(wait) if wait.isdigit() else 1
            say(f"    503, asking again in {wait} s: {reason}")
            time.sleep(wait)
        except (OSError, ValueError) as error:
            raise Failure(f"POST {url}/infer failed: {error}", log) from error
    latent, motifs = answer.get("latent", []), answer.get("motif_scores", [])
    if len(latent) != LATENT or len(motifs) != MOTIFS or not all(0 <= score <= 1 for score in motifs):
        raise Failure(f"the answer is not {LATENT} latent numbers and {MOTIFS} scores: {answer}", log)
    return answer


def report(answer, url, inferctl, options, started):
    """The answer, and what to try next."""
    contract = asked(url)
    labels = contract.get("motif_labels") or [f"score {i}" for i in range(MOTIFS)]
    best = sorted(zip(answer["motif_scores"], labels, strict=True), reverse=True)
    numbers = " ".join(f"{value:.3f}" for value in answer["latent"][:8])
    say(f"\n  sent    {WINDOW.relative_to(places.ROOT)}: one second of synthetic walking, 100 samples of 9 axes")
    say(f"  model   {contract['model']} {contract['model_version']}")
    say(f"  engine  {engine_of(url, contract['model'])}")
    say(f"  latent  {numbers} ... ({LATENT} numbers)")
    if contract["motif_source"] == "none":
        say(f"  motifs  none: this model has no motif head, its {MOTIFS} scores are zeros")
    else:
        say(f"  motifs  {', '.join(f'{label} {score:.3f}' for score, label in best[:4])}, ... ({MOTIFS} scores)")
    say(f"\nIt answers at {url} ({time.monotonic() - started:.0f} s after you asked for it).")
    say("Try next:" if options.keep else f"Start it again to stay (scripts/run {keep_flags(options)}), then try:")
    window = WINDOW.relative_to(places.ROOT)
    say(f"  curl -s {url}/healthz")
    say(f"  curl -s {url}/infer -H 'Content-Type: application/json' -d @{window}")
    say(f"  {relative(inferctl)} --url {url} status")
    say(f"  {relative(inferctl)} --url {url} infer {window}")
    say(f"  {relative(inferctl)} --url {url} bench")


def update_commands(url, inferctl, keys, *, with_key):
    """How to build a bundle and send it: to be pasted as it stands, again and again with a higher version."""
    model = relative(places.DEFAULT_MODEL)
    bundle = relative(places.target() / "run" / "demo.imb")
    (places.target() / "run").mkdir(parents=True, exist_ok=True)
    say("\nA model over the air, signed with this machine's developer key (a higher --version for each):")
    say(f"  {relative(inferctl)} bundle build --model {model} --product demo --version 1 --role model-dev \\")
    say(f"      --key {keys.model_key} --probation-seconds 20 -o {bundle}")
    key = f" --api-key $(cat {keys.api_key_file})" if with_key else ""
    say(f"  {relative(inferctl)} --url {url}{key} push {bundle} --wait committed")
    say(f"  {relative(inferctl)} --url {url} slots")


def keep_flags(options):
    """The flags that start the same thing again and keep it."""
    flags = ["--keep"]
    flags += ["--native"] if options.native else ["--board", options.board] if options.board != "qemu-aarch64" else []
    flags += ["--minimal"] if options.minimal else []
    flags += ["--root", str(options.root)] if options.root else []
    for folder in options.model:
        flags += ["--model", str(folder)]
    return " ".join(flags)


def engine_of(url, model):
    """Which engine serves a model: `ort on cpu, onnxruntime 1.31.1`."""
    with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
        engine = next(found["engine"] for found in json.load(answer)["models"] if found["name"] == model)
    return f"{engine['kind']} on {engine['device']}, {engine['version']}"


def asked(url):
    """Which model answered, and its names for its scores: another one than ours is the default when --model names it so."""
    with urllib.request.urlopen(f"{url}/contract", timeout=30) as answer:
        return json.load(answer)


def relative(path):
    """A path as the reader would type it."""
    return path.relative_to(places.ROOT) if path.is_relative_to(places.ROOT) else path


def stay(process):
    """Until interrupted, or until the process ends by itself."""
    try:
        process.wait()
    except KeyboardInterrupt:
        say()
        return
    raise Failure(f"it ended by itself with status {process.returncode}")


if __name__ == "__main__":
    main(cli)
