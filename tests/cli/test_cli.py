"""`iproto`: the commands that call a server, their options, results and exit codes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iproto import State
from tests.cli.test_output import shell
from tests.helpers.cli import failure, output, run
from tests.helpers.harness import PATIENCE, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.harness import Served


def test_what_replace_writes_read_prints(served: Served) -> None:
    assert output("replace", "7", "hello", url=served.url) == ""
    assert output("replace", "8", "grüße", url=served.url) == ""
    assert output("read", "7", "8", "9", url=served.url) == "hello\ngrüße\n\n"
    assert json.loads(output("read", "7", "8", "--json", url=served.url)) == {
        "7": "hello",
        "8": "grüße",
    }


def test_bytes_that_are_not_text_go_in_and_come_out_as_hex(served: Served) -> None:
    assert output("replace", "7", b"\xff\xfe", url=served.url) == ""
    assert served.server.storage.read(7) == b"\xff\xfe"
    assert output("read", "7", "--hex", url=served.url) == "fffe\n"
    code, text = failure("read", "7", url=served.url)
    assert code == 5
    assert "slot 7 holds 2 bytes that are not UTF-8; print them with --hex" in text
    assert json.loads(output("read", "7", "8", "--json", url=served.url)) == {
        "7": {"hex": "fffe"},
        "8": "",
    }


def test_replace_takes_standard_input_as_it_is(served: Served) -> None:
    def replace(content: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "iproto", "replace", "7", "-", "--url", served.url],
            input=content,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    for content in (b"hello\n", b"", b"\xff" * 256):
        assert (replace(content).returncode, served.server.storage.read(7)) == (0, content)
    ended = replace(b"x" * 257)
    assert (ended.returncode, served.server.storage.read(7)) == (2, b"\xff" * 256)
    assert b"standard input has more than 256 bytes" in ended.stderr
    ended_without = shell(f"replace 7 - --url '{served.url}' <&-")
    assert (ended_without.returncode, ended_without.stderr.count("\n")) == (2, 1)


def test_options_may_stand_before_the_command(served: Served) -> None:
    assert run("--url", served.url, "replace", "7", "hello").returncode == 0
    assert run("--json", f"--url={served.url}", "read", "7").stdout == '{"7": "hello"}\n'
    # "read" is the option's value here, not the command.
    code, text = failure("--url", "read", "state", "--json")
    assert (code, "has no scheme" in text) == (2, True)
    code, text = failure("--workers", "none", "serve")
    assert (code, "workers is 'none'" in text) == (2, True)
    code, text = failure("--url", "iproto://h", "check", "f")
    assert (code, "unrecognized arguments: --url" in text) == (2, True)


@pytest.mark.parametrize("command", ["read 7", "call 0x1", "bench"])
def test_the_time_to_wait_is_an_option_of_every_call(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"iproto://127.0.0.1:{silent.getsockname()[1]}?timeout=86400"
        code, text = failure(*command.split(), "--timeout", "0.2", url=url)
        assert (code, text.count("\n")) == (4, 1)
        assert "0.2 s" in text


def test_a_time_to_wait_that_is_none_is_wrong_usage() -> None:
    code, text = failure("--timeout", "0", "ping")
    assert (code, "timeout is 0.0; it must be a number of seconds" in text) == (2, True)


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_json_is_taken_in_every_locale(served: Served, utf8: str) -> None:
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    ended = run("call", "0x30001", '"é"', url=served.url, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == "éé"
    ended = run("call", "0x30001", b'"\xff"', url=served.url, env=env)
    assert (ended.returncode, "is not UTF-8" in ended.stderr) == (2, True)


@pytest.mark.parametrize("state", ["readonly", "readwrite", "maintenance"])
def test_state_switches_and_tells(served: Served, state: str) -> None:
    expected = {
        "readonly": State.READ_ONLY,
        "readwrite": State.READ_WRITE,
        "maintenance": State.MAINTENANCE,
    }[state]
    assert output("state", state, url=served.url) == f"{state}\n"
    assert served.server.storage.state is expected
    assert output("state", url=served.url) == f"{state}\n"
    assert json.loads(output("state", "--json", url=served.url)) == {"state": state}
    assert served.server.storage.state is expected


def test_ping_tells_how_fast(served: Served) -> None:
    assert output("ping", url=served.url).startswith("answered in ")
    assert json.loads(output("ping", "--json", url=served.url))["milliseconds"] > 0


def test_call_takes_json_and_prints_json(served: Served) -> None:
    assert output("call", "0x30001", '"ab"', "3", url=served.url) == '"ababab"\n'
    assert output("call", "196609", '"é"', url=served.url) == '"éé"\n'
    assert json.loads(output("call", "0x30002", url=served.url)) == [
        {"hex": "ff"},
        None,
        {"k": 1.5},
    ]


def test_mailru_and_unix_sockets_work_through_the_url(tmp_path: Path) -> None:
    with serving(dialect="mailru", bind=f"unix:{tmp_path}/s") as served:
        assert output("replace", "1", "x", url=served.url) == ""
        assert output("read", "1", url=served.url) == "x\n"
        auto = f"iproto+unix://{tmp_path}/s?dialect=auto"
        assert output("read", "1", url=auto) == "x\n"


def test_the_url_may_come_from_the_environment(served: Served) -> None:
    ended = run("read", "0", env={"IPROTO_URL": served.url})
    assert (ended.returncode, ended.stdout) == (0, "\n")


def test_a_refusal_is_exit_code_1_and_says_why(served: Served) -> None:
    code, text = failure("read", "1000", url=served.url)
    assert (code, text.count("\n")) == (1, 1)
    assert "index 1000 is outside 0..999" in text
    served.server.storage.switch(State.READ_ONLY)
    code, text = failure("replace", "1", "x", url=served.url)
    assert code == 1
    assert "READ_ONLY" in text
    code, text = failure("call", "0x99", url=served.url)
    assert code == 1
    assert "no function 0x00000099" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("read",), "INDEX"),
        (("read", "x"), "invalid int value: 'x'"),
        (("call", "0zz"), "is no function number"),
        (("call", "1", "text"), "a string needs quotes of its own"),
        (("state", "frozen"), "frozen"),
        (("read", "0", "--url", "http://x"), "http"),
        (("serve", "--max-body", "lots"), "max_body is 'lots'"),
        (("serve", "--bind", "nowhere"), "must be HOST:PORT"),
        (("serve", "noapp"), "must be MODULE:APP"),
        (("serve", "nomodule_at_all:app"), "cannot import 'nomodule_at_all'"),
        (("serve", "json:dumps"), "must be an iproto.App"),
        (("serve", "json:nothing"), "it is not there"),
        (("fly",), "fly"),
        ((), "COMMAND"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    code, text = failure(*arguments)
    assert code == 2
    assert message in text


def test_no_server_is_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"iproto://127.0.0.1:{gone.getsockname()[1]}"
    code, text = failure("ping", url=url)
    assert (code, text.count("\n")) == (3, 1)
    assert "refused" in text


def test_silence_is_exit_code_4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, text = failure(
            "ping", url=f"iproto://127.0.0.1:{silent.getsockname()[1]}?timeout=0.2"
        )
    assert (code, text.count("\n")) == (4, 1)


def test_the_wrong_dialect_is_exit_code_5(served: Served) -> None:
    code, text = failure("read", "0", url=served.url.replace("=vk", "=mailru"))
    assert (code, text.count("\n")) == (5, 1)
    assert "dialect=vk" in text


def test_an_empty_url_in_the_environment_means_the_default() -> None:
    assert "iproto://127.0.0.1:8080" in run("ping", "--help", env={"IPROTO_URL": ""}).stdout
