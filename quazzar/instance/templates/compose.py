"""Compose text → `Template`: the one validator of create, update, patch, import, adopt, blueprint and restore."""

import re
from collections.abc import Iterator, Mapping

from quazzar.instance.templates.config import check_config, mask_config, ports_wanted, secret_fields, with_ports
from quazzar.instance.templates.document import (
    Document,
    ReadApp,
    read_app,
    to_plain,
    top_sections,
    with_long_ports,
)
from quazzar.instance.templates.extension import KEY, Extension, read_backup, read_extension, read_web
from quazzar.instance.templates.fields import AUTO, Field, checked, config_texts
from quazzar.instance.templates.interpolation import InterpolationError, parse_text, references
from quazzar.instance.templates.ports import open_name
from quazzar.instance.templates.problems import Problem, Problems, TemplateInvalid, shown
from quazzar.instance.templates.reader import OPAQUE, Reader
from quazzar.instance.templates.template import Backup, Hook, Needs, Template, Web
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence, read_yaml

__all__ = [
    "Backup", "Field", "Hook", "Needs", "Problem", "Template", "TemplateInvalid", "Web", "check_config",
    "import_config", "is_secret_name", "mask_config", "parse_compose", "parse_template", "ports_wanted",
    "secret_fields", "with_ports",
]  # fmt: skip

MAX_VARIABLES = 200
MAX_FIELDS = 500
MAX_DOLLARS = 20_000
"""Each may begin a `${name}`; counted with every alias written out."""
_SAMPLE_PORT = 30_000
_SECRET = re.compile(
    r"pass|pwd|secret|token|key|cred|salt|dsn|private|connection|database_(?:url|uri)|(?:redis|mongo\w*|amqp)_(?:url|uri)",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def parse_template(text: str | bytes, *, trusted: bool = False) -> Template:
    """A catalogue template: a Compose file with an `x-quazzar` block.

    `trusted` is the admin's mark: it lets `cap_add` name any capability. What a container spec can't express is refused
    with or without it. Raises `TemplateInvalid` with all problems at once; never anything else, whatever `text` is.
    """
    problems = Problems()
    root = read_yaml(text, problems)
    if root is None:
        problems.check()
        raise AssertionError("a file that can't be read has a problem")
    block = root.entries.get(KEY) if isinstance(root, MappingNode) else None
    if block is None and isinstance(root, MappingNode):
        problems.add(
            KEY, root.line, "x-quazzar is required: a template says its slug, version and title there", "missing"
        )
    bare = Reader(problems, {})
    needed = ("slug", "version", "title")
    extension = read_extension(bare, block.node, required=needed) if block is not None else Extension()
    return _template(problems, root, extension, environment=None, trusted=trusted)


def parse_compose(
    text: str | bytes, *, name: str, env: Mapping[str, str] | None = None, trusted: bool = False
) -> Template:
    """A plain Compose file as a template named `name`; `env` is what its `${NAME}`s are filled in from.

    Every name that the file takes from `env` becomes a field of the template, so that it can be changed later; the
    values are not in the template (`import_config` gives them). An `x-quazzar` block counts where there is one, for
    its fields, `web` and `backup`. Raises `TemplateInvalid` as `parse_template` does; problems of `env` are at
    `env.<NAME>`.
    """
    problems = Problems()
    environment = _checked_environment(problems, env or {})
    root = read_yaml(text, problems)
    if root is None:
        problems.check()
        raise AssertionError("a file that can't be read has a problem")
    extension = Extension()
    if isinstance(root, MappingNode) and KEY in root.entries:
        extension = read_extension(Reader(problems, {}), root.entries[KEY].node, required=())
    extension.texts |= {"slug": name, "title": extension.texts.get("title", name)}
    extension.texts.setdefault("version", "0")
    return _template(problems, root, extension, environment=environment, trusted=trusted)


def is_secret_name(name: str) -> bool:
    """Whether a name of an environment most likely stands for a secret."""
    return _SECRET.search(name) is not None


def import_config(template: Template, env: Mapping[str, str]) -> dict[str, object]:
    """The part of `env` that an imported `template` takes, as a config for `check_config`."""
    return {one.name: _typed(one, env[one.name]) for one in template.fields if one.name in env}


def _typed(field: Field, text: str) -> object:
    """Environment files only know text; where it isn't of the field's type it stays, and `check_config` says so."""
    match field.type:
        case "boolean" if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        case "integer" | "port" if re.fullmatch(r"-?[0-9]{1,15}", text):
            return int(text)
        case "number" if re.fullmatch(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?", text):
            return float(text) if "." in text else int(text)
        case _:
            return text


def _checked_environment(problems: Problems, env: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if len(env) > 1000:
        problems.add("env", None, "env has more than 1000 entries", "too_large")
    for name, value in list(env.items())[:1000]:
        try:
            checked(Field(name=name, label=name, type="string"), value)
        except ValueError as error:
            problems.add(f"env.{shown(name)}", None, f"{shown(name)} {error}")
            continue
        if _NAME.fullmatch(name):
            found[name] = value
    return found


def _template(
    problems: Problems, root: Node, extension: Extension, *, environment: Mapping[str, str] | None, trusted: bool
) -> Template:
    if _dollars(root) > MAX_DOLLARS:
        problems.add("compose", root.line, f"The file has more than {MAX_DOLLARS} dollar signs", "too_large")
        problems.check()
    fields = list(extension.fields)
    document = top_sections(Reader(problems, {}), root, trusted=trusted)
    if document is None:
        problems.check()
        raise AssertionError("a file without services has a problem")
    values: dict[str, str] = {}
    if environment is not None:
        fields.extend(_variables(problems, document, {one.name for one in fields}))
        values = dict(environment)
    # Samples are of declared fields: an imported name without a value is a problem where it stands, unless the file
    # has a default for it.
    values = _samples(extension.fields) | values
    first = _reader(problems, values, environment)
    open_ports = _OpenPorts(fields, values)
    document = with_long_ports(first, document, open_ports.name)
    if len(fields) > MAX_FIELDS:
        said = f"The file leaves more host ports open than fit into {MAX_FIELDS} fields"
        problems.add("services", document.services.line, said, "too_large")
    reader = _reader(problems, values, environment)
    app = read_app(reader, document)
    services = frozenset(document.services.entries)
    volumes = tuple(document.volumes.entries)
    backup = read_backup(reader, extension.nodes.get("backup"), services, volumes)
    web = read_web(reader, extension.nodes.get("web"), services)
    if web is None and environment is not None:
        web = _first_port(document, app)
    problems.check()
    texts = extension.texts
    return Template(
        slug=texts["slug"],
        version=texts["version"],
        title=texts["title"],
        description=texts.get("description", ""),
        category=texts.get("category", ""),
        icon=texts.get("icon"),
        website=texts.get("website"),
        first_steps=texts.get("first_steps", ""),
        needs=extension.needs,
        fields=tuple(fields),
        web=web,
        backup=backup,
        services=to_plain(document.services),
        volumes=volumes,
        networks=to_plain(document.networks),
        configs=to_plain(document.configs),
        secrets=to_plain(document.secrets),
        trusted=trusted,
        notes=(*first.notes, *reader.notes),
    )


def _reader(problems: Problems, values: Mapping[str, str], environment: Mapping[str, str] | None) -> Reader:
    reader = Reader(problems, values)
    if environment is not None:
        reader.from_environment = True
    return reader


def _samples(fields: list[Field]) -> dict[str, str]:
    """Name → a text to check the file with: the default where there is one; what nobody knows yet is `Opaque`."""
    found: dict[str, str] = {}
    for index, one in enumerate(fields):
        if one.default is not None and one.default != AUTO:
            found |= config_texts((one,), {one.name: one.default})
        elif one.type == "port":
            found[one.name] = str(_SAMPLE_PORT + index)
        else:
            found[one.name] = one.options[0] if one.type == "select" and one.options else OPAQUE
    return found


class _OpenPorts:
    """Fields for host ports that the file leaves to the engine: found free at install, kept, and open to change."""

    def __init__(self, fields: list[Field], values: dict[str, str]) -> None:
        self._fields, self._values = fields, values
        self._taken = {one.name for one in fields}

    def name(self, service: str, target: str, protocol: str) -> str:
        """Adds a field with a sample value and gives the text that refers to it."""
        wanted = open_name(service, target, protocol)
        name, number = wanted, 2
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        if len(self._fields) <= MAX_FIELDS:
            label = f"Port {shown(target)} of {shown(service)}"[:100]
            self._fields.append(Field(name=name, label=label, type="port", default=AUTO))
            self._taken.add(name)
        self._values[name] = str(_SAMPLE_PORT + len(self._fields))
        return f"${{{name}}}"


def _dollars(node: Node) -> int:
    match node:
        case Scalar():
            return node.value.count("$") if isinstance(node.value, str) else 0
        case Sequence():
            return sum(_dollars(item) for item in node.items)
        case MappingNode():
            return sum(_dollars(entry.node) for entry in node.entries.values())


def _first_port(document: Document, app: ReadApp) -> Web | None:
    """What a domain of an imported app most likely points to: the first published TCP port in the file's order."""
    by_name = {one.name: one for one in app.services}
    for name in document.services.entries:
        ports = by_name[name].ports if name in by_name else ()
        for port in ports:
            if port.protocol == "tcp":
                return Web(service=name, port=port.container_port)
    return None


# The names that an imported file takes from its environment


def _variables(problems: Problems, document: Document, declared: set[str]) -> list[Field]:
    names: dict[str, None] = {}
    for section in (document.services, document.networks, document.volumes, document.configs, document.secrets):
        names |= dict.fromkeys(_names(section))
    names |= dict.fromkeys(_bare_names(document))
    wanted = [name for name in names if name not in declared]
    if len(wanted) > MAX_VARIABLES:
        said = f"The file takes more than {MAX_VARIABLES} names from its environment"
        problems.add("services", document.services.line, said, "too_large")
    return [Field(name=name, label=name, type="string", secret=is_secret_name(name)) for name in wanted[:MAX_VARIABLES]]


def _names(node: Node) -> Iterator[str]:
    """Every name that is referred to below `node`; text that can't be parsed is reported when it is read."""
    match node:
        case Scalar():
            if isinstance(node.value, str) and "$" in node.value:
                try:
                    yield from (one.name for one in references(parse_text(node.value)))
                except InterpolationError:
                    return
        case Sequence():
            for item in node.items:
                yield from _names(item)
        case MappingNode():
            for entry in node.entries.values():
                yield from _names(entry.node)


def _bare_names(document: Document) -> Iterator[str]:
    """`environment: [NAME]` and `environment: {NAME: }`."""
    for entry in document.services.entries.values():
        if not isinstance(entry.node, MappingNode) or "environment" not in entry.node.entries:
            continue
        found = entry.node.entries["environment"].node
        if isinstance(found, MappingNode):
            pairs = [(name, one.node) for name, one in found.entries.items()]
            empty = (name for name, one in pairs if isinstance(one, Scalar) and one.value is None)
            yield from (name for name in empty if _NAME.fullmatch(name))
        elif isinstance(found, Sequence):
            texts = [item.value for item in found.items if isinstance(item, Scalar)]
            yield from (text for text in texts if isinstance(text, str) and _NAME.fullmatch(text))
