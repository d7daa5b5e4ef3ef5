"""The command line as a user runs it: output, exit codes, one line for an error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import State
from tests.helpers.harness import PATIENCE, serve_process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.harness import Served


def run(
    *arguments: str | bytes, url: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "iproto", *arguments]
    if url is not None:
        command += ["--url", url]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(env or {})},
    )


def output(*arguments: str | bytes, url: str) -> str:
    ended = run(*arguments, url=url)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def failure(
    *arguments: str, url: str | None = None, env: dict[str, str] | None = None
) -> tuple[int, str]:
    ended = run(*arguments, url=url, env=env)
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.fixture
def served() -> Iterator[Served]:
    app = iproto.App()

    @app.function(0x30001)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    @app.function(0x30002)
    def raw() -> list[object]:
        return [b"\xff", None, {"k": 1.5}]

    with serving(app) as served:
        yield served


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
        (("call", "zz"), "is no function number"),
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


def test_a_module_of_the_users_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import iproto\n\napp = iproto.App() / 0\n")
    ended = subprocess.run(
        [sys.executable, "-m", "iproto", "serve", "broken:app"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "TypeError" in ended.stderr
    assert "broken.py, line 3" in ended.stderr
    assert ended.stderr.count("\n") == 1


def serve_in(folder: Path, app: str, *options: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "iproto", "serve", app, *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=folder,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import json\n\njson.loads('{')\n", "JSONDecodeError"),
        ("import os\n\nos.environ['NO SUCH']\n", "KeyError"),
        ("import iproto\n\niproto.Config(max_body=0)\n", "max_body is 0"),
        ("import iproto\n\niproto.App().function(-1)(len)\n", "func_id -1"),
        ("\n\nx = = 1\n", "SyntaxError"),
        ("\n\nimport no_such_module\n", "No module named 'no_such_module'"),
    ],
)
def test_the_users_own_line_is_named_where_a_library_raised(
    tmp_path: Path, source: str, says: str
) -> None:
    (tmp_path / "helper.py").write_text(source)
    (tmp_path / "service.py").write_text("import helper\n")
    code, text = serve_in(tmp_path, "service:app")
    assert (code, text.count("\n"), "Traceback" in text) == (2, 1, False)
    assert says in text
    assert f"{tmp_path}/helper.py, line 3" in text
    code, text = serve_in(tmp_path, "service:app", "--log-level", "DEBUG")
    assert "Traceback" in text
    assert text.splitlines()[-1].startswith("iproto: cannot import 'service'")


def test_an_app_that_is_named_by_its_file_is_told_its_module(tmp_path: Path) -> None:
    for name, module in (
        ("./myservice.py:app", "it is the module myservice:app"),
        ("myservice.py", "it is the module myservice:app"),
        ("pkg/sub.py:api", "it is the module pkg.sub:api"),
        (f"{tmp_path}/x/sub.py:api", "it is the module x.sub:api"),
        ("/srv/away/sub.py:api", "in the folder /srv/away it is the module sub:api"),
    ):
        code, text = serve_in(tmp_path, name)
        assert (code, text.count("\n")) == (2, 1)
        assert text == f"iproto: app '{name}' names a file; {module}\n"


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


def test_an_empty_url_in_the_environment_means_the_default() -> None:
    assert "iproto://127.0.0.1:8080" in run("ping", "--help", env={"IPROTO_URL": ""}).stdout


def test_serve_runs_an_app_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "myservice.py").write_text(
        "import iproto\napp = iproto.App()\n"
        "@app.function(0x30001)\ndef add(a: int, b: int) -> int:\n    return a + b\n"
    )
    with serve_process("myservice:app", cwd=tmp_path) as running:
        url = f"iproto://{running.addresses[0]}"
        assert output("call", "0x30001", "2", "3", url=url) == "5\n"


def test_serve_takes_its_settings_from_the_environment(tmp_path: Path) -> None:
    env = {"IPROTO_DIALECT": "mailru", "LOG_LEVEL": "DEBUG"}
    bind = ("--bind", f"unix:{tmp_path}/s", "--bind", "127.0.0.1:0")
    with serve_process(*bind, env=env) as running:
        assert running.addresses[0] == f"unix:{tmp_path}/s"
        assert "dialect mailru" in running.log[-1]
        url = f"iproto://{running.addresses[1]}?dialect=mailru"
        assert output("read", "0", url=url) == "\n"


def test_serve_takes_its_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("dialect = 'mailru'\nbind = '127.0.0.1:1'\n")
    for arguments, env in ((("--config", str(file)), {}), ((), {"IPROTO_CONFIG": str(file)})):
        with serve_process(*arguments, env=env) as running:  # which says --bind
            assert "dialect mailru" in running.log[-1]
    file.write_text("dialects = 'mailru'\n")
    code, text = failure("serve", "--config", str(file))
    assert code == 2
    assert text.startswith(f"iproto: settings file {file}: unknown key 'dialects'; it must be one")
    assert text.count("\n") == 1


@pytest.mark.parametrize(("level", "lines"), [("INFO", True), ("ERROR", False), ("PANIC", False)])
def test_the_log_level_is_kept(level: str, lines: bool) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "iproto", "serve", "--log-level", level),
            *("--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    if lines:
        assert "serving" in process.stderr.readline()
    else:
        # Nothing is said of the start, so the signal may come before the
        # handlers are there: either end is fine, an output is not.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    process.terminate()
    rest = process.stderr.read()
    assert bool(rest) == lines
    process.stderr.close()
    process.wait(PATIENCE)
