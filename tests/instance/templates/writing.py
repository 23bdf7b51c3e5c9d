"""How the tests of this folder write templates and read what came of them."""

import textwrap

import pytest

from quazzar.instance.apps.spec import AppSpec, ServiceSpec
from quazzar.instance.templates.compose import Template, TemplateInvalid, check_config, parse_template, with_ports
from quazzar.instance.templates.config import ports_wanted
from quazzar.instance.templates.rendering import render

HEAD = 'x-quazzar: {slug: sample, version: "1", title: Sample'


def template_text(body: str, *, fields: str = "", extra: str = "") -> str:
    """A template whose catalogue block is line 1, whatever it holds; `body` begins on line 2."""
    listed = f", fields: [{fields}]" if fields else ""
    more = f", {extra}" if extra else ""
    return f"{HEAD}{listed}{more}}}\n" + textwrap.dedent(body)


def service_text(keys: str, *, fields: str = "", tail: str = "") -> str:
    """A template with the one service `web`; `keys` begin on line 5."""
    body = "services:\n  web:\n    image: nginx:1.27\n" + textwrap.indent(textwrap.dedent(keys).strip("\n"), "    ")
    return template_text(body + "\n" + textwrap.dedent(tail), fields=fields)


def spec_of(template: Template, **config: object) -> AppSpec:
    full = check_config(template, config)
    full = with_ports(template, full, list(range(41000, 41000 + ports_wanted(template, full))))
    return render(template, full, app_id="app_1", project="sample")


def service_of(keys: str, *, fields: str = "", tail: str = "", **config: object) -> ServiceSpec:
    """The spec of a service with `keys`."""
    services = spec_of(parse_template(service_text(keys, fields=fields, tail=tail)), **config).services
    return next(service for service in services if service.name == "web")


def problems_of(text: str | bytes) -> dict[str, str]:
    with pytest.raises(TemplateInvalid) as caught:
        parse_template(text)
    assert caught.value.code == "template_invalid"
    assert caught.value.status == 422
    return caught.value.details


def minimal_config(template: Template) -> dict[str, object]:
    """A value for every field that must be given, and for none that needs not be."""
    return {one.name: _VALUES[one.type] for one in template.fields if one.required and one.default is None}


_VALUES: dict[str, object] = {
    "password": "a-kettle-of-stars-7",
    "email": "a@example.com",
    "url": "https://app.example.com/",
    "domain": "app.example.com",
    "string": "value",
    "port": 41999,
    "integer": 5,
    "number": 5,
    "boolean": True,
}
