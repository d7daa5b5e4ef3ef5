"""docs/server.md: its options, ranges and settings are those of the configuration."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto.address import parse_address
from iproto.server import config, settings
from tests.helpers.markdown import DOCS, blocks, column, section, table

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.checkout


def test_the_options_are_the_fields_of_config() -> None:
    rows = table("server.md", "Options", "option")
    fields = [*filter(settings.has_option, dataclasses.fields(iproto.Config))]
    assert [row["option"] for row in rows] == [
        "--" + field.name.replace("_", "-") for field in fields
    ]
    for row, field in zip(rows, fields, strict=True):
        assert re.findall(r"\w+", row["variable"].replace("`", "")) == [*settings.variables(field)]
        assert row["default"] == settings.shown_default(field)
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
