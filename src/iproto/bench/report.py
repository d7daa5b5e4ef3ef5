"""The report of a load test, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iproto.wire import ReturnCode

if TYPE_CHECKING:
    from iproto.bench.settings import Settings
    from iproto.bench.workload import Outcome

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)

# The share of its time from which on a process of the load is taken for the limit.
_BUSY = 0.9
# The share of requests that may be looked at late before it is.
_LATE = 0.01


def has_failed(outcome: Outcome) -> bool:
    """Whether something went wrong; a server that never answers anything does, too."""
    troubles = (
        outcome.lost,
        outcome.doubled,
        outcome.wrong,
        outcome.refused,
        outcome.unsent,
        outcome.problems,
        outcome.sent and not outcome.answered,
    )
    return any(troubles)


def as_dict(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """The report for programs: rates in requests a second, latencies in milliseconds."""
    latency = outcome.latency
    return {
        "url": settings.url,
        "connections": settings.connections,
        "depth": settings.depth,
        "rate": settings.rate,
        "mix": settings.shares,
        "processes": settings.processes,
        "seconds": round(outcome.seconds, 3),
        "requests_per_second": round(_per_second(outcome), 1),
        "requests": {
            "sent": outcome.sent,
            "answered": outcome.answered,
            "refused": {_code_name(code): n for code, n in sorted(outcome.refused.items())},
            "wrong": outcome.wrong,
            "doubled": outcome.doubled,
            "lost": outcome.lost,
            "resent": outcome.resent,
            "unsent": outcome.unsent,
        },
        "latency_ms": None  # not 0: nobody was served at once
        if not latency.count
        else {
            "mean": _milliseconds(latency.mean),
            **{f"p{p:g}": _milliseconds(latency.percentile(p)) for p in PERCENTILES},
            "max": _milliseconds(latency.most),
        },
        "reconnects": outcome.reconnects,
        "generator": {"busy": round(_busy(settings, outcome), 3), "late": outcome.late},
        "problems": outcome.problems,
    }


def as_text(settings: Settings, outcome: Outcome) -> str:
    """The report for people."""
    latency = outcome.latency
    loop = "closed loop" if settings.rate is None else f"open loop, {settings.rate:,g} a second"
    latencies = [f"p{p:g} {_shown(latency.percentile(p))}" for p in PERCENTILES]
    latencies.append(f"max {_shown(latency.most)}")
    lines = [
        f"{settings.url}: {settings.connections} connections, depth {settings.depth}, "
        f"{settings.mix}; {loop}",
        f"answered   {outcome.answered:,} in {outcome.seconds:.1f} s: "
        f"{_per_second(outcome):,.0f} a second",
        f"latency    {', '.join(latencies) if latency.count else 'none, for want of replies'}",
        f"lost       {outcome.lost:,}",
        f"doubled    {outcome.doubled:,}",
        f"wrong      {outcome.wrong:,}",
        f"refused    {_refused(outcome)}",
    ]
    if outcome.reconnects:
        lines.append(
            f"ended      {outcome.reconnects:,} connections; {outcome.resent:,} requests "
            "were sent again after announced ends"
        )
    if outcome.unsent:
        lines.append(f"unsent     {outcome.unsent:,} were due, but could not be sent")
    lines += [f"problem    {problem}" for problem in outcome.problems]
    lines += [f"generator  {line}" for line in _on_generator(settings, outcome)]
    return "\n".join(lines)


def _on_generator(settings: Settings, outcome: Outcome) -> list[str]:
    """Whether the load itself was the limit."""
    more = "use more --processes, on cores that the server does not need"
    if settings.rate is None:
        busy = _busy(settings, outcome)
        line = f"busy {busy:.0%} of the time"
        return [f"{line}: the server may do more than this; {more}" if busy >= _BUSY else line]
    share = outcome.late / max(1, outcome.sent + outcome.unsent)
    line = f"{share:.2%} of the requests over 1 ms late"
    return [f"{line}: it could not keep the rate; {more}" if share >= _LATE else line]


def _busy(settings: Settings, outcome: Outcome) -> float:
    return outcome.cpu_seconds / max(outcome.seconds, 1e-9) / settings.processes


def _per_second(outcome: Outcome) -> float:
    return outcome.in_time / max(outcome.seconds, 1e-9)


def _refused(outcome: Outcome) -> str:
    by_code = [f"{n:,} {_code_name(code)}" for code, n in sorted(outcome.refused.items())]
    return ", ".join(by_code) or "0"


def _code_name(code: int) -> str:
    if code == -1:
        return "others"
    try:
        return ReturnCode(code).name
    except ValueError:
        return f"{code:#06x}"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 4)


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
