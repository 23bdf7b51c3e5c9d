"""Grammars of images, paths, hosts, labels and the like."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.templates import names

PARSERS: list[Callable[[str], str]] = [
    names.image_reference,
    names.container_path,
    names.mount_target,
    names.host_name,
    names.network_alias,
    names.host_address,
    names.environment_name,
    names.label_name,
    names.user_name,
    names.stop_signal,
    names.capability,
]
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "nginx",
        "nginx:1.27",
        "gitea/gitea:1.22.3",
        "docker.io/library/postgres:17",
        "localhost:5000/a/b",
        "a__b/c-d.e_f",
        "registry.example.com:443/team/app:v1.0_x",
        f"nginx@{DIGEST}",
        f"ghcr.io/a/b:1@{DIGEST}",
        "[::1]:5000/a",
        "EXAMPLE.com/a",
    ],
)
def test_images(text: str) -> None:
    assert names.image_reference(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x; id",
        "--privileged",
        "-v/:/h",
        "a b",
        "a\nb",
        "nginx:",
        "nginx:-x",
        "Nginx",
        "a//b",
        "/a",
        "a/",
        "a..b",
        "a_-b",
        "nginx@sha256:abc",
        f"nginx@{DIGEST}0",
        "$(id)",
        "a`id`",
        "a'b",
        "a:b:c",
        "http://a/b",
        "0" * 64,
        "a" * 256,
        "nginx:" + "x" * 129,
        "ä",
        "nginx:1.27\n",
        "nginx\x00",
    ],
)
def test_s02_what_is_no_image(text: str) -> None:
    with pytest.raises(ValueError, match="must be an image"):
        names.image_reference(text)


@pytest.mark.parametrize(("text", "path"), [("/data", "/data"), ("/a/b.c/", "/a/b.c"), ("/a b/ä", "/a b/ä")])
def test_mount_targets(text: str, path: str) -> None:
    assert names.mount_target(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "./data",
        "/",
        "//data",
        "/a//b",
        "/a/../b",
        "/..",
        "/a/.",
        "/a:b",
        "/a\nb",
        "/a\x00",
        "/proc",
        "/proc/1",
        "/sys/fs",
        "/dev",
        "/dev/shm",
        "C:\\x",
        "~/a",
        "/" + "a" * 1100,
    ],
)
def test_what_is_no_mount_target(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        names.mount_target(text)


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "::1", "192.168.1.5"])
def test_addresses(text: str) -> None:
    assert names.host_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "256.0.0.1", "224.0.0.1", "fe80::1%eth0", "1.2.3.4/8", "0x7f.1.1.1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="IP address"):
        names.host_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "io.quazzar.app",
        "IO.Quazzar.app",
        "com.docker.compose.project",
        "com.docker.swarm.service.id",
        "a b",
        "a=b",
        "",
        "a\n",
        "ä",
    ],
)
def test_labels_that_are_not_to_be_had(text: str) -> None:
    with pytest.raises(ValueError, match=r"reserved|must be named"):
        names.label_name(text)


@pytest.mark.parametrize(
    "text",
    ["traefik.http.routers.a.rule", "homepage.widget.fields[0]", "org.opencontainers.image.title", "com.example"],
)
def test_other_labels(text: str) -> None:
    assert names.label_name(text) == text


def test_signals_users_and_capabilities() -> None:
    assert names.stop_signal("sigterm") == names.stop_signal("TERM") == names.stop_signal("15") == "SIGTERM"
    assert names.stop_signal("SIGRTMIN+3") == "SIGRTMIN+3"
    assert names.capability("cap_net_raw") == "NET_RAW"
    assert [names.user_name(text) for text in ("1000", "1000:1000", "www-data", "a:b")]
    for parse, wrong in (
        (names.stop_signal, "SIGFOO"),
        (names.stop_signal, "99"),
        (names.capability, "ROOT"),
        (names.user_name, "-u"),
        (names.user_name, "a b"),
        (names.user_name, "a:b:c"),
        (names.host_name, "-a"),
        (names.host_name, "a_b"),
        (names.host_name, "a..b"),
        (names.environment_name, "1A"),
        (names.environment_name, "A B"),
        (names.environment_name, "A=B"),
        (names.network_alias, "a b"),
    ):
        with pytest.raises(ValueError, match="must"):
            parse(wrong)


@given(st.text(max_size=80) | st.text(alphabet="abA0:/.-_@[]\n ;$", max_size=60))
def test_any_text_is_taken_or_refused_without_being_repeated(text: str) -> None:
    for parse in PARSERS:
        try:
            found = parse(text)
        except ValueError as error:
            assert len(text) < 20 or text not in str(error)
        else:
            assert found.isprintable()
            assert not found.startswith("-") or parse is names.label_name
