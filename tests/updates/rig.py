"""A device that is updated, from outside: an operator's keys and bundles, and what is asked of the device."""

import json
import re
import shutil
import subprocess

import places
from helpers import until

IDENTITY = places.ROOT / "tests/models/identity-fp32"
KEY = "correct-horse-battery"
X = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}


class Office:
    """Keys, a root document and bundles, made with inferctl as an operator makes them."""

    def __init__(self, inferctl, folder):
        self.inferctl, self.folder = inferctl, folder
        for name in ("root", "release", "dev", "stranger"):
            self.run("keygen", self.at(f"{name}.key"))
        roles = {"root": "root", "revocation": "root", "model-release": "release", "model-dev": "dev"}
        grants = [part for role, key in roles.items() for part in ("--role", f"{role}=1:{self.at(f'{key}.pub')}")]
        self.run("root", "create", "-o", self.root, "--key", self.at("root.key"), *grants)

    @property
    def root(self):
        return self.folder / "root.imr"

    def at(self, name):
        return self.folder / name

    def run(self, *arguments):
        done = self.inferctl(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    def bundle(self, version, *options, model=IDENTITY, key="release", product="demo"):
        """Builds one and returns its file. Its trial ends after a second unless told otherwise."""
        output = self.folder / f"{product}-{version}-{key}-{len(options)}.imb"
        command = ["--product", product, "--version", version, "--key", self.at(f"{key}.key"), "--unchecked", "-o", output]
        if "--probation-seconds" not in options:
            command += ["--probation-seconds", 1]
        self.run("bundle", "build", "--model", model, *command, *options)
        return output


def edition(folder, version):
    """The identity model in this version of its own."""
    shutil.copytree(IDENTITY, folder)
    page, replaced = re.subn(r'(?m)^version = "[^"]*"', f'version = "{version}"', (folder / "manifest.toml").read_text())
    assert replaced == 1, "the manifest has the part this changes"
    (folder / "manifest.toml").write_text(page)
    return folder


def curl(daemon, file, *options, stdin=None):
    """`curl -T`; the status and the answer."""
    command = ["curl", "-sS", "-T", str(file), "-w", "\n%{http_code}", "--max-time", "120", *options, f"{daemon.url}/api/v1/bundle"]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=150)
    body, _, status = done.stdout.rpartition(b"\n")
    assert status.isdigit(), done
    return int(status), json.loads(body) if body else None


def put(wire, total, *, first=0, headers=()):
    """The head of a push."""
    head = f"PUT /api/v1/bundle HTTP/1.1\r\nHost: test\r\nContent-Length: {total - first}\r\n"
    if first:
        head += f"Content-Range: bytes {first}-{total - 1}/{total}\r\n"
    return wire.send(head + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n")


def slots(daemon):
    """`/api/v1/slots`."""
    return daemon.request("/api/v1/slots").json()


def verdicts(daemon, gate):
    """The verdicts of a gate."""
    return [v for v in slots(daemon)["verdicts"] if v["gate"] == gate]


def served(daemon):
    """The version of the identity model that answers, by an answer."""
    answer = daemon.request("/v2/models/identity-fp32/infer", X)
    assert answer.status == 200, answer.body
    return answer.json()["model_version"]


def committed(daemon, version):
    """Waits until this version of the bundle is committed."""
    until(lambda: any(v["version"] == version for v in verdicts(daemon, "commit")), f"version {version} is committed")
