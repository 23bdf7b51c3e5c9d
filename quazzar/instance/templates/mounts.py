"""What a service has in its file system: named volumes, tmpfs, and files with inline content."""

import re
from collections.abc import Callable, Mapping

from quazzar.instance.apps.host_paths import SOCKETS, host_path
from quazzar.instance.apps.spec import BindSpec, FileSpec, MountSpec, TmpfsSpec
from quazzar.instance.templates.interpolation import Parts, split_parts
from quazzar.instance.templates.names import RESOURCE, mount_target
from quazzar.instance.templates.problems import shown
from quazzar.instance.templates.quantities import size_bytes, whole_number
from quazzar.instance.templates.reader import Opaque, Reader, last
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar

VOLUME_KEYS = ("type", "source", "target", "read_only", "volume", "tmpfs", "consistency")
FILE_KEYS = ("source", "target", "uid", "gid", "mode")
MAX_FILE = 512 << 10
"""Bytes of one file's content."""

_HOST_PATH = re.compile(r"[./~\\]|[A-Za-z]:|.*[/\\]", re.DOTALL)
_OTHER_TYPES = {"bind", "npipe", "cluster", "image"}
_TIME_ZONE = {"/etc/localtime", "/etc/timezone"}
_NO_OPTIONS = {"z", "Z", "cached", "delegated", "consistent"}
"""Of SELinux, which the engine sees to for its volumes, and of engines in a virtual machine."""
_ENGINE_DEFAULTS = {"rw", "noexec", "nosuid", "nodev", "mode=1777", "mode=01777"}
_NO_BIND = (
    "bind mounts are refused unless the file is trusted: an app sees no folder of the host; use a named volume, "
    "or for a single file configs with content"
)
_NO_TIME_ZONE = "the time zone of the host is refused: set TZ in environment, such as TZ=Europe/Berlin"
_NO_COPY = "nocopy is not supported: a new volume begins with what the image has there"
_SCRIPT_FOLDER = "/docker-entrypoint-initdb.d/"
_SCRIPT_NAMES = (".sh", ".bash", ".sql")


class Mounts:
    """Collects the mounts of one service and refuses two at one place, and folders of the host unless `trusted`."""

    def __init__(self, reader: Reader, volumes: frozenset[str], *, trusted: bool = False) -> None:
        self.reader = reader
        self.declared = volumes
        self.trusted = trusted
        self.binds: list[BindSpec] = []
        self.volumes: list[MountSpec] = []
        self.tmpfs: list[TmpfsSpec] = []
        self.files: list[FileSpec] = []
        self._targets: dict[str, str] = {}

    def take(self, node: Node, path: str, target: str) -> bool:
        """Whether `target` was free; nothing is mounted twice."""
        if target in self._targets:
            said = f"{last(path)}: the target is already used by {self._targets[target]}"
            self.reader.problem(path, node.line, said, at=node)
            return False
        self._targets[target] = path
        return True

    # volumes

    def add_volumes(self, node: Node, path: str) -> None:
        for item, where in self.reader.sequence(node, path):
            if isinstance(item, Scalar):
                self._short(item, where)
            else:
                self._long(item, where)

    def _short(self, node: Scalar, path: str) -> None:
        if not isinstance(node.value, str):
            self.reader.expected(node, path, "a string such as data:/data, or a mapping")
            return
        parts = self.reader.parts(node, path, node.value)
        if parts is None:
            return
        pieces = split_parts(parts, ":")
        texts = [self.reader.filled(node, path, piece) for piece in pieces]
        if None in texts:
            return
        source, *rest = [text or "" for text in texts]
        if not rest and source.startswith("/") and not any(name in source for name in SOCKETS):
            said = "a volume without a name is refused: it would be lost; write name:/path and declare the name"
            self.reader.problem(path, node.line, f"{last(path)}: {said}", "refused", at=node)
            return
        if self.trusted and _is_host_path(source) and source not in _TIME_ZONE and 1 <= len(rest) <= 2:
            read_only = len(rest) == 2 and self._read_only(node, path, rest[1])
            self._bind(node, path, pieces[0], source, rest[0], read_only=read_only)
            return
        if self._from_host(node, path, source):
            return
        if not rest or len(rest) > 2:
            self.reader.expected(node, path, "a named volume and a path, such as data:/data")
            return
        self._volume(node, path, source, rest[0], read_only=len(rest) == 2 and self._read_only(node, path, rest[1]))

    def _read_only(self, node: Node, path: str, options: str) -> bool:
        words = [] if isinstance(options, Opaque) else options.split(",")
        for word in words:
            if word in _NO_OPTIONS:
                self.reader.note(path, node.line, f"has the option {word}, which is ignored")
            elif word == "nocopy":
                self.reader.problem(path, node.line, _NO_COPY, "unsupported", at=node)
            elif word not in {"ro", "rw"}:
                self.reader.problem(path, node.line, "Of the options of a volume only ro and rw are taken", at=node)
        return "ro" in words

    def _bind(self, node: Node, path: str, parts: Parts, source: str, target: str, *, read_only: bool) -> None:
        """A folder of the host, which stands in the file as it is: whoever trusts that has read it there."""
        if not all(isinstance(part, str) for part in parts):
            said = "a folder of the host must be written out: no ${name} may stand in it"
            self.reader.problem(path, node.line, f"{last(path)}: {said}", "refused", at=node)
            return
        try:
            folder = host_path(source)
        except ValueError as error:
            self.reader.problem(path, node.line, f"{last(path)}: the folder of the host {error}", "refused", at=node)
            return
        place = self._target(node, path, target)
        if place is not None and self.take(node, path, place):
            self.binds.append(BindSpec(source=folder, target=place, read_only=read_only))

    def _long_bind(self, node: Node, path: str) -> None:
        found = self.reader.entries(node, path, ("type", "source", "target", "read_only", "bind"))
        for key in ("source", "target"):
            if key not in found:
                self.reader.problem(f"{path}.{key}", node.line, f"{key} is required", "missing")
        if "bind" in found:
            for key, value in self.reader.entries(found["bind"], f"{path}.bind", ("create_host_path",)).items():
                if self.reader.boolean(value, f"{path}.bind.{key}"):
                    self.reader.note(f"{path}.bind.{key}", value.line, "is ignored: the folder must be there")
        read_only = "read_only" in found and self.reader.boolean(found["read_only"], f"{path}.read_only")
        source, target = (
            self.reader.string(found[key], f"{path}.{key}") if key in found else None for key in ("source", "target")
        )
        if source is None or target is None:
            return
        written = found["source"].value if isinstance(found["source"], Scalar) else ""
        parts = self.reader.parts(found["source"], f"{path}.source", str(written)) or ()
        self._bind(found["source"], f"{path}.source", parts, source, target, read_only=read_only)

    def _from_host(self, node: Node, path: str, source: str) -> bool:
        """Refuses the host's paths."""
        if not _is_host_path(source):
            return False
        if any(name in source for name in SOCKETS):
            said = "the engine's socket is refused: who has it has the host"
        else:
            said = _NO_TIME_ZONE if source in _TIME_ZONE else _NO_BIND
        self.reader.problem(path, node.line, f"{last(path)}: {said}", "refused", at=node)
        return True

    def _long(self, node: Node, path: str) -> None:
        if not isinstance(node, MappingNode):
            self.reader.expected(node, path, "a string such as data:/data, or a mapping")
            return
        bind = node.entries.get("type")
        if bind is not None and isinstance(bind.node, Scalar) and bind.node.value in _OTHER_TYPES:
            if self.trusted and bind.node.value == "bind":
                self._long_bind(node, path)
            else:
                self._refused_type(bind.node, f"{path}.type", bind.line)
            return
        found = self.reader.entries(node, path, VOLUME_KEYS)
        if "type" not in found or "target" not in found:
            for key in ("type", "target"):
                if key not in found:
                    self.reader.problem(f"{path}.{key}", node.line, f"{key} is required", "missing")
            return
        kind = self.reader.choice(found["type"], f"{path}.type", ("volume", "tmpfs"))
        target = self.reader.string(found["target"], f"{path}.target")
        read_only = "read_only" in found and self.reader.boolean(found["read_only"], f"{path}.read_only")
        if kind is None or target is None:
            return
        misplaced = "tmpfs" if kind == "volume" else "volume"
        for key in (misplaced, *(("source", "read_only") if kind == "tmpfs" else ())):
            if key in found:
                self.reader.problem(f"{path}.{key}", found[key].line, f"{key} means nothing for the type {kind}")
        if kind == "tmpfs":
            self._long_tmpfs(found, path, target)
            return
        self._volume_options(found.get("volume"), f"{path}.volume")
        if "consistency" in found:
            self.reader.note(f"{path}.consistency", found["consistency"].line, "is ignored")
        source = self.reader.string(found["source"], f"{path}.source") if "source" in found else ""
        if source is not None and not self._from_host(found.get("source", node), f"{path}.source", source):
            self._volume(node, path, source, target, read_only=read_only)

    def _refused_type(self, node: Scalar, path: str, line: int) -> None:
        said = _NO_BIND if node.value == "bind" else "type must be one of: volume, tmpfs"
        self.reader.problem(path, line, said, "refused", at=node)

    def _volume_options(self, node: Node | None, path: str) -> None:
        if node is None:
            return
        for key, value in self.reader.entries(node, path, ("nocopy",)).items():
            if self.reader.boolean(value, f"{path}.{key}"):
                self.reader.problem(f"{path}.{key}", value.line, _NO_COPY, "unsupported")

    def _volume(self, node: Node, path: str, source: str, target: str, *, read_only: bool) -> None:
        path_known = self._target(node, path, target)
        if isinstance(source, Opaque):
            return
        if source not in self.declared:
            self.reader.problem(path, node.line, f"{last(path)}: {self._undeclared(node, source)}", "unknown", at=node)
        elif path_known is not None and self.take(node, path, path_known):
            self.volumes.append(MountSpec(volume=source, target=path_known, read_only=read_only))

    def _undeclared(self, node: Node, source: str) -> str:
        if not source:
            return "a volume needs a name"
        if isinstance(node, MappingNode):
            node = node.entries["source"].node
        # What was filled in is not repeated: it may be a secret.
        written = isinstance(node, Scalar) and "$" not in str(node.value)
        name, hint = (shown(source), f"; write {source}: there") if written else ("of that name", "")
        said = f"the volume {name} is not declared under volumes"
        return said + hint if RESOURCE.fullmatch(source) else said

    def _target(self, node: Node, path: str, target: str) -> str | None:
        if isinstance(target, Opaque):
            return None
        try:
            return mount_target(target)
        except ValueError as error:
            self.reader.problem(path, node.line, f"{last(path)}: the target {error}", at=node)
            return None

    # tmpfs

    def add_tmpfs(self, node: Node, path: str) -> None:
        if isinstance(node, Scalar):
            self._tmpfs(node, path)
            return
        for item, where in self.reader.sequence(node, path, "a path or a list of paths"):
            self._tmpfs(item, where)

    def _tmpfs(self, node: Node, path: str) -> None:
        text = self.reader.string(node, path)
        if text is None or isinstance(text, Opaque):
            return
        target, _, options = text.partition(":")
        size: int | None = None
        for option in filter(None, options.split(",")):
            if option.startswith("size="):
                size = self._size(node, path, option.removeprefix("size="))
            elif option not in _ENGINE_DEFAULTS:
                self.reader.problem(path, node.line, "Of the options of a tmpfs only size is taken", at=node)
        self._add_tmpfs(node, path, target, size)

    def _size(self, node: Node, path: str, text: str) -> int | None:
        try:
            return size_bytes(text)
        except ValueError as error:
            self.reader.problem(path, node.line, f"size {error}", at=node)
            return None

    def _long_tmpfs(self, found: Mapping[str, Node], path: str, target: str) -> None:
        options = self.reader.entries(found["tmpfs"], f"{path}.tmpfs", ("size", "mode")) if "tmpfs" in found else {}
        size: int | None = None
        if "size" in options:
            fallback: int | None = None
            size = self.reader.parsed(
                options["size"], f"{path}.tmpfs.size", _optional(size_bytes), fallback, loose=True
            )
        if "mode" in options:
            mode = self.reader.parsed(options["mode"], f"{path}.tmpfs.mode", str, "", loose=True)
            if mode not in {"", "1777", "01777", str(0o1777)}:
                said = "mode is not supported: a tmpfs has the mode 1777"
                self.reader.problem(f"{path}.tmpfs.mode", options["mode"].line, said, "unsupported")
        self._add_tmpfs(found["target"], f"{path}.target", target, size)

    def _add_tmpfs(self, node: Node, path: str, target: str, size: int | None) -> None:
        place = self._target(node, path, target)
        if place is not None and self.take(node, path, place):
            self.tmpfs.append(TmpfsSpec(target=place, size_bytes=size))

    # configs and secrets

    def add_files(self, node: Node, path: str, declared: Mapping[str, Node], *, folder: str) -> None:
        """`declared` maps a name to its content; a target without a slash at its beginning lies in `folder`."""
        for item, where in self.reader.sequence(node, path):
            found = {"source": item} if isinstance(item, Scalar) else self.reader.entries(item, where, FILE_KEYS)
            if "source" not in found:
                if isinstance(item, MappingNode):
                    self.reader.problem(f"{where}.source", item.line, "source is required", "missing")
                continue
            source = self.reader.string(found["source"], where)
            if source is None or isinstance(source, Opaque):
                continue
            if source not in declared:
                said = f"{last(where)} is not declared under {path.rpartition('.')[2]}"
                self.reader.problem(where, item.line, said, "unknown", at=found["source"])
                continue
            self._file(found, where, source, declared[source], folder)

    def _file(self, found: Mapping[str, Node], path: str, source: str, content: Node, folder: str) -> None:
        line_node = found["source"]
        target: str | None = folder + source
        if "target" in found:
            target = self.reader.string(found["target"], f"{path}.target")
            if target is not None and not isinstance(target, Opaque) and not target.startswith("/"):
                target = folder + target
        where = f"{path}.target" if "target" in found else path
        place = None if target is None else self._target(found.get("target", line_node), where, target)
        owner = {
            key: self.reader.parsed(found[key], f"{path}.{key}", _user_id, 0, loose=True)
            for key in ("uid", "gid")
            if key in found
        }
        mode = self._mode(found["mode"], f"{path}.mode") if "mode" in found else 0o444
        text = self._content(content, path, place or "")
        if place is None or text is None or not self.take(line_node, path, place):
            return
        self.files.append(
            FileSpec(target=place, content=text, mode=mode, uid=owner.get("uid", 0), gid=owner.get("gid", 0))
        )

    def _mode(self, node: Node, path: str) -> int:
        """A number is what YAML made of it (0440 is octal there), a string is octal."""
        if isinstance(node, Scalar) and isinstance(node.value, int) and not isinstance(node.value, bool):
            mode = node.value
        else:
            mode = self.reader.parsed(node, path, _octal, 0o444)
        if not 0 <= mode <= 0o777:
            self.reader.expected(node, path, "a mode such as 0440")
            return 0o444
        return mode

    def _content(self, node: Node, path: str, place: str) -> str | None:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            return None  # was reported where it is declared
        content = node.value
        parts = self.reader.parts(node, path, content)
        if parts is None:
            return None
        if content.startswith("#!") or place.startswith(_SCRIPT_FOLDER) or place.endswith(_SCRIPT_NAMES):
            self.reader.inert(node, path, parts)
        text = self.reader.filled(node, path, parts)
        if text is not None and len(text.encode()) > MAX_FILE:
            self.reader.problem(path, node.line, f"{last(path)} is larger than 512 KiB", "too_large", at=node)
            return None
        return text


def _is_host_path(source: str) -> bool:
    return not isinstance(source, Opaque) and _HOST_PATH.match(source) is not None


def _optional(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    return parse


def _user_id(text: str) -> int:
    return whole_number(text, 0, 2**31 - 1)


def _octal(text: str) -> int:
    if not re.fullmatch(r"0?o?[0-7]{1,4}", text):
        raise ValueError("must be a mode such as 0440")
    return int(text.removeprefix("0").removeprefix("o") or "0", 8)
