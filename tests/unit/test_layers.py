"""The layers of docs/architecture.md, read from the imports of every module."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tracer"

LAYERS = {
    # layer: the layers of tracer that it may import, besides itself
    "__main__": {"cli"},
    "cli": {"", "commands", "config", "errors"},
    "config": {"errors"},
    "commands": {
        "",
        "session",
        "explaining",
        "followers",
        "ct_tracking",
        "tc_reading",
        "notify",
        "errors",
    }
    | {"attribution", "model", "flow_table", "wall_time", "layout", "ct_layout"}
    | {"kernel", "inventory", "cluster", "netfilter", "analysis", "sinks", "recording", "report"}
    | {"metrics"},
    "session": {"", "instance", "model", "layout", "errors"}
    | {"kernel", "inventory", "cluster", "analysis", "sinks"},
    "followers": {"", "nf_cover", "model", "errors", "inventory", "kernel", "analysis"},
    "nf_cover": {"", "model", "errors", "inventory", "kernel", "analysis"},
    "tc_reading": {"", "model", "errors", "inventory", "kernel"},
    "attribution": {"", "model", "layout", "errors", "inventory", "netfilter", "analysis"},
    "explaining": {"", "model", "errors", "inventory", "analysis"},
    "ct_tracking": {"", "model", "ct_layout", "errors", "inventory", "netfilter", "analysis"},
    "kernel": {"", "model", "layout", "errors"},
    "inventory": {"", "model", "layout", "errors"},
    "cluster": {"", "model", "errors"},
    "netfilter": {"", "model", "ct_layout", "errors"},
    "analysis": {"", "model", "flow_table", "wall_time", "layout", "ct_layout", "errors"},
    "sinks": {"", "model", "flow_table", "wall_time", "layout", "errors", "files"},
    "recording": {"", "model", "layout", "errors", "files", "analysis"},
    "report": {"", "errors", "flow_table", "sinks"},
    "metrics": {"", "errors", "flow_table"},
    "files": {"errors"},
    "instance": {"errors"},
    "layout": {"errors"},
    "notify": {"errors"},
    "flow_table": {"model", "wall_time", "errors"},
    "wall_time": set(),
    "ct_layout": set(),
    "model": set(),
    "errors": set(),
    "": set(),
}
"""The empty name is the package itself: `tracer/__init__.py`, which holds the version."""

OWNERS = {
    # third-party or system module: the only layer that may import it
    "bcc": "kernel",
    "ctypes": "kernel",
    "pyroute2": "inventory",
    "grpc": "inventory",
    "google": "inventory",
    "psutil": "inventory",
    "kubernetes": "cluster",
    "urllib3": "cluster",
    "dns": "analysis",
    "duckdb": "report",
    "prometheus_client": "metrics",
}

NO_IO = {"subprocess", "mmap", "select", "selectors", "fcntl", "shutil", "tempfile", "threading"}
"""What the pure layer, analysis, has no use for (socket has: it formats addresses)."""


def layer_of(module):
    """Layer of a dotted module name: its first part under `tracer`."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0]


def imports(source, module, *, is_package=False):
    """Dotted names that `source` imports, wherever in it and however written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = len(parts) - node.level + is_package
                base = ".".join([*parts[:kept], *([base] if base else [])])
            # `from tracer.kernel import btf` names a module, `… import HOOKS` something in one.
            names = (f"{base}.{name.name}" for name in node.names)
            yield from {name if is_module(name) else base for name in names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {
            "import_module",
            "__import__",
        }:
            yield from (literal.value for literal in node.args if isinstance(literal, ast.Constant))


def is_module(name):
    """Whether a dotted name is a module of ours, on disk or of the table."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    known = name.startswith("tracer.") and layer_of(name) in LAYERS and name.count(".") == 1
    return known or path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def faults(source, module, *, is_package=False):
    """What in `source` breaks the layers, one text each."""
    layer = layer_of(module)
    for imported in imports(source, module, is_package=is_package):
        top = imported.split(".")[0]
        if top == "tracer":
            target = layer_of(imported)
            if target != layer and target not in LAYERS[layer]:
                yield f"{module} imports {imported}: {layer} must not know {target or 'tracer'}"
        elif OWNERS.get(top, layer) != layer:
            yield f"{module} imports {imported}: only {OWNERS[top]} may"
        elif layer == "analysis" and top in NO_IO:
            yield f"{module} imports {imported}: analysis does no I/O"


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if is_package else parts), is_package


MODULES = list(modules())


@pytest.mark.parametrize(
    ("path", "module", "is_package"), MODULES, ids=[module for _, module, _ in MODULES]
)
def test_imports_follow_the_layers(path, module, is_package):
    assert layer_of(module) in LAYERS, f"{module} belongs to no layer"
    assert list(faults(path.read_text(), module, is_package=is_package)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tracer.kernel.load", "from tracer.inventory import scan"),
        ("tracer.kernel.load", "from ..inventory import scan"),
        ("tracer.kernel.load", "def f():\n    import tracer.sinks.text"),
        ("tracer.kernel.load", "from tracer import session"),
        ("tracer.analysis.explain", "def f():\n    import ctypes.util"),
        ("tracer.analysis.explain", "import subprocess"),
        ("tracer.commands.drops", "import bcc"),
        ("tracer.commands.drops", "import importlib\nimportlib.import_module('bcc')"),
        ("tracer.sinks.text", "from pyroute2 import IPRoute"),
        ("tracer.model", "from tracer.errors import TracerError"),
        ("tracer.session", "from tracer.cli import main"),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    assert list(faults(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tracer.kernel.load", "import bcc\nimport ctypes as ct\nfrom tracer.layout import layout"),
        ("tracer.kernel.load", "from . import btf\nfrom .btf import Btf"),
        ("tracer.inventory.cri", "import grpc\nfrom tracer import model, errors"),
        ("tracer.cli", "from tracer import __version__\nimport tracer.commands"),
        ("tracer.commands.drops", "from tracer.session import Session"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert list(faults(source, module)) == []


def test_no_cycle_between_modules():
    graph = {
        module: {
            name
            for name in imports(path.read_text(), module, is_package=is_package)
            if name.split(".")[0] == "tracer"
        }
        for path, module, is_package in MODULES
    }
    done, stack = set(), []

    def visit(module):
        assert module not in stack, f"cycle: {' > '.join([*stack, module])}"
        if module in done:
            return
        stack.append(module)
        for name in graph.get(module, ()):
            if name != module:
                visit(name)
        done.add(stack.pop())

    for module in graph:
        visit(module)


def test_documented_layers_are_these():
    """docs/architecture.md names every layer, so that the picture cannot grow stale."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for layer in filter(None, LAYERS):
        if layer != "__main__":
            assert re.search(rf"\b{layer}\b", text), f"{layer} is not in docs/architecture.md"
