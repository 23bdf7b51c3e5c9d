"""A template as it is stored: checked, in Compose's own shape, with its `${name}`s not filled in yet."""

from typing import Any

import msgspec

from quazzar.instance.templates.fields import Field


class Web(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain points to."""

    service: str
    port: int


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """The least that a machine must have left for the app to run: memory, and disk for images and first data."""

    memory_bytes: int | None = None
    disk_bytes: int | None = None


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A command that runs in the service's own container, as its user, never on the host and never through a shell."""

    service: str
    command: tuple[str, ...]
    """With `${name}`s; `rendering.render_hook` fills them in."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup of the app takes, and what runs before and after it."""

    volumes: tuple[str, ...] = ()
    before: Hook | None = None
    after: Hook | None = None


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """Checked when it was made, stored as JSON; `services` to `secrets` are Compose with anchors and merges resolved.

    Ports are in their long form, and those that the file leaves to the engine have a field of their own (`auto`).
    `notes` are sentences on what the file says and this platform does in another way; `first_steps` tells people what
    to do once the app runs. `trusted` is the admin's mark. `publisher` is the key or else the address of the source
    that it came from, which no file can say of itself; None for those of this release and for the admin's own.
    """

    slug: str
    version: str
    title: str
    description: str = ""
    category: str = ""
    icon: str | None = None
    website: str | None = None
    first_steps: str = ""
    needs: Needs = Needs()
    fields: tuple[Field, ...] = ()
    web: Web | None = None
    backup: Backup = Backup()
    services: dict[str, dict[str, Any]]
    volumes: tuple[str, ...] = ()
    networks: dict[str, dict[str, Any]] = {}
    configs: dict[str, dict[str, Any]] = {}
    secrets: dict[str, dict[str, Any]] = {}
    trusted: bool = False
    publisher: str | None = None
    notes: tuple[str, ...] = ()
