"""Our external tree as the tests read it: packages as GNU make evaluates them, symbols as Kconfig names them."""

import re
import subprocess

import hosttools
import places

TREE = places.ROOT / "buildroot"
DEFCONFIGS = sorted((TREE / "configs").glob("*_defconfig"))
PACKAGES = sorted(path.parent.name for path in TREE.glob("package/*/*.mk"))

# Buildroot's macros that our packages use, as far as a value hangs on them; what builds is left out.
MACROS = r"""
BR2_EXTERNAL_INFERD_PATH := {tree}
ARCH := {architecture}
qstrip = $(strip $(subst ",,$(1)))
github = https://github.com/$(1)/$(2)/archive/$(3)
gitlab = https://gitlab.com/$(1)/$(2)/-/archive/$(3)
include {tree}/external.mk
show:
	@:
	$(foreach name,{names},$(info $(name)=$($(name))))
finalize:
	$(foreach hook,$(INFERD_TARGET_FINALIZE_HOOKS),$($(hook)))
"""


def evaluated(names, architecture="aarch64", **options):
    """Variables of our packages, with these symbols set in Buildroot's configuration."""
    made = _make("show", options, architecture, names)
    assert made.returncode == 0, made.stderr
    found = dict(line.partition("=")[::2] for line in made.stdout.splitlines() if "=" in line)
    return {name: found[name] for name in names}


def finalized(**options):
    """What the package inferd does at the end of every build, with these symbols and TARGET_DIR set."""
    return _make("finalize", options)


def _make(goal, options, architecture="aarch64", names=()):
    text = "".join(f"{name}={value}\n" for name, value in options.items())
    text += MACROS.format(tree=TREE, architecture=architecture, names=" ".join(names))
    make = hosttools.Tools(["make"]).path("make")
    return subprocess.run([make, "--no-print-directory", "-f", "-", goal], input=text, capture_output=True, text=True, check=False)


def prefix(package):
    """What the variables of a package begin with."""
    return package.upper().replace("-", "_")


def defconfig(path):
    """A defconfig's symbols; None is one that is off."""
    found = {}
    for line in path.read_text().splitlines():
        if off := re.fullmatch(r"# (BR2_\w+) is not set", line):
            found[off[1]] = None
        else:
            symbol, _, value = line.partition("=")
            found[symbol] = value.strip('"')
    return found


def used():
    """Every symbol of Buildroot that a defconfig, a Config.in or a package of ours names, and ours."""
    files = [*DEFCONFIGS, *TREE.glob("package/*/Config.in"), *TREE.glob("package/*/*.mk"), TREE / "external.mk"]
    return {symbol for file in files for symbol in re.findall(r"\bBR2_\w+", file.read_text())} - {"BR2_EXTERNAL_INFERD_PATH"}


def defined(folder):
    """Symbols that a tree's Config.in files define."""
    found = set()
    for file in [*folder.rglob("Config.in*"), *folder.rglob("Config.*.in")]:
        if file.is_file():
            found |= set(re.findall(r"(?m)^\s*(?:menu)?config (BR2_\w+)", file.read_text(errors="replace")))
    return found
