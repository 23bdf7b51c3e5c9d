"""The config of an app against its template: checked whole, defaults and made-up secrets filled in, shown masked."""

from collections.abc import Mapping, Sequence

from quazzar.core.errors import Invalid
from quazzar.instance.templates.fields import AUTO, MASK, Field, Setting, checked, generate
from quazzar.instance.templates.problems import Guesses, shown
from quazzar.instance.templates.template import Template


def check_config(
    template: Template, config: Mapping[str, object], *, previous: Mapping[str, Setting] | None = None
) -> dict[str, Setting]:
    """The full config: `config` over `previous` over the template's defaults.

    `previous` is the config in force before a change; what it holds and the template no longer knows is dropped, and a
    mask in place of a secret keeps the former one. `None` puts a field back to its default. A field that is neither
    given nor required nor has a default is absent from the answer. `auto` ports stay `auto` (see `with_ports`).
    Raises `Invalid` with a sentence for every `config.<field>` that fails, unknown ones included.
    """
    before = previous or {}
    details: dict[str, str] = {}
    known = {field.name: field for field in template.fields}
    unknown = [name for name in config if name not in known]
    guesses = Guesses()
    for name in unknown[:100]:
        close = guesses.closest(name, known)
        details[f"config.{shown(name)}"] = "Unknown field" + (f"; did you mean {close}?" if close else "")
    full: dict[str, Setting] = {}
    for field in template.fields:
        try:
            value = _value(field, config, before)
        except ValueError as error:
            details[f"config.{field.name}"] = f"{field.label} {error}"
            continue
        if value is not None:
            full[field.name] = value
    if details:
        raise Invalid(details=details)
    return full


def _value(field: Field, config: Mapping[str, object], before: Mapping[str, Setting]) -> Setting | None:
    given = field.name in config
    value: object = config.get(field.name) if given else before.get(field.name)
    if given and field.secret and value == MASK and field.name in before:
        value = before[field.name]
    if value is None or (value == "" and (field.required or field.generated is not None)):
        if field.generated is not None:
            return generate(field)
        if field.default is not None:
            return field.default
        if field.required:
            raise ValueError("is required")
        return None
    return checked(field, value)


def secret_fields(template: Template) -> frozenset[str]:
    return frozenset(field.name for field in template.fields if field.secret)


def mask_config(template: Template, config: Mapping[str, Setting]) -> dict[str, Setting]:
    """`config` as it may be shown: every secret that has a value is a mask, of one length for all.

    A name that the template doesn't know counts as a secret: it may have been one of an older version.
    """
    open_fields = {field.name for field in template.fields if not field.secret}
    return {name: value if name in open_fields or value == "" else MASK for name, value in config.items()}


def _auto_names(template: Template, config: Mapping[str, Setting]) -> list[str]:
    return [one.name for one in template.fields if one.type == "port" and config.get(one.name) == AUTO]


def ports_wanted(template: Template, config: Mapping[str, Setting]) -> int:
    """How many free host ports `config` needs; each must be free for both TCP and UDP, for a field may serve both."""
    return len(_auto_names(template, config))


def with_ports(template: Template, config: Mapping[str, Setting], ports: Sequence[int]) -> dict[str, Setting]:
    """`config` with its `auto` ports replaced by `ports`, in the order of the template's fields.

    Raises ValueError unless there are exactly `ports_wanted` of them, all different.
    """
    names = _auto_names(template, config)
    if len(names) != len(ports) or len(set(ports)) != len(ports):
        raise ValueError(f"{len(names)} different ports are wanted")
    return {**config, **dict(zip(names, ports, strict=True))}
