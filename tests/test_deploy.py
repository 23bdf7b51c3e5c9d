"""What is shipped for servers: can it be read, and does it fit the rest."""

import configparser
import ipaddress
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quazzar.settings import CATALOGUE
from tests import components

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("script", ["install.sh", "venv.sh"])
def test_scripts_are_plain_sh(script: str) -> None:
    for shell in filter(shutil.which, ("sh", "dash", "busybox")):
        command = [shell, "sh"] if shell == "busybox" else [shell]
        assert run(*command, "-n", DEPLOY / script).stderr == ""
    if shutil.which("shellcheck"):
        assert run("shellcheck", "--shell=sh", DEPLOY / script).stdout == ""
    text = (DEPLOY / script).read_text()
    assert text.startswith("#!/bin/sh\n")
    assert re.search(r"^set -eu$", text, re.MULTILINE)
    # What a POSIX shell does not have.
    assert not re.search(r"\[\[|^\s*local |^\s*function |<<<|\$'|&>|\barray\b", text, re.MULTILINE)


def test_install_says_what_it_does_not_understand() -> None:
    assert run("sh", DEPLOY / "install.sh", "--bogus").stderr == "install.sh: unknown flag: --bogus (see --help)\n"
    assert run("sh", DEPLOY / "install.sh", "--mode").stderr == "install.sh: --mode needs a value\n"
    assert run("sh", DEPLOY / "install.sh", "--mode", "x").stderr == "install.sh: --mode must be instance or panel\n"
    assert "--uninstall" in run("sh", DEPLOY / "install.sh", "--help").stdout


def test_install_wants_a_checkout(tmp_path: Path) -> None:
    result = run("sh", DEPLOY / "install.sh", "--root", tmp_path / "root", "--source", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"install.sh: {tmp_path} is not a checkout of Quazzar: quazzar/__main__.py is missing\n"
    assert not (tmp_path / "root").exists()


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_install_again_and_uninstall(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for mode in ("instance", "panel"):
        result = run("sh", DEPLOY / "install.sh", "--root", root, "--mode", mode)
        assert result.returncode == 0, result.stderr
    assert {path.name for path in (root / "opt/quazzar").iterdir()} == {"app", "venv"}
    assert {path.name for path in (root / "etc/systemd/system").iterdir()} == {unit.name for unit in UNITS}
    python = root / "opt/quazzar/venv/bin/python"
    version = subprocess.run(
        [python, "-P", "-m", "quazzar", "--version"],
        env={"PYTHONPATH": str(root / "opt/quazzar/app")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.startswith("quazzar ")
    command = (root / "usr/local/bin/quazzar").read_text()
    for there, here in (
        ("/etc/quazzar/", f"{root}/etc/quazzar/"),
        ("/opt/quazzar/venv/bin/python -P -m quazzar", "env"),
        ("runuser -u quazzar --", "env"),
    ):
        assert there in command
        command = command.replace(there, here)
    url = "postgresql://quazzar:a'b$c=d@db/quazzar?x="
    (root / "etc/quazzar/panel.environment").write_text(
        f'# ours\nQUAZZAR_DATABASE_URL="{url}"\n\nQUAZZAR_LOG_LEVEL=error\n'
        "no setting\nQUAZZAR_ALONE\n2X=3\nQUAZZAR_AUTH_SECRET_KEY=aB+/="
    )
    told = subprocess.run(
        ["sh", "-c", command], env={"QUAZZAR_LOG_LEVEL": "debug"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {f"QUAZZAR_DATABASE_URL={url}", "QUAZZAR_AUTH_SECRET_KEY=aB+/=", "QUAZZAR_LOG_LEVEL=debug"} < set(told)
    assert not [line for line in told if line.startswith(("QUAZZAR_ALONE", "2X"))], "systemd passes them over as well"
    assert {"QUAZZAR_SERVER_MODE=panel", "QUAZZAR_SERVER_DATA_DIR=/var/lib/quazzar-panel"} < set(told)
    (root / "etc/quazzar/panel.environment").unlink()
    (root / "var/lib/quazzar").mkdir(parents=True)
    (root / "etc/quazzar/quazzar.toml").write_text("")
    assert run("sh", DEPLOY / "install.sh", "--root", root, "--uninstall").returncode == 0
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"etc/quazzar/quazzar.toml"}
    assert (root / "var/lib/quazzar").is_dir()


def test_venv_says_in_a_sentence_what_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\n[ \"$1\" != -V ] && exit 1\necho 'Python 3.9.2'\n")
    old.chmod(0o755)
    lock = ROOT / "requirements-uv.lock"
    assert run("sh", DEPLOY / "venv.sh", old, tmp_path / "venv", lock).stderr == (
        f"quazzar: {old} is Python 3.9.2, Quazzar needs Python 3.11 or newer (give another by PYTHON=…)\n"
    )
    assert "is not installed" in run("sh", DEPLOY / "venv.sh", "no-python", tmp_path / "venv", lock).stderr


def test_venv_gives_the_hint_where_debian_left_ensurepip_out(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text("#!/bin/sh\ncase $2 in *ensurepip*|pip|venv) exit 1;; esac\nexit 0\n")
    bare.chmod(0o755)
    result = run("sh", DEPLOY / "venv.sh", bare, tmp_path / "venv", ROOT / "requirements-uv.lock")
    assert result.returncode == 1
    assert result.stderr == (
        "quazzar: Python's venv module is incomplete here; install it with: apt-get install python3-venv\n"
    )


def environment_names(text: str) -> set[str]:
    return set(re.findall(r"\bQUAZZAR_[A-Z_]+", text))


@pytest.mark.parametrize(
    "name",
    ["Dockerfile", "compose.yaml", "compose.panel.yaml", "quazzar-instance.service", "quazzar-panel.service"],
)
def test_only_settings_that_exist_are_set(name: str) -> None:
    known = {setting.variable for setting in CATALOGUE.values()}
    secrets = {f"{setting.variable}_FILE" for setting in CATALOGUE.values() if setting.secret}
    assert environment_names((DEPLOY / name).read_text()) <= known | secrets


class TestUnits:
    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
    def test_run_our_command_without_rights(self, unit: Path) -> None:
        parsed = configparser.RawConfigParser(strict=False)
        parsed.optionxform = str  # type: ignore[assignment,method-assign]
        parsed.read(unit)
        service = parsed["Service"]
        assert service["User"] == "quazzar"
        assert shlex.split(service["ExecStart"])[:3] == ["/opt/quazzar/venv/bin/python", "-m", "quazzar"]
        assert service["NoNewPrivileges"] == "yes"
        assert service["CapabilityBoundingSet"] == ""
        assert service["ProtectSystem"] == "strict"
        # The process ends within 25 s of SIGTERM by itself.
        assert int(service["TimeoutStopSec"]) > 25
        assert service["RestartPreventExitStatus"] == "2"

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here (apt: systemd)")
    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
    def test_systemd_understands_them(self, unit: Path) -> None:
        told = run("systemd-analyze", "verify", unit).stderr.splitlines()
        # The program is not installed where the test runs; anything else is a mistake.
        assert [line for line in told if "is not executable: No such file" not in line and unit.name in line] == []


class TestImage:
    LINES = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()

    def test_copies_what_is_there_and_is_let_through(self) -> None:
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        for line in self.LINES:
            if line.startswith("COPY ") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert (ROOT / source).exists(), source
                    assert source in allowed, source

    def test_is_not_root_and_tells_its_health(self) -> None:
        assert "USER quazzar" in self.LINES
        assert any(line.startswith("HEALTHCHECK") and "/api/health" in line for line in self.LINES)
        assert 'ENTRYPOINT ["python", "-m", "quazzar"]' in self.LINES


def undeclared(file: dict[str, Any]) -> list[str]:
    """What services of a compose file name and the file does not have."""
    missing = []
    for service in file["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith((".", "/")) else source in file["volumes"]
            missing += [] if there or source.startswith("/") else [source]
        named = [secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])]
        missing += [secret for secret in named if secret not in file["secrets"]]
        missing += [other for other in service.get("depends_on", ()) if other not in file["services"]]
        missing += [network for network in service.get("networks", ()) if network not in file["networks"]]
    return missing


class TestCompose:
    FILE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

    def test_services_are_ours_and_hardened(self) -> None:
        assert set(self.FILE["services"]) == {"instance", "panel", "migrate", "postgres"}
        for name in ("instance", "panel", "migrate"):
            service = self.FILE["services"][name]
            assert service["cap_drop"] == ["ALL"]
            assert "no-new-privileges:true" in service["security_opt"]
            assert service["read_only"] is True
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()

    def test_everything_that_is_named_is_declared(self) -> None:
        assert undeclared(self.FILE) == []

    def test_the_apis_are_published_on_loopback_only(self) -> None:
        published = [port for service in self.FILE["services"].values() for port in service.get("ports", [])]
        assert sorted(published) == ["127.0.0.1:8080:8080", "127.0.0.1:8081:8080", "8443:8443"]

    @pytest.mark.component("docker-compose")
    def test_compose_understands_it(self) -> None:
        assert (
            run(components.program("docker-compose"), "-f", DEPLOY / "compose.yaml", "config", "--quiet").stderr == ""
        )


class TestPanelCompose:
    """Three processes of one panel; that they work together is tested in tests/product/test_panel_cluster.py."""

    TEXT = (DEPLOY / "compose.panel.yaml").read_text()
    FILE: dict[str, Any] = yaml.safe_load(TEXT)
    PANELS = ("panel-1", "panel-2", "panel-3")

    def test_services_are_ours_and_hardened(self) -> None:
        services = self.FILE["services"]
        assert set(services) == {*self.PANELS, "migrate", "caddy", "postgres", "redis"}
        for name in (*self.PANELS, "migrate"):
            service = services[name]
            assert service["read_only"] is True
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for name in set(services) - {"postgres"}:
            assert services[name]["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in services[name]["security_opt"], name

    def test_everything_that_is_named_is_declared(self) -> None:
        assert undeclared(self.FILE) == []

    def test_the_processes_differ_in_what_instances_dial_and_in_nothing_else(self) -> None:
        addresses = None
        for name in self.PANELS:
            service = self.FILE["services"][name]
            environment = dict(service["environment"])
            port = environment.pop("QUAZZAR_AGENT_PORT")
            # Published as it is: registration tokens name the port that the process itself listens on.
            assert service["ports"] == [f"{port}:{port}"]
            told = environment["QUAZZAR_AGENT_PUBLIC_ADDRESSES"].split(",")
            assert f"${{PANEL_DOMAIN}}:{port}" in told
            assert addresses in (None, told)
            addresses = told
            # Its name is what Caddy asks for its health by, and so a name that it has to answer to.
            assert service["hostname"] == name
            rest = {key: value for key, value in service.items() if key not in ("environment", "ports", "hostname")}
            first = self.FILE["services"]["panel-1"]
            assert rest == {key: first[key] for key in rest}
        assert len(set(addresses or ())) == len(self.PANELS)

    def test_what_the_processes_share(self) -> None:
        environment = self.FILE["services"]["panel-1"]["environment"]
        assert environment["QUAZZAR_RATE_LIMIT_STORAGE"].startswith("redis://redis:")
        assert {secret["source"] for secret in self.FILE["services"]["panel-1"]["secrets"]} == {
            "database_url",
            "secret_key",
        }
        for variable in ("QUAZZAR_DATABASE_URL_FILE", "QUAZZAR_AUTH_SECRET_KEY_FILE"):
            assert environment[variable].removeprefix("/run/secrets/") in self.FILE["secrets"]

    def test_forwarded_addresses_are_believed_of_caddy_alone(self) -> None:
        caddy = self.FILE["services"]["caddy"]
        address = caddy["networks"]["inside"]["ipv4_address"]
        assert self.FILE["services"]["panel-1"]["environment"]["QUAZZAR_SERVER_TRUSTED_PROXIES"] == address
        (network,) = self.FILE["networks"]["inside"]["ipam"]["config"]
        assert ipaddress.ip_address(address) in ipaddress.ip_network(network["subnet"])
        assert caddy["environment"]["PANEL_UPSTREAMS"].split() == [f"{name}:8080" for name in self.PANELS]

    def test_what_is_published(self) -> None:
        published = [port for service in self.FILE["services"].values() for port in service.get("ports", [])]
        assert sorted(published) == ["443:443", "80:80", "8443:8443", "8444:8444", "8445:8445"]

    @pytest.mark.component("caddy")
    def test_caddy_understands_its_file(self) -> None:
        components.require("caddy")
        caddy = components.program("caddy")
        site = {"PANEL_SITE": "panel.example.com", "PANEL_UPSTREAMS": "panel-1:8080 panel-2:8080 panel-3:8080"}
        file = DEPLOY / "panel.Caddyfile"
        command = [caddy, "validate", "--adapter", "caddyfile", "--config", str(file)]
        done = subprocess.run(command, env=os.environ | site, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "not formatted" not in done.stderr
        assert set(re.findall(r"\{\$(\w+)\}", file.read_text())) == set(site)
        assert set(self.FILE["services"]["caddy"]["environment"]) == set(site)

    @pytest.mark.component("docker-compose")
    def test_compose_understands_it(self) -> None:
        command = [components.program("docker-compose"), "-f", str(DEPLOY / "compose.panel.yaml"), "config", "--quiet"]
        environment = os.environ | {"PANEL_DOMAIN": "panel.example.com"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr == ""
