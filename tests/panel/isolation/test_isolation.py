"""The matrix (S-04 to S-07): every operation of the panel, both directions, by session and key, behind every wall."""

import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert

from quazzar.accounts import store
from quazzar.channels import service as channels
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.tokens import PANEL_ACCESS, Tokens
from quazzar.panel.alerts import rules
from quazzar.panel.alerts.models import AlertTurn
from quazzar.reference.routes import document_path
from quazzar.settings import Settings
from tests.conftest import running_app
from tests.factories.accounts import MadeUser, bearer, make_member
from tests.panel.isolation import domains
from tests.panel.isolation.matrix import ROWS, THINGS, Call, Row, Side, Variant, own_call, unknown_like, variants
from tests.panel.isolation.walls import Photograph, Wall, database_behind
from tests.test_architecture import operations

for module in pkgutil.iter_modules(domains.__path__):
    importlib.import_module(f"{domains.__name__}.{module.name}")

WALLS: list[Wall] = ["both", "stores", "rows"]
WITH_PLACES = [name for name, each in ROWS.items() if each.path or each.refs() or isinstance(each.body, dict)]
WITH_LISTS = [name for name, each in ROWS.items() if each.shows]
WORKING = [name for name, each in ROWS.items() if each.own is not None]
GUARDED_BY_TENANT = [
    name for name, each in ROWS.items() if (each.path or each.refs() or each.shows) and not each.of_user
]


class World:
    """A running panel behind one wall or two, with tenants that know nothing of each other."""

    def __init__(self, wall: Wall, database: Database, client: httpx.AsyncClient, keyring: Keyring) -> None:
        self.wall = wall
        self.database = database
        self.client = client
        self.tokens = Tokens(keyring)

    async def side(self) -> Side:
        user = await make_member(self.database)
        side = Side(self.database, self.client, user, await self.session_of(user))
        async with self.database.begin(tenant=side.tenant_id) as session:
            change = text("UPDATE tenants SET kind = 'msp' WHERE id = :id")
            await session.execute(change, {"id": side.tenant_id})
            # Nobody evaluates its alert rules meanwhile: what changes is what a call changes.
            values = {"tenant_id": side.tenant_id, "due_at": datetime.now(UTC) + timedelta(days=1)}
            keys = [AlertTurn.tenant_id]
            turn = insert(AlertTurn).values(values).on_conflict_do_update(index_elements=keys, set_=values)
            await session.execute(turn)
        body = {"name": "x", "permissions": ["*"]}
        made = await self.client.post("/panel/api/api-keys", json=body, headers=side.session)
        side.key = bearer(made.json()["key"])
        return side

    async def session_of(self, user: MadeUser) -> dict[str, str]:
        """As after a login, without the time that hashing takes."""
        session_id = new_id("ses")
        async with self.database.begin(tenant=user.tenant_id, user=user.id) as session:
            await store.add_session(
                session,
                "panel",
                id=session_id,
                user_id=user.id,
                tenant_id=user.tenant_id,
                expires_at=datetime.now(UTC) + timedelta(days=1),
                ip="127.0.0.1",
                user_agent="",
            )
        token = self.tokens.sign(
            PANEL_ACCESS, subject=user.id, session_id=session_id, seconds=900, tenant_id=user.tenant_id
        )
        return bearer(token)


@pytest.fixture(scope="module", params=WALLS)
async def world(
    request: pytest.FixtureRequest, settings: Settings, keyring: Keyring, database_urls: DatabaseUrls
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, request.param, settings, keyring, database_urls)


async def open_world(
    stack: AsyncExitStack, wall: Wall, settings: Settings, keyring: Keyring, urls: DatabaseUrls
) -> World:
    database = await stack.enter_async_context(database_behind(wall, urls))
    app = await stack.enter_async_context(running_app(settings, keyring, database))
    client = await stack.enter_async_context(app.client())
    return World(wall, database, client, keyring)


@pytest.fixture(scope="module")
async def sides(world: World) -> tuple[Side, Side]:
    return await world.side(), await world.side()


@pytest.fixture(scope="module")
async def strangers(world: World) -> tuple[Side, Side]:
    """Two that never asked for each other's ids, which their own audit logs would show: for lists."""
    return await world.side(), await world.side()


@pytest.fixture
async def control(world: World) -> Side:
    """For a call that works, so that what it makes and begins is nobody else's."""
    return await world.side()


@pytest.fixture(scope="module")
async def photograph(database_urls: DatabaseUrls) -> AsyncIterator[Photograph]:
    taken = Photograph(database_urls)
    yield taken
    await taken.close()


# --- the matrix is complete ---


def test_every_operation_has_a_row() -> None:
    assert ROWS.keys() == {name for name, _ in operations("panel")}


def test_every_thing_can_be_made_and_is_used() -> None:
    spoken_of = {name for each in ROWS.values() for name in each.things}
    assert spoken_of == THINGS.keys()


def test_every_place_of_an_id_in_a_body_or_query_is_known() -> None:
    """By the API's document: what is called `…_id`, or has the form of an id, and is none of a row's places."""
    document: dict[str, Any] = msgspec.json.decode(document_path("panel").read_bytes())
    forgotten = []
    for name, each in ROWS.items():
        operation = document["paths"].get(each.template, {}).get(each.method.lower())
        if operation is None:
            continue
        known = {next(key for key in reversed(place) if isinstance(key, str)) for place, _ in each.refs()}
        schemas = [content["schema"] for content in operation.get("requestBody", {}).get("content", {}).values()]
        asked = {field for schema in schemas for field in fields_of_ids(schema, document)}
        asked |= {
            parameter["name"]
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query" and parameter["name"] in {"group", "subject", "actor", "instance", "tenant"}
        }
        forgotten += [f"{name}: {field}" for field in asked - known]
    assert forgotten == []


RULE_PLACES = {
    "body.targets.instances.0",
    "body.targets.groups.0",
    "body.targets.groups.1",
    "body.channels.0",
    "body.channels.1",
}


def test_s06_s07_ids_in_bodies_stand_beside_own_ones() -> None:
    """Targets that are moved into, and lists of which one is foreign."""
    for name, places in {
        "PATCH /api/fleet/instances/{instance_id}": {"body.group_id"},
        "PATCH /api/fleet/groups/{group_id}": {"body.parent_id"},
        "POST /api/members": {"body.role", "body.scope.groups.0", "body.scope.groups.1", "body.scope.instances.0"},
        "POST /api/api-keys": {"body.resources.0", "body.resources.1"},
        "POST /api/fleet/commands": {
            *(f"body.targets.instances.{place}" for place in (0, 1)),
            *(f"body.targets.groups.{place}" for place in (0, 1)),
        },
        "POST /api/fleet/alert-rules": RULE_PLACES,
        "PATCH /api/fleet/alert-rules/{rule_id}": RULE_PLACES,
    }.items():
        assert {".".join(map(str, place)) for place, _ in ROWS[name].refs()} == places


def fields_of_ids(schema: dict[str, Any], document: dict[str, Any], name: str = "") -> Iterator[str]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if re.match(r"\^(\(\?:)?[a-z|]{2,20}\)?_", schema.get("pattern", "")) or name.endswith(("_id", "_ids")):
        yield name
        return
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from fields_of_ids(option, document, name)
    if "items" in schema:
        yield from fields_of_ids(schema["items"], document, name)
    for field, inner in schema.get("properties", {}).items():
        yield from fields_of_ids(inner, document, field)


# --- what it says ---


async def problems(
    each: Row, mine: Side, theirs: Side, photograph: Photograph, callers: Sequence[str] = ("session", "key")
) -> list[str]:
    """What one side can learn or do of the other by the operation."""
    found = []
    for caller in callers:
        headers: dict[str, str] = getattr(mine, caller)
        for variant in await variants(each, mine, theirs):
            before = [await photograph.take(side.tenant_id) for side in (mine, theirs)]
            foreign, unknown = await variant.foreign.send(mine, headers), await variant.unknown.send(mine, headers)
            after = [await photograph.take(side.tenant_id) for side in (mine, theirs)]
            found += [f"{caller}, {variant.place}: {each}" for each in compared(variant, foreign, unknown, caller)]
            if theirs_changed := before[1] ^ after[1]:
                found.append(f"{caller}, {variant.place}: changed theirs: {theirs_changed}")
            mine_changed = {one for one in before[0] ^ after[0] if one[0] != "audit_records"}
            if mine_changed:
                found.append(f"{caller}, {variant.place}: half made: {mine_changed}")
            found += seen(foreign, theirs, but=str(variant.foreign))
    return found


def compared(variant: Variant, foreign: httpx.Response, unknown: httpx.Response, caller: str) -> Iterator[str]:
    expected = {variant.status, 403} if caller == "key" else {variant.status}
    if foreign.status_code not in expected:
        yield f"{foreign.status_code} for a foreign id: {foreign.text[:300]}"
    if foreign.content != unknown.content or foreign.status_code != unknown.status_code:
        yield f"{foreign.text[:300]} for a foreign id, {unknown.text[:300]} for an unknown one"
    if plain(foreign) != plain(unknown):
        yield f"{plain(foreign)} for a foreign id, {plain(unknown)} for an unknown one"


def plain(answer: httpx.Response) -> dict[str, str]:
    counts = {"x-ratelimit-remaining", "x-ratelimit-reset"}
    return {name: value for name, value in answer.headers.items() if name not in counts}


def seen(answer: httpx.Response, theirs: Side, *, but: str = "") -> list[str]:
    return [f"shows {secret}" for secret in theirs.secrets if secret in answer.text and secret not in but]


@pytest.mark.parametrize("name", WITH_PLACES)
async def test_s04_what_is_anothers_is_as_if_it_were_not_there(
    world: World, sides: tuple[Side, Side], photograph: Photograph, name: str
) -> None:
    """Also where it stands in a body beside own things (S-06, S-07): then nothing of it happens."""
    ada, eve = sides
    # Behind one wall alone a key adds nothing: from its principal on, all is as with a session.
    callers = ("session", "key") if world.wall == "both" else ("session",)
    assert await problems(ROWS[name], ada, eve, photograph, callers) == []
    assert await problems(ROWS[name], eve, ada, photograph, callers) == []


async def test_a_stream_is_no_way_around(sides: tuple[Side, Side]) -> None:
    ada, eve = sides
    foreign = await eve.id_of("job")
    answers = [
        await Call("GET", f"/api/jobs/{one}/logs", None, {"follow": "true"}).send(ada, ada.session)
        for one in (foreign, unknown_like(foreign))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content


async def unlisted(each: Row, mine: Side, theirs: Side) -> list[str]:
    """What a list shows of another's, or fails to show of the own."""
    for name in each.things:
        await theirs.id_of(name)
    own = [await mine.id_of(name) for name in each.shows]
    found = []
    for headers in (mine.session, mine.key):
        call = await own_call(each, mine, fresh=False)
        query = {"limit": 200} if each.name not in WITHOUT_PAGES else {}
        answer = await Call(call.method, call.path, None, query).send(mine, headers)
        if answer.status_code == 403 and headers is mine.key:
            continue
        found += [f"lacks {one}: {answer.text[:300]}" for one in own if one not in answer.text]
        found += seen(answer, theirs)
    return found


MIXED = {
    "DELETE /api/tenants/{tenant_id}": "without its conditions the store takes a client for a client of its own",
    "GET /api/audit/verify": "without its conditions the store reads the chain of the process into that of the tenant",
}
WITHOUT_PAGES = {"GET /api/auth/me", "GET /api/audit/export"}


@pytest.mark.parametrize("name", WITH_LISTS)
async def test_lists_hold_the_own_things_alone(strangers: tuple[Side, Side], name: str) -> None:
    ada, eve = strangers
    assert await unlisted(ROWS[name], ada, eve) == []
    assert await unlisted(ROWS[name], eve, ada) == []


@pytest.mark.parametrize("name", WORKING)
async def test_the_same_call_works_with_own_ids(world: World, control: Side, name: str) -> None:
    each = ROWS[name]
    if world.wall == "rows" and name in MIXED:
        pytest.skip(MIXED[name])
    call = await own_call(each, control, fresh=True)
    answer = await call.send(control, control.session)
    if each.own:
        assert answer.status_code == each.own, answer.text
    else:
        assert answer.is_success, f"{call}: {answer.status_code} {answer.text}"


@pytest.fixture(scope="module")
async def open_country(
    settings: Settings, keyring: Keyring, database_urls: DatabaseUrls
) -> AsyncIterator[Callable[[], Awaitable[Side]]]:
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module, name in ((rules, "MOST_RULES"), (channels, "MOST_CHANNELS")):
            # Everybody's are counted here.
            patch.setattr(module, name, 10**9)
        yield (await open_world(stack, "none", settings, keyring, database_urls)).side


@pytest.mark.parametrize("name", GUARDED_BY_TENANT)
async def test_without_any_wall_the_row_would_notice(
    open_country: Callable[[], Awaitable[Side]], photograph: Photograph, name: str
) -> None:
    """The matrix itself is tried: without conditions in stores and without row security each operation gives away."""
    ada, eve = await open_country(), await open_country()
    noticed = await problems(ROWS[name], ada, eve, photograph)
    if ROWS[name].shows and not noticed:
        noticed = await unlisted(ROWS[name], ada, eve)
    assert noticed
