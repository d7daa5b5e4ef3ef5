"""The golden vectors, run against the extension and the oracle.

``run_case`` is for other transports too: give it what sends a step's bytes and
returns the answer, over a fresh server, and what tells that it closed.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

from iproto import _fastframe as ff
from iproto.errors import Error, TextError
from iproto.wire import FuncID, Header, Response, ReturnCode
from tests.helpers.harness import serving
from tests.helpers.make_vectors import PATH, render
from tests.helpers.oracle import HEADER, OracleServer, Reply, parse_responses

if TYPE_CHECKING:
    from collections.abc import Callable


class _Expected(TypedDict):
    func_id: int
    request_id: int
    return_code: int


class _NeededOfStep(TypedDict):
    request: str


class Step(_NeededOfStep, total=False):
    """Bytes to send, and what comes back; see ``vectors/README.md``."""

    reply: str
    error: _Expected
    closes: bool


class Case(TypedDict):
    """Steps over one connection to a fresh server."""

    name: str
    dialect: str
    steps: list[Step]


VECTORS = json.loads(PATH.read_text(encoding="utf-8"))
CASES: list[Case] = VECTORS["cases"]
REPLIES: list[dict[str, Any]] = VECTORS["replies"]
MAX_BODY: int = VECTORS["limits"]["max_body"]


def name_of(entry: Any) -> str:
    """A case's name in pytest's output."""
    return f"{entry['dialect']}: {entry['name']}"


def last_bytes(frames: ff.ServerFrames) -> bytes:
    """What the server sends when everything is answered: the echo of a SHUTDOWN."""
    frames.finish()
    return frames.take()


def run_case(case: Case, exchange: Callable[[bytes], bytes], is_closed: Callable[[], bool]) -> None:
    """Holds a server to one case.

    Args:
        exchange: sends a step's bytes and returns the whole answer: the replies to as
            many requests as the bytes hold, or all there is until the server closes.
        is_closed: whether the server has closed the connection.
    """
    mailru = case["dialect"] == "mailru"
    for step in case["steps"]:
        answer = exchange(bytes.fromhex(step["request"]))
        if "reply" in step:
            assert answer.hex() == step["reply"]
        else:
            # An error's text is checked to be one non-empty str in the taking apart.
            assert parse_responses(answer, mailru=mailru) == [Reply(**step["error"])]
        assert is_closed() == step.get("closes", False)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_server_frames_answer_as_the_vectors_say(case: Case) -> None:
    frames = ff.ServerFrames(
        ff.Storage(),
        mailru=case["dialect"] == "mailru",
        max_body=MAX_BODY,
        max_calls=1,
        functions={},
    )

    def exchange(data: bytes) -> bytes:
        return (frames.feed(data) or b"") + last_bytes(frames)

    run_case(case, exchange, lambda: bool(frames.status & ff.IS_CLOSING))
    assert frames.partial_seconds() == 0.0


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_server_frames_answer_the_vectors_byte_by_byte(case: Case) -> None:
    frames = ff.ServerFrames(
        ff.Storage(),
        mailru=case["dialect"] == "mailru",
        max_body=MAX_BODY,
        max_calls=1,
        functions={},
    )

    def exchange(data: bytes) -> bytes:
        return b"".join(frames.feed(bytes([b])) or b"" for b in data) + last_bytes(frames)

    run_case(case, exchange, lambda: bool(frames.status & ff.IS_CLOSING))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_oracle_answers_as_the_vectors_say(case: Case) -> None:
    mailru = case["dialect"] == "mailru"
    oracle = OracleServer(max_body=MAX_BODY)
    for step in case["steps"]:
        if "reply" in step:
            expected = parse_responses(bytes.fromhex(step["reply"]), mailru=mailru)
        else:
            expected = [Reply(**step["error"])]
        assert oracle.feed(bytes.fromhex(step["request"])) == expected
        assert oracle.closed == step.get("closes", False)


def ask(
    entry: dict[str, Any], outcome: int, *, mailru: bool | None
) -> list[tuple[Any, Exception | None, Any]]:
    """What a client that asked for this outcome makes of an entry of "replies"."""
    frames = ff.ClientFrames(mailru=mailru, max_body=MAX_BODY)
    frames._set_ids(1)
    assert frames.request(entry["func_id"], b"", outcome, "waiter", math.inf) == 1
    frames.take()
    outcomes: list[tuple[Any, Exception | None, Any]] = list(
        frames.feed(bytes.fromhex(entry["reply"]))
    )
    assert frames.broken is None
    assert frames.waiting == 0
    return outcomes


def outcome_of(entry: dict[str, Any]) -> int:
    """As what a client would ask for an entry's function."""
    if entry["func_id"] == FuncID.STORAGE_READ:
        return ff.AS_BYTES
    return ff.AS_BODY if entry["func_id"] not in tuple(FuncID) else ff.AS_NOTHING


@pytest.mark.parametrize("entry", REPLIES, ids=name_of)
def test_client_frames_understand_replies_as_the_vectors_say(entry: dict[str, Any]) -> None:
    [(waiter, error, result)] = ask(entry, outcome_of(entry), mailru=entry["dialect"] == "mailru")
    assert waiter == "waiter"
    if "error" in entry:
        assert isinstance(error, Error)
        assert {"return_code": error.code, "text": error.text} == entry["error"]
        assert error.retryable == (entry["error"]["return_code"] & 0xFF == 1)
        assert result is None
        return
    assert error is None
    if "str" in entry or "body" in entry:
        assert result == bytes.fromhex(entry["str"] if "str" in entry else entry["body"])
    else:
        assert "nil" in entry or "bare" in entry
        assert result is None


@pytest.mark.parametrize("entry", [entry for entry in REPLIES if "str" in entry], ids=name_of)
def test_client_frames_decode_text_or_refuse_what_is_not_utf8(entry: dict[str, Any]) -> None:
    [(_, error, result)] = ask(entry, ff.AS_TEXT, mailru=entry["dialect"] == "mailru")
    content = bytes.fromhex(entry["str"])
    try:
        text = content.decode()
    except UnicodeDecodeError:
        assert isinstance(error, TextError)
        assert result is None
    else:
        assert error is None
        assert result == text


@pytest.mark.parametrize("entry", REPLIES, ids=name_of)
def test_client_frames_hand_out_responses_as_they_are_on_the_wire(entry: dict[str, Any]) -> None:
    data = bytes.fromhex(entry["reply"])
    [(_, error, result)] = ask(entry, ff.AS_RESPONSE, mailru=entry["dialect"] == "mailru")
    header = Header(*HEADER.unpack_from(data))
    code = int.from_bytes(data[12:16], "little")
    assert error is None
    assert result == Response(header, code, data[16:])


@pytest.mark.parametrize(
    "entry", [entry for entry in REPLIES if entry["func_id"] == FuncID.STORAGE_READ], ids=name_of
)
def test_one_storage_read_tells_the_dialect(entry: dict[str, Any]) -> None:
    frames = ff.ClientFrames(mailru=None, max_body=MAX_BODY)
    frames._set_ids(1)
    frames.read(0, ff.AS_BYTES, "waiter", math.inf)
    assert len(frames.feed(bytes.fromhex(entry["reply"]))) == 1
    assert frames.mailru == (entry["dialect"] == "mailru")


def test_the_committed_vectors_are_what_the_script_makes() -> None:
    assert PATH.read_text(encoding="utf-8") == render()


def test_the_vectors_cover_every_function_and_code_in_both_dialects() -> None:
    for dialect in ("vk", "mailru"):
        steps = [s for case in CASES if case["dialect"] == dialect for s in case["steps"]]
        asked = {HEADER.unpack_from(bytes.fromhex(step["request"]))[0] for step in steps}
        codes = {step["error"]["return_code"] for step in steps if "error" in step}
        assert asked >= set(FuncID)
        assert codes == {
            ReturnCode.ILLEGAL_PARAMS,
            ReturnCode.UNSUPPORTED_COMMAND,
            ReturnCode.NUMBER_OUT_OF_RANGE,
            ReturnCode.READ_ONLY,
            ReturnCode.LOCKED,
        }
        replies = [entry for entry in REPLIES if entry["dialect"] == dialect]
        told = {entry["error"]["return_code"] for entry in replies if "error" in entry}
        assert told >= set(ReturnCode) - {ReturnCode.OK}


def test_case_names_are_unique() -> None:
    for entries in (CASES, REPLIES):
        names = [name_of(entry) for entry in entries]
        assert len(set(names)) == len(names)


def test_a_real_server_answers_as_the_vectors_say() -> None:
    """Every case over a socket of its own, each server with a fresh storage."""
    for dialect in ("vk", "mailru"):
        for case in CASES:
            if case["dialect"] == dialect:
                _run_over_socket(case)


def _run_over_socket(case: Case) -> None:
    with serving(dialect=case["dialect"], max_body=MAX_BODY) as served, served.peer() as peer:
        closes = False

        def exchange(data: bytes) -> bytes:
            nonlocal closes
            peer.send(data)
            step = next(s for s in case["steps"] if bytes.fromhex(s["request"]) == data)
            closes = step.get("closes", False)
            if closes:
                return peer.rest()
            return peer.raw_replies(_count_of_requests(data))

        run_case(case, exchange, lambda: closes)


def _count_of_requests(data: bytes) -> int:
    count = at = 0
    while at < len(data):
        at += HEADER.size + HEADER.unpack_from(data, at)[1]
        count += 1
    return count
