"""Serves the checked-in OpenAPI document of each API, and a page that shows it."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from litestar import MediaType, Request, Response
from litestar.params import FromPath

from quazzar.core.errors import NotFound
from quazzar.core.routing import Endpoint, get

FOLDER = Path(__file__).parent
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}

# Scripts, styles and data from this origin only. The viewer sets inline styles and draws its icons as data URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body data-document="openapi.json">
<main id="reference"></main>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/start.js"></script>
</body>
</html>
"""


def document_path(realm: str) -> Path:
    return FOLDER / "documents" / f"{realm}.json"


@cache
def served_document(realm: str, prefix: str) -> bytes:
    """The document as a process that mounts this API below `prefix` serves it."""
    document: dict[str, Any] = msgspec.json.decode(document_path(realm).read_bytes())
    document["paths"] = {prefix + path: item for path, item in document["paths"].items()}
    return msgspec.json.encode(document)


@cache
def _asset(name: str) -> bytes:
    return (FOLDER / "assets" / name).read_bytes()


def _prefix(request: Request[Any, Any, Any]) -> str:
    return str(request.scope["path"]).partition("/api/")[0]


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def show_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The OpenAPI 3.1 document of this API."""
    body = served_document(str(request.scope["state"]["realm"]), _prefix(request))
    return Response(body, media_type=MediaType.JSON, headers={"Cache-Control": "no-cache"})


@get("/docs", include_in_schema=False, sync_to_thread=False)
def show_reference(request: Request[Any, Any, Any]) -> Response[str]:
    """The browsable reference of this API."""
    title = "Control Panel API" if request.scope["state"]["realm"] == "panel" else "Cloud OS API"
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
    return Response(_PAGE.format(title=title), media_type=MediaType.HTML, headers=headers)


@get("/docs/assets/{name:str}", include_in_schema=False, sync_to_thread=False)
def show_asset(name: FromPath[str]) -> Response[bytes]:
    """A script or style of the reference page; these names only."""
    if name not in _ASSETS:
        raise NotFound
    return Response(_asset(name), media_type=_ASSETS[name], headers={"Cache-Control": "public, max-age=86400"})


handlers: list[Endpoint] = [show_document, show_reference, show_asset]
