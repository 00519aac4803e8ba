"""The command line: help, errors with a hint, exit codes."""

import subprocess
import sys
import types

import pytest

from tracer import __version__, cli
from tracer.errors import ExitCode, TracerError


def call(capsys, *argv):
    """Exit code, stdout, stderr of `tracer ARGV`."""
    with pytest.raises(SystemExit) as exited:
        cli.main(argv)
    printed = capsys.readouterr()
    return exited.value.code, printed.out, printed.err


@pytest.fixture
def command(monkeypatch):
    """A made-up command `probe` that does what its `behaviour` says."""
    module = types.ModuleType("tracer.commands.probe")
    module.__doc__ = "Does what the test says."
    module.behaviour = lambda _: ExitCode.DONE
    module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1)
    module.run = lambda args: module.behaviour(args)  # noqa: PLW0108 - tests replace behaviour
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "probe", "a made-up command")
    return module


def raising(error):
    def behaviour(_):
        raise error

    return behaviour


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_on_a_line_of_its_own(capsys, argv):
    code, out, err = call(capsys, *argv)
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.strip()]
    assert code == 0
    assert err == ""
    for name, text in cli.COMMANDS.items():
        assert [name, text] in lines
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"tracer {__version__}\n", "")


def test_unknown_command(capsys):
    code, out, err = call(capsys, "dorps")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: dorps: no such command; did you mean drops?",
        "hint: tracer --help",
    ]


def test_unknown_command_without_a_likeness(capsys):
    assert call(capsys, "xyzzy")[2].startswith("error: xyzzy: no such command\nhint:")


def test_unknown_option_before_the_command(capsys):
    code, out, err = call(capsys, "--colour")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: unrecognized arguments: --colour",
        "hint: tracer --help",
    ]


def test_help_of_a_command(capsys, command):
    code, out, _ = call(capsys, "probe", "--help")
    assert code == 0
    assert command.__doc__ in out
    assert "usage: tracer probe" in out


@pytest.mark.usefixtures("command")
def test_bad_option_of_a_command(capsys):
    code, out, err = call(capsys, "probe", "--size", "large")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: argument --size: invalid int value: 'large'",
        "hint: tracer probe --help",
    ]


@pytest.mark.parametrize("option", ["--interval", "--active-timeout"])
def test_a_bad_value_names_its_option(capsys, option):
    code, _, err = call(capsys, "flows", option, "5")
    assert code == ExitCode.UNUSABLE
    error, hint = err.splitlines()
    assert error.startswith(f"error: {option}")
    assert "'5'" in error
    assert "500ms" in hint


@pytest.mark.parametrize("code", list(ExitCode))
def test_a_commands_code_is_the_exit_code(capsys, command, code):
    command.behaviour = lambda _: code
    assert call(capsys, "probe")[0] == code


def test_an_error_is_two_lines_on_stderr(capsys, command):
    command.behaviour = raising(TracerError("pod shop/web: not on this node", "tracer pods"))
    assert call(capsys, "probe") == (
        2,
        "",
        "error: pod shop/web: not on this node\nhint: tracer pods\n",
    )


def test_an_error_without_a_hint_is_one_line(capsys, command):
    command.behaviour = raising(TracerError("btf: absent"))
    assert call(capsys, "probe")[2] == "error: btf: absent\n"


def test_ctrl_c_before_the_command_listens_is_a_clean_end(capsys, command):
    command.behaviour = raising(KeyboardInterrupt)
    assert call(capsys, "probe") == (0, "", "")


def test_a_defect_is_not_hidden(command):
    command.behaviour = raising(ZeroDivisionError("defect"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_every_listed_command_exists():
    for name in cli.COMMANDS:
        module = f"tracer.commands.{name}"
        found = subprocess.run(
            [sys.executable, "-c", f"import importlib.util as u; assert u.find_spec({module!r})"],
            capture_output=True,
            check=False,
        )
        assert found.returncode == 0, module


def test_a_reader_that_goes_away_is_no_error():
    """`tracer … | head -c 1`: no traceback, no complaint at exit."""
    program = (
        "import sys, types; from tracer import cli;"
        "m = types.ModuleType('tracer.commands.probe'); m.add_arguments = lambda p: None;"
        "m.run = lambda a: [print('x' * 4096) for _ in range(4096)] and 0;"
        "sys.modules[m.__name__] = m; cli.COMMANDS['probe'] = ''; cli.main(['probe'])"
    )
    tracer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    tracer.stdout.read(1)
    tracer.stdout.close()
    assert tracer.stderr.read() == b""
    assert tracer.wait(timeout=20) == 0
    tracer.stderr.close()


def test_start_up_imports_only_what_it_needs():
    """`tracer --help` must not wait for numpy, bcc or gRPC."""
    program = (
        "import sys\nfrom tracer import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'bcc', 'grpc', 'pyroute2', 'rich', 'psutil'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
