"""Free ports nobody listens on."""

import pytest
import qemu


@pytest.fixture
def nobody():
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{qemu.free_port()}"
