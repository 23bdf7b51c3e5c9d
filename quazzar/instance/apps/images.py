"""Names of images, taken apart: which registry is asked for what."""

import re

import msgspec

DOCKER_HUB = "docker.io"
HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io"})

_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_IMAGE = re.compile(
    rf"(?:(?P<host>(?:{_PART}(?:\.{_PART})*|\[[0-9a-fA-F:]{{2,39}}\])(?::[0-9]{{1,5}})?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?"
)


class Image(msgspec.Struct, frozen=True):
    """An image name taken apart (grammar of github.com/distribution/reference)."""

    registry: str
    """In lower case; `docker.io` for names without one."""
    repository: str
    """As written, the registry included."""
    reference: str
    """What comes after the repository: a tag or a digest."""

    @classmethod
    def parse(cls, name: str) -> "Image | None":
        """None when `name` is not an image name."""
        found = _IMAGE.fullmatch(name) if len(name) <= 512 else None
        if found is None:
            return None
        host, path = found["host"], found["path"]
        if host is not None and not (set(host) & {".", ":"} or host == "localhost"):
            if host != host.lower():
                return None
            host, path = None, f"{host}/{path}"
        registry = (host or DOCKER_HUB).lower()
        return cls(
            registry=DOCKER_HUB if registry in HUB_NAMES else registry,
            repository=f"{host}/{path}" if host else path,
            reference=found["digest"] or found["tag"] or "latest",
        )


def pinned(name: str, digest: str) -> str:
    """The name of exactly one image, where no tag can move it."""
    image = Image.parse(name)
    return f"{image.repository if image is not None else name}@{digest}"


def is_pinned(name: str) -> bool:
    """Whether a name says by itself which image it means."""
    return "@" in name


def registry_of(name: str) -> str:
    """The registry that an image name means; `docker.io` for what is no image name either."""
    image = Image.parse(name)
    return image.registry if image is not None else DOCKER_HUB
