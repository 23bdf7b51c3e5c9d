"""The templates that come with the release."""

from pathlib import Path

import pytest

from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.templates import compose
from quazzar.instance.templates.compose import check_config, parse_template
from quazzar.instance.templates.rendering import render_hook
from tests.instance.templates.writing import spec_of

FILES = sorted((Path(compose.__file__).parent / "packaged").glob("*.yaml"))
VALUES: dict[str, object] = {
    "password": 'it\'s "a"\n${x} $y long',
    "email": "a@example.com",
    "url": "https://app.example.com/",
    "domain": "app.example.com",
    "string": "value",
    "port": 41999,
    "integer": 5,
    "number": 5,
    "boolean": True,
}


def test_the_ones_that_are_promised_are_there() -> None:
    assert {"hello.yaml", "gitea.yaml", "nextcloud.yaml"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_valid_pinned_and_can_be_rendered(file: Path) -> None:
    template = parse_template(file.read_bytes())
    assert template.slug == file.stem
    assert template.notes == ()
    assert template.web is not None
    assert template.description
    config = {field.name: VALUES[field.type] for field in template.fields if field.required and field.default is None}
    spec = spec_of(template, **config)
    for service in spec.services:
        name, _, tag = service.image.rpartition(":")
        assert name, f"{service.image} has no tag"
        assert tag != "latest"
        assert tag[0].isdigit() or tag[0] == "v"
    web = next(service for service in spec.services if service.name == template.web.service)
    assert template.web.port in {port.container_port for port in web.ports}
    for field in template.fields:
        if field.secret:
            assert field.default is None
    values = check_config(template, config)
    values |= {field.name: 41000 for field in template.fields if values.get(field.name) == "auto"}
    for hook in (template.backup.before, template.backup.after):
        assert hook is None or render_hook(template, values, hook)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_keeps_data_is_backed_up(file: Path) -> None:
    template = parse_template(file.read_bytes())
    mounted = {one.volume for service in spec_of_any(template).services for one in service.mounts}
    assert mounted == set(template.volumes)
    assert set(template.backup.volumes) <= mounted
    assert bool(template.backup.volumes) == bool(mounted)


def spec_of_any(template: compose.Template) -> AppSpec:
    config = {field.name: VALUES[field.type] for field in template.fields if field.required and field.default is None}
    return spec_of(template, **config)
