"""What a dynamic program needs is read out of its file, and what an image could not start is refused. Needs no image and no QEMU."""

import shutil

import elf
import engines
import glibc
import pytest
from steps import Failure

ARCHITECTURES = sorted(glibc.LOADERS)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def libraries(request):
    """Each architecture's C library."""
    return glibc.Glibc(request.param)


def patched(library, tmp_path, old, new):
    """A copy of a library with a name in it changed."""
    content = library.read_bytes()
    assert old.encode() + b"\0" in content and len(old) == len(new)
    copy = tmp_path / library.name
    copy.write_bytes(content.replace(old.encode() + b"\0", new.encode() + b"\0"))
    return copy


def test_everything_that_a_library_needs_is_found_to_the_end(libraries):
    whole = glibc.together([libraries.folder / "libstdc++.so.6"], libraries)
    loader = whole.loader.rsplit("/", 1)[1]
    assert set(whole.libraries) >= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", loader}
    read = elf.read(libraries.folder / "libm.so.6")
    assert read.soname == "libm.so.6" and "libc.so.6" in read.needed and read.interpreter is None
    assert read.is_for(libraries.architecture) and "GLIBC_2.27" in read.versions_defined
    assert elf.read(libraries.folder / "libc.so.6").interpreter == f"/lib{'64' if 'x86' in loader else ''}/{loader}"


def test_the_library_of_each_architecture_is_the_pinned_one_and_finds_what_it_needs(libraries):
    found = engines.onnxruntime(libraries.architecture)
    assert found.library.name == f"libonnxruntime.so.{engines.ONNXRUNTIME}" and all(notice.is_file() for notice in found.notices)
    glibc.together([found.library], libraries)


def test_a_library_that_could_talk_to_the_network_is_refused(libraries, tmp_path):
    found = engines.onnxruntime(libraries.architecture)
    engines.check(engines.Engines(found.library, found, libraries))
    # As every version from 1.29 on does: another name of the same length in its table of names.
    talks = engines.OnnxRuntime(patched(found.library, tmp_path, "strtol", "socket"), found.notices)
    with pytest.raises(Failure, match=r"can talk to the network \(it calls socket\)"):
        engines.check(engines.Engines(found.library, talks, libraries))


def test_a_library_that_the_image_does_not_have_is_refused_by_name(libraries, tmp_path):
    library = patched(libraries.folder / "libgcc_s.so.1", tmp_path, "libc.so.6", "libq.so.6")
    with pytest.raises(Failure, match=r"libgcc_s\.so\.1 needs libq\.so\.6, which is not in libc6"):
        glibc.together([library], libraries)


def test_a_newer_c_library_than_the_images_is_refused_with_what_it_lacks(libraries, tmp_path):
    library = libraries.folder / "libgcc_s.so.1"
    needed = sorted(elf.read(library).versions_needed["libc.so.6"])[0]
    newer = needed.replace("GLIBC_2", "GLIBC_9")
    with pytest.raises(Failure, match=rf"libgcc_s\.so\.1 needs {newer} of libc\.so\.6, which the one of libc6 2\.\S+, .* does not have"):
        glibc.together([patched(library, tmp_path, needed, newer)], libraries)


def test_a_library_for_another_processor_is_refused(libraries):
    (other,) = set(ARCHITECTURES) - {libraries.architecture}
    with pytest.raises(Failure, match=f"is not for {libraries.architecture}"):
        glibc.together([glibc.Glibc(other).folder / "libgcc_s.so.1"], libraries)


@pytest.mark.parametrize("bytes_left", [0, 60, 4096, 1_000_000])
def test_a_library_that_was_cut_short_is_refused(libraries, tmp_path, bytes_left):
    library = tmp_path / "libstdc++.so.6"
    shutil.copy(libraries.folder / library.name, library)
    with open(library, "r+b") as file:
        file.truncate(bytes_left)
    with pytest.raises(Failure, match=r"libstdc\+\+\.so\.6 is (damaged|no 64-bit ELF file)"):
        elf.read(library)
