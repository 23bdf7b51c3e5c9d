"""The list of apps as FastAPI's tutorial puts it together: ORM, Pydantic, a JWT dependency, a limiter, middleware."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import OAuth2PasswordBearer
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from quazzar.core.db import sqlalchemy_url

KEY = "0123456789abcdef0123456789abcdef"


class Base(DeclarativeBase):
    pass


class Session(Base):
    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]


class App(Base):
    __tablename__ = "apps"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    template: Mapped[str | None]
    version: Mapped[str | None]
    status: Mapped[str]
    status_reason: Mapped[str | None]
    status_since: Mapped[dt.datetime]
    created_at: Mapped[dt.datetime]
    job_id: Mapped[str | None]
    ports: Mapped[list[Any]] = mapped_column(JSONB)
    urls: Mapped[list[Any]] = mapped_column(JSONB)
    update_available: Mapped[bool]


class Port(BaseModel):
    service: str
    container_port: int
    host_port: int
    protocol: str


class AppOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: str
    name: str
    template: str | None
    version: str | None
    status: str
    status_reason: str | None
    status_since: dt.datetime
    created_at: dt.datetime
    job_id: str | None
    ports: list[Port]
    urls: list[str]
    update_available: bool


def token(session_id: str) -> str:
    now = dt.datetime.now(dt.UTC)
    claims = {"sub": session_id, "iat": now, "exp": now + dt.timedelta(hours=1), "aud": "bench"}
    return jwt.encode(claims, KEY, algorithm="HS256")


def make_app(url: str) -> FastAPI:
    engine = create_async_engine(sqlalchemy_url(url), pool_size=10)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    limiter = FixedWindowRateLimiter(MemoryStorage())
    limit = parse("1000000/minute")
    bearer = OAuth2PasswordBearer(tokenUrl="token")
    app = FastAPI(openapi_url=None)

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as one:
            yield one

    async def caller(
        credential: Annotated[str, Depends(bearer)], database: Annotated[AsyncSession, Depends(session)]
    ) -> str:
        try:
            claims = jwt.decode(credential, KEY, algorithms=["HS256"], audience="bench")
        except jwt.PyJWTError as error:
            raise HTTPException(401) from error
        row = (await database.execute(select(Session).where(Session.id == claims["sub"]))).scalar_one_or_none()
        if row is None:
            raise HTTPException(401)
        return row.user_id

    @app.middleware("http")
    async def common(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        key = request.client.host if request.client else ""
        allowed = await limiter.hit(limit, key)
        stats = await limiter.get_window_stats(limit, key)
        response = await call_next(request) if allowed else Response(status_code=429)
        response.headers["X-RateLimit-Limit"] = str(limit.amount)
        response.headers["X-RateLimit-Remaining"] = str(stats.remaining)
        response.headers["X-RateLimit-Reset"] = str(int(stats.reset_time))
        response.headers["X-Request-Id"] = str(uuid.uuid4())
        return response

    @app.get("/api/apps")
    async def find_apps(
        database: Annotated[AsyncSession, Depends(session)], _: Annotated[str, Depends(caller)], limit: int = 50
    ) -> list[AppOut]:
        rows = (await database.execute(select(App).order_by(App.id.desc()).limit(limit))).scalars().all()
        return [AppOut.model_validate(row) for row in rows]

    return app
