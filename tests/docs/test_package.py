"""The package as it is installed: metadata, what comes with it, the public names."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import pathlib
import pkgutil
import re
import runpy
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAVY = {"asyncio", "msgpack", "msgspec", "prometheus_client", "uvloop"}


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


# What is installed.


def test_metadata_has_the_name_and_version_of_the_package() -> None:
    distribution = importlib.metadata.distribution("iproto")
    assert distribution.metadata["Name"] == "iproto"
    assert distribution.version == iproto.__version__


def test_the_packaged_readme_links_to_nothing_that_is_not_packaged() -> None:
    description = runpy.run_path(str(ROOT / "setup.py"))["description"]()
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    for name in re.findall(r"`((?:docs|examples)\S*|[A-Z]+(?:\.md)?)`", description):
        assert (ROOT / name).exists(), name
    assert "| `docs/server.md` | options" in description
    assert "with rights and networks (`docs/security.md`)" in " ".join(description.split())
    installed = importlib.metadata.distribution("iproto")
    if not str(installed.locate_file("iproto")).startswith(str(ROOT)):  # no editable one of before
        assert installed.metadata["Description"].strip() == description.strip()


@pytest.mark.parametrize("name", ["py.typed", "_fastframe.pyi"])
def test_types_are_installed(name: str) -> None:
    assert importlib.resources.files("iproto").joinpath(name).is_file()


def test_console_script_prints_its_version() -> None:
    script = pathlib.Path(sysconfig.get_path("scripts")) / "iproto"
    done = subprocess.run(
        [script, "--version"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"iproto {iproto.__version__}\n"


@pytest.mark.checkout
def test_the_same_pythons_are_declared_tested_and_built_for() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    built = [f"3.{minor}" for minor in re.findall(r"\bcp3(\d+)-\*", project)]
    matrix = re.search(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    assert matrix is not None
    assert built == re.findall(r"3\.\d+", matrix[1])
    # What may still fail there is claimed nowhere.
    may_fail = re.findall(r"continue-on-error: \$\{\{ matrix\.python == '(3\.\d+)' \}\}", workflow)
    assert declared == [version for version in built if version not in may_fail]
    assert f'requires-python = ">={declared[0]}"' in project


@pytest.mark.checkout
def test_contributors_find_every_room_and_every_file_that_is_named() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = pathlib.Path(iproto.__path__[0])
    rooms = {f"src/iproto/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"^\| `(src/iproto/\w+/)` \|", text, flags=re.MULTILINE))
    files = re.findall(r"`((?:src|tests|docs|schema|tools|benchmarks)/[\w./-]*)`", text)
    assert len(files) > 30
    built = {"docs/performance", "benchmarks/build"}
    assert [file for file in files if not (ROOT / file).exists() and file not in built] == []


# The public names.


@pytest.mark.parametrize("name", iproto.__all__)
def test_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(iproto, name) is not None
    assert name in dir(iproto)


def test_star_import_gives_every_public_name() -> None:
    namespace: dict[str, Any] = {}
    exec("from iproto import *", namespace)
    assert set(iproto.__all__) <= namespace.keys()


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'no_such_name'"):
        iproto.no_such_name  # noqa: B018


def test_type_checkers_see_the_names_that_are_there_at_run_time() -> None:
    tree = ast.parse(inspect.getsource(iproto))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, f"{alias.name} is not re-exported"
            seen[alias.name] = statement.module
    assert seen == {name: f"iproto.{module}" for name, module in iproto._MODULE_OF.items()}
    assert iproto._MODULE_OF.keys() <= {*iproto.__all__}


def test_every_public_class_of_errors_and_every_enum_of_the_wire_is_public() -> None:
    """An error of a new return code needs no other place but its own."""
    for module, base in ((iproto.errors, Exception), (iproto.wire, object)):
        defined = {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
            if issubclass(value, base) and not name.startswith("_")
        }
        assert defined == {*module.__all__}
    assert len(iproto.__all__) == len({*iproto.__all__})


# Starting quickly.


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = run_python("import sys, iproto; print(*sys.modules)").split()
    assert "iproto" in loaded
    assert not HEAVY & set(loaded)


def test_a_server_loads_neither_the_metrics_nor_msgpack_unless_it_has_them() -> None:
    """Nor does a worker, whose supervisor has the metrics: it is ready the sooner."""
    loaded = run_python(
        "import asyncio, sys, iproto, iproto.workers.worker\n"
        "async def main():\n"
        "    async with iproto.Server(iproto.Config(bind='127.0.0.1:0')):\n"
        "        print(*sys.modules)\n"
        "asyncio.run(main())"
    ).split()
    assert "iproto.server.server" in loaded
    assert not {"msgpack", "msgspec", "prometheus_client", "wsgiref"} & set(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["read", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    printed = run_python(
        "import sys\n"
        "from iproto.cli.main import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "finally:\n"
        "    print('LOADED', *sys.modules)\n"
    )
    text, _, loaded = printed.rpartition("LOADED ")
    assert "usage: iproto" in text
    assert "iproto.cli.main" in loaded.split()
    assert not HEAVY & set(loaded.split())


# Docstrings.


def public_objects() -> Iterator[tuple[str, Any]]:
    """Every public class, function and method of the package, by its full name."""
    for info in pkgutil.walk_packages(iproto.__path__, "iproto."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value):
                yield f"{module.__name__}.{name}", value
                yield from _methods(value)
            elif inspect.isroutine(value):
                yield f"{module.__name__}.{name}", value


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    if getattr(cls, "_is_protocol", False):
        return  # Its methods are described where they are.
    for name, value in vars(cls).items():
        is_method = inspect.isroutine(value) or isinstance(value, property)
        if is_method and not name.startswith("_"):
            # By the class, so that what overrides a documented method has its docstring.
            yield f"{cls.__module__}.{cls.__qualname__}.{name}", getattr(cls, name)


def has_docstring(value: Any) -> bool:
    """Whether a docstring was written; NamedTuple and dataclass make one of the fields."""
    if inspect.isclass(value):
        text = vars(value).get("__doc__") or ""
        return text != "" and not text.startswith(f"{value.__name__}(")
    return bool(inspect.getdoc(value))


def test_everything_public_has_a_docstring() -> None:
    found = dict(public_objects())
    assert "iproto._fastframe.Storage.read" in found
    assert [name for name, value in found.items() if not has_docstring(value)] == []


@pytest.mark.checkout
def test_the_types_of_everything_public_are_checked() -> None:
    text = (ROOT / "tests" / "typing" / "public_api.py").read_text(encoding="utf-8")
    checked = set(re.findall(r"\w+", text))
    methods = {
        name
        for cls in (iproto.AsyncClient, iproto.Client, iproto.App)
        for name in vars(cls)
        if not name.startswith("_")
    }
    assert {*iproto.__all__} | methods <= checked
