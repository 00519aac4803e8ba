"""Rulesets of real nodes, as their tools printed them (tests/data/rulesets)."""

from pathlib import Path

import pytest

from tracer.analysis.ruleset.read import Reader, Texts

DATA = Path(__file__).parents[2] / "data" / "rulesets"


def texts_of(folder):
    def read(name):
        path = DATA / folder / name
        return path.read_text() if path.exists() else ""

    return Texts(
        nft=read("nft-a-ruleset.json").encode(),
        iptables=read("iptables-save-c.txt"),
        ip6tables=read("ip6tables-save-c.txt"),
        iptables_legacy=read("iptables-legacy-save-c.txt"),
    )


@pytest.fixture(scope="session")
def recorded_texts():
    """Folder → what the tools printed on that node."""
    return texts_of


@pytest.fixture(scope="session")
def recorded():
    """Folder → its ruleset."""
    return lambda folder: Reader().read(texts_of(folder))


@pytest.fixture(scope="session")
def recorded_folder():
    """Folder → where its files are."""
    return lambda folder: DATA / folder
