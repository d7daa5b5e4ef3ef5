"""The exceptions: what each carries, through pickle and out of a process pool too."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
from typing import TYPE_CHECKING

import pytest

from iproto import errors
from iproto.errors import (
    CallTimeoutError,
    ConfigError,
    ConnectError,
    Error,
    IprotoError,
    ProtocolError,
    RateLimitedError,
    TextError,
    TransportError,
    error_from_reply,
)
from iproto.wire import ReturnCode

if TYPE_CHECKING:
    from collections.abc import Callable


class NoSuchUserError(Error):
    """As users write them: a code of its own, and arguments of its own."""

    def __init__(self, user: int, *, table: str) -> None:
        super().__init__(0x5102, f"no user {user} in {table}")
        self.user = user


def instances() -> list[IprotoError]:
    """Of every public class one, or two."""
    made: list[IprotoError] = [Error(0x5102, "of its own"), NoSuchUserError(7, table="users")]
    for name in errors.__all__:
        cls = getattr(errors, name)
        if cls is not Error and issubclass(cls, Error):
            made.append(cls("refused"))
        elif issubclass(cls, TransportError) and cls is not ConnectError:
            made += [cls("lost", may_have_executed=executed) for executed in (False, True)]
        elif issubclass(cls, ProtocolError):
            made += [cls("broken"), cls("broken", may_have_executed=False)]
        elif cls is not Error:
            made.append(cls("wrong"))
    return made


def test_every_public_class_has_an_instance_here() -> None:
    assert {type(error).__name__ for error in instances()} >= {*errors.__all__}


def pickled(protocol: int) -> Callable[[IprotoError], IprotoError]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, *(pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))],
    ids=["copy", *(f"pickle{protocol}" for protocol in range(pickle.HIGHEST_PROTOCOL + 1))],
)
@pytest.mark.parametrize("error", instances(), ids=repr)
def test_an_error_comes_back_with_all_that_it_carries(
    error: IprotoError, copied: Callable[[IprotoError], IprotoError]
) -> None:
    error.item = 3  # type: ignore[attr-defined]  # as clients set it, of a *_many call
    error.noted = "by a handler"  # type: ignore[attr-defined]
    back = copied(error)
    assert type(back) is type(error)
    assert (back.args, str(back), vars(back)) == (error.args, str(error), vars(error))
    assert back.may_have_executed is error.may_have_executed


def time_out() -> None:
    raise CallTimeoutError("no reply within 1 s", may_have_executed=True)


def test_a_timeout_in_a_process_pool_is_raised_and_the_pool_goes_on() -> None:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for _ in range(2):
            with pytest.raises(CallTimeoutError, match="may have been executed") as caught:
                pool.submit(time_out).result()
            assert caught.value.may_have_executed is True


@pytest.mark.parametrize("code", [code for code in ReturnCode if code])
def test_of_a_refusal_it_is_certain_that_the_request_was_not_executed(code: ReturnCode) -> None:
    unsure = {"INTERNAL", "TIMEOUT", "OUTCOME_UNKNOWN"}
    assert error_from_reply(code, "").may_have_executed is (code.name in unsure)


def test_what_else_says_whether_a_request_may_have_been_executed() -> None:
    assert Error(0x5102, "only the function knows").may_have_executed is True
    assert ConfigError("nothing was sent").may_have_executed is False
    assert ConnectError("nobody there").may_have_executed is False
    assert ProtocolError("an answer, but which").may_have_executed is True
    assert ProtocolError("it had not left", may_have_executed=False).may_have_executed is False
    assert TextError("it was read").may_have_executed is True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("over 100 requests a second; retry after 0.370 s", 0.37),
        ("a; retry after 9 s; retry after 12 s", 12.0),
        ("; retry after 0.5 s", 0.5),
        ("retry after 0.5 s", None),
        ("over the rate; retry after 0.5 s, please", None),
        ("over the rate; retry after 0.5 s\n", None),
        ("over the rate; retry after -1 s", None),
        ("over the rate; retry after nan s", None),
        ("over the rate; retry after 1e400 s", None),
        ("over the rate; retry after " + "9" * 400 + " s", None),
        ("over the rate; retry after \u0663 s", None),
        ("", None),
    ],
)
def test_a_rate_limited_call_says_after_how_many_seconds_to_retry(
    text: str, seconds: float | None
) -> None:
    error = error_from_reply(ReturnCode.RATE_LIMITED, text)
    assert isinstance(error, RateLimitedError)
    assert error.retry_after == seconds
