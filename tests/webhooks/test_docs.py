"""The examples of docs/webhooks.md, run as they stand there on a request that was really sent."""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.webhooks.conftest import Lab, StartEngine
from tests.webhooks.receiver import Receiver, Request

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()

PYTHON_MAIN = """
import json, sys
given = json.load(sys.stdin)
print(json.dumps([verify(each["secret"], each["headers"], each["body"].encode()) for each in given]))
"""
NODE_MAIN = """
const given = JSON.parse(require("node:fs").readFileSync(0));
console.log(JSON.stringify(given.map((each) => verify(each.secret, each.headers, Buffer.from(each.body)))));
"""


def example(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    return path


async def run(*command: str, given: str = "", folder: Path | None = None, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"} | environment,
    )
    output, errors = await process.communicate(given.encode())
    assert process.returncode == 0, errors.decode()
    return output.decode().strip()


@pytest.fixture
async def signed(lab: Lab, engine: StartEngine, receiver: Receiver) -> tuple[list[str], Request]:
    """Both secrets of an endpoint whose secret was just rotated, and a request that it got."""
    made = await lab.endpoint(receiver.url())
    async with lab.service() as webhooks:
        rotated = await webhooks.rotate_secret(made.id)
    async with engine():
        await lab.announce(1)
        (request,) = await receiver.until("/hook", 1)
        await lab.settled(made.id, 1)
    return [made.secret, rotated.secret], request


def cases(secrets: list[str], request: Request) -> tuple[str, list[bool]]:
    """Requests for a verifier as JSON, and what it must say of each."""
    good: dict[str, Any] = {"secret": secrets[0], "headers": request.headers, "body": request.body.decode()}
    old = str(int(request.headers["webhook-timestamp"]) - 301)
    other = "whsec_" + "A" * 43 + "="
    given = [
        (good, True),
        (good | {"secret": secrets[1]}, True),
        (good | {"secret": other}, False),
        (good | {"body": good["body"] + " "}, False),
        (good | {"headers": request.headers | {"webhook-id": "evt_other"}}, False),
        (good | {"headers": request.headers | {"webhook-timestamp": old}}, False),
        (good | {"headers": request.headers | {"webhook-signature": "v1,AAAA"}}, False),
        (good | {"headers": request.headers | {"webhook-signature": ""}}, False),
    ]
    return json.dumps([each for each, _ in given]), [verdict for _, verdict in given]


async def test_the_python_example(signed: tuple[list[str], Request]) -> None:
    given, expected = cases(*signed)
    output = await run(sys.executable, "-c", example("python") + PYTHON_MAIN, given=given)
    assert json.loads(output) == expected


async def test_the_node_example(signed: tuple[list[str], Request]) -> None:
    given, expected = cases(*signed)
    output = await run(program("node"), "-e", example("javascript") + NODE_MAIN, given=given)
    assert json.loads(output) == expected


async def test_the_shell_example(signed: tuple[list[str], Request], tmp_path: Path) -> None:
    program("openssl")
    secrets, request = signed
    (tmp_path / "body").write_bytes(request.body)
    for secret in secrets:
        output = await run(
            "/bin/sh",
            "-c",
            example("sh"),
            folder=tmp_path,
            secret=secret,
            id=request.event_id,
            timestamp=request.headers["webhook-timestamp"],
        )
        assert output in request.headers["webhook-signature"].split(" ")
