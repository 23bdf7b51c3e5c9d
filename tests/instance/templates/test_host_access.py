"""What a template that an administrator trusts may have of the host, written out, and what not even that one may."""

import pytest

from quazzar.instance.apps.host_paths import DENIED, device_path, host_path, told
from quazzar.instance.apps.spec import AppSpec, BindSpec, DeviceSpec, HostSpec, ServiceSpec
from quazzar.instance.templates.compose import TemplateInvalid, check_config, parse_compose, parse_template
from quazzar.instance.templates.refusals import REFUSED_IN_SERVICE, TRUSTED_IN_SERVICE
from quazzar.instance.templates.rendering import render
from tests.instance.templates.writing import service_text

MEDIA = """\
privileged: true
pid: host
ipc: host
devices: [/dev/dri, "/dev/ttyUSB0:/dev/zigbee:rw"]
group_add: [video, 109]
sysctls: {net.core.somaxconn: 1024}
security_opt: ["seccomp:unconfined", no-new-privileges, "no-new-privileges:false"]
cap_add: [SYS_ADMIN]
volumes:
  - /srv/media:/media:ro
  - {type: bind, source: /srv/photos/, target: /photos, bind: {create_host_path: true}}
  - data:/data
"""


def trusted_service(keys: str, **config: object) -> ServiceSpec:
    tail = "volumes: {data: {}, d: {}}\n" if "data:/data" in keys else ""
    template = parse_template(
        service_text(keys, tail=tail, fields="{name: x, type: string, default: /srv/x}"), trusted=True
    )
    assert template.trusted
    spec: AppSpec = render(template, check_config(template, config), app_id="app_1", project="p")
    return spec.services[0]


def refused(keys: str, *, trusted: bool = True) -> dict[str, str]:
    text = service_text(keys, tail="volumes: {data: {}}\n", fields="{name: x, type: string, default: host}")
    with pytest.raises(TemplateInvalid) as caught:
        parse_template(text, trusted=trusted)
    return caught.value.details


def test_what_trust_gives() -> None:
    service = trusted_service(MEDIA)
    assert service.host == HostSpec(
        binds=(
            BindSpec(source="/srv/media", target="/media", read_only=True),
            BindSpec(source="/srv/photos", target="/photos"),
        ),
        devices=(
            DeviceSpec(source="/dev/dri", target="/dev/dri"),
            DeviceSpec(source="/dev/ttyUSB0", target="/dev/zigbee", permissions="rw"),
        ),
        groups=("video", "109"),
        privileged=True,
        pid=True,
        ipc=True,
        security_opts=("seccomp=unconfined", "no-new-privileges=false"),
        sysctls={"net.core.somaxconn": "1024"},
    )
    assert "SYS_ADMIN" in service.cap_add
    assert [mount.volume for mount in service.mounts] == ["data"]
    assert told("web", service.host)[:2] == [
        "web reads the folder /srv/media of the host as /media",
        "web has the folder /srv/photos of the host as /photos",
    ]
    assert len(told("web", service.host)) == 10


def test_the_host_s_network() -> None:
    service = trusted_service("network_mode: host\ncontainer_name: x")
    assert (service.host.network, service.networks) == (True, ())
    assert refused("network_mode: host\nports: [8080:80]").keys() == {"services.web.ports"}
    assert refused("network_mode: host\nnetworks: [default]").keys() == {"services.web.networks"}
    assert refused("network_mode: none").keys() == {"services.web.network_mode"}
    assert not trusted_service("network_mode: bridge").host.network


def test_without_trust_nothing_of_it_is_taken() -> None:
    details = refused(MEDIA, trusted=False)
    expected = {f"services.web.{key}" for key in TRUSTED_IN_SERVICE if key != "network_mode"}
    expected |= {"services.web.group_add", "services.web.security_opt.0", "services.web.security_opt.2"}
    expected |= {"services.web.cap_add.0", "services.web.volumes.0", "services.web.volumes.1.type"}
    assert details.keys() == expected
    for key in TRUSTED_IN_SERVICE:
        if key != "network_mode":
            assert details[f"services.web.{key}"].startswith(f"{key} is refused: {REFUSED_IN_SERVICE[key]}")


@pytest.mark.parametrize(
    "keys",
    [
        "volumes: ['${x}:/media']",
        "volumes: ['/srv/${x}:/media']",
        "volumes: [{type: bind, source: '/srv/${x}', target: /media}]",
        "devices: ['${x}']",
        "network_mode: ${x}",
        "pid: '${x:-host}'",
        "privileged: '${x}'",
        "security_opt: ['seccomp:${x}']",
        "sysctls: {net.x: '${x}'}",
        "sysctls: ['net.x=${x}']",
        "group_add: ['${x}']",
    ],
)
def test_no_field_says_what_of_the_host_an_app_has(keys: str) -> None:
    [said] = refused(keys).values()
    assert "written out" in said or "bind mounts are refused" in said or "is not declared" in said


@pytest.mark.parametrize(
    "keys",
    [
        "volumes: ['./media:/media']",
        "volumes: ['~/media:/media']",
        "volumes: ['/srv/../etc:/media']",
        "volumes: ['/srv//x:/media']",
        "volumes: ['/:/media']",
        "volumes: ['/etc:/media']",
        "volumes: ['/etc/passwd:/media:ro']",
        "volumes: ['/var:/media']",
        "volumes: ['/var/run/docker.sock:/s']",
        "volumes: ['/srv/docker.sock:/s']",
        "volumes: ['/srv/x:/proc/x']",
        "volumes: ['/srv/x:/a', '/srv/y:/a']",
        "volumes: ['/srv/x:/a:rshared']",
        "volumes: ['/srv/x']",
        "volumes: [{type: bind, source: /srv/x, target: /a, bind: {propagation: rshared}}]",
        "volumes: [{type: bind, source: /srv/x}]",
        "volumes: [{type: npipe, source: /srv/x, target: /a}]",
        "devices: [/etc/passwd]",
        "devices: ['/dev/../etc/passwd']",
        "devices: ['/dev/sda:/etc/x']",
        "devices: ['/dev/sda:/dev/sda:rx']",
        "pid: 'service:db'",
        "ipc: shareable",
        "group_add: ['a:b']",
        "security_opt: ['seccomp:/etc/x.json']",
        "sysctls: {'Net.x': 1}",
        "cap_add: [ALL]",
        "userns_mode: host",
        "env_file: .env",
        "volumes: ['data:/data']\nextends: {file: x}",
    ],
)
def test_not_even_trust_gives_it(keys: str) -> None:
    assert len(refused(keys)) == 1


@pytest.mark.parametrize("path", DENIED)
def test_no_folder_of_the_system_is_mounted(path: str) -> None:
    for one in (path, f"{path}/x", f"{path}/", path.rpartition("/")[0] or "/"):
        with pytest.raises(ValueError, match="must not be"):
            host_path(one)
    assert host_path(f"{path}-x") == f"{path}-x"


def test_folders_of_ours_are_denied_with_what_is_above_them() -> None:
    assert host_path("/srv/quazzar-media", denied=["/srv/quazzar"]) == "/srv/quazzar-media"
    for one in ("/srv/quazzar", "/srv/quazzar/x", "/srv"):
        with pytest.raises(ValueError, match="/srv/quazzar"):
            host_path(one, denied=["/srv/quazzar"])


@pytest.mark.parametrize("path", ["", "x", "/a:b", "/a\nb", "/a/./b", "/a/..", "//a", "/" + "a" * 1001])
def test_paths_have_one_form(path: str) -> None:
    with pytest.raises(ValueError, match="must"):
        host_path(path)
    with pytest.raises(ValueError, match="must"):
        device_path(path)


def test_an_import_may_be_trusted_too() -> None:
    text = "services: {a: {image: x, volumes: ['/srv/x:/x']}}"
    assert parse_compose(text, name="a", trusted=True).trusted
    with pytest.raises(TemplateInvalid):
        parse_compose(text, name="a")
