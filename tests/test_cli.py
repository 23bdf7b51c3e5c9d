"""The command line: what is asked for, what is printed, and that every failure is one sentence and a code."""

import asyncio
import base64
import hashlib
import http.server
import io
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import psutil
import pytest
from argon2 import PasswordHasher

from quazzar import __version__
from quazzar.__main__ import main
from quazzar.cli import doctor
from quazzar.cli.arguments import parse
from quazzar.core.crypto import Keyring, parse_keys
from quazzar.core.ids import new_id
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.secret import Secret
from quazzar.settings import Auth, DatabaseSettings, Runtime, Server, Settings

ROOT = Path(__file__).parents[1]
Result: TypeAlias = subprocess.CompletedProcess[str]
STRONG = base64.b64encode(bytes(range(200, 232))).decode()


def quazzar(*arguments: str, environ: dict[str, str] | None = None, text: str = "") -> Result:
    """The real command in a process of its own, with nothing of ours in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("QUAZZAR_", "DOCKER_"))}
    return subprocess.run(
        [sys.executable, "-m", "quazzar", *arguments],
        cwd=ROOT,
        env=clean | (environ or {}),
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def only_sentence(result: Result) -> str:
    """What a failure said: exactly one line for a person, and no traceback anywhere."""
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("quazzar: ")]
    return line.removeprefix("quazzar: ")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("QUAZZAR_", "DOCKER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("quazzar.settings.SYSTEM_CONFIG", tmp_path / "none.toml")


class TestArguments:
    def test_serving_is_what_happens_without_a_command(self) -> None:
        assert parse([]).command == ("serve", "serve")
        assert parse(["--mode=panel", "--port", "9"]).settings().server == Server(mode="panel", port=9)

    @pytest.mark.parametrize("flags", [["--port=9", "migrate"], ["migrate", "--port=9"]])
    def test_flags_may_stand_before_and_after_the_command(self, flags: list[str]) -> None:
        arguments = parse(flags)
        assert arguments.command == ("serve", "migrate")
        assert arguments.settings().server.port == 9

    @pytest.mark.parametrize(
        ("typed", "says"),
        [
            (["--bogus"], "unrecognized arguments: --bogus"),
            (["migrate", "--po", "9"], "unrecognized arguments: --po 9"),
            (["frob"], "invalid choice: 'frob'"),
            (["admin"], "arguments are required: COMMAND"),
            (["--port"], "argument --port: expected one argument"),
        ],
    )
    def test_what_is_not_understood_is_one_line_and_code_2(
        self, typed: list[str], says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(typed)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
        assert line.startswith("quazzar: ")

    def test_no_flag_takes_a_secret(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ([], ["migrate"], ["admin", "reset-password"], ["keys", "rotate"], ["doctor"], ["openapi"]):
            with pytest.raises(SystemExit):
                main([*command, "--help"])
            flags = {word.strip("[],") for word in capsys.readouterr().out.split() if word.lstrip("[").startswith("--")}
            assert not [flag for flag in flags if any(part in flag for part in ("password", "secret", "key", "url"))]

    def test_version_and_help_come_fast(self) -> None:
        result = quazzar("--version")
        assert result.stdout == f"quazzar {__version__}\n"
        code = (
            "import sys; from quazzar.__main__ import main\n"
            "try: main(['--help'])\n"
            "finally: print([name for name in ('uvloop', 'litestar', 'sqlalchemy') if name in sys.modules])"
        )
        told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.stdout.splitlines()[-1] == "[]"


class TestSettingsErrors:
    @pytest.mark.parametrize("command", [[], ["migrate"], ["openapi"], ["keys", "rotate"]])
    def test_each_problem_is_a_line_and_the_code_is_2(
        self, command: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("QUAZZAR_SMPT_HOST", "canary")
        monkeypatch.setenv("QUAZZAR_DATABASE_URL", "canary")
        assert main([*command, "--port", "canary"]) == 2
        assert capsys.readouterr().err.splitlines() == [
            "quazzar: database.url (QUAZZAR_DATABASE_URL) must begin with postgresql://",
            "quazzar: QUAZZAR_SMPT_HOST (environment) is not a setting; did you mean QUAZZAR_SMTP_HOST?",
            "quazzar: server.port (--port) must be a whole number from 0 to 65535",
        ]

    def test_as_a_process_too(self) -> None:
        result = quazzar(environ={"QUAZZAR_SERVER_MODE": "canary"})
        assert result.returncode == 2
        assert only_sentence(result) == "server.mode (QUAZZAR_SERVER_MODE) must be instance, panel or all"


class TestStartProblems:
    """A start that can't be says so in one sentence, and nothing is left behind."""

    def test_the_data_folder_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        result = quazzar("--data-dir", str(tmp_path / "file" / "data"))
        assert result.returncode == 1
        assert only_sentence(result) == f"The data folder {tmp_path}/file/data can't be written: Not a directory"

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            (base64.b64encode(b"0123456789abcdef").decode(), "must be 32 random bytes"),
            ("0" * 64, "is too weak"),
        ],
    )
    def test_s17_a_weak_key_does_not_start(self, tmp_path: Path, key: str, says: str) -> None:
        result = quazzar("--data-dir", str(tmp_path), environ={"QUAZZAR_AUTH_SECRET_KEY": key})
        assert result.returncode == 1
        sentence = only_sentence(result)
        assert sentence.startswith("auth.secret_key ")
        assert says in sentence
        assert key not in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_key_file_that_others_can_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret.key").write_text(STRONG)
        (tmp_path / "secret.key").chmod(0o640)
        result = quazzar("--data-dir", str(tmp_path))
        assert result.returncode == 1
        assert only_sentence(result) == "secret.key can be read by others; set its mode to 0600"

    def test_a_database_that_is_not_there(self, tmp_path: Path) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"postgresql://u:canary@127.0.0.1:{unused.getsockname()[1]}/x"
            result = quazzar("--data-dir", str(tmp_path), environ={"QUAZZAR_DATABASE_URL": url})
        assert result.returncode == 1
        assert only_sentence(result) == "The database of database.url can't be reached: the connection was refused"
        assert "canary" not in result.stderr

    def test_an_error_of_our_own_is_a_sentence_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("token=canary")

        monkeypatch.setattr("quazzar.cli.keys.open_keyring", broken)
        assert main(["keys", "rotate", "--data-dir", str(tmp_path)]) == 1
        output = capsys.readouterr()
        assert output.err.splitlines()[-1].startswith("quazzar: stopped by an error of its own (RuntimeError: token=*")


class TestSignals:
    def test_sigterm_during_the_start_undoes_it(self, tmp_path: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("QUAZZAR_")}
        command = [sys.executable, "-m", "quazzar", "--port=0", f"--data-dir={tmp_path}"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not (tmp_path / "postgres").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.terminate()
            _, errors = process.communicate(timeout=40)
        assert process.returncode == 0
        assert "Traceback" not in errors
        mine = [found.info for found in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(found.info["cmdline"])]
        assert mine == []


class TestKeys:
    def test_rotation_puts_a_new_key_before_the_old(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "secret.key"
        sealed: list[bytes] = []
        for _ in range(3):
            assert main(["keys", "rotate", "--data-dir", str(tmp_path)]) == 0
            keyring = parse_keys(path.read_text())
            sealed.append(keyring.seal(b"x", context="c"))
            assert [keyring.open(old, context="c") for old in sealed] == [b"x"] * len(sealed)
            assert path.stat().st_mode & 0o777 == 0o600
            assert keyring.current in capsys.readouterr().out
        assert len(keyring.key_ids) == 4
        assert [entry.name for entry in tmp_path.iterdir()] == ["secret.key"]

    def test_a_key_from_a_setting_is_handed_over(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QUAZZAR_AUTH_SECRET_KEY", f"old:{STRONG}")
        assert main(["keys", "rotate", "--data-dir", str(tmp_path)]) == 0
        rotated = parse_keys(capsys.readouterr().out)
        assert rotated.key_ids[1:] == ("old",)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data"
    data.mkdir()
    return Settings(server=Server(data_dir=data, port=0), runtime=Runtime(driver="memory"))


class TestDoctor:
    def test_data_folder(self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert doctor.check_data_dir(settings).level == "ok"
        (tmp_path / "file").write_text("")
        inside = Settings(server=Server(data_dir=tmp_path / "file" / "x"))
        assert "is not a folder" in doctor.check_data_dir(inside).sentence
        absent = Settings(server=Server(data_dir=tmp_path / "a" / "b"))
        assert doctor.check_data_dir(absent) == doctor.Finding(
            "ok", "data", f"{tmp_path}/a/b will be made at the first start"
        )
        assert not (tmp_path / "a").exists()
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert doctor.check_data_dir(settings).level == "fail"

    @pytest.mark.parametrize(("free", "level"), [(10, "fail"), (500, "warn"), (5000, "ok")])
    def test_disk(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
        usage = type("Usage", (), {"free": free * 1024 * 1024})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        assert doctor.check_disk(settings).level == level

    def test_key(self, settings: Settings) -> None:
        assert "will be made" in doctor.check_key(settings).sentence
        path = settings.server.data_dir / "secret.key"
        path.write_text(Keyring({"k1": secrets.token_bytes(32)}).dump())
        path.chmod(0o600)
        assert doctor.check_key(settings) == doctor.Finding("ok", "key", "secret.key holds 1 strong key(s), current k1")
        path.chmod(0o644)
        assert doctor.check_key(settings).level == "fail"
        weak = Settings(server=settings.server, auth=Auth(secret_key=Secret("0" * 64)))
        assert "too weak" in doctor.check_key(weak).sentence

    async def test_embedded_database(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        found = await doctor.check_embedded(settings)
        assert (found.level, found.sentence) == ("ok", "embedded PostgreSQL 18; made at the first start")
        folder = settings.server.data_dir / "postgres"
        (folder / "99").mkdir(parents=True)
        assert "newer than this release" in (await doctor.check_embedded(settings)).sentence
        (folder / "99").rename(folder / "9")
        assert "can't upgrade" in (await doctor.check_embedded(settings)).sentence
        monkeypatch.setattr("quazzar.core.postgres.programs.installs", dict)
        assert "are missing" in (await doctor.check_embedded(settings)).sentence

    async def test_external_database(self, settings: Settings, database_urls: DatabaseUrls) -> None:
        def with_url(url: str) -> Settings:
            return Settings(server=settings.server, database=DatabaseSettings(url=Secret(url)))

        found = await doctor.check_external(with_url(database_urls.owner))
        assert found.level == "ok", found
        assert found.sentence.startswith("PostgreSQL 18, schema 0")
        gone = await doctor.check_external(with_url("postgresql://u:canary@127.0.0.1:1/x"))
        assert gone.level == "fail"
        assert "canary" not in gone.sentence

    async def test_engine(self, settings: Settings, tmp_path: Path) -> None:
        assert (await doctor.check_engine(settings)).level == "warn"
        absent = Settings(runtime=Runtime(docker_host=str(tmp_path / "docker.sock")))
        found = await doctor.check_engine(absent)
        assert found.level == "fail"
        assert found.sentence.startswith(f"no container engine answers at {tmp_path}/docker.sock; install Docker")

    @pytest.mark.parametrize(("api", "level"), [("1.41", "ok"), ("1.24", "fail")])
    async def test_engine_version(self, tmp_path: Path, api: str, level: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readuntil(b"\r\n\r\n"):
                body = json.dumps({"ApiVersion": api, "MinAPIVersion": "1.12", "Version": "20.10"}).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        path = tmp_path / "docker.sock"
        async with await asyncio.start_unix_server(swallow, path):
            found = await doctor.check_engine(Settings(runtime=Runtime(docker_host=str(path))))
        assert found.level == level

    def test_port(self, settings: Settings) -> None:
        assert [found.level for found in doctor.check_ports(settings)] == ["ok"]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            (found,) = doctor.check_ports(Settings(server=Server(port=port)))
        assert found.level == "fail"
        assert (
            found.sentence
            == f"127.0.0.1:{port} can't be listened on (Address already in use); set server.port to another"
        )
        (found,) = doctor.check_ports(Settings(server=Server(host="192.0.2.1")))
        assert found.level == "fail"
        (found,) = doctor.check_ports(Settings(server=Server(host="no-such-host.invalid")))
        assert "not known" in found.sentence

    def test_a_port_that_we_serve_ourselves_is_fine(self, running_quazzar: int) -> None:
        (found,) = doctor.check_ports(Settings(server=Server(port=running_quazzar)))
        assert found == doctor.Finding("ok", "port", f"127.0.0.1:{running_quazzar} is served by Quazzar already")

    def test_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_unsynchronised", lambda: False)
        assert doctor.check_clock().level == "ok"
        monkeypatch.setattr(doctor, "_unsynchronised", lambda: True)
        assert doctor.check_clock().level == "warn"
        monkeypatch.setattr(doctor, "_NOT_BEFORE", datetime(2999, 1, 1, tzinfo=UTC))
        assert doctor.check_clock().level == "fail"

    def test_open_files(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 2048))
        assert doctor.check_open_files(settings).level == "warn"
        monkeypatch.setattr("resource.getrlimit", lambda _: (65536, 65536))
        assert doctor.check_open_files(settings).level == "ok"

    def test_the_command_prints_a_line_per_check_and_fails_when_one_does(self, tmp_path: Path) -> None:
        environ = {"QUAZZAR_RUNTIME_DRIVER": "memory", "QUAZZAR_CONFIG": ""}
        good = quazzar("doctor", "--data-dir", str(tmp_path / "data"), "--port", "0", environ=environ)
        assert good.returncode == 0, good.stdout
        names = [line.split()[1] for line in good.stdout.splitlines()]
        assert names == ["settings", "data", "disk", "key", "database", "engine", "port", "files", "clock"]
        assert not (tmp_path / "data").exists()
        bad = quazzar("doctor", environ={"QUAZZAR_SERVER_PORT": "canary"})
        assert bad.returncode == 1
        assert bad.stdout.startswith("fail  settings   server.port (QUAZZAR_SERVER_PORT) must be")


@pytest.fixture
def running_quazzar() -> Iterator[int]:
    """A port on which something answers as our gate does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Request-Id", "req_0123456789")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


PASSWORD = "quartz weather balloon 7"


def parse_raw(keyring: Keyring) -> dict[str, bytes]:
    """The keys of a ring by their ids."""
    pairs = (pair.split(":") for pair in keyring.dump().split(","))
    return {key_id: base64.b64decode(key) for key_id, key in pairs}


class TestAdmin:
    """On a database that is migrated and in use by others, as on a running server."""

    @pytest.fixture
    async def connection(self, database_urls: DatabaseUrls) -> AsyncIterator["asyncpg.Connection[Any]"]:
        connection = await asyncpg.connect(database_urls.owner)
        yield connection
        await connection.execute("TRUNCATE users, instance_setup, tenants CASCADE")
        await connection.close()

    @pytest.fixture
    def run(
        self,
        database_urls: DatabaseUrls,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Callable[..., Awaitable[Result]]:
        """The command in a thread of this process, which has an event loop of its own there."""

        async def run(*arguments: str, text: str = PASSWORD + "\n") -> Result:
            monkeypatch.setenv("QUAZZAR_DATABASE_URL", database_urls.owner)
            monkeypatch.setattr("sys.stdin", io.StringIO(text))
            command = [*arguments, "--data-dir", str(tmp_path)]
            code = await asyncio.to_thread(main, command)
            output = capsys.readouterr()
            return subprocess.CompletedProcess(command, code, output.out, output.err)

        return run

    @staticmethod
    async def add_user(connection: "asyncpg.Connection[Any]", name: str, *, realm: str = "instance") -> str:
        """A user with a second factor and one session."""
        user_id, tenant_id, session_id = new_id("usr"), new_id("ten"), new_id("ses")
        column, role = ("username", "admin") if realm == "instance" else ("email", None)
        await connection.execute(
            f"INSERT INTO users (id, realm, {column}, role, password_hash, totp_secret, totp_enabled_at)"
            " VALUES ($1, $2, $3, $4, 'x', 'sealed', now())",
            user_id,
            realm,
            name,
            role,
        )
        async with connection.transaction():
            await connection.execute(
                "SELECT set_config('app.user', $1, true), set_config('app.tenant', $2, true)", user_id, tenant_id
            )
            if realm == "panel":
                await connection.execute("INSERT INTO tenants (id, name) VALUES ($1, 'T')", tenant_id)
                await connection.execute(
                    "INSERT INTO memberships (id, tenant_id, user_id, role) VALUES ($1, $2, $3, 'owner')",
                    new_id("mem"),
                    tenant_id,
                    user_id,
                )
            await connection.execute(
                "INSERT INTO sessions (id, realm, user_id, tenant_id, expires_at, ip, user_agent)"
                " VALUES ($1, $2, $3, $4, now() + interval '1 day', '::1', '')",
                session_id,
                realm,
                user_id,
                tenant_id if realm == "panel" else None,
            )
        return user_id

    @staticmethod
    async def state(connection: "asyncpg.Connection[Any]", user_id: str) -> tuple[bool, int, bool]:
        """Whether the password is the new one, how many sessions are left, whether the second factor is on."""
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.user', $1, true)", user_id)
            row = await connection.fetchrow(
                "SELECT password_hash, totp_enabled_at IS NOT NULL AS totp,"
                " (SELECT count(*) FROM sessions WHERE user_id = $1) AS sessions FROM users WHERE id = $1",
                user_id,
            )
        assert row is not None
        changed = row["password_hash"] != "x" and PasswordHasher().verify(row["password_hash"], PASSWORD)
        return changed, row["sessions"], row["totp"]

    async def test_the_only_admin_gets_in_again(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]]
    ) -> None:
        user_id = await self.add_user(connection, "ada")
        assert await self.state(connection, user_id) == (False, 1, True)
        result = await run("admin", "reset-password")
        assert result.stdout == "The password of ada is set, all of their sessions are ended\n", result.stderr
        assert await self.state(connection, user_id) == (True, 0, True)
        audited = await connection.fetchrow(
            "SELECT action, actor_kind, subject FROM audit_records ORDER BY number DESC"
        )
        assert tuple(audited or ()) == ("user.reset_password", "system", user_id)
        assert PASSWORD not in result.stdout + result.stderr

    async def test_the_second_factor_goes_only_when_told(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]]
    ) -> None:
        user_id = await self.add_user(connection, "ada")
        result = await run("admin", "reset-password", "--disable-totp")
        assert result.returncode == 0, result.stderr
        assert await self.state(connection, user_id) == (True, 0, False)

    async def test_one_of_several_must_be_named_and_the_others_stay(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]]
    ) -> None:
        ada, grace = await self.add_user(connection, "ada"), await self.add_user(connection, "grace")
        unnamed = await run("admin", "reset-password")
        assert (unnamed.returncode, only_sentence(unnamed)) == (2, "say whose password by --username")
        assert (await run("admin", "reset-password", "--username", "grace")).returncode == 0
        assert await self.state(connection, ada) == (False, 1, True)
        assert await self.state(connection, grace) == (True, 0, True)

    async def test_people_of_the_panel_by_their_address(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]]
    ) -> None:
        user_id = await self.add_user(connection, "ada@example.com", realm="panel")
        result = await run("admin", "reset-password", "--username", "ada@example.com")
        assert result.returncode == 0, result.stderr
        assert await self.state(connection, user_id) == (True, 0, True)

    async def test_a_link_for_who_forgot_their_password(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]]
    ) -> None:
        user_id = await self.add_user(connection, "ada@example.com", realm="panel")
        made = [await run("admin", "reset-link", "Ada@example.com") for _ in range(5)]
        for result in made:
            assert result.returncode == 0, result.stderr
            assert re.fullmatch(r"http://127\.0\.0\.1:8080/panel/reset-password#token=qzw_[\w-]{43}\n", result.stdout)
        digest = hashlib.sha256(made[0].stdout.strip().rpartition("=")[2].encode()).digest()
        row = await connection.fetchrow("SELECT user_id, purpose FROM mailed_tokens WHERE token_hash = $1", digest)
        assert tuple(row or ()) == (user_id, "reset_password")
        unknown = await run("admin", "reset-link", "nobody@example.com")
        assert (unknown.returncode, only_sentence(unknown)) == (1, "There is no such user")
        instance = await run("admin", "reset-link", "ada@example.com", "--mode=instance")
        assert instance.returncode == 2
        assert "reset-password" in only_sentence(instance)

    @pytest.mark.parametrize(
        ("name", "password", "says"),
        [
            ("nobody", PASSWORD, "There is no such user"),
            ("ada", "short", "Password must be at least 12 characters long"),
            ("ada", "passwordpassword", "This password is on the list of common ones"),
            ("ada", "", "Password must be at least 12 characters long"),
        ],
    )
    async def test_what_is_refused_changes_nothing(
        self,
        connection: "asyncpg.Connection[Any]",
        run: Callable[..., Awaitable[Result]],
        name: str,
        password: str,
        says: str,
    ) -> None:
        user_id = await self.add_user(connection, "ada")
        result = await run("admin", "reset-password", "--username", name, text=password)
        assert (result.returncode, only_sentence(result)) == (1, says)
        assert await self.state(connection, user_id) == (False, 1, True)

    async def test_a_new_setup_token_until_the_setup_is_done(
        self, connection: "asyncpg.Connection[Any]", run: Callable[..., Awaitable[Result]], tmp_path: Path
    ) -> None:
        path = tmp_path / "setup-token"
        first, second = await run("admin", "setup-token"), await run("admin", "setup-token")
        assert first.returncode == second.returncode == 0, first.stderr
        assert first.stdout != second.stdout == path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        await connection.execute("INSERT INTO instance_setup (id, user_id) VALUES (1, 'usr_x')")
        done = await run("admin", "setup-token")
        assert done.returncode == 1
        assert only_sentence(done).startswith("this instance is set up already")
        assert not path.exists()

    async def test_after_a_rotation_every_stored_secret_is_sealed_anew(
        self,
        connection: "asyncpg.Connection[Any]",
        run: Callable[..., Awaitable[Result]],
        tmp_path: Path,
    ) -> None:
        old = Keyring({"old": secrets.token_bytes(32)})
        both = Keyring({"new": secrets.token_bytes(32)} | parse_raw(old))
        user_id, app_id = await self.add_user(connection, "ada"), new_id("app")
        totp, secret = f"users.totp_secret:{user_id}", f"apps.secrets:{app_id}"
        await connection.execute("UPDATE users SET totp_secret = $1", old.seal(b"TOTP", context=totp))
        await connection.execute(
            "INSERT INTO apps (id, name, definition, secrets, status) VALUES ($1, 'a', '{}', $2, 'stopped')",
            app_id,
            old.seal(b"{}", context=secret),
        )
        registry_id = new_id("reg")
        login = f"registries.sealed:{registry_id}:r.example.com"
        await connection.execute(
            "INSERT INTO registries (id, host, username, sealed) VALUES ($1, 'r.example.com', 'bob', $2)",
            registry_id,
            old.seal(b"PASSWORD", context=login),
        )
        (tmp_path / "secret.key").touch(0o600)
        (tmp_path / "secret.key").write_text(both.dump())

        result = await run("keys", "reseal")
        assert result.stdout == "3 secrets are sealed with key new\n", result.stderr
        new_alone = Keyring({"new": parse_raw(both)["new"]})
        assert new_alone.open(await connection.fetchval("SELECT totp_secret FROM users"), context=totp) == b"TOTP"
        assert new_alone.open(await connection.fetchval("SELECT secrets FROM apps"), context=secret) == b"{}"
        assert new_alone.open(await connection.fetchval("SELECT sealed FROM registries"), context=login) == b"PASSWORD"

        (tmp_path / "secret.key").write_text(old.dump())
        lost = await run("keys", "reseal")
        assert (lost.returncode, lost.stdout) == (1, "")
        assert only_sentence(lost).startswith("A secret can't be opened with any key that is here; nothing was changed")
        await connection.execute("DELETE FROM apps; DELETE FROM registries")

    @pytest.mark.parametrize("command", [["admin", "reset-password"], ["admin", "setup-token"]])
    def test_where_there_is_no_quazzar_none_is_made(
        self, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*command, "--data-dir", str(tmp_path)]) == 1
        where = f"quazzar: There is no Quazzar in {tmp_path}; say by --data-dir where it keeps its data\n"
        assert capsys.readouterr().err == where
        assert list(tmp_path.iterdir()) == []

    def test_two_different_passwords_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
        answers = iter([PASSWORD, PASSWORD + "x"])
        monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
        assert main(["admin", "reset-password", "--username", "ada", "--data-dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "quazzar: the two passwords differ; nothing was changed\n"
