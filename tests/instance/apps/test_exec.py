"""Terminals over a real server: who gets one, what passes through it, how it ends, and what is on record then."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from sqlalchemy import text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from quazzar.core.ids import new_id
from quazzar.instance.apps import exec as terminals_module
from quazzar.instance.apps.exec import Terminals
from quazzar.instance.apps.runtimes.memory_execution import MemoryExecution
from tests.conftest import RunningApp
from tests.core.servers import serving
from tests.factories.apps import (
    add_one,
    add_template,
    audited,
    engine_of,
    install,
    key_client,
    runtime_of,
    unique,
    web_file,
)


@pytest.fixture(scope="module")
async def port(app: RunningApp) -> AsyncIterator[int]:
    """The app behind a real server, in this event loop."""
    async with serving(app.asgi) as port:
        yield port


@pytest.fixture(scope="module")
async def made(admin: httpx.AsyncClient) -> dict[str, Any]:
    return await install(admin, await add_one(admin))


def terminal(port: int, app_id: str, client: httpx.AsyncClient | None, **query: Any) -> connect:
    headers = {"Authorization": client.headers["Authorization"]} if client is not None else {}
    url = f"ws://localhost:{port}/api/apps/{app_id}/exec?{urlencode(query, doseq=True)}"
    return connect(url, additional_headers=headers, compression=None)


async def started(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.recv(decode=True))
    assert message["type"] == "started"
    return message


async def rest(socket: ClientConnection) -> tuple[bytes, list[dict[str, Any]]]:
    """All output and all messages up to the end."""
    output, messages = b"", []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(20):
            while True:
                received = await socket.recv()
                if isinstance(received, bytes):
                    output += received
                else:
                    messages.append(json.loads(received))
    return output, messages


async def until_record(app: RunningApp, app_id: str, exec_id: str) -> dict[str, Any]:
    """What came of a terminal, as the audit log has it."""
    async with asyncio.timeout(20):
        while True:
            for action, _, after in await audited(app, app_id):
                if action == "app.exec_end" and after is not None and after["exec_id"] == exec_id:
                    return after
            await asyncio.sleep(0.02)


async def refused(attempt: connect) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        async with attempt:
            pass
    body = caught.value.response.body
    assert body is not None
    assert "x-request-id" in caught.value.response.headers
    return caught.value.response.status_code, json.loads(body)


def execution_of(app: RunningApp, exec_id: str) -> MemoryExecution:
    return engine_of(app).executions[exec_id]


async def rows_left(app: RunningApp, exec_id: str) -> int:
    """Of this command: those of the tests before may be about to go."""
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM app_execs WHERE id = :id")
        return int((await session.execute(query, {"id": exec_id})).scalar_one())


async def test_a_shell(app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any]) -> None:
    async with terminal(port, made["id"], admin, cols=100, rows=30) as socket:
        begun = await started(socket)
        assert (begun["service"], begun["tty"]) == ("web", True)
        await socket.send(b"size\n")
        await socket.send("echo as text\n")
        printed = b""
        while not printed.endswith(b"as text\n"):
            printed += await socket.recv(decode=False)
        await socket.send(json.dumps({"type": "resize", "cols": 50, "rows": 20}))
        await socket.send(b"size\nexit 3\n")
        output, messages = await rest(socket)
    assert printed + output == b"$ 30 100\nas text\n20 50\n"
    assert messages == [{"type": "exit", "exit_code": 3}]
    assert socket.close_code == 1000
    end = await until_record(app, made["id"], begun["exec_id"])
    start = {"exec_id": begun["exec_id"], "service": "web", "command": None, "tty": True}
    assert ("app.exec_start", "user", start) in await audited(app, made["id"])
    assert (end["reason"], end["exit_code"], end["ended"]) == ("exited", 3, True)
    assert (end["input_bytes"], end["output_bytes"]) == (
        len(b"size\necho as text\nsize\nexit 3\n"),
        len(printed + output),
    )


async def test_a_command_without_a_terminal(admin: httpx.AsyncClient, port: int, made: dict[str, Any]) -> None:
    async with terminal(port, made["id"], admin, service="web", command=["cat"], tty="false") as socket:
        await started(socket)
        await socket.send(b"one")
        assert await socket.recv() == b"\x01one"
        await socket.send(json.dumps({"type": "eof"}))
        assert (await rest(socket))[1] == [{"type": "exit", "exit_code": 0}]
    async with terminal(port, made["id"], admin, command=["sh"], tty="false") as socket:
        await started(socket)
        await socket.send(b"nonsense\nexit 127\n")
        assert (await rest(socket))[0] == b"\x01$ \x02sh: nonsense: not found\n"


async def test_a_browser_brings_its_token_as_a_subprotocol(
    admin: httpx.AsyncClient, port: int, made: dict[str, Any]
) -> None:
    token = admin.headers["Authorization"].removeprefix("Bearer ")
    url = f"ws://localhost:{port}/api/apps/{made['id']}/exec?command=true"
    offered: list[Any] = ["quazzar.exec", f"bearer.{token}"]
    async with connect(url, subprotocols=offered) as socket:
        assert socket.subprotocol == "quazzar.exec"
        await started(socket)
    status, body = await refused(connect(url, subprotocols=["quazzar.exec", "bearer.nonsense"]))  # type: ignore[list-item]
    assert (status, body["code"]) == (401, "unauthorized")
    status, _ = await refused(connect(f"{url}&token={token}&access_token={token}"))
    assert status == 401, "S-16: never from the URL"


@pytest.mark.parametrize(
    ("query", "status", "code", "fields"),
    [
        ({"service": "nope"}, 404, "service_not_found", set()),
        ({"service": "a" * 64}, 400, "invalid_parameter", {"service"}),
        ({"command": ["nope"]}, 409, "command_not_found", set()),
        ({"command": [""], "tty": "maybe", "cols": "0", "rows": "x"}, 400, "invalid_parameter",
         {"command", "tty", "cols", "rows"}),
        ({"command": ["x"] * 65}, 400, "invalid_parameter", {"command"}),
    ],
)  # fmt: skip
async def test_what_is_refused_before_the_upgrade(
    admin: httpx.AsyncClient,
    port: int,
    made: dict[str, Any],
    query: dict[str, Any],
    status: int,
    code: str,
    fields: set[str],
) -> None:
    answered, body = await refused(terminal(port, made["id"], admin, **query))
    assert (answered, body["code"]) == (status, code)
    assert body.get("details", {}).keys() == fields
    if code != "command_not_found":
        plain = await admin.get(f"/api/apps/{made['id']}/exec", params=query)
        assert (plain.status_code, plain.json()["code"]) == (status, code)


async def test_a_plain_get_is_told_what_to_do(admin: httpx.AsyncClient, made: dict[str, Any]) -> None:
    answer = await admin.get(f"/api/apps/{made['id']}/exec")
    assert (answer.status_code, answer.json()["code"]) == (426, "websocket_required")
    assert answer.headers["upgrade"] == "websocket"


async def test_s14_s15_who_gets_a_terminal(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any]
) -> None:
    assert (await refused(terminal(port, made["id"], None)))[0] == 401
    container = engine_of(app).container(made["id"], "web").id
    assert (await refused(terminal(port, made["id"], admin, service=container[:63])))[0] == 404
    assert (await refused(terminal(port, new_id("app"), admin)))[1]["code"] == "app_not_found"
    async with key_client(app, admin, ["apps:read", "apps:operate"]) as reader:
        assert (await refused(terminal(port, made["id"], reader)))[1]["code"] == "scope_missing"
        assert (await reader.get(f"/api/apps/{made['id']}/exec")).status_code == 403
    other = await install(admin, await add_one(admin))
    async with key_client(app, admin, ["apps:exec"], resources=[other["id"]]) as bound:
        assert (await refused(terminal(port, made["id"], bound)))[1]["code"] == "app_not_found"
        async with terminal(port, other["id"], bound, command=["true"]) as socket:
            await started(socket)


async def test_a_service_must_be_named_where_there_are_several(
    app: RunningApp, admin: httpx.AsyncClient, port: int
) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    two = await install(admin, slug, config={"admin_password": "correct horse battery"})
    status, body = await refused(terminal(port, two["id"], admin))
    assert (status, body["details"].keys()) == (400, {"service"})
    engine_of(app).stop_behind_our_back(two["id"], "db")
    assert (await refused(terminal(port, two["id"], admin, service="db")))[1]["code"] == "service_not_running"
    async with terminal(port, two["id"], admin, service="web") as socket:
        await started(socket)


async def ends(app: RunningApp, app_id: str, exec_id: str, reason: str) -> None:
    end = await until_record(app, app_id, exec_id)
    assert (end["reason"], end["ended"]) == (reason, True)
    assert not execution_of(app, exec_id).is_running, "the command is over as well"
    assert await rows_left(app, exec_id) == 0


@pytest.mark.parametrize("way", ["closed", "dropped"])
async def test_a_caller_who_leaves_ends_the_command(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any], way: str
) -> None:
    async with terminal(port, made["id"], admin) as socket:
        begun = await started(socket)
        if way == "dropped":
            socket.transport.abort()
    await ends(app, made["id"], begun["exec_id"], "disconnected")


async def test_a_revoked_credential_ends_the_terminal(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminals_module, "CHECK_SECONDS", 0.05)
    async with key_client(app, admin, ["apps:exec"]) as client:
        socket = await terminal(port, made["id"], client)
        begun = await started(socket)
    _, messages = await rest(socket)
    assert messages[-1]["code"] == "credential_ended"
    assert socket.close_code == 4401
    await ends(app, made["id"], begun["exec_id"], "credential_ended")


async def test_silence_ends_a_terminal(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.asgi.app.state.terminals, "idle_seconds", 0.2)
    async with terminal(port, made["id"], admin) as socket:
        begun = await started(socket)
        _, messages = await rest(socket)
    assert (messages[-1]["code"], socket.close_code) == ("idle", 4408)
    await ends(app, made["id"], begun["exec_id"], "idle")


async def test_there_is_a_limit(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.asgi.app.state.terminals, "_most", 1)
    async with terminal(port, made["id"], admin) as socket:
        begun = await started(socket)
        assert (await refused(terminal(port, made["id"], admin)))[1]["code"] == "too_many_terminals"
    await until_record(app, made["id"], begun["exec_id"])
    await wait_until(lambda: not app.asgi.app.state.terminals._open)
    async with terminal(port, made["id"], admin, command=["true"]) as socket:
        await started(socket)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("trouble", ["container", "engine"])
async def test_what_it_ran_in_goes_away(app: RunningApp, admin: httpx.AsyncClient, port: int, trouble: str) -> None:
    made = await install(admin, await add_one(admin))
    engine = engine_of(app)
    async with terminal(port, made["id"], admin) as socket:
        begun = await started(socket)
        if trouble == "container":
            engine.remove_behind_our_back(made["id"], "web")
        else:
            engine.go_down()
        _, messages = await rest(socket)
    end = await until_record(app, made["id"], begun["exec_id"])
    if trouble == "container":
        assert messages == [{"type": "exit", "exit_code": 137}]
        assert end["reason"] == "exited"
    else:
        assert (messages[-1]["code"], socket.close_code) == ("runtime_unavailable", 1011)
        assert (end["reason"], end["ended"]) == ("runtime_unavailable", False)
        assert await rows_left(app, begun["exec_id"]) == 1
        engine.come_back()
        await app.asgi.app.state.terminals.sweep()
        assert not execution_of(app, begun["exec_id"]).is_running, "ended once the engine is back"
        assert await rows_left(app, begun["exec_id"]) == 0


async def test_what_a_killed_process_left_is_ended_and_recorded(
    app: RunningApp, admin: httpx.AsyncClient, made: dict[str, Any]
) -> None:
    exec_id = new_id("exec")
    await runtime_of(app).execute(made["id"], "web", None, exec_id=exec_id)
    async with app.database.begin() as session:
        statement = text("INSERT INTO app_execs VALUES (:id, :app_id, 'web', 'usr_x')")
        await session.execute(statement, {"id": exec_id, "app_id": made["id"]})
    # The next process.
    assert await Terminals(app.database, runtime_of(app), most=1, idle_seconds=60).sweep()
    assert not execution_of(app, exec_id).is_running
    end = await until_record(app, made["id"], exec_id)
    assert (end["reason"], end["started_by"]) == ("interrupted", "usr_x")
    assert await rows_left(app, exec_id) == 0


async def test_wrong_messages_are_told_and_change_nothing(
    admin: httpx.AsyncClient, port: int, made: dict[str, Any]
) -> None:
    async with terminal(port, made["id"], admin, command=["cat"], tty="false") as socket:
        await started(socket)
        wrong: list[Any] = [
            {"type": "resize", "cols": 0, "rows": 1},
            {"type": "resize"},
            {"type": "kill"},
            {"type": 5},
            {"type": "eof", "x": 1},
        ]
        for message in wrong:
            await socket.send(json.dumps(message))
            told = json.loads(await socket.recv(decode=True))
            assert (told["type"], told["code"]) == ("error", "invalid_message")
        for message in ("{", "{}", '{"a": 1}', "{" * 5000):
            await socket.send(message)
            assert await socket.recv() == b"\x01" + message.encode()


async def test_output_waits_for_its_reader(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any]
) -> None:
    async with terminal(port, made["id"], admin, command=["yes"]) as socket:
        begun = await started(socket)
        terminals = app.asgi.app.state.terminals
        assert begun["exec_id"] in terminals._open
        socket.transport.pause_reading()
        execution = execution_of(app, begun["exec_id"])
        await wait_until(execution._output.full)
        socket.transport.resume_reading()
        received = 0
        async with asyncio.timeout(20):
            while received < 4_000_000:
                received += len(await socket.recv())
        await socket.close()
    end = await until_record(app, made["id"], begun["exec_id"])
    assert end["output_bytes"] >= 4_000_000


async def test_input_waits_for_the_command(
    app: RunningApp, admin: httpx.AsyncClient, port: int, made: dict[str, Any]
) -> None:
    """`yes` reads nothing: what is sent to it stays with the sender."""
    async with terminal(port, made["id"], admin, command=["yes"], tty="false") as socket:
        begun = await started(socket)
        sending = asyncio.create_task(send_much(socket))
        execution = execution_of(app, begun["exec_id"])
        await wait_until(execution._input.full)
        assert execution.input_bytes < 16 * 65536
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        socket.transport.abort()
        execution.end()
    await until_record(app, made["id"], begun["exec_id"])


async def send_much(socket: ClientConnection) -> None:
    while True:
        await socket.send(b"x" * 65536)
