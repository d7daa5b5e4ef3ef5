"""``iproto serve``."""

from __future__ import annotations

import argparse
import dataclasses
import os
from functools import partial
from typing import TYPE_CHECKING

from iproto.cli.options import add_command

if TYPE_CHECKING:
    from iproto.cli.options import Commands


def add_serve(commands: Commands) -> None:
    """Adds the command."""
    serve = add_command(
        commands,
        "serve",
        _serve,
        "serve the storage, and user functions",
        "  iproto serve\n"
        "  iproto serve myservice:app --bind 0.0.0.0:8080 --bind unix:/run/iproto.sock\n"
        "  IPROTO_DIALECT=mailru LOG_LEVEL=DEBUG iproto serve\n"
        "  iproto serve --config /etc/iproto.toml --workers auto\n\n"
        "SIGTERM and SIGINT drain: everything received is answered, then the exit code is 0\n"
        "(1 if that took longer than --drain-timeout). A second signal ends at once.",
    )
    serve.add_argument(
        "app", nargs="?", metavar="MODULE:APP", help="your iproto.App, e.g. myservice:app"
    )
    serve.add_argument(
        "--reload",
        action="store_true",
        help="start anew when a .py or .toml file in the current folder changes; for development",
    )
    _add_settings(serve)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option for each field of Config, and the one of the settings file."""
    from iproto.server.config import Config
    from iproto.server.settings import FILE_VARIABLE, has_option, shown_default, variables

    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="settings file, in TOML: max_body = 4096 and the like; options and variables win "
        f"over it ({FILE_VARIABLE})",
    )
    for field in filter(has_option, dataclasses.fields(Config)):
        variable = variables(field)[0]
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            default=argparse.SUPPRESS,
            action="append" if field.metadata.get("many") else "store",
            metavar=field.metadata.get("metavar") or "|".join(field.metadata["choices"]),
            help=f"{field.metadata['help']} (default: {shown_default(field)}; {variable})",
        )


def _serve(options: argparse.Namespace) -> int:
    if options.reload:
        from iproto.cli.reload import serve_with_reload

        return serve_with_reload(options.command_line)
    from iproto.server.logs import flush_log
    from iproto.workers import upgrade

    try:
        return upgrade.take_over(partial(_serve_now, options))
    finally:
        flush_log()  # an error is to be the last line


def _serve_now(options: argparse.Namespace) -> int:
    from iproto.server import startup
    from iproto.server.logs import set_up_logging
    from iproto.server.settings import read_settings
    from iproto.workers import upgrade
    from iproto.workers.inheritance import inherited

    read = partial(read_settings, vars(options), os.environ)
    inheritance = inherited()
    if inheritance is None:
        startup.reset_process()
        startup.end_on_sigterm()
    config = read() if inheritance is None else inheritance.config
    set_up_logging(config.log_level)
    area = upgrade.trial_area()
    if inheritance is not None and area is not None:
        from iproto.workers import trial

        return trial.run(inheritance, area, options.app or "", read)
    if config.workers is not None:
        from iproto.workers import supervisor

        return supervisor.run(config, options.app or "", read, inheritance=inheritance)
    app = startup.load_app(options.app) if options.app else None
    from iproto.server.run import run

    return startup.leave(run(config, app))
