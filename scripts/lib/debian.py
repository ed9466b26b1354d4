"""Debian packages without installing them: a private apt for any architecture and suite, packages unpacked into a folder.

Nothing on the system changes and no root is needed: apt gets its own state, cache and sources below the cache folder,
and `dpkg-deb` only unpacks. Signatures are checked by apt as always. Unpacked trees are kept and found again by what
was asked for, so a second run needs no network; `refresh=True` asks the archive for newer versions.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import places
from steps import Failure, run, say

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = Path("/etc/apt")
# What apt says of a package that there is not, and of an index that a mirror has left out.
ABSENT = r"Unable to locate package|has no installation candidate|non-free-firmware/\S+ +404 "


def mirror():
    """The Debian archive this machine already uses, or $INFERD_DEBIAN_MIRROR."""
    chosen = os.environ.get("INFERD_DEBIAN_MIRROR")
    if chosen:
        return chosen.rstrip("/")
    files = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.sources"))]
    files += sorted((SOURCES / "sources.list.d").glob("*.list"))
    for file in files:
        uri = mirror_in(file.read_text(errors="replace")) if file.is_file() else None
        if uri:
            return uri
    raise Failure(
        "no Debian archive is configured on this machine; name one: INFERD_DEBIAN_MIRROR=http://HOST/debian "
        f"(looked in {SOURCES}/sources.list and sources.list.d)"
    )


def mirror_in(text):
    """The first archive URI ending in /debian in an apt sources file, old (`deb URI suite`) or new (`URIs:`) style."""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#") or not re.match(r"(deb(-src)?\s|URIs:)", line):
            continue
        for word in line.split():
            if re.fullmatch(r"[a-z+]+:\S*/debian/?", word):
                return word.rstrip("/")
    return None


def host_architecture():
    """Debian's name of this machine's architecture: amd64, arm64."""
    if not shutil.which("dpkg"):
        raise Failure("this script takes its programs from Debian packages and needs dpkg and apt-get (Debian 12 or newer)")
    return run(["dpkg", "--print-architecture"]).strip()


class Absent(Failure):
    """The archive at hand has no such package, or leaves out the part that would have it."""


@dataclass(frozen=True)
class Tree:
    """Unpacked packages: where they lie, which versions they are, and of which package each file is where that was asked for."""

    path: Path
    versions: dict
    files: dict = field(default_factory=dict)


class Archive:
    """One architecture's view of some suites of the Debian archive."""

    def __init__(self, architectures, suites, components=("main",)):
        self.architectures = [architectures] if isinstance(architectures, str) else list(architectures)
        self.suites, self.components = list(suites), list(components)
        name = "-".join(self.architectures + self.suites + [part for part in self.components if part != "main"])
        self.base = places.cache() / "debian" / name

    def tree(self, packages, *, closure=False, follow=(), only=None, named=False, refresh=False):
        """Unpacks `packages`, and says which versions they are.

        With `closure` everything they depend on comes along. `follow` names metapackages (a kernel flavour): the packages of one
        version that each leads to are unpacked instead, of the last suite that has it. With `only`, a tar wildcard, just those paths are unpacked.
        With `named` it also says of which package each file is.
        """
        packages = list(packages)
        key = json.dumps([packages, closure, list(follow), only] + (["named"] if named else []), sort_keys=True)
        name = re.sub(r"[^a-z0-9.+-]", "_", packages[0]) + "-" + hashlib.sha256(key.encode()).hexdigest()[:10]
        tree = self.base / name
        stamp = tree / ".versions.json"
        with places.locked(self.base):
            if refresh or not stamp.is_file():
                self._update()
                real = [part for name in packages for part in (self._versioned(name) if name in follow else [name])]
                self._unpack(self._closure(real) if closure else real, tree, only)
            return Tree(tree, json.loads(stamp.read_text()), json.loads((tree / ".files.json").read_text()) if named else {})

    def madison(self, package):
        """Every version of a package that the suites hold, newest first."""
        with places.locked(self.base):
            self._update()
            rows = self._apt("apt-cache", "madison", package).splitlines()
        return [row.split("|")[1].strip() for row in rows if "|" in row]

    def _versioned(self, metapackage):
        """What a metapackage of a kernel leads to: the packages with a release in their names, one or (from 7.0 on) several."""
        only = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
        newest = f"APT::Default-Release={self.suites[-1]}"
        listing = self._apt("apt-cache", "-o", newest, "depends", "--recurse", *only, metapackage)
        found = sorted(set(re.findall(r"^linux-[a-z]+-\d\S*$", listing, re.MULTILINE)))
        if not found:
            raise Failure(f"the Debian package {metapackage} leads to no kernel")
        return found

    def _closure(self, packages):
        listing = self._apt("apt-get", "install", "--no-install-recommends", "--print-uris", "-y", "-qq", *packages)
        # 'URI' name_version_architecture.deb size hash
        rows = re.findall(r"^'\S+' ([^_\s]+)_([^_\s]+)_([^_\s]+)\.deb ", listing, re.MULTILINE)
        return [f"{name}={version.replace('%3a', ':')}" for name, version, _ in rows]

    def _update(self):
        base = self.base
        for folder in ("state/lists/partial", "cache/archives/partial", "none"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "status").touch()
        signed = f"Signed-By: {KEYRING}\n" if KEYRING.is_file() else ""
        stanzas = [
            f"Types: deb\nURIs: {mirror()}\nSuites: {suite}\nComponents: {' '.join(self.components)}\n"
            f"Architectures: {' '.join(self.architectures)}\n{signed}"
            for suite in self.suites
        ]
        (base / "debian.sources").write_text("\n".join(stanzas))
        quoted = " ".join(f'"{arch}";' for arch in self.architectures)
        # Sources, preferences and state are ours; the system's proxy and credentials stay in force.
        (base / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{base}/debian.sources"; Dir::Etc::sourceparts "{base}/none";\n'
            f'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "{base}/none";\n'
            f'Dir::State "{base}/state"; Dir::State::status "{base}/status"; Dir::Cache "{base}/cache";\n'
            f'APT::Architecture "{self.architectures[0]}"; APT::Architectures {{ {quoted} }};\n'
            'Acquire::Languages "none"; Acquire::Check-Valid-Until "false"; Acquire::Retries "3";\n'
            'APT::Sandbox::User ""; APT::Get::AllowUnauthenticated "false";\n'
        )
        self._apt("apt-get", "update", "-qq")

    def _apt(self, *command, cwd=None):
        try:
            return run(command, env={"APT_CONFIG": self.base / "apt.conf", "LC_ALL": "C.UTF-8"}, cwd=cwd)
        except Failure as failure:
            if re.search(ABSENT, str(failure)):
                raise Absent(str(failure)) from failure
            raise

    def _unpack(self, packages, tree, only):
        downloads = self.base / "downloads"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir()
        self._apt("apt-get", "download", "-qq", *packages, cwd=downloads)
        fresh = tree.with_name(tree.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        versions, files = {}, {}
        for deb in sorted(downloads.glob("*.deb")):
            fields = run(["dpkg-deb", "--showformat=${Package} ${Version}", "--show", deb]).split()
            versions[fields[0]] = fields[1]
            files |= dict.fromkeys(_extract(deb, fresh, only), fields[0])
        (fresh / ".files.json").write_text(json.dumps(files, sort_keys=True))
        (fresh / ".versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True))
        shutil.rmtree(tree, ignore_errors=True)
        fresh.rename(tree)
        shutil.rmtree(downloads)


def not_free(architecture, suite, package, refresh=False):
    """A package that is not free as Debian means it, unpacked; nothing where none is named, or the archive at hand leaves it out."""
    none = Tree(None, {})
    if not package:
        return none
    try:
        return Archive(architecture, [suite], ("main", "non-free-firmware")).tree([package], refresh=refresh)
    except Absent:
        say(f"    this Debian archive does not have {package}")
        return none


def _extract(deb, folder, only):
    """Unpacks one package as whoever we are: owners are not kept. The paths of its files."""
    wanted = ["--wildcards", only] if only else []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as archive:
        listing = run(["tar", "xv", "-C", folder, "--no-same-owner", *wanted], stdin=archive.stdout)
        archive.stdout.close()
    if archive.returncode != 0:
        raise Failure(f"cannot unpack {deb.name}: dpkg-deb ended with status {archive.returncode}")
    return [line.removeprefix("./") for line in listing.splitlines() if not line.endswith("/")]
