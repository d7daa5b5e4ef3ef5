"""Where a server is, and how to say so."""

from __future__ import annotations

import dataclasses

import pytest

from iproto.client.url import Target, parse_url
from iproto.errors import ConfigError
from iproto.wire import Dialect


@pytest.mark.parametrize(
    ("url", "target", "address"),
    [
        ("iproto://127.0.0.1:8080", Target(), "127.0.0.1:8080"),
        ("iproto://example.org", Target("example.org"), "example.org:8080"),
        ("IPROTO://example.org/", Target("example.org"), "example.org:8080"),
        ("iproto://[::1]:33013", Target("::1", 33013), "[::1]:33013"),
        ("iproto://[::1]", Target("::1"), "[::1]:8080"),
        ("iproto://[fe80::1%25eth0]:1", Target("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        ("iproto://h:65535", Target("h", 65535), "h:65535"),
        (
            "iproto+unix:///run/iproto.sock",
            Target(path="/run/iproto.sock"),
            "unix:/run/iproto.sock",
        ),
        ("iproto+unix:///a%20b/c", Target(path="/a b/c"), "unix:/a b/c"),
        (
            "iproto://h:1?dialect=mailru&timeout=0.25",
            Target("h", 1, dialect=Dialect.MAILRU, timeout=0.25),
            "h:1",
        ),
        (
            "iproto://h/?timeout=86400&dialect=auto",
            Target("h", dialect=Dialect.AUTO, timeout=86400),
            "h:8080",
        ),
        (
            "iproto+unix:///s?dialect=vk&timeout=1e-3",
            Target(path="/s", timeout=0.001),
            "unix:/s",
        ),
        ("iproto://h?", Target("h"), "h:8080"),
    ],
)
def test_a_good_url_is_read(url: str, target: Target, address: str) -> None:
    assert parse_url(url) == target
    assert parse_url(url).address == address


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "iproto://"),
        ("127.0.0.1:8080", "'127.0.0.1:8080' has no scheme"),
        ("http://h:1", "'http'"),
        ("iproto:h", "scheme"),
        ("iproto://", "no host"),
        ("iproto://:8080", "no host"),
        ("iproto://a b:1", "no host"),
        ("iproto://h:0", "'0'"),
        ("iproto://h:65536", "'65536'"),
        ("iproto://h:", "''"),
        ("iproto://h:-1", "'-1'"),
        ("iproto://h:80_80", "'80_80'"),
        ("iproto://h:٨٠", "'٨٠'"),
        ("iproto://h:" + "9" * 5000, "port"),
        ("iproto://::1:8080", "brackets"),
        ("iproto://[::1", "brackets"),
        ("iproto://[h]:1", "brackets"),
        ("iproto://[::1]8080", "brackets"),
        ("iproto://user@h", "user"),
        ("iproto://h/run/x", "iproto+unix:///run/x"),
        ("iproto://h#x", "fragment"),
        ("iproto+unix://h/x", "three slashes"),
        ("iproto+unix://", "three slashes"),
        ("iproto+unix:///", "three slashes"),
        ("iproto+unix:///a%00b", "three slashes"),
        ("iproto://h?colour=red", "'colour'"),
        ("iproto://h?Timeout=1", "'Timeout'"),
        ("iproto://h?timeout", "'timeout'"),
        ("iproto://h?timeout=", "no value"),
        ("iproto://h?timeout=1&timeout=2", "twice"),
        ("iproto://h?timeout=soon", "'soon'"),
        ("iproto://h?timeout=0", "timeout is 0.0"),
        ("iproto://h?timeout=-1", "timeout is -1"),
        ("iproto://h?timeout=86400.5", "86400"),
        ("iproto://h?timeout=inf", "inf"),
        ("iproto://h?timeout=nan", "nan"),
        ("iproto://h?timeout=1_0", "'1_0'"),
        ("iproto://h?dialect=VK", "'VK'"),
        ("iproto://h?dialect=redis", "auto"),
        ("iproto://h?&", "''"),
    ],
)
def test_a_bad_url_is_named_with_the_way_out(url: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert named in str(caught.value)


def test_a_target_is_checked_frozen_and_slotted() -> None:
    target = Target(dialect="auto", timeout=1)  # type: ignore[arg-type]
    assert target.dialect is Dialect.AUTO
    assert type(target.timeout) is float
    assert not hasattr(target, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.port = 1  # type: ignore[misc]
    with pytest.raises(ConfigError, match="port 0"):
        Target(port=0)
    with pytest.raises(ConfigError, match="timeout is 0;"):
        Target(timeout=0)
    with pytest.raises(TypeError, match="str"):
        Target(timeout="5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes"):
        parse_url(b"iproto://h")  # type: ignore[arg-type]
