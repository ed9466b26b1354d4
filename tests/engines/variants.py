"""Variants of the default model: a copy of it with other engines, and the block of its manifest that names another form of its network."""

import hashlib
import json
import re
import shutil

import places


def digest(path):
    """SHA-256 of a file, as manifests have it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy(to, engines, **settings):
    """A copy of the default model that is to run on these engines; `settings` are other keys of its manifest."""
    shutil.copytree(places.DEFAULT_MODEL, to)
    page = (to / "manifest.toml").read_text()
    for key, value in {"engines": list(engines), **settings}.items():
        page, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", page, count=1)
        assert count == 1, f"the manifest has no {key}"
    (to / "manifest.toml").write_text(page)
    return to


def name(folder, variant, file, precision, golden, made_for=None):
    """Names the one variant of the model in `folder`, in the place of one that was named before."""
    form = {".onnx": "onnx", ".hef": "hef", ".plan": "plan"}[(folder / file).suffix]
    values = {
        "name": variant,
        "format": form,
        "precision": precision,
        "file": file,
        "sha256": digest(folder / file),
        "golden": golden,
    }
    if made_for:
        values["made_for"] = made_for
    page = (folder / "manifest.toml").read_text().split("\n[[variants]]")[0]
    page += "\n[[variants]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    (folder / "manifest.toml").write_text(page)


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items()) + " }"
    return json.dumps(value)
