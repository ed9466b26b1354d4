"""What an image is made of, as a CycloneDX 1.6 bill of materials: the crates of its programs, ONNX Runtime, and the packages of Debian.

The same bytes for the same image: it has neither a serial number nor a time, which its specification leaves open.
"""

import json
import re
import subprocess
import tomllib

import engines
import places
import rust
from steps import Failure

VERSION = "1.6"
# What an SPDX expression is made of. Anything else that a crate calls its licence is a name, in the specification's words.
EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( WITH [A-Za-z0-9.+-]+)?( (AND|OR) [A-Za-z0-9.+-]+( WITH [A-Za-z0-9.+-]+)?)*")


def make(facts, board):
    """The bill of materials of an image with these facts, as text."""
    programs = {"inferd": board.rust_target}
    if not facts["minimal"]:
        programs[engines.PACKAGE] = f"{board.architecture_in_rust}-unknown-linux-gnu"
    found = crates(programs)
    components = [component(cargo(name, version), name, version, **crate) for (name, version), crate in found.items()]
    components += [component(debian(name, version, board), name, version) for name, version in facts["packages"].items()]
    if runtime := facts.get("onnxruntime"):
        components.append(component(f"pkg:pypi/onnxruntime@{runtime}", "onnxruntime", runtime, licence="MIT"))
    ours = [cargo(name, version) for name, version in found if name in programs]
    image = {"type": "firmware", "bom-ref": "image", "name": f"inferd appliance for {board.name}", "version": facts["build"]}
    image |= {"hashes": [{"alg": "SHA-256", "content": facts["sha256"]}]}
    inside = [entry["bom-ref"] for entry in components if not entry["bom-ref"].startswith("pkg:cargo/")]
    edges = [{"ref": "image", "dependsOn": sorted(ours + inside)}]
    edges += [{"ref": cargo(*key), "dependsOn": [cargo(*needed) for needed in crate["needs"]]} for key, crate in found.items()]
    page = {
        "$schema": f"http://cyclonedx.org/schema/bom-{VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "version": 1,
        "metadata": {"component": image},
        "components": sorted(components, key=lambda entry: entry["bom-ref"]),
        "dependencies": sorted(edges, key=lambda edge: edge["ref"]),
    }
    return json.dumps(page, indent=2) + "\n"


def component(purl, name, version, licence=None, sha256=None, needs=()):
    """A component of the bill."""
    entry = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licence:
        # Before 2018 a slash stood for OR in a Cargo.toml.
        said = re.sub(r" ?/ ?", " OR ", licence)
        plain = said.replace("(", "").replace(")", "")
        entry["licenses"] = [{"expression": said} if EXPRESSION.fullmatch(plain) else {"license": {"name": licence}}]
    if sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return entry


def cargo(name, version):
    """A crate, as package URLs have it."""
    return f"pkg:cargo/{name}@{version.replace('+', '%2B')}"


def debian(name, version, board):
    """A package of Debian, as package URLs have it."""
    return f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={board.debian.architecture}"


def ask_cargo(*arguments):
    """What cargo answers about the workspace."""
    rust.ensure_toolchain()
    done = subprocess.run(["cargo", *arguments, "--locked"], cwd=places.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"cargo {arguments[0]} does not say which crates the programs have: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def linked(program, target):
    """The crates that get into a program, by name and version: not those of builds and of tests, and no macros, which run as it is compiled."""
    rows = ask_cargo("tree", "-p", program, "-e", "normal,no-proc-macro", "--target", target, "--prefix", "none", "--format", "{p}")
    return {(name, version.removeprefix("v")) for name, version, *_ in map(str.split, rows.splitlines())}


def crates(programs):
    """The crates of these programs, each for a target, by name and version."""
    platforms = [word for target in dict.fromkeys(programs.values()) for word in ("--filter-platform", target)]
    said = json.loads(ask_cargo("metadata", "--format-version", "1", *platforms))
    wanted = set().union(*(linked(*program) for program in programs.items()))
    lock = tomllib.loads((places.ROOT / "Cargo.lock").read_text())["package"]
    # Of the files that crates.io hands out; the crates of this project have none.
    sums = {(package["name"], package["version"]): package.get("checksum") for package in lock}
    packages = {package["id"]: package for package in said["packages"]}
    called = lambda key: (packages[key]["name"], packages[key]["version"])  # noqa: E731
    found = {}
    for node in said["resolve"]["nodes"]:
        if called(node["id"]) in wanted:
            needs = {called(edge["pkg"]) for edge in node["deps"] if any(kind["kind"] is None for kind in edge["dep_kinds"])}
            found[called(node["id"])] = {
                "licence": packages[node["id"]]["license"],
                "sha256": sums.get(called(node["id"])),
                "needs": sorted(needs & wanted),
            }
    return found
