"""A Compose file without a catalogue entry becomes an app; what it holds of secrets is taken out of it and sealed."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec

from quazzar.core.auth import require_everything
from quazzar.core.errors import Invalid
from quazzar.instance.apps.building import Draft
from quazzar.instance.apps.errors import ComposeInvalid
from quazzar.instance.apps.schemas import AppCreate, AppImport, FullAppRow
from quazzar.instance.apps.service import AppService, Planned
from quazzar.instance.templates.compose import MAX_FIELDS, import_config, is_secret_name, parse_compose
from quazzar.instance.templates.fields import Field, Setting, checked
from quazzar.instance.templates.interpolation import InterpolationError, parse_text
from quazzar.instance.templates.problems import TemplateInvalid
from quazzar.instance.templates.template import Template

Config = dict[str, Any]

PROJECT = "COMPOSE_PROJECT_NAME"
"""Compose fills in what it calls the project, which here is the app."""


async def create(apps: AppService, data: AppImport) -> FullAppRow:
    """Write the app down and have it installed.

    Raises `ComposeInvalid` with every problem of the file by its line, and what `AppService.add` raises.
    """
    return await apps.add(await _draft(apps, data), action="app.import")


async def plan(apps: AppService, data: AppImport) -> Planned:
    """What `create` would do; nothing is made."""
    return await apps.plan_of(await _draft(apps, data))


async def _draft(apps: AppService, data: AppImport) -> Draft:
    apps.require_unbound()
    if data.trusted:
        require_everything(apps.actor)
    template, config = await asyncio.to_thread(read_file, data)
    wanted = AppCreate(template=data.name, name=data.name, config=config)
    try:
        return await apps.draft(template, wanted, catalogued=False)
    except ComposeInvalid:
        raise
    except Invalid as error:
        raise ComposeInvalid(details={_place(name): text for name, text in error.details.items()}) from error


def _place(name: str) -> str:
    """Where the caller finds what a rule of the config complains of."""
    return f"env.{name.removeprefix('config.')}" if name.startswith("config.") else name


def read_file(data: AppImport) -> tuple[Template, Config]:
    """The file as a template without secrets, and the config that holds them. Raises `ComposeInvalid`."""
    env = data.env
    if PROJECT in data.compose:
        env = {PROJECT: data.name} | env
    try:
        template = parse_compose(data.compose, name=data.name, env=env, trusted=data.trusted)
    except TemplateInvalid as error:
        raise ComposeInvalid(details=error.details) from error
    given = frozenset(data.env)
    fields = tuple(
        msgspec.structs.replace(field, secret=True) if field.name in given and _is_variable(field) else field
        for field in template.fields
    )
    template = msgspec.structs.replace(template, fields=fields)
    config: Config = import_config(template, env)
    template, lifted = without_secrets(template)
    return template, config | lifted


def _is_variable(field: Field) -> bool:
    """Whether a field stands for a name that the file takes from its environment, and was not declared by it."""
    return field == Field(name=field.name, label=field.name, type="string", secret=field.secret)


def without_secrets(template: Template) -> tuple[Template, dict[str, Setting]]:
    """`template` with the secrets that are written out in it taken out into fields, and the values of these.

    Taken out are the contents of `secrets` and what stands in `environment` under a name such as `DB_PASSWORD`: an
    app's definition is kept in the clear, its config's secrets are sealed, masked and can be changed.
    """
    lift = _Lift(template)
    services = {name: lift.service(name, service) for name, service in template.services.items()}
    secrets = {name: lift.content(name, one) for name, one in template.secrets.items()}
    fields = (*template.fields, *lift.fields.values())
    return msgspec.structs.replace(template, services=services, secrets=secrets, fields=fields), lift.values


class _Lift:
    def __init__(self, template: Template) -> None:
        self.fields: dict[str, Field] = {}
        self.values: dict[str, Setting] = {}
        self._taken = {field.name for field in template.fields}
        self._room = MAX_FIELDS - len(template.fields)

    def service(self, name: str, service: dict[str, Any]) -> dict[str, Any]:
        found = service.get("environment")
        match found:
            case dict():
                pairs = {key: self._value(key, value, name) for key, value in found.items()}
                return {**service, "environment": pairs}
            case list():
                return {**service, "environment": [self._entry(one, name) for one in found]}
            case _:
                return service

    def content(self, name: str, secret: dict[str, Any]) -> dict[str, Any]:
        return {**secret, "content": self._lifted(_field_name("secret", name), secret["content"], "secret")}

    def _entry(self, entry: Any, service: str) -> Any:
        name, sign, value = str(entry).partition("=")
        if not sign or "$" in name:
            return entry
        return f"{name}={self._value(name, value, service)}"

    def _value(self, name: str, value: Any, service: str) -> Any:
        return self._lifted(name, value, service) if is_secret_name(name) else value

    def _lifted(self, name: str, value: Any, where: str) -> Any:
        """`${field}` in place of a text that refers to nothing; what can't be a field's value stays as it is."""
        text = _literal(value)
        if not text or len(self.fields) >= self._room:
            return value
        chosen = next(one for one in _names(name, where) if one not in self._taken or self.values.get(one) == text)
        field = Field(name=chosen, label=chosen, type="string", required=True, secret=True)
        try:
            self.values[chosen] = checked(field, text)
        except ValueError:
            return value
        self.fields[chosen] = field
        self._taken.add(chosen)
        return f"${{{chosen}}}"


def _names(name: str, where: str) -> Iterator[str]:
    yield _field_name(name)
    yield _field_name(where, name)
    number = 2
    while True:
        yield _field_name(where, name, str(number))
        number += 1


def _field_name(*parts: str) -> str:
    text = "_".join(parts)
    clean = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)[:250]
    return clean if clean[:1].isalpha() or clean.startswith("_") else f"_{clean}"


def _literal(value: Any) -> str | None:
    """The text of a value that takes nothing from the environment; None for any other."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        parts = parse_text(str(value))
    except InterpolationError:
        return None
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None
