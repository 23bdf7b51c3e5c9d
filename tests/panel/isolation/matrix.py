"""What the matrix is made of. A domain's module in `domains/` says how its things are made and where ids stand:

    @thing
    async def group(side: Side) -> str:
        return await side.post("/fleet/groups", {"name": UNIQUE})

    row("GET /api/fleet/groups", shows="group")
    row("GET /api/fleet/groups/{group_id}", "group")
    row("PATCH /api/fleet/groups/{group_id}", "group", body={"parent_id": Ref("group")})
    row("POST /api/roles", body={"name": UNIQUE, "permissions": ["fleet:read"]}, no_ids="a role is made of words")

For each place of an id (in the path, a query or a body) a call is made in which everything else is the caller's own and
right, once with an id of another tenant and once with one that nothing has. The two answers must be the same byte for
byte, and nothing may have changed on either side. So that this says something, the same call with own ids must work.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import httpx

from quazzar.core.db import Database
from quazzar.core.ids import new_id
from tests.factories.accounts import MadeUser

Headers = dict[str, str]
Thing = Callable[["Side"], Awaitable[str]]

THINGS: Final[dict[str, Thing]] = {}
ROWS: Final[dict[str, "Row"]] = {}

UNIQUE: Final = "{unique}"
"""In a body: a text that no other call sends."""

# Of a body that holds a foreign id: read, and wrong in a field. Of a path: nothing there.
IN_BODY, IN_PATH, IN_QUERY = 422, 404, 200


@dataclass(frozen=True)
class Ref:
    """A place in a body or a query where the id of a thing stands; `status` is the answer to one that is none."""

    thing: str
    status: int | None = None


@dataclass(frozen=True)
class Row:
    """Where ids stand in an operation. See `row`."""

    name: str
    path: tuple[str, ...]
    body: Any
    query: Mapping[str, Any]
    shows: tuple[str, ...]
    own: int | None
    no_ids: str | None
    of_user: bool

    @property
    def method(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def template(self) -> str:
        return self.name.partition(" ")[2]

    @property
    def things(self) -> set[str]:
        """The names of all things that its places and lists speak of."""
        named = {each for places in self.path for each in places.split("|")}
        return named | {ref.thing for _, ref in self.refs()} | set(self.shows)

    def refs(self) -> list[tuple[tuple[Any, ...], Ref]]:
        """Where in body and query ids stand: the keys and indexes that lead there, and what stands there."""
        return [*_refs(self.body, ("body",)), *_refs(dict(self.query), ("query",))]


def thing(function: Thing) -> Thing:
    """Declare how a thing is made on a side, by the function's name; it gives the id."""
    name = function.__name__
    assert name not in THINGS, f"There are two things called {name}"
    THINGS[name] = function
    return function


def row(
    name: str,
    *path: str,
    body: Any = None,
    query: Mapping[str, Any] | None = None,
    shows: str | Sequence[str] = (),
    own: int | None = 0,
    no_ids: str | None = None,
    of_user: bool = False,
) -> None:
    """Declare an operation: `path` are the things whose ids stand in its path, in order (`a|b`: also such a one).

    `body` and `query` are those of a call that works, with `Ref`s where ids stand. `shows` are things that a list
    holds. `own` is what a call with own ids answers: 0 for any 2xx, None when it is not made. `no_ids` says why there
    is nothing to be isolated in an operation without any place. `of_user`: what is shown or changed is the caller's own
    by who they are, not by their tenant, so the walls between tenants are not what guards it.
    """
    assert name not in ROWS, f"There are two rows for {name}"
    seen = (shows,) if isinstance(shows, str) else tuple(shows)
    made = Row(name, path, body, query or {}, seen, own, no_ids, of_user)
    assert len(path) == made.template.count("{"), f"{name}: a thing for each place of the path"
    assert bool(path or seen or made.refs()) != bool(no_ids), f"{name}: either ids, or why there are none"
    ROWS[name] = made


@dataclass
class Side:
    """A tenant with one of every thing, and who speaks for it: its owner, and an API key that may all of that."""

    database: Database
    client: httpx.AsyncClient
    user: MadeUser
    session: Headers
    key: Headers = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def tenant_id(self) -> str:
        assert self.user.tenant_id is not None
        return self.user.tenant_id

    @property
    def secrets(self) -> set[str]:
        """What must not be seen on another side: the ids of all things, and whose they are."""
        return {*self.ids.values(), self.user.id, self.user.name, self.tenant_id}

    async def post(self, path: str, body: Any, *, name: str = "id") -> str:
        """Make a thing over HTTP; gives the field of the answer that is its id."""
        answer = await self.client.post(f"/panel/api{path}", json=filled(body), headers=self.session)
        assert answer.is_success, answer.text
        return str(answer.json()[name])

    async def make(self, name: str) -> str:
        return await THINGS[name](self)

    async def id_of(self, name: str) -> str:
        """The id of the side's own thing, made at the first use."""
        if name not in self.ids:
            self.ids[name] = await self.make(name)
        return self.ids[name]


@dataclass(frozen=True)
class Call:
    """A request that is ready to be sent."""

    method: str
    path: str
    body: Any
    query: Mapping[str, Any]

    async def send(self, side: Side, headers: Headers) -> httpx.Response:
        url = f"/panel{self.path}"
        known = {"X-Request-Id": "same"}
        return await side.client.request(
            self.method, url, json=self.body, params=dict(self.query), headers=headers | known
        )


@dataclass(frozen=True)
class Variant:
    """One place with one id that is not the caller's: the call with it, the same with an id that nothing has, and what
    both must answer.
    """

    place: str
    foreign: Call
    unknown: Call
    status: int


async def own_call(row: Row, side: Side, *, fresh: bool) -> Call:
    """The call with the side's own ids; `fresh` makes the things anew, so that they may be changed and deleted."""

    async def of(name: str) -> str:
        return await (side.make(name) if fresh else side.id_of(name))

    ids = [await of(places.split("|")[0]) for places in row.path]
    body, query = row.body, dict(row.query)
    for place, ref in row.refs():
        changed = _put({"body": body, "query": query}, place, await of(ref.thing))
        body, query = changed["body"], changed["query"]
    return Call(row.method, _path(row, ids), filled(body), query)


async def variants(row: Row, mine: Side, theirs: Side) -> list[Variant]:
    """Every place of the row with a foreign id in it. Texts are the same in both calls of a pair."""
    call = await own_call(row, mine, fresh=False)
    ids = [await mine.id_of(places.split("|")[0]) for places in row.path]
    found = []

    def add(place: str, foreign: str, status: int, change: Callable[[str], Call]) -> None:
        found.append(Variant(place, change(foreign), change(unknown_like(foreign)), status))

    def in_path(index: int, one: str) -> Call:
        return replace(call, path=_path(row, [*ids[:index], one, *ids[index + 1 :]]))

    def in_body_or_query(place: tuple[Any, ...], one: str) -> Call:
        return replace(call, **_put({"body": call.body, "query": dict(call.query)}, place, one))

    for index, places in enumerate(row.path):
        for name in places.split("|"):
            add(f"path: {name}", await theirs.id_of(name), IN_PATH, partial(in_path, index))
    for place, ref in row.refs():
        usual = IN_BODY if place[0] == "body" else IN_QUERY
        foreign = await theirs.id_of(ref.thing)
        add(".".join(map(str, place)), foreign, ref.status or usual, partial(in_body_or_query, place))
    if isinstance(call.body, dict) and "tenant_id" not in call.body:
        # Nobody says by a field whose a thing is to be.
        add("body.tenant_id, which is no field", theirs.tenant_id, IN_BODY, lambda one: _in_tenant(call, one))
    return found


def _in_tenant(call: Call, tenant_id: str) -> Call:
    return replace(call, body=call.body | {"tenant_id": tenant_id})


def unknown_like(known: str) -> str:
    """An id of the same kind that nothing has."""
    return new_id(known.partition("_")[0])


def filled(body: Any) -> Any:
    """`body` with a text of its own in each place of `UNIQUE`."""
    match body:
        case str():
            return body.replace(UNIQUE, secrets.token_hex(8))
        case Mapping():
            return {name: filled(value) for name, value in body.items()}
        case list():
            return [filled(value) for value in body]
        case _:
            return body


def _path(row: Row, ids: Sequence[str]) -> str:
    parts = row.template.split("/")
    left = iter(ids)
    return "/".join(next(left) if part.startswith("{") else part for part in parts)


def _refs(value: Any, keys: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Ref]]:
    match value:
        case Ref():
            return [(keys, value)]
        case Mapping():
            return [found for name, item in value.items() for found in _refs(item, (*keys, name))]
        case list():
            return [found for index, item in enumerate(value) for found in _refs(item, (*keys, index))]
        case _:
            return []


def _put(value: Any, keys: Sequence[Any], new: str) -> Any:
    """A copy of `value` with `new` where `keys` lead."""
    if not keys:
        return new
    key, *rest = keys
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[key] = _put(copy[key], rest, new)
    return copy
