"""The developer's keys: made on this machine at first use, kept in the cache, accepted by dev images and by nothing else.

    root.key       signs root.imr, revocations and permits of this machine's dev images
    model-dev.key  signs bundles while a model is being worked on
    system.key     signs systems for this machine's dev images
    root.imr       the trust that a dev image is born with: those three keys, one signature each
    api-key        lets `inferctl push` change a dev image from another machine than itself

None of them is ever part of the checkout: who deletes the folder gets new ones, and images made before no longer accept
what is signed then.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import places
from steps import run, step


@dataclass(frozen=True)
class DevKeys:
    """Where they are."""

    folder: Path

    @property
    def model_key(self):
        """Signs bundles."""
        return self.folder / "model-dev.key"

    @property
    def system_key(self):
        """Signs systems."""
        return self.folder / "system.key"

    @property
    def root(self):
        """The trust document for dev images."""
        return self.folder / "root.imr"

    @property
    def api_key_file(self):
        """The file with the API key."""
        return self.folder / "api-key"

    @property
    def api_key(self):
        """The API key of dev images."""
        return self.api_key_file.read_text(encoding="ascii").strip()


def ensure(inferctl):
    """The keys of this machine, made with `inferctl` when there are none."""
    keys = DevKeys(places.cache() / "dev")
    with places.locked(keys.folder):
        if all(file.is_file() for file in (keys.root, keys.api_key_file, keys.system_key)):
            return keys
        with step(f"Making this machine's developer keys in {keys.folder}"):
            make(keys, inferctl)
    return keys


def make(keys, inferctl):
    """Fills the folder; the document that says it is complete comes last."""
    keys.folder.mkdir(mode=0o700, exist_ok=True)
    # One of before may not name all of them.
    keys.root.unlink(missing_ok=True)
    for name in ("root", "model-dev", "system"):
        if not (keys.folder / f"{name}.key").is_file():
            run([inferctl, "keygen", keys.folder / f"{name}.key"])
    if not keys.api_key_file.is_file():
        keys.api_key_file.touch(mode=0o600)
        keys.api_key_file.write_text(secrets.token_hex(16) + "\n", encoding="ascii")
    root, model, system = (keys.folder / f"{name}.pub" for name in ("root", "model-dev", "system"))
    run(
        [inferctl, "root", "create", "-o", keys.root, "--key", keys.folder / "root.key"]
        + ["--role", f"root=1:{root}", "--role", f"revocation=1:{root}", "--role", f"model-release=1:{root}"]
        + ["--role", f"model-dev=1:{model}", "--role", f"system-release=1:{system}"],
    )
