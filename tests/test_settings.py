"""Where a setting may come from, what wins, and what is refused and how."""

import ipaddress
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar import settings as module
from quazzar.core.secret import Secret
from quazzar.settings import CATALOGUE, Settings, SettingsError, default_data_dir, load_settings

OPERATING = Path(__file__).parents[1] / "docs" / "operating.md"


@pytest.fixture(autouse=True)
def _no_system_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SYSTEM_CONFIG", tmp_path / "etc" / "quazzar.toml")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, environ)
    return [str(problem) for problem in caught.value.problems]


def test_nothing_given_gives_the_documented_defaults() -> None:
    settings = load_settings({}, {})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.server.data_dir == default_data_dir()
    assert settings.database.url is None
    assert settings.database.pool_size == 10
    assert (settings.auth.access_minutes, settings.auth.refresh_days) == (15, 30)
    assert settings.rate_limit.instance == "100/minute"
    assert settings.rate_limit.panel == "200/minute"
    assert settings.rate_limit.auth == "10/minute"
    assert settings.rate_limit.storage.reveal() == "memory"
    assert settings.runtime == module.Runtime(driver="docker", docker_host="/var/run/docker.sock")
    assert settings.runtime.docker_url == "unix:///var/run/docker.sock"
    assert list(settings.webhooks.retry_schedule) == [0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    assert settings.backup_roots == (settings.server.data_dir / "backups",)
    assert (settings.agent.host, settings.agent.port, settings.agent_public_host) == ("0.0.0.0", 8443, "0.0.0.0")
    assert settings.agent.heartbeat_seconds == 30
    assert settings.metrics.port is None
    assert settings.log == module.Log(level="info", format=None)
    assert settings.server.mode == "all"


def test_the_data_folder_is_the_users_own_unless_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/quazzar")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir() == tmp_path / "share" / "quazzar"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/not/allowed/by/the/specification")
    assert default_data_dir() == Path.home() / ".local" / "share" / "quazzar"


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    config = write(tmp_path / "q.toml", '[server]\nport = 1\nhost = "10.0.0.1"\nmode = "panel"\n')
    environ = {"QUAZZAR_SERVER_PORT": "2", "QUAZZAR_SERVER_HOST": "10.0.0.2"}
    settings = load_settings({"server.port": "3", "server.host": None}, environ, config)
    assert (settings.server.port, settings.server.host, settings.server.mode) == (3, "10.0.0.2", "panel")


def test_one_file_is_read_and_the_one_asked_for_first(tmp_path: Path) -> None:
    data = tmp_path / "data"
    flags = {"server.data_dir": str(data)}
    assert load_settings(flags, {}).server.port == 8080
    write(data / "quazzar.toml", "server.port = 1")
    assert load_settings(flags, {}).server.port == 1
    assert load_settings({}, {"QUAZZAR_SERVER_DATA_DIR": str(data)}).server.port == 1
    write(module.SYSTEM_CONFIG, "server.port = 2")
    assert load_settings(flags, {}).server.port == 2
    named = {"QUAZZAR_CONFIG": str(write(tmp_path / "named.toml", "server.port = 3"))}
    assert load_settings(flags, named).server.port == 3
    assert load_settings(flags, named, write(tmp_path / "flag.toml", "server.port = 4")).server.port == 4


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml can't be read: No such file"):
        load_settings({}, {}, tmp_path / "gone.toml")


def test_every_setting_can_be_given_in_each_way(tmp_path: Path) -> None:
    values = {
        "server.mode": "panel",
        "server.public_url": "https://panel.example.com",
        "server.allowed_hosts": "a.example.com, [::1],10.0.0.1",
        "server.trusted_proxies": "10.0.0.0/8,::1",
        "server.cors_origins": "https://a.example.com,http://localhost:3000",
        "database.url": "postgresql://u:p@db/quazzar?sslmode=require",
        "rate_limit.storage": "redis://:p@cache:6379/0",
        "webhooks.retry_schedule": "0,0.5,3",
        "smtp.from": ["Quazzar ", "quazzar@example.com>"][1].rstrip(">"),
        "metrics.port": "9100",
        "log.format": "json",
        "agent.public_addresses": "a.example.com:8443,10.0.0.1:8444,[::1]:8445",
        "panel.token": "qze_abc",
    }
    environ = {CATALOGUE[key].variable: value for key, value in values.items()}
    by_environment = load_settings({}, environ)
    lines = [f"{key} = {value!r}" for key, value in values.items() if key != "metrics.port"]
    toml = write(tmp_path / "q.toml", "\n".join([*lines, "metrics.port = 9100"]))
    assert load_settings({}, {}, toml) == by_environment == load_settings(values, {})
    assert by_environment.server.allowed_hosts == ("a.example.com", "[::1]", "10.0.0.1")
    assert by_environment.server.trusted_proxies == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1/128"),
    )
    assert by_environment.smtp.sender == "quazzar@example.com"
    assert list(by_environment.webhooks.retry_schedule) == [0, 0.5, 3]
    assert by_environment.agent_public_host == "panel.example.com"


def test_a_relative_data_folder_is_taken_from_where_the_person_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({"server.data_dir": ".data"}, {}).server.data_dir == tmp_path / ".data"
    assert problems(QUAZZAR_SERVER_DATA_DIR=".data") == [
        "server.data_dir (QUAZZAR_SERVER_DATA_DIR) must be absolute paths"
    ]


def test_docker_host_is_only_a_default(tmp_path: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://10.0.0.1:2375"}
    assert load_settings({}, environ).runtime.docker_url == "tcp://10.0.0.1:2375"
    config = write(tmp_path / "q.toml", 'runtime.docker_host = "/run/a.sock"')
    assert load_settings({}, environ, config).runtime.docker_url == "unix:///run/a.sock"
    environ["QUAZZAR_RUNTIME_DOCKER_HOST"] = "unix:///run/b.sock"
    assert load_settings({}, environ, config).runtime.docker_url == "unix:///run/b.sock"


def test_all_problems_are_told_at_once_with_a_hint_and_without_a_value(tmp_path: Path) -> None:
    config = write(
        tmp_path / "q.toml",
        "typo = 1\n[server]\nprot = 'canary'\nport = 'canary'\n[databse]\nurl = 'canary'\n"
        "[database]\nurl = 'mysql://canary'\n[rate_limit]\nauth = 'canary'\n",
    )
    environ = {
        "QUAZZAR_SERVER_MODE": "canary",
        "QUAZZAR_AUTH_ACESS_MINUTES": "canary",
        "QUAZZAR_DATABASE_POOL_SIZE": "-1",
    }
    with pytest.raises(SettingsError) as caught:
        load_settings({"server.host": "can ary"}, environ, config)
    assert [str(problem) for problem in caught.value.problems] == [
        "typo (q.toml) is not a setting",
        "server.prot (q.toml) is not a setting; did you mean server.port?",
        "server.port (q.toml) must be a whole number from 0 to 65535",
        "databse.url (q.toml) is not a setting; did you mean database.url?",
        "database.url (q.toml) must begin with postgresql://",
        "rate_limit.auth (q.toml) must be a limit such as 100/minute",
        "QUAZZAR_AUTH_ACESS_MINUTES (environment) is not a setting; did you mean QUAZZAR_AUTH_ACCESS_MINUTES?",
        "database.pool_size (QUAZZAR_DATABASE_POOL_SIZE) must be a whole number from 2 to 1000",
        "server.mode (QUAZZAR_SERVER_MODE) must be instance, panel or all",
        "server.host (--host) must be an IP address or a host name",
    ]
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.port", "65536"),
        ("server.port", "1e3"),
        ("server.port", "٣"),
        ("server.host", "http://x"),
        ("server.public_url", "ftp://x"),
        ("server.public_url", "https://user:canary@x"),
        ("server.public_url", "https://x?token=canary"),
        ("server.public_url", "https://[::1"),
        ("server.allowed_hosts", "https://x"),
        ("server.allowed_hosts", "*"),
        ("server.trusted_proxies", "10.0.0.1/8"),
        ("server.trusted_proxies", "everyone"),
        ("server.cors_origins", "*"),
        ("server.cors_origins", "https://x/path"),
        ("database.url", ""),
        ("database.url", "postgresql://db:port/x"),
        ("database.url", "postgresql://db"),
        ("auth.access_minutes", "0"),
        ("rate_limit.auth", "0/minute"),
        ("rate_limit.auth", "10/minute;5/second"),
        ("rate_limit.storage", "memcached://x"),
        ("rate_limit.storage", "redis://"),
        ("runtime.driver", "podman"),
        ("runtime.docker_host", "ssh://x"),
        ("webhooks.retry_schedule", "1,two"),
        ("webhooks.retry_schedule", ""),
        ("webhooks.retry_schedule", "-1"),
        ("backups.local_roots", "relative"),
        ("agent.heartbeat_seconds", "0"),
        ("agent.public_addresses", "panel.example.com"),
        ("agent.public_addresses", "https://panel.example.com:8443"),
        ("agent.public_addresses", "panel.example.com:8443/x"),
        ("agent.public_addresses", "panel.example.com:port"),
        ("agent.public_addresses", ",".join(f"10.0.0.{n}:8443" for n in range(33))),
        ("panel.token", "canary"),
        ("smtp.from", "nobody"),
        ("smtp.from", "a@example.com, b@example.com"),
        ("smtp.from", "Quazzar <a@example.com"),
        ("smtp.tls", "maybe"),
        ("metrics.port", "x"),
        ("log.level", "trace"),
        ("server.host", "a\nb"),
    ],
)
def test_values_that_are_refused(key: str, value: str) -> None:
    (problem,) = problems(**{CATALOGUE[key].variable: value})
    assert problem.startswith(f"{key} (QUAZZAR_")
    assert "canary" not in problem


def test_off_takes_the_metrics_port_away(tmp_path: Path) -> None:
    config = write(tmp_path / "q.toml", "metrics.port = 9100")
    assert load_settings({}, {"QUAZZAR_METRICS_PORT": "off"}, config).metrics.port is None


@pytest.mark.parametrize("name", ["QUAZZAR_SERVICE_HOST", "QUAZZAR_PORT", "QUAZZAR_PORT_8080_TCP_ADDR"])
def test_what_kubernetes_puts_there_by_itself_is_no_setting(name: str) -> None:
    assert load_settings({}, {name: "tcp://10.0.0.1:8080"}).server.port == 8080


class TestSecretFiles:
    def test_a_secret_may_be_read_from_a_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "password", "  canary\n")
        assert load_settings({}, {"QUAZZAR_SMTP_PASSWORD_FILE": str(path)}).smtp.password == Secret("canary")
        config = write(tmp_path / "q.toml", f'[smtp]\npassword_file = "{path}"', 0o644)
        assert load_settings({}, {}, config).smtp.password == Secret("canary")

    def test_a_flag_names_the_file_and_not_the_secret(self, tmp_path: Path) -> None:
        path = write(tmp_path / "token", "qze_canary\n")
        assert load_settings({"panel.token_file": str(path)}, {}).panel.token == Secret("qze_canary")
        assert load_settings({"panel.token_file": None}, {}).panel.token is None
        environ = {"QUAZZAR_PANEL_TOKEN": "qze_other"}
        assert load_settings({"panel.token_file": str(path)}, environ).panel.token == Secret("qze_canary")
        with pytest.raises(SettingsError) as caught:
            load_settings({"panel.token_file": str(write(tmp_path / "wrong", "canary"))}, {})
        assert str(caught.value) == "panel.token (--panel-token-file) must be a token that begins with qze_"
        path.chmod(0o644)
        with pytest.raises(SettingsError, match="is in a file that others can read"):
            load_settings({"panel.token_file": str(path)}, {})

    def test_only_a_secret_may_be(self, tmp_path: Path) -> None:
        assert problems(QUAZZAR_SERVER_PORT_FILE="/x")[0].startswith("QUAZZAR_SERVER_PORT_FILE (environment) is not a")

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
    def test_not_from_one_that_others_can_read(self, tmp_path: Path, mode: int) -> None:
        path = write(tmp_path / "key", "canary", mode)
        variable = "QUAZZAR_AUTH_SECRET_KEY_FILE"
        assert problems(**{variable: str(path)}) == [
            f"auth.secret_key ({variable}) is in a file that others can read; set its mode to 0600 or 0400"
        ]

    def test_not_in_a_settings_file_that_everybody_can_read(self, tmp_path: Path) -> None:
        config = write(tmp_path / "q.toml", '[smtp]\npassword = "canary"', 0o644)
        with pytest.raises(SettingsError) as caught:
            load_settings({}, {}, config)
        assert str(caught.value) == "smtp.password (q.toml) stands in a file that others can read; set its mode to 0600"
        config.chmod(0o640)
        assert load_settings({}, {}, config).smtp.password == Secret("canary")

    def test_a_file_that_can_not_be_read_is_a_sentence(self, tmp_path: Path) -> None:
        variable = "QUAZZAR_DATABASE_URL_FILE"
        assert problems(**{variable: str(tmp_path / "gone")}) == [
            f"database.url ({variable}) can't be read from its file: No such file or directory"
        ]
        assert "Is a directory" in problems(**{variable: str(tmp_path)})[0]
        (tmp_path / "bad").write_bytes(b"\xff\xfe")
        (tmp_path / "bad").chmod(0o600)
        assert "not UTF-8" in problems(**{variable: str(tmp_path / "bad")})[0]
        assert "more than 64 KiB" in problems(**{variable: str(write(tmp_path / "big", "x" * 70_000))})[0]
        assert "is empty" in problems(**{variable: str(write(tmp_path / "empty", "\n"))})[0]

    def test_given_twice_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "password", "canary")
        (problem,) = problems(QUAZZAR_SMTP_PASSWORD="canary", QUAZZAR_SMTP_PASSWORD_FILE=str(path))
        both = "QUAZZAR_SMTP_PASSWORD and QUAZZAR_SMTP_PASSWORD_FILE"
        assert problem == f"smtp.password (environment) is given twice; keep one of {both}"


def test_broken_toml_is_told_by_its_place_only(tmp_path: Path) -> None:
    config = write(tmp_path / "q.toml", "[smtp]\npassword = canary\n")
    with pytest.raises(SettingsError, match=r"q\.toml is not valid TOML at line 2, column 12$"):
        load_settings({}, {}, config)
    config.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        load_settings({}, {}, config)


def test_no_secret_is_printed_with_the_settings() -> None:
    environ = {
        "QUAZZAR_DATABASE_URL": "postgresql://u:canary@db/q",
        "QUAZZAR_AUTH_SECRET_KEY": "canary",
        "QUAZZAR_SMTP_PASSWORD": "canary",
        "QUAZZAR_RATE_LIMIT_STORAGE": "redis://:canary@cache/0",
    }
    settings = load_settings({}, environ)
    assert "canary" not in f"{settings!r} {settings} {settings.database}"
    assert settings.database.url is not None
    assert settings.database.url.reveal() == "postgresql://u:canary@db/q"


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        load_settings({}, {}).server.port = 1  # type: ignore[misc]


KEYS = st.sampled_from(
    [setting.variable for setting in CATALOGUE.values()] + ["QUAZZAR_X", "QUAZZAR_SMTP_PASSWORD_FILE"]
)


@given(st.dictionaries(KEYS, st.text(st.characters(exclude_characters="\0"), max_size=30), max_size=4))
def test_whatever_the_environment_holds_it_is_settings_or_sentences(environ: dict[str, str]) -> None:
    try:
        assert isinstance(load_settings({}, environ), Settings)
    except SettingsError as error:
        assert error.problems
        assert all(problem.reason.isprintable() for problem in error.problems)


def test_every_setting_is_documented_exactly_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (.*) \|$", OPERATING.read_text(), re.MULTILINE))
    expected = {setting.key: f"{setting.default or '-'} | {setting.meaning}" for setting in CATALOGUE.values()}
    assert rows == expected, "update the table in docs/operating.md"


def test_every_setting_says_what_it_means() -> None:
    for setting in CATALOGUE.values():
        assert setting.meaning.endswith("."), setting.key
        assert msgspec.json.encode(setting.default)


def test_settings_are_read_quickly_and_without_the_rest_of_the_program() -> None:
    code = (
        "import sys; from quazzar.settings import load_settings; load_settings({}, {});"
        "print([name for name in sys.modules if name.split('.')[0] in ('litestar', 'sqlalchemy', 'limits', 'aiohttp')])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
