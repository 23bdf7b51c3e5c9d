"""The templates that come with the release: read-only files of this package, read once."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from quazzar.core.ids import ALPHABET, LENGTH
from quazzar.instance.templates.compose import parse_template
from quazzar.instance.templates.template import Template

FOLDER = Path(__file__).parent / "packaged"
_TO_ID_LETTERS = str.maketrans("abcdefghijklmnopqrstuvwxyz234567", ALPHABET)


class Packaged(msgspec.Struct, frozen=True):
    id: str
    template: Template
    compose: str


@cache
def catalogue() -> Mapping[str, Packaged]:
    """Slug → template, in the order of slugs. The first call reads all files, so make it in a thread."""
    found = [_read(file) for file in FOLDER.glob("*.yaml")]
    return {one.template.slug: one for one in sorted(found, key=lambda one: one.template.slug)}


def find_packaged(ref: str) -> Packaged | None:
    """By slug or id."""
    return catalogue().get(ref) or _by_id().get(ref)


@cache
def _by_id() -> Mapping[str, Packaged]:
    return {one.id: one for one in catalogue().values()}


def _read(file: Path) -> Packaged:
    compose = file.read_text(encoding="utf-8")
    template = parse_template(compose)
    return Packaged(packaged_id(template.slug), template, compose)


def packaged_id(slug: str) -> str:
    """The same on every instance and in every release."""
    digest = base64.b32encode(hashlib.sha256(f"packaged template {slug}".encode()).digest()).decode().lower()
    return "tpl_" + digest[:LENGTH].translate(_TO_ID_LETTERS)
