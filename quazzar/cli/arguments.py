"""What may be typed: flags of every command, and the commands themselves."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from quazzar import __version__
from quazzar.settings import Settings, load_settings

USAGE_ERROR = 2


class Arguments(argparse.Namespace):
    """What was typed. `command` names the module of `quazzar.cli` and the function in it."""

    command: tuple[str, str]
    config: Path | None = None
    mode: str | None = None
    host: str | None = None
    port: str | None = None
    data_dir: str | None = None
    panel_token_file: str | None = None
    output: Path | None = None
    check: bool = False
    username: str | None = None
    email: str = ""
    disable_totp: bool = False

    def settings(self) -> Settings:
        """Raises `SettingsError`."""
        flags = {f"server.{name}": getattr(self, name) for name in ("mode", "host", "port", "data_dir")}
        return load_settings(flags | {"panel.token_file": self.panel_token_file}, config_path=self.config)

    def run(self) -> int:
        module, function = self.command
        # Only the chosen command is loaded: help and a misspelt flag answer at once.
        action: Callable[[Arguments], int] = getattr(import_module(f"quazzar.cli.{module}"), function)
        return action(self)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"quazzar: {message}; see `quazzar --help`\n")
        sys.exit(USAGE_ERROR)


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """Ends the process with a sentence and exit code 2 for what can't be understood."""
    return _parser().parse_args(argv, namespace=Arguments())


def _parser() -> _Parser:
    shared = _shared_flags()
    parser = _Parser(
        prog="quazzar",
        description="Self-hosting platform: without a command, serves until it is told to stop.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"quazzar {__version__}")
    parser.set_defaults(command=("serve", "serve"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, target: tuple[str, str], help_text: str) -> _Parser:
        added: _Parser = commands.add_parser(name, help=help_text, parents=[shared], allow_abbrev=False)
        added.set_defaults(command=target)
        return added

    command("migrate", ("serve", "migrate"), "bring the database's schema to this release")
    openapi = command("openapi", ("openapi", "run"), "print the OpenAPI document of --mode=instance or panel")
    openapi.add_argument("--output", type=Path, metavar="FOLDER", help="write it (with --mode=all both) there instead")
    openapi.add_argument("--check", action="store_true", help="fail when the packaged documents are not up to date")
    for name, about in (("events", "that describes every event"), ("permissions", "of who may do what on the panel")):
        page = command(name, (name, "run"), f"print the page {about}")
        page.add_argument("--output", type=Path, metavar="FILE", help="write it there instead")
        page.add_argument("--check", action="store_true", help="with --output: fail when the file is not up to date")
    command("doctor", ("doctor", "run"), "check settings, key, folder, database, engine, ports and clock")

    admin = commands.add_parser("admin", help="ways back in, for who has a shell on the server").add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    reset = admin.add_parser("reset-password", parents=[shared], help="set a user's password and end all sessions")
    reset.add_argument("--username", help="whose; needed when there are several admins")
    reset.add_argument("--disable-totp", action="store_true", help="also turn the second factor off")
    reset.set_defaults(command=("admin", "reset_password"))
    link = admin.add_parser(
        "reset-link", parents=[shared], help="make a link by which a user of the panel gets back in"
    )
    link.add_argument("email", help="the address that they log in with")
    link.set_defaults(command=("admin", "reset_link"))
    token = admin.add_parser("setup-token", parents=[shared], help="make and print a new token for the first setup")
    token.set_defaults(command=("admin", "setup_token"))

    keys = commands.add_parser("keys", help="the master key").add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    rotate = keys.add_parser("rotate", parents=[shared], help="make a new master key the current one")
    rotate.set_defaults(command=("keys", "rotate"))
    reseal = keys.add_parser("reseal", parents=[shared], help="seal every stored secret with the current master key")
    reseal.set_defaults(command=("keys", "reseal"))

    audit = commands.add_parser("audit", help="the audit log").add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    verify = audit.add_parser("verify", parents=[shared], help="check every chain of records; 1 when one is not whole")
    verify.set_defaults(command=("audit", "verify"))
    return parser


def _shared_flags() -> _Parser:
    # Left out when not given, so that a flag before the command is not overwritten by its absence after it.
    shared = _Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags = shared.add_argument_group("settings (all others: quazzar.toml or environment)")
    flags.add_argument("--mode", metavar="MODE", help="instance, panel or all")
    flags.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    flags.add_argument("--port", metavar="PORT", help="port to listen on")
    flags.add_argument("--data-dir", metavar="FOLDER", help="everything that the process keeps on disk")
    flags.add_argument("--panel-token-file", metavar="FILE", help="the registration token of the panel to join")
    flags.add_argument("--config", type=Path, metavar="FILE", help="the settings file")
    return shared
