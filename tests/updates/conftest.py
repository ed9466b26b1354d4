"""Keys and bundles, and a device that takes them."""

import shutil

import pytest
from updates.rig import IDENTITY, Office, edition


@pytest.fixture(scope="module")
def office(inferctl, tmp_path_factory):
    """Keys and bundles of the identity model, its versions 1.0.1, 1.0.2 and so on."""
    office = Office(inferctl, tmp_path_factory.mktemp("office"))
    office.models = {n: edition(office.at(f"model-{n}"), f"1.0.{n}") for n in (1, 2, 3)}
    office.made = {n: office.bundle(n, "--probation-seconds", 1, model=model) for n, model in office.models.items()}
    office.watched = {
        n: office.bundle(n, "--probation-seconds", 600, model=model, product="watched") for n, model in office.models.items()
    }
    return office


@pytest.fixture
def device(native, office, tmp_path):
    """Starts a daemon with two empty slots and the identity model in a directory."""
    (folder := tmp_path / "updates").mkdir()
    shutil.copy(office.root, folder / "root.imr")

    def start(config="", *, models=(IDENTITY,), **options):
        base = "[updates]\nslot_size_mib = 16\n"
        config = config.replace("[updates]\n", base) if "[updates]\n" in config else base + config
        return native(arguments=["--updates-dir", folder], config=config, models=models, **options)

    start.folder = folder
    return start
