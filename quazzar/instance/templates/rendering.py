"""A template and a checked config → the `AppSpec` that a container runtime is told to run.

What every service gets, whatever its file says: no new privileges and all capabilities dropped but
`names.DEFAULT_CAPABILITIES` and those that the template adds, at most 512 processes unless it says otherwise, and no
network but the app's own. Without `restart` a service is restarted until it is stopped (`unless-stopped`), except one
that others wait for to complete. Host ports are taken as they are written, 1 to 65535: whether a port is free, reserved
or another app's is for those to say who hold the ports.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from quazzar.core.errors import Invalid
from quazzar.instance.apps.spec import AppSpec, ResourceSpec, RestartSpec, ServiceSpec
from quazzar.instance.templates.commands import check_shell_words, filled_words, read_words
from quazzar.instance.templates.document import Document, from_stored, read_app
from quazzar.instance.templates.fields import AUTO, Setting, config_texts
from quazzar.instance.templates.problems import Problems, TemplateInvalid
from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.template import Hook, Template
from quazzar.instance.templates.yaml_nodes import from_plain

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of each service of an app; None leaves what the template says."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


def render(
    template: Template,
    config: Mapping[str, Setting],
    *,
    app_id: str,
    project: str,
    resources: Limits | None = None,
    defaults: Limits | None = None,
    restart_policy: RestartSpec | None = None,
) -> AppSpec:
    """The spec of one app. `config` has passed `check_config` and has no `auto` port left (ValueError otherwise).

    `resources` and `restart_policy` beat the template, `defaults` count for services that name no such limit
    themselves. A service that others wait for to complete keeps its own restart policy. Values are put in where they
    stand and then checked as if they had been written there: raises `Invalid` with `config.<field>` for a value
    that doesn't fit its place.
    """
    problems = Problems()
    reader = _reader(template, config, problems)
    document = Document(
        services=from_stored(template.services),
        volumes=from_stored({name: {} for name in template.volumes}),
        networks=from_stored(template.networks),
        configs=from_stored(template.configs),
        secrets=from_stored(template.secrets),
        trusted=template.trusted,
    )
    app = read_app(reader, document)
    _check(problems)
    awaited = {
        one.service
        for service in app.services
        for one in service.depends_on
        if one.condition == "service_completed_successfully"
    }
    services: list[ServiceSpec] = []
    for service in app.services:
        written = template.services[service.name]
        restart = service.restart
        if service.name in awaited:
            restart = RestartSpec(policy="no") if written.get("restart") is None else restart
        elif restart_policy is not None:
            restart = restart_policy
        limits = _limits(service.resources, written, resources, defaults)
        services.append(msgspec.structs.replace(service, restart=restart, resources=limits))
    return AppSpec(app_id=app_id, project=project, services=tuple(services), volumes=app.volumes, networks=app.networks)


def render_hook(template: Template, config: Mapping[str, Setting], hook: Hook) -> tuple[str, ...]:
    """The words of a hook's command, to be run in a container as they are, without a shell. Raises as `render`."""
    problems = Problems()
    reader = _reader(template, config, problems)
    words = list(read_words(reader, from_plain(hook.command), "x-quazzar.backup.hooks.command"))
    check_shell_words(reader, words)
    texts = list(filled_words(reader, words))
    _check(problems)
    return tuple(texts)


def _reader(template: Template, config: Mapping[str, Setting], problems: Problems) -> Reader:
    left = [one.name for one in template.fields if one.type == "port" and config.get(one.name) == AUTO]
    if left:
        raise ValueError(f"no port has been found yet for {', '.join(left)}")
    names = [one.name for one in template.fields]
    return Reader(problems, config_texts(template.fields, config), open_names=names, final=True)


def _check(problems: Problems) -> None:
    if problems:
        raise Invalid(details=TemplateInvalid(problems.all()).details)


def _limits(
    own: ResourceSpec, written: Mapping[str, object], resources: Limits | None, defaults: Limits | None
) -> ResourceSpec:
    over, under = resources or Limits(), defaults or Limits()
    memory = _first(over.memory_bytes, own.memory_bytes, under.memory_bytes)
    reserved = own.memory_reservation_bytes
    return ResourceSpec(
        memory_bytes=memory,
        memory_reservation_bytes=None if reserved is None else min(reserved, memory or reserved),
        cpus=_first(over.cpus, own.cpus, under.cpus),
        pids=_first(over.pids, own.pids if _names_pids(written) else under.pids) or own.pids,
    )


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _names_pids(written: Mapping[str, object]) -> bool:
    deploy = written.get("deploy")
    resources = deploy.get("resources") if isinstance(deploy, dict) else None
    limits = resources.get("limits") if isinstance(resources, dict) else None
    return written.get("pids_limit") is not None or (isinstance(limits, dict) and limits.get("pids") is not None)
