"""Where the server's settings come from: command line, environment, settings file, defaults."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from iproto.errors import ConfigError
from iproto.server.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_VARIABLE = "IPROTO_CONFIG"
"""The variable that names the settings file."""


def variables(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The variables that a field of Config is looked up in, the strongest first."""
    names: tuple[str, ...] = field.metadata.get("env", (f"IPROTO_{field.name.upper()}",))
    return names


def default(field: dataclasses.Field[Any]) -> Any:
    """The default of ``iproto serve`` for a field of Config."""
    return field.metadata.get("command_line_default", field.default)


def shown_default(field: dataclasses.Field[Any]) -> str:
    """The default of a field of Config as help and documentation have it."""
    shown = field.metadata.get("shown", default(field))
    return ", ".join(shown) if isinstance(shown, tuple) else str(shown)


def has_option(field: dataclasses.Field[Any]) -> bool:
    """Whether a field of Config has an option, and variables; else only the file has it."""
    return not field.metadata.get("file_only")


def read_settings(options: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """The settings that are asked for: by the command line, else the environment, else the file.

    Args:
        options: name of a field of Config → its text on the command line; ``config``
            → the path of the settings file.
        environment: where ``IPROTO_*`` and ``LOG_LEVEL`` are looked up.

    Raises:
        ConfigError: a value is wrong, or the file; the text names which.
    """
    path = options.get("config") or environment.get(FILE_VARIABLE)
    in_file = _read_file(path) if path else {}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        names = variables(field) if has_option(field) else ()
        texts = [text for name in names if (text := environment.get(name))]
        if field.name in options:
            values[field.name] = _typed(field, options[field.name])
        elif texts:
            many = field.metadata.get("many")
            values[field.name] = _typed(field, texts[0].split(",") if many else texts[0])
        else:
            values[field.name] = in_file.get(field.name, default(field))
    try:
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{error} (see iproto serve --help)") from None


def _typed(field: dataclasses.Field[Any], value: Any) -> Any:
    """Text as the field's type; text that is no number is left for Config to refuse."""
    if field.metadata.get("many"):
        return tuple(item.strip() for item in value)
    kind = {"int": int, "float": float}.get(str(field.type))
    if kind is None:
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _read_file(path: str) -> dict[str, Any]:
    """The values of a settings file, each checked by itself."""
    try:
        # Anything else can be read once at most, or keeps the reader waiting.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"settings file {path}: it must be a regular file, to be read again")
        with open(path, "rb") as file:
            values = _parse(file.read().decode())
    except OSError as error:
        raise ConfigError(f"settings file {path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"settings file {path}: it is not TOML: {error}") from None
    names = [field.name for field in dataclasses.fields(Config)]
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"settings file {path}: unknown key {name!r}; it must be one of {', '.join(names)}"
            )
        try:
            Config(**{name: value})
        except ConfigError as error:
            raise ConfigError(f"settings file {path}: {error}") from None
    return values


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


# While the server runs.


def with_fixed(config: Config, running: Config) -> tuple[Config, list[str]]:
    """New settings, but those that cannot change while the server runs as they are.

    Args:
        config: the new settings.
        running: those in force.

    Returns:
        The settings with all changes that are possible, and a line on each that is not.
    """
    kept = {
        field.name: getattr(running, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata.get("fixed") and _fixed_part(field, config) != _fixed_part(field, running)
    }
    lines = [
        f"{name} is {_shown(getattr(config, name))} in the settings now, and cannot change while "
        f"the server runs: {_shown(value)} stays until it is stopped and started"
        for name, value in kept.items()
    ]
    return dataclasses.replace(config, **kept), lines


def _fixed_part(field: dataclasses.Field[Any], config: Config) -> Any:
    value = getattr(config, field.name)
    part = field.metadata["fixed"]
    return part(value) if callable(part) else value


def differences(config: Config, before: Config) -> str:
    """The settings that differ from those before, for the log; empty if none does."""
    return ", ".join(
        f"{field.name} {_shown(getattr(config, field.name))} "
        f"(was {_shown(getattr(before, field.name))})"
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != getattr(before, field.name)
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value)) or "none"
    return str(value)
