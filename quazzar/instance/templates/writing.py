"""A template with the config of an app, written as a Compose file that other tools take as it is.

What stands in the file is put in; what only this platform knows (its limits in place of the file's, the restart policy
that holds) is said in Compose's own words. So what comes out of `docker compose up` is the same app.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import yaml

from quazzar.instance.apps.spec import AppSpec, ResourceSpec, RestartSpec, ServiceSpec
from quazzar.instance.templates.fields import Field, Setting, config_texts
from quazzar.instance.templates.interpolation import InterpolationError, Parts, fill, parse_text
from quazzar.instance.templates.template import Hook, Template

_LIMITS: Final = ("mem_limit", "mem_reservation", "cpus", "pids_limit", "deploy")
_FILES: Final = {"configs": "/", "secrets": "/run/secrets/"}
_BOOLEANS: Final = frozenset({"read_only", "init", "internal", "required", "disable", "restart"})
_DEFAULT_PIDS: Final = ResourceSpec().pids
_OTHER_BREAKS: Final = frozenset("\x85\u2028\u2029")


def compose_file(
    template: Template,
    config: Mapping[str, Setting],
    spec: AppSpec,
    *,
    kept: Mapping[str, str],
    folders: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The file as plain data. `config` has passed `check_config`, `spec` is what it was rendered to.

    `spec` is without limits of our own choosing. `kept` maps names of fields to the text that stands for them in the
    file; all others are put in. `folders` (service → volume → path) are those that an image declares as its data.
    """
    values = config_texts(template.fields, config)
    filler = _Filler(values, kept)
    by_name = {one.name: one for one in spec.services}
    names = _config_names(template)
    volumes = [*spec.volumes, *(one for some in (folders or {}).values() for one in some)]
    written: dict[str, Any] = {
        "name": spec.project,
        "services": {
            name: _service(filler, service, by_name[name], names, (folders or {}).get(name, {}))
            for name, service in template.services.items()
        },
    }
    if volumes:
        written["volumes"] = {name: {} for name in volumes}
    if template.networks:
        written["networks"] = {name: filler.tree(one) for name, one in template.networks.items()}
    if names:
        declared = {"configs": template.configs, "secrets": template.secrets}
        written["configs"] = {
            written_name: {"content": filler.text(str(declared[kind][name].get("content", "")))}
            for (kind, name), written_name in names.items()
        }
    return written


def extension_block(template: Template, config: Mapping[str, Setting]) -> dict[str, Any]:
    """The `x-quazzar` block of a file of `compose_file`; values of `config` are defaults of the fields, but secrets."""
    block = {
        name: getattr(template, name)
        for name in ("slug", "version", "title", "description", "category", "icon", "website", "first_steps")
        if getattr(template, name)
    }
    needs = {"memory": template.needs.memory_bytes, "disk": template.needs.disk_bytes}
    hooks = {"before": template.backup.before, "after": template.backup.after}
    backup = {
        "volumes": list(template.backup.volumes),
        "hooks": {name: _hook(hook) for name, hook in hooks.items() if hook is not None},
    }
    parts: dict[str, Any] = {
        "needs": {name: str(size) for name, size in needs.items() if size is not None},
        "fields": [_field(one, config.get(one.name)) for one in template.fields],
        "web": msgspec.to_builtins(template.web),
        "backup": {name: part for name, part in backup.items() if part} if template.volumes else {},
    }
    return block | {name: part for name, part in parts.items() if part}


def yaml_text(document: Mapping[str, Any], *, comment: Sequence[str] = ()) -> str:
    """YAML that no reader takes otherwise: every string that is a value stands in quotes."""
    text: str = yaml.dump(
        _quoted(document),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=1_000_000,
    )
    return "".join(f"# {line}\n" for line in comment) + text


def _hook(hook: Hook) -> dict[str, Any]:
    return {"service": hook.service, "command": list(hook.command)}


def _field(field: Field, value: Setting | None) -> dict[str, Any]:
    written: dict[str, Any] = msgspec.to_builtins(field)
    if value is not None and not field.secret:
        written = {name: one for name, one in written.items() if name not in {"generated", "required"}}
        written["default"] = value
    return written


class _Filler:
    """Puts values into text, and leaves the names of `kept` to whoever reads the file."""

    def __init__(self, values: Mapping[str, str], kept: Mapping[str, str]) -> None:
        self._values = values
        self._kept = kept

    def text(self, text: str) -> str:
        """What Compose reads as `text` with its values."""
        try:
            return self._parts(parse_text(text))
        except InterpolationError:
            # Can't be: the template was checked when it was made.
            return text.replace("$", "$$")

    def _parts(self, parts: Parts) -> str:
        written = ""
        for part in parts:
            if isinstance(part, str):
                written += part.replace("$", "$$")
            elif part.name not in self._kept:
                present = part.name in self._values and (
                    self._values[part.name] != "" or not part.operator.startswith(":")
                )
                if part.operator[-1:] in ({"+"} if present else {"-"}):
                    written += self._parts(part.word)
                else:
                    written += fill((part,), self._values).replace("$", "$$")
            elif part.operator[-1:] == "+":
                written += self._parts(part.word)
            else:
                written += self._kept[part.name]
        return written

    def named(self, name: str) -> str | None:
        """The value of `NAME` in an environment that says no more; None where it has none."""
        value = self._values.get(name)
        return self._kept.get(name) or (None if value is None else value.replace("$", "$$"))

    def tree(self, value: Any, key: str = "") -> Any:
        match value:
            case str():
                text = self.text(value)
                is_truth = key in _BOOLEANS and "$" in value and text in {"true", "false"}
                return text == "true" if is_truth else text
            case list():
                return [self.tree(one) for one in value]
            case dict():
                return {name: self.tree(one, name) for name, one in value.items()}
            case _:
                return value


def _service(
    filler: _Filler,
    service: Mapping[str, Any],
    spec: ServiceSpec,
    names: Mapping[tuple[str, str], str],
    folders: Mapping[str, str],
) -> dict[str, Any]:
    dropped = {*_LIMITS, *_FILES, *(() if spec.host.network else ("network_mode",))}
    written = {key: filler.tree(value, key) for key, value in service.items() if key not in dropped}
    if service.get("environment"):
        written["environment"] = _environment(filler, service["environment"])
    if service.get("ports"):
        written["ports"] = [_port(filler, one) for one in service["ports"]]
    if folders:
        mounts = [f"{volume}:{path}" for volume, path in folders.items()]
        written["volumes"] = [*(written.get("volumes") or ()), *mounts]
    if files := [one for kind in _FILES for one in _files(filler, kind, service.get(kind) or (), spec, names)]:
        written["configs"] = files
    written["restart"] = _restart(spec.restart)
    return written | _resources(spec.resources)


def _environment(filler: _Filler, found: Any) -> Any:
    if isinstance(found, dict):
        return {name: filler.named(name) if value is None else filler.tree(value) for name, value in found.items()}
    return [filler.text(one) if "=" in one or "$" in one else _named(filler, one) for one in map(str, found)]


def _named(filler: _Filler, name: str) -> str:
    value = filler.named(name)
    return name if value is None else f"{name}={value}"


def _port(filler: _Filler, port: Any) -> Any:
    """The short form of the long one that a template keeps: not every Compose takes the same types in that."""
    target, published = filler.text(str(port["target"])), filler.text(str(port["published"]))
    protocol, address = filler.text(str(port.get("protocol", "tcp"))), filler.text(str(port.get("host_ip", "")))
    where = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
    return f"{where}{published}:{target}" + ("/udp" if protocol == "udp" else "")


def _config_names(template: Template) -> dict[tuple[str, str], str]:
    """Section and name → the name among the configs of the written file.

    Compose knows inline content of configs only, which it puts where it is told, as we do with secrets.
    """
    found: dict[tuple[str, str], str] = {("configs", name): name for name in template.configs}
    for name in template.secrets:
        written = f"secret_{name}"
        while written in found.values():
            written += "_"
        found["secrets", name] = written
    return found


def _files(
    filler: _Filler, kind: str, found: Sequence[Any], spec: ServiceSpec, names: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    by_target = {one.target: one for one in spec.files}
    written = []
    for one in found:
        entry = {"source": one} if isinstance(one, str) else one
        source = filler.text(str(entry["source"]))
        target = filler.text(str(entry.get("target") or source))
        target = target if target.startswith("/") else _FILES[kind] + target
        file = by_target[target.rstrip("/")]
        owner = {name: str(getattr(file, name)) for name in ("uid", "gid") if getattr(file, name)}
        written.append({"source": names[kind, source], "target": target, "mode": file.mode, **owner})
    return written


def _restart(restart: RestartSpec) -> str:
    return restart.policy + (f":{restart.max_retries}" if restart.max_retries else "")


def _resources(limits: ResourceSpec) -> dict[str, Any]:
    written: dict[str, Any] = {
        "mem_limit": limits.memory_bytes,
        "mem_reservation": limits.memory_reservation_bytes,
        "cpus": limits.cpus,
        "pids_limit": limits.pids if limits.pids != _DEFAULT_PIDS else None,
    }
    return {name: value for name, value in written.items() if value is not None}


class _Quoted(str):
    __slots__ = ()


def _quoted(value: Any) -> Any:
    match value:
        case str():
            return _Quoted(value)
        case dict():
            return {key: _quoted(one) for key, one in value.items()}
        case list() | tuple():
            return [_quoted(one) for one in value]
        case _:
            return value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - none are written
        return True


def _represent(dumper: yaml.SafeDumper, value: _Quoted) -> yaml.ScalarNode:
    # Other signs that end a line would stand in a block as they are, where no reader keeps them.
    is_block = "\n" in value.rstrip("\n") and _OTHER_BREAKS.isdisjoint(value)
    style = "|" if is_block else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=style)


_Dumper.add_representer(_Quoted, _represent)
