"""Options from a TOML file and from the environment, for what runs without a person.

Each option of a command that has `--config` can stand in the file, under a long name of it in a
table named as the command, and in the environment: `--max-flows` is `max-flows` and
`TRACER_MAX_FLOWS`.
The command line wins over the environment, and that over the file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import TracerError, like

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "TRACER_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def with_config(
    parser: argparse.ArgumentParser,
    command: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """`argv` preceded by what file and environment say and `argv` does not.

    Unchanged for a parser without `--config`. TracerError names what is unknown or unreadable.
    """
    options = _options(parser)
    if "config" not in options:
        return list(argv)
    given = _given(options, argv)
    from_environment = _from_environment(options, environment)
    path = given.get("config") or from_environment.get("config")
    layers = [from_environment, _from_file(str(path), command, options) if path else {}]
    arguments: list[str] = []
    for layer in layers:
        told = {
            name: value for name, value in layer.items() if _first_name(options[name]) not in given
        }
        for name, value in told.items():
            given[_first_name(options[name])] = ""
            arguments += _as_arguments(options[name], name, value)
    return [*arguments, *argv]


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every long name of an option, without dashes → its action."""
    return {
        name: action
        for action in parser._actions  # noqa: SLF001 - argparse has no public list of options
        for name in _long_names(action)
        if action.dest != "help"
    }


def _long_names(action: argparse.Action) -> list[str]:
    return [text[2:] for text in action.option_strings if text.startswith("--")]


def _first_name(action: argparse.Action) -> str:
    """What stands for all names of an option."""
    return _long_names(action)[0]


def _given(options: Mapping[str, argparse.Action], argv: Sequence[str]) -> dict[str, str]:
    """Which options `argv` has, by their first name, and of those with a value its last."""
    found = {}
    for at, text in enumerate(argv):
        word, _, value = text.partition("=")
        for action in options.values():
            short = any(
                text.startswith(one) and not one.startswith("--") and not text.startswith("--")
                for one in action.option_strings
            )
            if word in action.option_strings or short:
                value = value or (argv[at + 1] if at + 1 < len(argv) else "")
                found[_first_name(action)] = value
    return found


def _from_environment(
    options: Mapping[str, argparse.Action], environment: Mapping[str, str]
) -> dict[str, object]:
    known = {PREFIX + name.upper().replace("-", "_"): name for name in options}
    found: dict[str, object] = {}
    for variable, value in environment.items():
        if variable in known:
            name = known[variable]
            is_list = _is_list(options[name])
            found[name] = _words(value) if is_list else value
        elif variable.startswith(PREFIX):
            # Kubernetes itself sets TRACER_SERVICE_HOST and the like: only what is almost right
            # is taken for a mistake.
            alike = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if alike:
                raise TracerError(f"{variable}: no such option", f"did you mean {alike[0]}?")
    return found


def _words(value: str) -> list[str]:
    """A list in one variable: a line each, or divided by blanks where that cannot be mistaken."""
    return value.splitlines() if "\n" in value or "{" in value else value.split()


def _from_file(
    path: str, command: str, options: Mapping[str, argparse.Action]
) -> dict[str, object]:
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TracerError(
            f"config {path}: {(error.strerror or str(error)).lower()}", "name a readable file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TracerError(f"config {path}: {error}", "see https://toml.io") from error
    loose = [name for name, value in tables.items() if not isinstance(value, dict)]
    if loose:
        raise TracerError(
            f"config {path}: '{loose[0]}' stands outside a table", f"write it under [{command}]"
        )
    if tables and command not in tables:
        raise TracerError(
            f"config {path}: no table [{command}], but [{next(iter(tables))}]",
            f"write options under [{command}]",
        )
    found = {}
    known = [name for name in options if name != "config"]
    for key, value in tables.get(command, {}).items():
        name = key.replace("_", "-")
        if name not in known:
            raise TracerError(
                f"config {path}: [{command}] has no option '{key}'", like(name, known)
            )
        found[name] = value
    return found


def _is_list(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)  # noqa: SLF001 - there is no public name


def _as_arguments(action: argparse.Action, name: str, value: object) -> list[str]:
    """The words that say the same on the command line; a table is written as JSON."""
    if action.nargs == 0:
        return [f"--{name}"] if _is_true(name, value) else []
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not _is_list(action):
        joined = ",".join(map(str, value))
        raise TracerError(f"{name}: takes no list", f'one text: {name} = "{joined}"')
    if isinstance(value, bool) or (isinstance(value, dict) and not _is_list(action)):
        raise TracerError(f"{name}: {value!r} is not what --{name} takes", "tracer flows --help")
    texts = [json.dumps(one) if isinstance(one, dict) else str(one) for one in values]
    return [f"--{name}={text}" for text in texts]


def _is_true(name: str, value: object) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise TracerError(f"{name}: '{value}' is neither true nor false", f"{name} = true")
    return text in _TRUE
