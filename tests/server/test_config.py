"""Settings: what is taken, what is refused, and where they may come from."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from iproto import Config, ConfigError, Dialect
from iproto.address import Address, parse_address
from iproto.server.settings import default, has_option, read_settings, variables

if TYPE_CHECKING:
    from pathlib import Path


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
        ("max_connection_age", -1.0),
        ("max_connection_age", 86401),
        ("call_timeout", 86_401),
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
        ("storage_file", 5),
        ("tls_cert", ""),
        ("tls_key", "a\0b"),
        ("tls_client_ca", 5),
        ("tls_handshake_timeout", 0),
        ("max_tls_handshakes", 0),
        ("max_tls_handshakes", 1.5),
        ("bind", 5),
        ("bind", [5]),
        ("metrics_bind", 5),
        ("dialect", []),
        ("loop", {}),
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
        "IPROTO_ADMIN_BIND": "127.0.0.1:2",
        "IPROTO_NET_RPC_BIND": "127.0.0.1:3, unix:/tmp/z",
        "IPROTO_ALLOW": "10.0.0.0/8,2001:db8::/32",
        "IPROTO_DENY": "10.1.2.3",
        "IPROTO_ACL": "10.0.0.0/8=read+call, uid:0=all",
        "IPROTO_METRICS_BIND": "off",
        "IPROTO_DIALECT": "mailru",
        "IPROTO_IDLE_TIMEOUT": "1",
        "IPROTO_MAX_CONNECTION_AGE": "13",
        "IPROTO_MAX_CONNECTIONS": "100",
        "IPROTO_MAX_CONNECTIONS_PER_CLIENT": "20",
        "IPROTO_CONNECT_RATE": "10:50",
        "IPROTO_RATE_LIMIT": "100:20",
        "IPROTO_MAX_CALLS_PER_CLIENT": "21",
        "IPROTO_MAX_BODY": "1024",
        "IPROTO_MAX_OBJECTS": "10",
        "IPROTO_MAX_DEPTH": "11",
        "IPROTO_DESCRIBE_FUNCTIONS": "off",
        "IPROTO_MAX_CALLS_PER_CONNECTION": "3",
        "IPROTO_MAX_QUEUE": "2048",
        "IPROTO_QUEUE_TIMEOUT": "12",
        "IPROTO_MAX_UNSENT": "4096",
        "IPROTO_MAX_CALLS": "4",
        "IPROTO_CALL_TIMEOUT": "2.5",
        "IPROTO_DRAIN_TIMEOUT": "5",
        "IPROTO_WORKERS": "7",
        "IPROTO_WORKER_TIMEOUT": "8",
        "IPROTO_STORAGE_FILE": "/var/lib/iproto/storage",
        "IPROTO_STORAGE_SYNC": "9",
        "IPROTO_TLS_CERT": "server.crt",
        "IPROTO_TLS_KEY": "server.key",
        "IPROTO_TLS_CLIENT_CA": "ca.pem",
        "IPROTO_TLS_HANDSHAKE_TIMEOUT": "13",
        "IPROTO_MAX_TLS_HANDSHAKES": "14",
        "IPROTO_BACKLOG": "6",
        "IPROTO_LOOP": "asyncio",
        "IPROTO_LOG_LEVEL": "panic",
    }
    assert len(environment) == len([*filter(has_option, dataclasses.fields(Config))])
    assert read_settings({}, environment) == Config(
        bind=("127.0.0.1:1", "unix:/tmp/x"),
        admin_bind=("127.0.0.1:2",),
        net_rpc_bind=("127.0.0.1:3", "unix:/tmp/z"),
        allow=("10.0.0.0/8", "2001:db8::/32"),
        deny=("10.1.2.3",),
        acl=("10.0.0.0/8=read+call", "uid:0=all"),
        metrics_bind=None,
        dialect="mailru",
        idle_timeout=1.0,
        max_connection_age=13.0,
        max_connections=100,
        max_connections_per_client=20,
        connect_rate="10:50",
        rate_limit="100:20",
        max_calls_per_client=21,
        max_body=1024,
        max_objects=10,
        max_depth=11,
        describe_functions="off",
        max_calls_per_connection=3,
        max_queue=2048,
        queue_timeout=12.0,
        max_unsent=4096,
        max_calls=4,
        call_timeout=2.5,
        drain_timeout=5.0,
        workers=7,
        worker_timeout=8.0,
        storage_file="/var/lib/iproto/storage",
        storage_sync=9.0,
        tls_cert="server.crt",
        tls_key="server.key",
        tls_client_ca="ca.pem",
        tls_handshake_timeout=13.0,
        max_tls_handshakes=14,
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


# The settings file.

VALUES: dict[str, list[Any]] = {
    "bind": [["127.0.0.1:1"], ["127.0.0.1:2", "unix:/tmp/x"], ["[::1]:3"]],
    "admin_bind": [["127.0.0.1:4"], ["unix:/tmp/y?mode=0600"]],
    "net_rpc_bind": [["127.0.0.1:5"], ["unix:/tmp/z?mode=0600"]],
    "allow": [["10.0.0.0/8"], ["192.0.2.1", "2001:db8::/32"]],
    "deny": [["10.1.0.0/16"], ["::1"]],
    "acl": [["10.0.0.0/8=read"], ["uid:0=all", "::/0=none"]],
    "metrics_bind": ["off", "127.0.0.1:4", ":5"],
    "dialect": ["vk", "mailru"],
    "idle_timeout": [1, 2.5, 86_400],
    "max_connection_age": [0, 2.5, 86_400],
    "max_connections": ["auto", 1, 100],
    "max_connections_per_client": [0, 1, 65_000],
    "connect_rate": ["off", "10:50"],
    "rate_limit": ["100", "0.5:1"],
    "max_calls_per_client": [0, 1, 65_000],
    "max_body": [1024, 2048, 4096],
    "max_objects": [1, 2, 1 << 30],
    "max_depth": [1, 2, 512],
    "describe_functions": ["on", "off"],
    "max_calls_per_connection": [1, 2, 3],
    "max_queue": [1024, 2048, 1 << 30],
    "queue_timeout": [1, 2.5, 86_400],
    "max_unsent": [1024, 2048, 1 << 32],
    "max_calls": [4, 5, 6],
    "call_timeout": [0, 2.5, 86_400],
    "drain_timeout": [0, 7.5, 8],
    "workers": [1, "auto", 256],
    "worker_timeout": [1, 9.5, 10],
    "storage_file": ["/var/lib/x", "storage", "../storage"],
    "storage_sync": [0, 11, 12.5],
    "tls_cert": ["server.crt", "/etc/server.crt", "../server.crt"],
    "tls_key": ["server.key", "/etc/server.key", "../server.key"],
    "tls_client_ca": ["ca.pem", "/etc/ca.pem", "../ca.pem"],
    "tls_handshake_timeout": [1, 2.5, 86_400],
    "max_tls_handshakes": [1, 2, 1_000_000],
    "backlog": [13, 14, 15],
    "loop": ["auto", "uvloop", "asyncio"],
    "log_level": ["DEBUG", "info", "Panic"],
}
"""Of each setting, some values, as TOML has them."""

SOURCES = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}
)


def as_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(command_line=SOURCES, environment=SOURCES, in_file=SOURCES, empty=st.booleans())
def test_the_command_line_wins_then_the_environment_then_the_file_then_the_default(
    tmp_path: Path,
    command_line: dict[str, Any],
    environment: dict[str, Any],
    in_file: dict[str, Any],
    empty: bool,
) -> None:
    assert [*VALUES] == [field.name for field in filter(has_option, dataclasses.fields(Config))]
    file = tmp_path / "settings.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in in_file.items()))
    fields = {field.name: field for field in dataclasses.fields(Config)}
    expected = {name: default(field) for name, field in fields.items()}
    expected |= in_file | environment | command_line
    options: dict[str, Any] = {
        name: value if isinstance(value, list) else str(value)
        for name, value in command_line.items()
    }
    said = {variables(fields[name])[0]: as_text(value) for name, value in environment.items()}
    if empty:  # counts as not set
        said = {variables(field)[0]: "" for field in fields.values() if has_option(field)} | said
    assert read_settings({"config": str(file), **options}, said) == Config(**expected)
    said["IPROTO_CONFIG"] = str(file)
    assert read_settings(options, said) == Config(**expected)


def test_the_file_of_the_command_line_is_read_and_not_that_of_the_environment(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_text("backlog = 1")
    environment = {"IPROTO_CONFIG": str(tmp_path / "b")}  # which does not exist
    assert read_settings({"config": str(tmp_path / "a")}, environment).backlog == 1


def test_one_address_in_the_file_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("bind = '127.0.0.1:1'")
    assert read_settings({"config": str(tmp_path / "a")}, {}).bind == ("127.0.0.1:1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"max_body = 'lots'", "max_body is 'lots'; it must be a whole number of bytes, 1024.."),
        (b"max_body = 2048.0", "max_body is 2048.0; it must be a whole number"),
        (b"max_body = true", "max_body is True; it must be a whole number"),
        (b"idle_timeout = nan", "idle_timeout is nan; it must be a number of seconds, 0.001.."),
        (b"idle_timeout = 2026-01-01", "idle_timeout is datetime.date(2026, 1, 1); it must be"),
        (b"dialect = 'tarantool'", "dialect is 'tarantool'; it must be one of vk, mailru"),
        (b"bind = ['x']", "address 'x' must be HOST:PORT"),
        (b"bind = [8080]", "bind is [8080]; it must be an address, or a list of addresses"),
        (b"bind = []", "bind is empty"),
        (b"max-body = 2048", "unknown key 'max-body'; it must be one of bind, listener, "),
        (b"[server]\nmax_body = 2048", "unknown key 'server'; it must be one of bind"),
        (b"max_body = 2048\nmax_body = 4096", "it is not TOML: Cannot overwrite a value"),
        (b"max_body", "it is not TOML: Expected '='"),
        (b"\xff", "it is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"a = " + b"[" * 100_000, "it is not TOML: "),
    ],
)
def test_a_wrong_file_is_refused_by_name_key_and_value(
    tmp_path: Path, text: bytes, message: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigError) as caught:  # whatever the command line says
        read_settings({"config": str(file), "max_body": "4096"}, {})
    assert str(caught.value).startswith(f"settings file {file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        read_settings({"config": f"{tmp_path}/none"}, {})
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_settings({"config": str(tmp_path)}, {})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_settings({"config": f"{tmp_path}/pipe"}, {})


# Addresses for clients of net/rpc.


def test_addresses_of_net_rpc_are_listeners_of_that_dialect() -> None:
    config = Config(bind="127.0.0.1:1", net_rpc_bind=("127.0.0.1:2?rights=read", "unix:/tmp/x"))
    assert [(one.address, one.dialect, one.rights) for one in config.listeners] == [
        ("127.0.0.1:1", "vk", ("all",)),
        ("127.0.0.1:2", "net-rpc", ("read",)),
        ("unix:/tmp/x", "net-rpc", ("all",)),
    ]
    in_file = {"address": "127.0.0.1:2", "dialect": "net-rpc"}
    assert [one.dialect for one in Config(listener=(in_file,)).listeners] == ["net-rpc"]  # type: ignore[arg-type]


def test_with_addresses_of_net_rpc_alone_there_is_no_other_one() -> None:
    assert [one.address for one in Config(net_rpc_bind=":8080").listeners] == [":8080"]


def test_an_address_of_net_rpc_has_no_dialect_of_its_own() -> None:
    with pytest.raises(ConfigError, match="has a dialect; here it is net-rpc always"):
        Config(net_rpc_bind="127.0.0.1:1?dialect=vk")
    with pytest.raises(ConfigError, match="must be one of vk, mailru"):
        Config(dialect="net-rpc")
