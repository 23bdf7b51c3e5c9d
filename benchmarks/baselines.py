"""What the product is measured against, each served by the same uvicorn, uvloop and httptools as the product.

`python -m benchmarks.baselines NAME PORT` serves one of them; the database is in `BENCH_DATABASE_URL`.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import msgspec
import uvicorn

ME = {
    "id": "usr_3k2m4v7q3n5t2ac6xk2m4v7q3n",
    "username": "client-00001",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "totp_enabled": False,
    "last_login_at": "2026-01-31T12:00:00.000000Z",
    "scopes": ["*"],
}

Send = Callable[[dict[str, Any]], Awaitable[None]]


def litestar_me() -> Any:
    """A bare Litestar handler that returns the same JSON as `GET /api/auth/me`."""
    from litestar import Litestar, get  # noqa: PLC0415

    class Me(msgspec.Struct):
        id: str
        username: str
        created_at: str
        totp_enabled: bool
        last_login_at: str
        scopes: list[str]

    answer = msgspec.convert(ME, Me)

    @get("/api/auth/me")
    async def me() -> Me:
        return answer

    return Litestar([me], openapi_config=None)


def raw_apps() -> Any:
    """Raw ASGI: the query of the product's list on asyncpg, rows into structs, msgspec."""
    from benchmarks.data import apps_query  # noqa: PLC0415

    sql, arguments, row_type = apps_query()
    state: dict[str, Any] = {}
    encoder = msgspec.json.Encoder()

    async def init(connection: Any) -> None:
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(
                kind, encoder=str, decoder=lambda value: msgspec.Raw(value.encode()), schema="pg_catalog"
            )

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            state["pool"] = await asyncpg.create_pool(
                os.environ["BENCH_DATABASE_URL"], min_size=4, max_size=5, init=init
            )
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        async with state["pool"].acquire() as connection:
            rows = await connection.fetch(sql, *arguments)
        body = encoder.encode([row_type(*row) for row in rows])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def raw_instances() -> Any:
    """Raw ASGI: the query of the panel's list of instances on asyncpg, rows into structs, msgspec."""
    from benchmarks.data import instances_query  # noqa: PLC0415

    tenant_id = os.environ["BENCH_TENANT"]
    sql, arguments, row_type = instances_query(tenant_id)
    state: dict[str, Any] = {}
    encoder = msgspec.json.Encoder()

    async def init(connection: Any) -> None:
        await connection.execute("SELECT set_config('app.tenant', $1, false)", tenant_id)
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(
                kind, encoder=str, decoder=lambda value: msgspec.Raw(value.encode()), schema="pg_catalog"
            )

    async def reset(_: Any) -> None:
        return

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            state["pool"] = await asyncpg.create_pool(
                os.environ["BENCH_DATABASE_URL"], min_size=4, max_size=5, init=init, reset=reset
            )
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        async with state["pool"].acquire() as connection:
            rows = await connection.fetch(sql, *arguments)
        body = encoder.encode([row_type(*row) for row in rows])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def fastapi_apps() -> Any:
    """FastAPI as it is usually put together: ORM session, JWT dependency, limiter, response model."""
    from benchmarks.fastapi_app import make_app  # noqa: PLC0415

    return make_app(os.environ["BENCH_DATABASE_URL"])


def main() -> None:
    name, port = sys.argv[1], int(sys.argv[2])
    app = {
        "litestar-me": litestar_me,
        "raw-apps": raw_apps,
        "raw-instances": raw_instances,
        "fastapi-apps": fastapi_apps,
    }[name]()
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
