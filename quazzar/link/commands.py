"""The kinds of commands that a panel may give and an instance carries out, each with its arguments.

Both sides check them here: the panel before anything is queued, the instance before it acts.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from quazzar.core.schema import In, Name, message, read_value

MIB: Final = 1024 * 1024

TemplateName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?\Z",
        extra=message("{label} must be the slug or the id of a template"),
        examples=["nextcloud"],
    ),
]
Version = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*\Z",
        extra=message("{label} must be a version such as 1.22.3"),
        examples=["1.22.3"],
    ),
]
HostName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=253,
        pattern=r"^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])\Z",
        extra=message("{label} must be a host name such as cloud.example.com"),
        examples=["cloud.example.com"],
    ),
]
# Twelve hex digits are what an engine prints for a container, and containers are not to be meant: such an app has
# its id.
AppRef = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=63,
        pattern=r"^(?:app_[a-z2-7]{26}|(?![0-9a-f]{12}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\Z",
        extra=message("{label} must be the name or the id of an app"),
        examples=["cloud", "app_3k2m4v7q3n5t2ac6xk2m4v7q3n"],
    ),
]
# The bounds keep out what JSON has no word for: infinities, and what is no number.
ConfigSetting = Annotated[
    Annotated[str, Meta(max_length=32 * 1024, pattern=r"^[^\x00]*\Z")]
    | Annotated[int, Meta(ge=-(2**53), le=2**53)]
    | Annotated[float, Meta(ge=-1e300, le=1e300)]
    | bool
    | None,
    Meta(extra=message("{label} must be text of at most 32,768 characters, a number, true, false or null")),
]
ConfigKey = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*\Z")]


class ResourcesIn(In, kw_only=True):
    """Limits of each service of the app, in place of those that the template names."""

    memory_bytes: Annotated[int, Meta(ge=6 * MIB, le=2**50, examples=[1024 * MIB])] | None = None
    cpus: Annotated[float, Meta(ge=0.01, le=1024, examples=[2.0])] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_194_304, examples=[512])] | None = None


class InstallArgs(In, kw_only=True):
    """`config` holds values for the template's fields; secrets among them are sealed on the instance."""

    template: TemplateName
    name: Annotated[Name, Meta(examples=["cloud"])]
    config: Annotated[dict[ConfigKey, ConfigSetting], Meta(max_length=500)] = {}
    version: Version | None = None
    resources: ResourcesIn | None = None
    domain: HostName | None = None


class UpdateArgs(In, kw_only=True):
    """To `version`, else to the newest."""

    app: AppRef
    version: Version | None = None


class AppArgs(In, kw_only=True):
    app: AppRef


class UninstallArgs(In, kw_only=True):
    """Into the trash with its data, as the instance keeps one; with `keep_data` the volumes stay on the engine."""

    app: AppRef
    keep_data: bool = False


class RefreshArgs(In, kw_only=True):
    """None: the instance says anew what it is and what runs on it."""


COMMANDS: Final[Mapping[str, type[In]]] = {
    "app.install": InstallArgs,
    "app.update": UpdateArgs,
    "app.start": AppArgs,
    "app.stop": AppArgs,
    "app.restart": AppArgs,
    "app.rollback": AppArgs,
    "app.uninstall": UninstallArgs,
    "instance.refresh": RefreshArgs,
}
"""Every kind, and the struct of its arguments. A kind that only one side knows is refused by the other."""


def check_args(kind: str, args: object) -> In:
    """The arguments of a kind of `COMMANDS`. Raises `Invalid` with a sentence for every `args.<field>` that fails."""
    return read_value(args, COMMANDS[kind], path="args")
