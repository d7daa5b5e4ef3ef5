"""The documentation, held against what it describes: tables, examples, links.

The reading of Markdown in here serves ``test_readme.py`` too.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

import iproto
from iproto import FuncID, errors
from iproto._fastframe import ServerFrames
from iproto.address import Address, parse_address
from iproto.bench.settings import Settings
from iproto.cli.output import EXIT_CODES
from iproto.server import config, settings
from tests.helpers.harness import PATIENCE, frame, serve_process, serving
from tests.helpers.paths import ROOT
from tests.metrics.test_metrics import get

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.checkout

DOCS = ROOT / "docs"
DOC_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *DOC_PAGES])

# What the documentation shows, and tests replace by where they serve.
SHOWN_ADDRESS = "127.0.0.1:8080"
SHOWN_METRICS = "127.0.0.1:8088"


# Markdown.


class Block(NamedTuple):
    """A fenced block: ``marks`` is what follows the language."""

    page: str
    line: int
    language: str
    marks: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page}:{self.line}"


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    lines: list[str] | None = None
    language = marks = ""
    begun = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            language, _, marks = line[3:].partition(" ")
            lines, begun = [], number
        else:
            yield Block(page.name, begun, language, marks, "\n".join(lines) + "\n")
            lines = None
    assert lines is None, f"{page.name}: the block of line {begun} has no end"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    parts = re.split(r"^#+ (.*)$", prose(DOCS / page), flags=re.MULTILINE)
    found = [text for name, text in zip(parts[1::2], parts[2::2], strict=True) if name == heading]
    assert len(found) == 1, f"{page} has {len(found)} sections {heading!r}"
    return found[0]


def cells(line: str) -> list[str]:
    """The cells of a table's row, without the backticks around a whole cell."""
    found = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in found]


def table(page: str, heading: str, first: str) -> list[dict[str, str]]:
    """The rows of the table in a section whose first column is called so, by column."""
    lines = section(page, heading).splitlines()
    for number, line in enumerate(lines):
        columns = cells(line)
        if line.startswith("|") and columns[0] == first:
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(dict(zip(columns, cells(row), strict=True)))
            return rows
    raise AssertionError(f"{page}, {heading!r}: no table begins with the column {first!r}")


def column(page: str, heading: str, first: str) -> list[str]:
    return [row[first] for row in table(page, heading, first)]


def all_blocks(language: str, *, docs_only: bool = False) -> list[Any]:
    pages = DOC_PAGES if docs_only else PAGES
    found = [block for page in pages for block in blocks(page) if block.language == language]
    return [pytest.param(block, id=block.label) for block in found]


def run_console(
    text: str, address: str, metrics: str, environment: dict[str, str], directory: Path
) -> None:
    """Runs the ``$`` lines of a block; what follows each is the output, ``...`` is anything."""

    def moved(said: str) -> str:
        return said.replace(SHOWN_ADDRESS, address).replace(SHOWN_METRICS, metrics)

    tools = str(Path(sys.executable).parent)
    for step in re.split(r"^\$ ", moved(text), flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        if "curl" in command and shutil.which("curl") is None:
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            env={
                **os.environ,
                **environment,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "IPROTO_URL": f"iproto://{address}",
            },
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        pattern = re.escape(expected).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, done.stdout), f"$ {command}\n{done.stdout}"


# Pages, links, code.


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)]*)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    """Of a directory, to its README; and that to the others there."""
    linked = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *DOCS.glob("*/README.md"))
        for target in re.findall(r"\]\(([\w/-]+\.md)\)", prose(page))
    }
    assert linked >= set(DOC_PAGES)


@pytest.mark.parametrize("page", DOC_PAGES, ids=path_of)
def test_a_list_of_contents_names_every_section(page: Path) -> None:
    listed = re.findall(r"^- \[.*\]\(#(.*)\)$", prose(page), re.MULTILINE)
    if listed:
        headings = re.findall(r"^## (.*)$", prose(page), re.MULTILINE)
        assert listed == [slug(heading) for heading in headings]


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, block.label, "exec")


@pytest.mark.parametrize(
    "block", [p for p in all_blocks("python", docs_only=True) if p.values[0].marks == "run"]
)
def test_python_blocks_run(block: Block) -> None:
    with serving() as served:
        text = block.text.replace(SHOWN_ADDRESS, str(served.address))
        exec(compile(text, block.label, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", all_blocks("console", docs_only=True))
def test_console_blocks_show_what_comes_out(block: Block, tmp_path: Path) -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = str(served.server.metrics_address)
        run_console(block.text, str(served.address), metrics, {}, tmp_path)


# protocol.md


@pytest.mark.parametrize("block", all_blocks("hex"))
def test_the_bytes_of_a_worked_example_are_what_the_server_sends(block: Block) -> None:
    said = {
        who: bytes.fromhex(data)
        for who, data in re.findall(r"^(request|reply \(\w+\)) +(.*)$", block.text, re.MULTILINE)
    }
    assert [*said] == ["request", "reply (vk)", "reply (mailru)"]
    for dialect in ("vk", "mailru"):
        frames = new_frames(mailru=dialect == "mailru")
        frames.storage.replace(7, b"hello")
        assert frames.feed(said["request"]) == said[f"reply ({dialect})"]


def new_frames(*, mailru: bool = False) -> ServerFrames:
    return ServerFrames(
        iproto.Storage(), mailru=mailru, max_body=1 << 20, max_calls=1, functions={}
    )


@pytest.mark.parametrize(
    "row",
    table("protocol.md", "Bodies: tolerant in, strict out", "function"),
    ids=lambda row: f"{row['function']}-{row['body']}",
)
def test_a_body_is_accepted_or_refused_as_the_table_says(row: dict[str, str]) -> None:
    frames = new_frames()
    replies = frames.feed(frame(FuncID[row["function"]], bytes.fromhex(row["body"])))
    assert replies is not None
    code = int.from_bytes(replies[12:16], "little")
    verdict = row["accepted"].partition(":")[0]
    assert verdict == {0: "yes", iproto.ReturnCode.ILLEGAL_PARAMS: "no"}[code]
    if row["function"] == "STORAGE_REPLACE":
        assert frames.storage.read(7) == (b"abc" if verdict == "yes" else b"")


def test_the_tables_of_the_protocol_are_complete() -> None:
    functions = {row["func_id"]: row["name"] for row in protocol_functions()}
    assert functions == {f"{func_id:#010x}": func_id.name for func_id in FuncID}
    codes = {row["code"]: row["name"] for row in table("protocol.md", "Return codes", "code")}
    assert codes == {f"{code:#06x}": code.name for code in iproto.ReturnCode}
    states = column("protocol.md", "The storage", "state")
    assert [state.split("`")[1] if "`" in state else state for state in states] == [
        state.name for state in iproto.State
    ]
    dialects = column("protocol.md", "Two dialects of a response", "dialect")
    assert [dialect.split("`")[1] if "`" in dialect else dialect for dialect in dialects] == [
        dialect.value for dialect in iproto.Dialect if dialect is not iproto.Dialect.AUTO
    ]


def protocol_functions() -> list[dict[str, str]]:
    return table("protocol.md", "Functions", "func_id")


def test_the_states_allow_what_the_table_says() -> None:
    for row in table("protocol.md", "The storage", "state"):
        name = re.search(r"[A-Z_]{5,}", row["state"])
        assert name is not None
        frames = new_frames()
        frames.storage.switch(iproto.State[name[0]])
        for told, body in (("reads", b"\x07"), ("writes", b"\x07\xa1x")):
            func_id = FuncID.STORAGE_READ if told == "reads" else FuncID.STORAGE_REPLACE
            replies = frames.feed(frame(func_id, body))
            assert replies is not None
            code = int.from_bytes(replies[12:16], "little")
            assert row[told] == "yes" if code == 0 else f"{code:#06x}" in row[told]


# server.md


def test_the_options_are_the_fields_of_config() -> None:
    rows = table("server.md", "Options", "option")
    fields = dataclasses.fields(iproto.Config)
    assert [row["option"] for row in rows] == [
        "--" + field.name.replace("_", "-") for field in fields
    ]
    for row, field in zip(rows, fields, strict=True):
        assert re.findall(r"\w+", row["variable"].replace("`", "")) == [*settings.variables(field)]
        default = settings.default(field)
        shown = ", ".join(default) if isinstance(default, tuple) else str(default)
        assert row["default"] == shown
        if field.name != "log_level":  # they have a table of their own
            for choice in field.metadata.get("choices", ()):
                assert f"`{choice}`" in row["what it is"]
        kind = {"int": int, "float": float}.get(str(field.type))
        assert (RANGE.search(row["what it is"]) is None) == (kind is None)


def test_the_settings_file_shown_is_read(tmp_path: Path) -> None:
    (shown,) = (b.text for b in blocks(DOCS / "server.md") if b.language == "toml")
    file = tmp_path / "settings.toml"
    file.write_text(shown)
    read = settings.read_settings({"config": str(file)}, {})
    assert (read.workers, read.max_body, len(read.bind)) == ("auto", 65536, 2)


def test_the_settings_that_cannot_change_are_named() -> None:
    (named,) = re.findall(
        r"cannot change while the server runs\*\*:(.*?)\.",
        section("workers.md", "New settings"),
        re.S,
    )
    fixed = {f.name for f in dataclasses.fields(iproto.Config) if f.metadata.get("fixed")}
    assert set(re.findall(r"`(\w+)`", named)) == fixed


RANGE = re.compile(r"([\d.]+) to (\d+)")


@pytest.mark.parametrize(
    "row",
    [row for row in table("server.md", "Options", "option") if RANGE.search(row["what it is"])],
    ids=lambda row: row["option"],
)
def test_the_range_of_an_option_is_what_config_takes(row: dict[str, str]) -> None:
    name = row["option"].removeprefix("--").replace("-", "_")
    ((least, most),) = RANGE.findall(row["what it is"])
    number = float if "." in row["default"] else int
    low, high = number(least), number(most)

    def take(value: Any) -> Any:
        settings: dict[str, Any] = {name: value}
        return getattr(iproto.Config(**settings), name)

    assert (take(low), take(high)) == (low, high)
    for value in (low - (0.0005 if number is float else 1), high + 1):
        with pytest.raises(iproto.ConfigError):
            take(value)


def test_the_addresses_shown_can_be_listened_on() -> None:
    for address in column("server.md", "Addresses", "address"):
        assert str(parse_address(address)) == address


def test_the_log_levels_are_those_there_are() -> None:
    assert column("server.md", "Log", "level") == [*config.LOG_LEVELS]


def test_the_embedded_servers_names_exist() -> None:
    text = section("server.md", "Embed it in a program")
    for name in re.findall(r"server\.(\w+)", text):
        assert hasattr(iproto.Server, name) or name == "storage", name


# functions.md and clients.md


def test_the_clients_methods_are_those_there_are() -> None:
    said = {}
    for row in table("clients.md", "Methods", "method"):
        name, _, parameters = row["method"].rstrip(")").partition("(")
        said[name] = [p.strip() for p in parameters.split(",") if p.strip()]
    for client in (iproto.Client, iproto.AsyncClient):
        real = {}
        for name, member in vars(client).items():
            if name.startswith("_") or not inspect.isfunction(member) or "close" in name:
                continue
            real[name] = [
                str(parameter).partition(":")[0]
                for parameter in list(inspect.signature(member).parameters.values())[1:]
                if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            ]
            assert "timeout" in inspect.signature(member).parameters
        assert said == real


def test_both_shapes_of_arguments_and_the_one_list_are_read_as_shown() -> None:
    app = iproto.App()

    @app.function(0x00030001)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    @app.function(0x00030005)
    def total(items: list[int]) -> list[int]:
        return items

    with serving(app) as served, served.peer() as peer:
        for body in column("functions.md", "How arguments come on the wire", "body"):
            assert peer.ask(0x00030001, bytes.fromhex(body)).value == "ababab"
        lists = re.findall(
            r"^\| `([0-9a-f ]+)` \| `total\((.*)\)`:",
            section("functions.md", "How arguments come on the wire"),
            re.MULTILINE,
        )
        assert len(lists) == 3
        for body, items in lists:
            assert str(peer.ask(0x00030005, bytes.fromhex(body)).value) == items


# errors.md


def test_the_tree_of_errors_is_the_real_one() -> None:
    (drawn,) = (b.text for b in blocks(DOCS / "errors.md") if b.language == "text")
    found: set[tuple[str, str, str | None]] = set()
    parents: list[str] = []
    of_codes = {type(errors.error_from_reply(c, "")) for c in iproto.ReturnCode if c}
    for line in drawn.splitlines():
        if line == "│   └── one class for each return code: the table below":
            found |= {(cls.__name__, "Error", None) for cls in of_codes}
            continue
        match = re.fullmatch(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line)
        assert match is not None, line
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        found.add((match[2], parents[depth - 1] if depth else "Exception", match[3]))
    assert found == {
        (cls.__name__, parent_of(cls), builtin_of(cls))
        for cls in vars(errors).values()
        if inspect.isclass(cls)
        and issubclass(cls, errors.IprotoError)
        and not cls.__name__.startswith("_")
    }
    assert all(hasattr(iproto, name) for name, _, _ in found)


def parent_of(cls: type) -> str:
    bases = [base for base in cls.__mro__[1:] if not base.__name__.startswith("_")]
    return bases[0].__name__


def builtin_of(cls: type) -> str | None:
    extra = [base for base in cls.__bases__ if base.__module__ == "builtins"]
    return extra[0].__name__ if extra and extra[0] is not Exception else None


def test_every_return_code_has_its_class() -> None:
    rows = table("errors.md", "The server answered with an error", "code")
    expected = []
    for code in sorted(iproto.ReturnCode):
        if code is iproto.ReturnCode.OK:
            continue
        error = errors.error_from_reply(code, "")
        retryable = "yes" if error.retryable else "no"
        expected.append((f"{code:#06x}", code.name, type(error).__name__, retryable))
    assert [(r["code"], r["name"], r["class"], r["retryable"]) for r in rows] == expected
    assert all(row["who acts"] for row in rows)


def test_the_other_errors_are_all_described() -> None:
    no_answer = column("errors.md", "No answer came", "class")
    assert {*no_answer} == {cls.__name__ for cls in errors.TransportError.__subclasses__()}
    no_sense = column("errors.md", "The answer makes no sense", "class")
    assert {*no_sense} == {"ProtocolError", "DialectError", "TextError"}


def test_the_load_tests_options_and_defaults_are_those_of_the_command_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "iproto", "bench", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "COLUMNS": "500"},
    )
    text = re.sub(r"\n {10,}", " ", ended.stdout)
    told = dict(re.findall(r"^  (--[a-z-]+)\b.*?(?:\(default: (.*)\))?$", text, re.MULTILINE))
    rows = {row["option"]: row["default"] for row in table("load-testing.md", "Options", "option")}
    assert rows == told
    for field in dataclasses.fields(Settings):
        if field.name not in ("url", "timeout"):
            default = "none" if field.default is None else str(field.default).removesuffix(".0")
            assert rows["--" + field.name.replace("_", "-")] == default


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    rows = table("errors.md", "Exit codes of the command line", "code")
    said = {row["code"]: row["meaning"] for row in rows}
    told = dict(re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE))
    assert said.keys() == told.keys() | {"130"}
    for code in ("0", "1", "3", "4", "5"):
        assert said[code] == told[code]


# metrics.md


class Scraped(NamedTuple):
    types: dict[str, str]
    labels: dict[str, set[str]]
    samples: set[str]


@pytest.fixture(scope="module")
def scraped() -> Scraped:
    """What a server that has seen some traffic says."""
    with serving(metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        assert peer.read(0) == ""
        status, text = get(served.server.metrics_address, "/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in types}
    samples = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.add(sample.name)
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name)
            labels[name if name in types else sample.name] |= sample.labels.keys() - {"le"}
    return Scraped(types, labels, samples)


METRIC_SECTIONS = ("Storage", "Connections", "Requests", "Event loop, process, build")


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_metrics_are_those_of_a_scrape(scraped: Scraped) -> None:
    rows = [row for name in METRIC_SECTIONS for row in table("metrics.md", name, "metric")]
    said = {row["metric"]: (row["type"], labels_of(row)) for row in rows}
    assert len(said) == len(rows)
    assert said == {name: (kind, scraped.labels[name]) for name, kind in scraped.types.items()}
    assert all(row["meaning"] for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_metrics_of_workers_are_those_of_a_scrape(scraped: Scraped) -> None:
    rows = table("metrics.md", "Workers", "metric")
    said = {row["metric"]: (row["type"], labels_of(row)) for row in rows}
    with serve_process("--workers", "1") as running:
        host, port = running.metrics.removeprefix("http://").split(":")
        status, text = get(Address(host, int(port)), "/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert types.keys() - scraped.types.keys() == said.keys()
    assert {name: (types[name], {"worker"}) for name in said} == said


def labels_of(row: dict[str, str]) -> set[str]:
    return set(re.findall(r"\w+", row["labels"]))


def test_the_reasons_of_closing_are_those_there_are() -> None:
    assert column("metrics.md", "Connections", "reason") == [
        reason.name.lower() for reason in iproto.CloseReason
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_alerts_are_about_metrics_that_exist(scraped: Scraped) -> None:
    (rules,) = (b.text for b in blocks(DOCS / "metrics.md") if "alert:" in b.text)
    of_workers = {row["metric"] for row in table("metrics.md", "Workers", "metric")}
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
    assert len(expressions) == rules.count("- alert:")
    for expression in expressions:
        assert expression.count("(") == expression.count(")")
        used = set(re.findall(r"\b(?:active|change|iproto|process|storage)_\w+", expression))
        assert used <= scraped.samples | of_workers
        assert used or expression.startswith("up{")
    for code in re.findall(r'code="(\w+)"', rules):
        assert code in iproto.ReturnCode.__members__
    for reason in re.findall(r'reason="(\w+)"', rules):
        assert reason.upper() in iproto.CloseReason.__members__


# CHANGELOG.md


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", prose(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert first[1] == iproto.__version__
