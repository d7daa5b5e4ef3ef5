"""The files of deploy/: the units, the image and the compose file fit the server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iproto.cli.main import parse
from iproto.server.settings import read_settings
from tests.helpers.harness import PATIENCE, serve_process
from tests.helpers.markdown import section
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from iproto import Config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux")

UNITS = ROOT / "deploy" / "systemd"
DOCKER = ROOT / "deploy" / "docker"


def unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def settings_of(arguments: list[str], environment: dict[str, str]) -> Config:
    return read_settings(vars(parse(arguments)), environment)


@pytest.fixture
def installed_units(tmp_path: Path) -> Path:
    """The units, with the `iproto` of this environment."""
    script = Path(sysconfig.get_path("scripts")) / "iproto"
    for file in UNITS.iterdir():
        text = file.read_text().replace("/opt/iproto/bin/iproto", str(script))
        (tmp_path / file.name).write_text(text)
    return tmp_path


def analyze(*arguments: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("units: systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.checkout
def test_systemd_understands_the_units(installed_units: Path) -> None:
    units = [installed_units / "iproto.service", installed_units / "iproto.socket"]
    assert analyze("verify", "--man=no", *units) == ""


@pytest.mark.checkout
def test_the_unit_is_as_hardened_as_is_documented(installed_units: Path) -> None:
    documented = re.search(r"exposure\s+level of ([\d.]+)", section("deploy.md", "systemd"))
    assert documented is not None
    threshold = str(round(10 * float(documented[1])))
    unit = installed_units / "iproto.service"
    analyze("security", "--offline=true", f"--threshold={threshold}", unit)


@pytest.mark.checkout
def test_the_units_fit_the_server() -> None:
    service = unit("iproto.service")
    (command,) = service["ExecStart"]
    arguments = shlex.split(command.replace("%S", "/var/lib"))
    config = settings_of(arguments[1:], {})
    assert config.storage_file == f"/var/lib/{service['StateDirectory'][0]}/storage"
    assert int(service["TimeoutStopSec"][0]) > config.drain_timeout + 2
    assert unit("iproto.socket")["ListenStream"] == list(config.bind)
    assert int(unit("iproto.socket")["Backlog"][0]) == config.backlog


@pytest.mark.checkout
def test_the_repair_before_a_start_is_of_the_units_file() -> None:
    page = (ROOT / "docs" / "storage-file.md").read_text()
    (command,) = re.findall(r"^ExecStartPre=-(.*)$", page, re.MULTILINE)
    program, *arguments = shlex.split(command)
    options = parse(arguments)
    assert options.repair
    (serve,) = unit("iproto.service")["ExecStart"]
    assert serve.startswith(f"{program} serve ")
    assert f"--storage-file {options.path} " in serve


def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


def variables_of(text: str) -> dict[str, str]:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return dict(item.split("=", 1) for item in block.replace("\\\n", " ").split())


@pytest.mark.checkout
def test_the_image_runs_the_server_where_it_can_be_reached() -> None:
    text = dockerfile()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    command, *arguments = json.loads(entry)
    assert command == "iproto"
    config = settings_of(arguments, variables_of(text))
    assert config.bind == ("0.0.0.0:8080",)
    assert config.metrics_bind == "0.0.0.0:8088"
    assert re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE) == ["8080 8088"]
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert users
    assert f"--uid {users[-1]} " in text


@pytest.mark.checkout
def test_the_image_serves_net_rpc_as_the_page_on_other_clients_runs_it() -> None:
    page = (ROOT / "docs" / "interop.md").read_text()
    (shown,) = re.findall(r"^docker run (.*) iproto$", page, re.MULTILINE)
    words = shlex.split(shown)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert words[:2] == ["-p", "80:8080"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile(), re.MULTILINE)
    config = settings_of(json.loads(entry)[1:], variables_of(dockerfile()) | given)
    assert [(one.address, one.dialect) for one in config.listeners] == [("0.0.0.0:8080", "net-rpc")]


@pytest.mark.checkout
def test_the_image_is_built_from_what_the_context_has() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile(), re.MULTILINE)
    needed = {name for names in copied for name in names.split()}
    assert needed == set(re.findall(r"^!(.*)$", ignored, re.MULTILINE))
    assert all((ROOT / name).exists() for name in needed)


@pytest.mark.checkout
def test_the_health_check_tells_a_server_from_none() -> None:
    (check,) = re.findall(r"^ +CMD (\[.*\])$", dockerfile(), re.MULTILINE)
    command = json.loads(check)
    assert command[0] == "python"

    def healthy(address: str) -> bool:
        code = command[2].replace("127.0.0.1:8088", address)
        return not subprocess.run(
            [sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False
        ).returncode

    with serve_process() as running:
        address = running.metrics.removeprefix("http://")
        assert healthy(address)
        running.process.kill()
        running.process.wait()
        assert not healthy(address)


@pytest.mark.checkout
def test_compose_runs_the_server_and_prometheus_scrapes_it() -> None:
    yaml = pytest.importorskip("yaml", reason="compose: PyYAML is not installed")
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert compose["name"] == "iproto"  # else that of the directory: docker
    service = compose["services"]["iproto"]
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
        DOCKER / "Dockerfile"
    )
    environment = variables_of(dockerfile()) | service["environment"] | {"LOG_LEVEL": "INFO"}
    config = settings_of(["serve"], environment)
    assert config.workers == "auto"
    (volume,) = service["volumes"]
    assert str(config.storage_file).startswith(volume.partition(":")[2])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert float(service["stop_grace_period"].rstrip("s")) > config.drain_timeout + 2
    for mounted in compose["services"]["prometheus"]["volumes"]:
        source = mounted.partition(":")[0]
        assert source in compose["volumes"] or (DOCKER / source).is_file()
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == "iproto"  # which the alerts of docs/metrics.md go by
    assert job["static_configs"] == [{"targets": ["iproto:8088"]}]
