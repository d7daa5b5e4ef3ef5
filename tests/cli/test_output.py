"""What `iproto` prints: help, versions, JSON, and outputs that are closed, full or narrow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import iproto
from tests.helpers.cli import failure, output, run
from tests.helpers.harness import PATIENCE, serving

if TYPE_CHECKING:
    from tests.helpers.harness import Served


def test_help_has_examples_and_every_command_its_own() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    assert "examples:" in ended.stdout
    assert "exit codes:" in ended.stdout
    for command in ("serve", "read", "replace", "state", "ping", "call"):
        assert command in ended.stdout
        assert "examples:" in run(command, "--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, iproto.cli.main\n"
        "try: iproto.cli.main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'asyncio', 'uvloop', 'msgpack', 'msgspec', 'prometheus_client', 'ssl'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert ended.stderr == "[]\n"


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"iproto {iproto.__version__}\n"


def test_output_that_nobody_reads_is_no_error(served: Served) -> None:
    indexes = [str(i % 1000) for i in range(5000)]
    process = subprocess.Popen(
        [sys.executable, "-m", "iproto", "read", *indexes, "--url", served.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(PATIENCE) == 0


def shell(command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m iproto {command}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_an_output_that_is_closed_or_full_makes_no_traceback(served: Served) -> None:
    ended = shell(f"read 7 --url '{served.url}' >&-")
    assert (ended.returncode, ended.stderr) == (0, "")
    if os.path.exists("/dev/full"):
        output("replace", "7", "x", url=served.url)
        ended = shell(f"read 7 --url '{served.url}' >/dev/full")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_text_that_the_terminal_has_no_signs_for_is_written_by_numbers(served: Served) -> None:
    output("replace", "7", "é", url=served.url)
    ended = run("read", "7", url=served.url, env={"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stdout) == (0, "\\xe9\n")


def test_json_stays_json_whatever_the_terminal_has_signs_for(served: Served) -> None:
    output("replace", "7", "é", url=served.url)
    ended = run("read", "7", "--json", url=served.url, env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(ended.stdout) == {"7": "é"}


def test_a_result_that_is_nested_too_deep_is_one_line() -> None:
    app = iproto.App()

    @app.function(0x30001)
    def deep() -> object:
        value: list[object] = []
        for _ in range(490):
            value = [value]
        return value

    with serving(app) as served:
        ended = run("call", "0x30001", url=served.url)
        assert "Traceback" not in ended.stderr
        assert (ended.returncode, ended.stderr.count("\n")) in ((0, 0), (5, 1))


def test_json_that_msgpack_or_python_cannot_take_is_wrong_usage(served: Served) -> None:
    for value in ("9" * 30, "[" * 100_000):
        code, text = failure("call", "0x30001", value, url=served.url)
        assert (code, "Traceback" in text) == (2, False)


def test_map_keys_that_are_no_text_are_printed_as_text() -> None:
    app = iproto.App()
    app.function(0x30001, name="odd")(lambda: {b"k": 1, 2: {"x": [{3: 4}]}})
    with serving(app) as served:
        assert json.loads(output("call", "0x30001", url=served.url)) == {
            '{"hex": "6b"}': 1,
            "2": {"x": [{"3": 4}]},
        }
