"""Settings: what is taken, what is refused, and where they may come from."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from iproto import Config, ConfigError, Dialect
from iproto.cli import read_settings
from iproto.config import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        (":80", Address("", 80)),
        ("[::1]:65535", Address("::1", 65535)),
        ("unix:/run/iproto.sock", Address("", 0, "/run/iproto.sock")),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "8080", "host", "host:", "host:x", "host:65536", "::1:80", "host:-1", "unix:", "h:\u0661"],
)
def test_a_bad_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(repr(text))}.*for example"):
        Config(bind=text)


def test_the_metrics_are_not_on_a_unix_socket() -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        Config(metrics_bind="unix:/tmp/x")


@pytest.mark.parametrize("off", [None, "", "off"])
def test_the_metrics_can_be_off(off: str | None) -> None:
    assert Config(metrics_bind=off).metrics_address is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("idle_timeout", 0),
        ("idle_timeout", -1.0),
        ("idle_timeout", float("nan")),
        ("idle_timeout", "soon"),
        ("drain_timeout", 86_401),
        ("max_body", 1023),
        ("max_body", (1 << 30) + 1),
        ("max_body", 2048.0),
        ("max_body", True),
        ("max_calls_per_connection", 0),
        ("max_calls", 0),
        ("backlog", 65_536),
        ("workers", 0),
        ("workers", "many"),
        ("workers", 257),
        ("workers", 2.0),
        ("worker_timeout", 0.5),
        ("storage_file", ""),
        ("storage_file", "a\0b"),
        ("storage_sync", -1),
        ("storage_sync", 86_401),
        ("dialect", "auto"),
        ("loop", "trio"),
        ("log_level", "LOUD"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {re.escape(repr(value))}; it must be"):
        Config(**{name: value})


def test_no_address_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Config(bind=())


def test_one_address_needs_no_tuple_and_a_dialect_may_be_the_enum() -> None:
    config = Config(bind="127.0.0.1:1", dialect=Dialect.MAILRU)
    assert (config.bind, config.dialect) == (("127.0.0.1:1",), "mailru")


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_body = 5  # type: ignore[misc]


def test_the_command_line_beats_the_environment_which_beats_the_defaults() -> None:
    environment = {"IPROTO_MAX_BODY": "2048", "IPROTO_IDLE_TIMEOUT": "2.5", "IPROTO_BACKLOG": ""}
    config = read_settings({"max_body": "4096"}, environment)
    assert (config.max_body, config.idle_timeout, config.backlog) == (4096, 2.5, 4096)
    assert config.metrics_bind == "127.0.0.1:8088"


def test_every_setting_has_its_variable() -> None:
    environment = {
        "IPROTO_BIND": "127.0.0.1:1, unix:/tmp/x",
        "IPROTO_METRICS_BIND": "off",
        "IPROTO_DIALECT": "mailru",
        "IPROTO_IDLE_TIMEOUT": "1",
        "IPROTO_MAX_BODY": "1024",
        "IPROTO_MAX_CALLS_PER_CONNECTION": "3",
        "IPROTO_MAX_CALLS": "4",
        "IPROTO_DRAIN_TIMEOUT": "5",
        "IPROTO_WORKERS": "7",
        "IPROTO_WORKER_TIMEOUT": "8",
        "IPROTO_STORAGE_FILE": "/var/lib/iproto/storage",
        "IPROTO_STORAGE_SYNC": "9",
        "IPROTO_BACKLOG": "6",
        "IPROTO_LOOP": "asyncio",
        "IPROTO_LOG_LEVEL": "panic",
    }
    assert len(environment) == len(dataclasses.fields(Config))
    assert read_settings({}, environment) == Config(
        bind=("127.0.0.1:1", "unix:/tmp/x"),
        metrics_bind=None,
        dialect="mailru",
        idle_timeout=1.0,
        max_body=1024,
        max_calls_per_connection=3,
        max_calls=4,
        drain_timeout=5.0,
        workers=7,
        worker_timeout=8.0,
        storage_file="/var/lib/iproto/storage",
        storage_sync=9.0,
        backlog=6,
        loop="asyncio",
        log_level="PANIC",
    )


def test_log_level_works_without_the_prefix_and_the_prefix_wins() -> None:
    assert read_settings({}, {"LOG_LEVEL": "error"}).log_level == "ERROR"
    both = {"LOG_LEVEL": "ERROR", "IPROTO_LOG_LEVEL": "FATAL"}
    assert read_settings({}, both).log_level == "FATAL"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"IPROTO_MAX_BODY": "lots"}, "max_body is 'lots'; it must be a whole number of bytes"),
        ({"LOG_LEVEL": "LOUD"}, "log_level is 'LOUD'; it must be one of DEBUG"),
    ],
)
def test_a_bad_variable_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings({}, environment)
