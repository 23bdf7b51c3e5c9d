"""The templates that come with the release: each is whole, pinned, guarded, healthy by itself and backed up."""

import re
from pathlib import Path

import pytest

from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.templates import compose
from quazzar.instance.templates.compose import Template, check_config, parse_template, ports_wanted, with_ports
from quazzar.instance.templates.rendering import render, render_hook
from tests.instance.templates.writing import minimal_config, spec_of

FILES = sorted((Path(compose.__file__).parent / "packaged").glob("*.yaml"))
PROMISED = {
    "hello", "gitea", "nextcloud", "vaultwarden", "immich", "jellyfin", "home-assistant", "postgresql", "redis",
    "wordpress", "ghost", "n8n", "uptime-kuma", "grafana", "prometheus", "minio", "plausible", "paperless-ngx",
}  # fmt: skip
WITHOUT_PAGES = {"postgresql", "redis", "mariadb", "mosquitto"}
STOPS_WRITING = {"nextcloud"}
"""Templates whose hooks keep everybody from writing, so that the files of the database are whole."""
OPTIONAL_SECRETS = {("ghost", "mail_password")}
"""A password of somebody else's server, which not everybody has."""
MADE_ANEW = {("jellyfin", "cache"), ("immich", "models"), ("mattermost", "logs"), ("stirling-pdf", "logs")}
"""Volumes that no backup takes: what is in them can be had again."""
IMAGE_VOLUMES = {
    "postgres": {"/var/lib/postgresql/data"},
    "ghcr.io/immich-app/postgres": {"/var/lib/postgresql/data"},
    "mariadb": {"/var/lib/mysql"},
    "mysql": {"/var/lib/mysql"},
    "redis": {"/data"},
    "vaultwarden/server": {"/data"},
    "ghost": {"/var/lib/ghost/content"},
    "wordpress": {"/var/www/html"},
    "nextcloud": {"/var/www/html"},
    "jellyfin/jellyfin": {"/config", "/cache"},
    "filebrowser/filebrowser": {"/srv", "/config", "/database"},
    "prom/prometheus": {"/prometheus"},
    "minio/minio": {"/data"},
    "clickhouse/clickhouse-server": {"/var/lib/clickhouse"},
    "ghcr.io/plausible/community-edition": {"/var/lib/plausible"},
    "ghcr.io/paperless-ngx/paperless-ngx": {
        "/usr/src/paperless/data", "/usr/src/paperless/media", "/usr/src/paperless/consume",
        "/usr/src/paperless/export",
    },
    "mattermost/mattermost-team-edition": {
        "/mattermost/data", "/mattermost/logs", "/mattermost/config", "/mattermost/plugins",
        "/mattermost/client/plugins",
    },
    "linuxserver/bookstack": {"/config"},
    "ghcr.io/requarks/wiki": {"/wiki/data/content"},
    "deluan/navidrome": {"/data", "/music"},
    "syncthing/syncthing": {"/var/syncthing"},
    "ghcr.io/mealie-recipes/mealie": {"/app/data"},
    "docmost/docmost": {"/app/data/storage"},
    "eclipse-mosquitto": {"/mosquitto/data", "/mosquitto/log"},
    "neosmemo/memos": {"/var/opt/memos"},
}  # fmt: skip
"""What the images declare as their data: a folder that a template forgets would get a volume without a name."""


def read(file: Path) -> Template:
    return parse_template(file.read_bytes())


def spec(template: Template) -> AppSpec:
    return spec_of(template, **minimal_config(template))


each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_the_ones_that_are_promised_are_there() -> None:
    assert {file.stem for file in FILES} >= PROMISED
    assert len(FILES) >= 33


@each
def test_each_says_what_it_is(file: Path) -> None:
    template = read(file)
    assert template.slug == file.stem
    assert template.notes == (), "nothing in a packaged file is ignored"
    assert template.description
    assert template.category
    assert template.needs.memory_bytes
    assert template.needs.disk_bytes
    if template.slug != "hello":
        assert template.website
        assert template.icon == f"{template.slug}.svg"
        assert template.first_steps
    assert template.web is not None or template.slug in WITHOUT_PAGES


@each
def test_each_runs_with_the_least_that_must_be_given(file: Path) -> None:
    template = read(file)
    app = spec(template)
    if template.web is not None:
        web = next(service for service in app.services if service.name == template.web.service)
        assert template.web.port in {port.container_port for port in web.ports if port.protocol == "tcp"}
    text = file.read_text()
    for field in template.fields:
        assert f"${{{field.name}" in text, f"{field.name} is asked for and not used"


@each
def test_images_are_pinned(file: Path) -> None:
    template = read(file)
    tags = [service.image.rpartition(":") for service in spec(template).services]
    for name, _, tag in tags:
        assert name, f"{tag} has no tag"
        assert re.search(r"\d+\.\d+|\d{4}-\d{2}-\d{2}", tag), f"{name}:{tag} moves with its project"
        assert "latest" not in tag
    assert any(template.version in tag for _, _, tag in tags) or template.slug == "hello"


@each
def test_secrets_are_made_up_or_asked_for(file: Path) -> None:
    template = read(file)
    for field in template.fields:
        if field.secret:
            assert field.default is None
            assert field.generated or field.required or (template.slug, field.name) in OPTIONAL_SECRETS
            if field.required:
                assert (field.min_length or 0) >= 12
    config = check_config(template, minimal_config(template))
    text = file.read_text()
    for name, value in config.items():
        if isinstance(value, str) and len(value) >= 12:
            assert value not in text or name in {one.name for one in template.fields if one.default == value}


@each
def test_every_service_is_healthy_or_not_and_has_its_limits(file: Path) -> None:
    template = read(file)
    for service in spec(template).services:
        assert service.healthcheck is not None, service.name
        assert service.healthcheck.test[0] == "CMD", "no shell that the image may not have"
        assert service.healthcheck.interval_seconds <= 30
        assert service.resources.memory_bytes, service.name
        assert service.restart.policy == "unless-stopped", service.name


@each
def test_databases_are_waited_for(file: Path) -> None:
    app = spec(read(file))
    databases = {one.name for one in app.services if not one.ports and one.image.startswith(("postgres:", "mariadb:"))}
    healthy = {
        wanted.service
        for service in app.services
        for wanted in service.depends_on
        if wanted.condition == "service_healthy"
    }
    assert databases <= healthy


@each
def test_what_keeps_data_is_backed_up(file: Path) -> None:
    template = read(file)
    mounted = {mount.volume for service in spec(template).services for mount in service.mounts}
    assert mounted == set(template.volumes)
    kept = {name for name in template.volumes if (template.slug, name) not in MADE_ANEW}
    assert set(template.backup.volumes) == kept


@each
def test_no_data_lands_in_a_volume_without_a_name(file: Path) -> None:
    for service in spec(read(file)).services:
        held = {mount.target for mount in service.mounts} | {one.target for one in service.tmpfs}
        assert held >= IMAGE_VOLUMES.get(service.image.rpartition(":")[0], set()), service.name


@each
def test_hooks_can_be_run(file: Path) -> None:
    template = read(file)
    config = check_config(template, minimal_config(template))
    config = with_ports(template, config, list(range(41000, 41000 + ports_wanted(template, config))))
    app = render(template, config, app_id="app_1", project="sample")
    for hook in (template.backup.before, template.backup.after):
        if hook is not None:
            assert render_hook(template, config, hook)
    by_name = {service.name: service for service in app.services}
    for service in app.services:
        if service.image.startswith(("postgres:", "mariadb:", "mysql:")):
            assert template.backup.before is not None, "a database is written out before its files are copied"
            if template.slug in STOPS_WRITING:
                assert template.backup.after is not None
                continue
            assert template.backup.before.service == service.name
            assert "/backup" in {mount.target for mount in by_name[service.name].mounts}
