"""`iproto serve`: apps by name, settings, and how a user's module that fails is reported."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.cli import failure, output, run
from tests.helpers.harness import PATIENCE, serve_process

if TYPE_CHECKING:
    from pathlib import Path


def test_a_module_of_the_users_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import iproto\n\napp = iproto.App() / 0\n")
    ended = run("serve", "broken:app", cwd=tmp_path)
    assert ended.returncode == 2
    assert "TypeError" in ended.stderr
    assert "broken.py, line 3" in ended.stderr
    assert ended.stderr.count("\n") == 1


def serve_in(folder: Path, app: str, *options: str) -> tuple[int, str]:
    ended = run("serve", app, *options, cwd=folder)
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
