"""The product on a real engine with a registry beside it, and an app of two versions whose data tells which one ran.

For campaigns that break things in the middle: `whole` says what has to hold afterwards, whatever happened.
"""

import asyncio
import contextlib
import io
import json
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from quazzar.core.postgres import EmbeddedPostgres
from tests.components import DockerEngine, FaultyLine, Registry, docker_engine, faulty_line, registry
from tests.factories.apps import TRANSITIONAL, unique
from tests.product.process import Product, product

_TORTURE = os.environ.get("QUAZZAR_TORTURE", "")
CAMPAIGN = bool(_TORTURE)
SAMPLE = not CAMPAIGN and not os.environ.get("CI")
"""Whether it is somebody who works on this that waits for the end: then one fault stands for its like."""


def points(full: int = 100) -> int:
    """How many times something is broken: `QUAZZAR_TORTURE` is `full` or a number, without it once."""
    if _TORTURE.isdecimal():
        return int(_TORTURE)
    return full if _TORTURE == "full" else 1


TEMPLATE = """\
x-quazzar:
  slug: SLUG
  version: "VERSION"
  title: Scene
  fields:
    - {name: http_port, label: Port, type: port, default: auto}
    - {name: motto, type: string, default: hello}
    - {name: token, type: password, generated: 24}
  web: {service: web, port: 8080}
services:
  web:
    image: HOST/web:VERSION
    command: ["sh", "-c", "COMMAND mkdir -p /w; echo VERSION $$MOTTO > /w/index.html; exec httpd -f -p 8080 -h /w"]
    environment: {MOTTO: "${motto}", TOKEN: "${token}"}
    ports: ["${http_port}:8080"]
    volumes: ["data:/data"]
    depends_on: {db: {condition: service_started}}
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8080/"], interval: 1s, timeout: 10s, retries: 3}
    stop_grace_period: 2s
    mem_limit: 64m
  db:
    image: HOST/db:1
    command: ["sh", "-c", "date > /data/started; exec sleep 100000"]
    volumes: ["db:/data"]
    stop_grace_period: 2s
    mem_limit: 64m
volumes: {data: {}, db: {}}
"""
_FIRST = "[ -e /data/word ] || echo fresh > /data/word;"
_SECOND = "grep -q ^2: /data/word || sed -i s/^/2:/ /data/word;"
"""What the second version does to the data is seen in it, as a migration would be."""


class Scene:
    def __init__(self, one: Product, engine: DockerEngine, images: Registry, line: FaultyLine) -> None:
        self.product = one
        self.engine = engine
        self.images = images
        self.line = line
        self.host = line.name
        self.slug = unique("scene")
        self.http = httpx.Client(base_url=one.url, timeout=60)

    def begin(self) -> None:
        self.engine.import_busybox("quazzar-test/base:1")
        for name in ("web:1.0", "web:2.0", "db:1"):
            self.engine.publish(f"{self.images.name}/{name}")
        self.product.start()
        self.product.setup()
        self.log_in()
        first = self.text("1.0", _FIRST)
        answer = self.http.post("/api/templates", json={"compose": first})
        assert answer.status_code == 201, answer.text
        answer = self.http.put(f"/api/templates/{self.slug}", json={"compose": self.text("2.0", _SECOND)})
        assert answer.status_code == 200, answer.text

    def text(self, version: str, command: str) -> str:
        values = {"SLUG": self.slug, "VERSION": version, "HOST": self.host, "COMMAND": command}
        text = TEMPLATE
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    def log_in(self) -> None:
        self.http.headers.update(self.product.authorized(self.product.login()["access_token"]))

    def come_back(self) -> None:
        """The process is started again."""
        self.product.start()
        self.log_in()

    # Apps

    def wish(self, version: str = "1.0") -> dict[str, Any]:
        """The body that asks for an app of its own name."""
        return {"template": self.slug, "name": unique("app"), "version": version}

    def install(self, version: str = "1.0") -> dict[str, Any]:
        answer = self.http.post("/api/apps", json=self.wish(version))
        assert answer.status_code == 201, answer.text
        return self.running(answer.json()["id"])

    def show(self, app_id: str) -> dict[str, Any] | None:
        answer = self.http.get(f"/api/apps/{app_id}")
        assert answer.status_code in {200, 404}, answer.text
        app: dict[str, Any] = answer.json()
        return app if answer.status_code == 200 else None

    def settled(self, app_id: str, seconds: float = 180) -> dict[str, Any] | None:
        """The app once nobody works on it any more; None once it is gone."""
        end = time.monotonic() + seconds
        while True:
            app = self.show(app_id)
            if app is None or app["status"] not in TRANSITIONAL:
                return app
            assert time.monotonic() < end, f"still {app['status']}: {app['status_reason']}\n{self.product.tail()}"
            time.sleep(0.05)

    def revive(self, app_id: str) -> None:
        """Start an app that has ended with the engine, which then leaves it stopped when it was killed itself."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            app = self.settled(app_id)
            if app is None or app["status"] in {"stopped", "crashed"}:
                break
            if app["status"] == "running" and self.all_run(app_id):
                return
            time.sleep(0.2)
        if app is not None and app["status"] in {"stopped", "crashed"}:
            self.ask("POST", f"/api/apps/{app_id}/start")
            self.running(app_id)

    def all_run(self, app_id: str) -> bool:
        """Whether the engine itself has both services running."""
        found = self.containers(app_id)
        return all(name in found and found[name]["State"] == "running" for name in ("web", "db"))

    def running(self, app_id: str, seconds: float = 180) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            app = self.settled(app_id, seconds)
            assert app is not None
            if app["status"] == "running":
                return app
            assert time.monotonic() < end, f"{app['status']}: {app['status_reason']}\n{self.told(app)}"
            time.sleep(0.05)

    def told(self, app: dict[str, Any]) -> str:
        """What the app's last job has to say, and the end of our log."""
        lines = self.http.get(f"/api/jobs/{app['job_id']}/logs")
        return f"{lines.text}\n{self.product.tail()}"

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code in {200, 201}, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def job(self, job_id: str, seconds: float = 240) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            job: dict[str, Any] = self.http.get(f"/api/jobs/{job_id}").json()
            if job["status"] not in {"queued", "running"}:
                return job
            assert time.monotonic() < end, job
            time.sleep(0.05)

    # What the engine has

    def objects(self, kind: str, app_id: str, **params: str) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"io.quazzar.app={app_id}"]})
        found = self.engine.ok("GET", f"/{kind}", params={"filters": filters} | params)
        rows: list[dict[str, Any]] = (found["Volumes"] or []) if kind == "volumes" else found
        return rows

    def containers(self, app_id: str) -> dict[str, dict[str, Any]]:
        """By service; one that is none of a service is there by its name."""
        found = self.objects("containers/json", app_id, all="1")
        return {one["Labels"].get("io.quazzar.service") or one["Names"][0]: one for one in found}

    def settled_containers(self, app_id: str) -> dict[str, dict[str, Any]]:
        """As `containers`; what a copy of data has left is given the time until it is looked for."""
        end = time.monotonic() + 40
        while True:
            found = self.containers(app_id)
            if not any(one.startswith("/quazzar-door") for one in found) or time.monotonic() > end:
                return found
            time.sleep(0.5)

    def snapshots(self, app_id: str) -> set[str]:
        names = {one["Labels"].get("io.quazzar.snapshot") for one in self.objects("volumes", app_id)}
        return {one for one in names if one is not None}

    def left_over(self, app_id: str) -> list[str]:
        found = [f"container {one['Names']}" for one in self.objects("containers/json", app_id, all="1")]
        found += [f"network {one['Name']}" for one in self.objects("networks", app_id)]
        return found + [f"volume {one['Name']}" for one in self.objects("volumes", app_id)]

    def word(self, app_id: str) -> str:
        """What stands in the app's data."""
        container = self.containers(app_id)["web"]["Id"]
        body = self.engine.ok("GET", f"/containers/{container}/archive", params={"path": "/data/word"})
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            file = tar.extractfile("word")
            assert file is not None
            return file.read().decode().strip()

    def write(self, app_id: str, word: str) -> None:
        """Put `word` into the app's data, as its users would."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("word")
            entry.size, entry.mode = len(word) + 1, 0o644
            tar.addfile(entry, io.BytesIO(f"{word}\n".encode()))
        container = self.containers(app_id)["web"]["Id"]
        self.engine.ok("PUT", f"/containers/{container}/archive", params={"path": "/data"}, body=buffer.getvalue())

    def fresh_word(self, app_id: str, *, before: str = "") -> str:
        word = secrets.token_hex(6)
        self.write(app_id, before + word)
        return word

    def page(self, app: dict[str, Any]) -> str:
        port = app["ports"][0]["host_port"]
        return httpx.get(f"http://{self.engine.address}:{port}/", timeout=10).raise_for_status().text.strip()

    def forget_image(self, version: str) -> None:
        """The next one who needs it has to pull it."""
        image = f"{self.host}/web:{version}"
        found = [one for one in self.engine.ok("GET", "/images/json") if self._is_of(one, version, image)]
        for one in found:
            with contextlib.suppress(RuntimeError):
                self.engine.remove_image(one["Id"])

    def _is_of(self, image: dict[str, Any], version: str, name: str) -> bool:
        digests = image.get("RepoDigests") or []
        return name in (image.get("RepoTags") or []) or any(self.digest(version) in one for one in digests)

    def digest(self, version: str) -> str:
        found = self.engine.ok("GET", f"/distribution/{self.host}/web:{version}/json")
        digest: str = found["Descriptor"]["digest"]
        return digest

    @contextlib.contextmanager
    def full_disk(self, *, but_bytes: int) -> Iterator[None]:
        """The engine's disk, which has to be one of its own, is full but for some bytes."""
        folder = self.engine.folder / "data"
        filler = folder / "filler"
        try:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - but_bytes)
            yield
        finally:
            filler.unlink()

    # What has to hold

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            urls = await EmbeddedPostgres.running_urls(self.product.data_dir)
            assert urls is not None
            connection = await asyncpg.connect(urls.owner)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def whole(self, app_id: str, *, version: str, word: str) -> dict[str, Any]:
        """The app runs as this version with this data, is reached, and nothing besides it is there."""
        app = self.running(app_id)
        assert app["version"] == version, self.told(app)
        assert self.word(app_id) == word
        found = self.settled_containers(app_id)
        assert found.keys() == {"web", "db"}, list(found)
        for one in found.values():
            assert one["State"] == "running", one["Status"]
        inspected = self.engine.ok("GET", f"/containers/{found['web']['Id']}/json")
        assert inspected["Config"]["Labels"]["io.quazzar.image"] == f"{self.host}/web:{version}"
        [image] = [one for one in app["services"] if one["name"] == "web"]
        assert image["image_digest"] == self.digest(version)
        assert self.page(app).startswith(version)
        assert len(self.objects("networks", app_id)) == 1
        self.no_remains(app_id)
        return app

    def no_remains(self, app_id: str) -> None:
        """No copies of data but those that a rollback needs, no journal, no operation that nobody does."""
        kept = {one[0] for one in self.rows(f"SELECT snapshot FROM app_revisions WHERE app_id = '{app_id}'")}
        # What could not be discarded at once is when it is looked for.
        end = time.monotonic() + 40
        while (found := self.snapshots(app_id)) != kept and time.monotonic() < end:
            time.sleep(0.5)
        assert found == kept, "copies of data are left over, or lost"
        volumes = self.objects("volumes", app_id)
        own = [one for one in volumes if "io.quazzar.volume" in one["Labels"]]
        assert len(own) == 2
        assert len(volumes) == 2 + 3 * len(kept), [one["Name"] for one in volumes]
        assert self.rows("SELECT app_id, phase FROM app_changes") == []
        ports = self.rows(f"SELECT host_port FROM app_ports WHERE app_id = '{app_id}'")
        assert len(ports) == 1
        self.nothing_pending()

    def nothing_pending(self) -> None:
        """What is queued or runs ends soon."""
        end = time.monotonic() + 60
        query = "SELECT kind, subject FROM jobs WHERE status IN ('queued', 'running') AND kind LIKE 'apps.%'"
        while left := self.rows(query):
            assert time.monotonic() < end, left
            time.sleep(0.1)

    def gone(self, app_id: str) -> None:
        assert self.show(app_id) is None
        assert self.left_over(app_id) == []

    def nothing_left(self) -> None:
        """No app at all is there, nor anything that one had."""
        assert self.http.get("/api/apps").json() == []
        filters = {"filters": json.dumps({"label": ["io.quazzar.app"]})}
        assert self.engine.ok("GET", "/containers/json", params={"all": "1"}) == []
        assert self.engine.ok("GET", "/networks", params=filters) == []
        assert self.engine.ok("GET", "/volumes", params=filters)["Volumes"] in (None, [])
        assert self.rows("SELECT app_id, host_port FROM app_ports") == []

    def remove(self, app_id: str) -> None:
        assert self.http.delete(f"/api/apps/{app_id}?purge=true").status_code in {200, 204}
        assert self.settled(app_id) is None
        self.gone(app_id)


@contextlib.contextmanager
def scene(
    folder: Path,
    *options: str,
    through: Callable[[DockerEngine], str] | None = None,
    live_restore: bool = True,
    disk_bytes: int | None = None,
) -> Iterator[Scene]:
    """A product that has started on an engine of its own; `through` may give another address to speak to it."""
    with (
        docker_engine(folder, *options, live_restore=live_restore, disk_bytes=disk_bytes) as engine,
        registry(folder, engine) as images,
        faulty_line(engine, images) as line,
        product(
            folder / "data",
            mode="instance",
            # A campaign takes longer than a token lives.
            QUAZZAR_AUTH_ACCESS_MINUTES="1440",
            QUAZZAR_RUNTIME_DRIVER="docker",
            QUAZZAR_RUNTIME_DOCKER_HOST=through(engine) if through is not None else engine.host,
        ) as one,
    ):
        found = Scene(one, engine, images, line)
        try:
            found.begin()
            yield found
        finally:
            found.http.close()
