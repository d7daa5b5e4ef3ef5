"""Faults on the way of calls: what tests ask for, and which call has one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Fault:
    """What happens to some calls.

    Args:
        func_id: of these; None for all.
        left: of how many still; None for all that come.
        delay: seconds that their replies are late.
        code, text: they are answered with these, and not executed; code 0: they are executed.
        cut: where the connection ends: ``"request"``, before they are executed,
            ``"reply"``, after that, or nowhere.
    """

    func_id: int | None
    left: int | None
    delay: float = 0.0
    code: int = 0
    text: str = ""
    cut: str = ""


NO_FAULT = Fault(None, None)


class Faults:
    """What tests let happen to calls; the last that fits a call counts.

    Args:
        names: numbers of user functions by name.
    """

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = {**{built_in.name: int(built_in) for built_in in FuncID}, **names}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()  # tests add from their threads, the server's takes

    def delay(
        self, function: int | str | None, seconds: float, *, times: int | None = None
    ) -> None:
        """Replies come late.

        Args:
            function: the name or number of a function; None for every one.
            seconds: by how much.
            times: of how many calls; None for all until ``clear``.

        Raises:
            KeyError: no function has this name.
        """
        self._add(Fault(self._func_id(function), times, delay=seconds))

    def error(
        self, function: int | str | None, code: int, text: str = "", *, times: int | None = None
    ) -> None:
        """Calls are answered with a return code, and not executed; the rest as for ``delay``."""
        self._add(Fault(self._func_id(function), times, code=code, text=text))

    def cut(
        self, function: int | str | None, *, executed: bool = False, times: int | None = 1
    ) -> None:
        """The connection ends without a word; the rest as for ``delay``.

        Args:
            executed: whether the call is executed, and only its reply is lost.
        """
        where = "reply" if executed else "request"
        self._add(Fault(self._func_id(function), times, cut=where))

    def clear(self) -> None:
        """No faults from now on."""
        with self._lock:
            self._faults.clear()

    def take(self, func_id: int) -> Fault:
        """The fault of a call, which counts it."""
        with self._lock:
            for fault in reversed(self._faults):
                if fault.func_id in (None, func_id) and fault.left != 0:
                    if fault.left is not None:
                        fault.left -= 1
                    return fault
        return NO_FAULT

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def _func_id(self, function: int | str | None) -> int | None:
        if isinstance(function, str):
            if function not in self._names:
                raise KeyError(f"no function {function!r}; there are: {', '.join(self._names)}")
            return self._names[function]
        return function
