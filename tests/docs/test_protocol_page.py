"""docs/protocol.md: its worked examples are sent, its tables are what the codec does."""

from __future__ import annotations

import re

import pytest

import iproto
from iproto import FuncID
from iproto._fastframe import ServerFrames
from tests.helpers.harness import frame
from tests.helpers.markdown import Block, all_blocks, column, table

pytestmark = pytest.mark.checkout


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
