"""Fixtures of the inventory's tests: a short socket path (sun_path holds 108 bytes)."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def socket_path():
    with tempfile.TemporaryDirectory(prefix="cri") as directory:
        yield Path(directory) / "cri.sock"
