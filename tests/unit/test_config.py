"""Options from the command line, the environment and a file: who wins, and what is a mistake."""

import argparse
from dataclasses import replace

import pytest

from tracer.commands import file_options, flow_options
from tracer.commands.options import duration_s
from tracer.config import with_config
from tracer.errors import TracerError
from tracer.sinks.pcapng import CAPTURE


def options(argv=(), environment=(), text=None, tmp_path=None):
    """What `flows` options are in the end."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-n", "--namespace", action="append", default=[])
    parser.add_argument("--concurrent", action="store_true")
    flow_options.add_counting(parser)
    flow_options.add_output(parser)
    if text is not None:
        path = tmp_path / "flows.toml"
        path.write_text(text)
        argv = [*argv, "--config", str(path)]
    return parser.parse_args(with_config(parser, "flows", argv, dict(environment)))


FILE = """
[flows]
interval = "1m"
format = "csv"
namespace = ["shop", "data"]
file-max-size = "5M"
max_flows = 1000
concurrent = true
allow = ['{"verdict":["DROPPED"]}']
fields = "packets,bytes"
[drops]
anything = 1
"""


def test_the_file_says_everything_that_the_command_line_can(tmp_path):
    args = options(text=FILE, tmp_path=tmp_path)
    assert (args.interval, args.format, args.namespace) == (60.0, "csv", ["shop", "data"])
    assert (args.file_max_size, args.max_flows, args.concurrent) == (5_000_000, 1000, True)
    assert args.allow == ['{"verdict":["DROPPED"]}']
    assert args.fields == ("packets", "bytes")


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path):
    environment = {
        "TRACER_INTERVAL": "2m",
        "TRACER_FORMAT": "vpc",
        "TRACER_NAMESPACE": "one two",
        "TRACER_CONCURRENT": "no",
        "TRACER_SERVICE_HOST": "10.96.0.7",
    }
    args = options(
        ["--format=hubble", "-n", "three", "--file-path", "x"], environment, FILE, tmp_path
    )
    assert (args.interval, args.format, args.namespace) == (120.0, "hubble", ["three"])
    assert args.concurrent is False
    assert args.max_flows == 1000
    assert str(args.write) == "x"


def test_another_name_of_an_option_on_the_command_line_wins_too(tmp_path):
    args = options(["--aggregation-interval", "3s"], {"TRACER_INTERVAL": "2m"}, FILE, tmp_path)
    assert args.interval == 3.0


@pytest.mark.parametrize("variable", ["TRACER_INTERVAL", "TRACER_AGGREGATION_INTERVAL"])
def test_every_name_of_an_option_is_known(tmp_path, variable):
    text = (
        "[flows]\naggregation-interval = '3s'\nfile-path = 'x'\nallow-list = ['{}']\nallow = ['1']"
    )
    args = options(text=text, tmp_path=tmp_path)
    assert (args.interval, str(args.write), args.allow) == (3.0, "x", ["{}", "1"])
    assert options((), {variable: "4s"}, text, tmp_path).interval == 4.0
    assert options(["--interval", "5s"], {variable: "4s"}, text, tmp_path).interval == 5.0


def test_filters_may_be_tables(tmp_path):
    text = """
    [[flows.allow]]
    source_pod = ["shop/"]
    [[flows.allow]]
    verdict = ["DROPPED"]
    """
    args = options(text=text, tmp_path=tmp_path)
    assert args.allow == ['{"source_pod": ["shop/"]}', '{"verdict": ["DROPPED"]}']


def test_a_filter_in_the_environment_may_hold_blanks():
    args = options(environment={"TRACER_DENY": '{"source_label": ["app in (a, b)"]}'})
    assert args.deny == ['{"source_label": ["app in (a, b)"]}']


def test_the_file_may_be_named_in_the_environment(tmp_path):
    path = tmp_path / "flows.toml"
    path.write_text(FILE)
    assert options(environment={"TRACER_CONFIG": str(path)}).format == "csv"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("[flows]\nintervall = '1s'", "has no option 'intervall'", "did you mean interval?"),
        ("[flows]\nxyzzy = 1", "has no option 'xyzzy'", "known: "),
        ("interval = '1s'", "outside a table", "[flows]"),
        ("[flow]\ninterval = '1s'", "no table [flows], but [flow]", "[flows]"),
        ("[flows\n", "flows.toml", "toml"),
        ("[flows]\nfields = ['type', 'packets']", "no list", 'fields = "type,packets"'),
        ("[flows]\nconcurrent = 'maybe'", "neither true nor false", "true"),
        ("[flows]\nconfig = 'other'", "has no option 'config'", ""),
        ("[flows]\ninterval = true", "interval", "--help"),
        ("[flows]\ninterval = 'soon'", "duration 'soon'", "500ms"),
    ],
)
def test_a_mistake_in_the_file_is_told(tmp_path, text, words, hint):
    with pytest.raises(TracerError) as caught:
        options(text=text, tmp_path=tmp_path)
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_a_mistake_in_the_environment_is_told():
    with pytest.raises(TracerError) as caught:
        options(environment={"TRACER_INTERVALS": "1s"})
    assert caught.value.hint == "did you mean TRACER_INTERVAL?"


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(TracerError, match="no such file"):
        options(["--config", str(tmp_path / "none")])


def test_a_command_without_config_is_left_alone():
    parser = argparse.ArgumentParser()
    parser.add_argument("--interval")
    assert with_config(parser, "x", ["--interval", "1"], {"TRACER_INTERVAL": "2"}) == [
        "--interval",
        "1",
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("10k", 10_000), ("10MB", 10_000_000), ("64MiB", 64 << 20), ("1.5g", 15 * 10**8)],
)
def test_sizes(text, size):
    assert file_options.size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("2m", 120), ("1.5h", 5400), ("7d", 604_800)]
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "10X", "M"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(TracerError):
        file_options.size_bytes(text)


@pytest.mark.parametrize(
    "asked", [["--file-max-size", "1M"], ["--file-max-backups", "0"], ["--fsync", "rotate"]]
)
def test_options_of_files_need_a_file(asked):
    with pytest.raises(TracerError) as caught:
        flow_options.request(options(asked), "n1")
    assert caught.value.hint == "--write PATH"
    assert flow_options.request(options([*asked, "--write", "x"]), "n1").path is not None
    assert flow_options.request(options(), "n1").path is None


def capture(*argv):
    """What becomes of the file of `--write`, by the options of `drops` and `trace`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--write")
    file_options.add_capture_rotation(parser)
    return file_options.rotation_policy(parser.parse_args(argv), CAPTURE)


def test_a_capture_is_one_file_unless_it_is_to_rotate():
    assert capture() == CAPTURE
    assert capture("--write", "x", "--fsync", "batch") == replace(CAPTURE, fsync="batch")
    asked = capture("--write", "x", "--file-max-size", "1M", "--file-max-backups", "3")
    assert (asked.max_bytes, asked.max_backups, asked.rotates) == (1_000_000, 3, True)
    assert capture("--write", "x", "--file-max-age", "1h", "--file-compress", "zstd").rotates


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--file-max-size", "1M"], "--write PATH"),
        (["--fsync", "batch"], "--write PATH"),
        (["--write", "x", "--file-max-backups", "3"], "--file-max-size or --file-max-age"),
        (["--write", "x", "--file-compress", "gzip"], "--file-max-size or --file-max-age"),
        (["--write", "x", "--file-max-total", "1G", "--file-max-age", "1h"], "--file-max-size"),
    ],
)
def test_what_captures_cannot_keep_is_told(argv, hint):
    with pytest.raises(TracerError) as caught:
        capture(*argv)
    assert caught.value.hint == hint
