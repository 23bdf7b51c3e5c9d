"""Health checks: the list form as the engine knows it, and the line that Compose takes for a shell's."""

from quazzar.instance.apps.spec import HealthSpec
from quazzar.instance.templates import quantities
from quazzar.instance.templates.commands import Word, check_shell_words
from quazzar.instance.templates.interpolation import references
from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence


def read_healthcheck(reader: Reader, node: Node, path: str) -> HealthSpec | None:
    """None after a problem, and where the file says nothing that differs from the image."""
    keys = ("test", "interval", "timeout", "retries", "start_period", "start_interval", "disable")
    found = reader.entries(node, path, keys)
    if "disable" in found and reader.boolean(found["disable"], f"{path}.disable"):
        return HealthSpec(test=("NONE",))
    if "test" not in found:
        if isinstance(node, MappingNode) and "disable" not in found:
            reader.problem(f"{path}.test", node.line, "test is required; without one leave healthcheck out", "missing")
        return None
    test = _test(reader, found["test"], f"{path}.test")
    times = {
        f"{key}_seconds": reader.parsed(found[key], f"{path}.{key}", parse, fallback, loose=True)
        for key, parse, fallback in (
            ("interval", _some_time, 30.0),
            ("timeout", _some_time, 30.0),
            ("start_period", quantities.duration_seconds, 0.0),
        )
        if key in found
    }
    if "start_interval" in found:
        reader.parsed(found["start_interval"], f"{path}.start_interval", _some_time, 5.0, loose=True)
        reader.note(f"{path}.start_interval", node.line, "is ignored: interval holds from the start")
    retries = 3
    if "retries" in found:
        retries = reader.parsed(found["retries"], f"{path}.retries", _retries, 3, loose=True)
    return HealthSpec(test=test, retries=retries, **times) if test else None


def _test(reader: Reader, node: Node, path: str) -> tuple[str, ...]:
    if isinstance(node, Scalar):
        return _test_line(reader, node, path)
    items = list(reader.sequence(node, path, 'a list such as ["CMD", "curl", "-f", "http://127.0.0.1/"]'))
    if not items:
        if isinstance(node, Sequence):
            reader.expected(node, path, "a list with at least one item")
        return ()
    kind = items[0][0].value if isinstance(items[0][0], Scalar) else None
    lengths = {"NONE": (1, 1), "CMD": (2, 1000), "CMD-SHELL": (2, 1000)}
    if not isinstance(kind, str) or kind not in lengths:
        reader.expected(items[0][0], items[0][1], "one of: CMD, CMD-SHELL, NONE")
        return ()
    low, high = lengths[kind]
    if not low <= len(items) <= high:
        reader.expected(node, path, "a list with something to run" if low == 2 else "[NONE] alone")
        return ()
    words, parsed = [kind], []
    for item, where in items[1:]:
        text = reader.string(item, where)
        words.append("" if text is None else str(text))
        if text is not None and isinstance(item, Scalar):
            parsed.append(Word(item, where, reader.parts(item, where, str(item.value)) or ()))
    if kind == "CMD-SHELL":
        for word in parsed:
            reader.inert(word.node, word.path, word.parts)
    check_shell_words(reader, parsed)
    return tuple(words)


def _test_line(reader: Reader, node: Scalar, path: str) -> tuple[str, ...]:
    if not isinstance(node.value, str):
        reader.expected(node, path, "a list of strings")
        return ()
    parts = reader.parts(node, path, node.value)
    if parts is not None and any(True for _ in references(parts)):
        said = (
            'test with a ${name} in it must be a list, such as ["CMD", "pg_isready", "-U", "${name}"], '
            'or ["CMD-SHELL", "…"] where a shell is needed'
        )
        reader.problem(path, node.line, said, "refused")
        return ()
    line = reader.string(node, path)
    if line is not None and not line.strip():
        reader.expected(node, path, "a command")
        return ()
    return ("CMD-SHELL", line) if line else ()


def _retries(text: str) -> int:
    return quantities.whole_number(text, 1, 1000)


def _some_time(text: str) -> float:
    seconds = quantities.duration_seconds(text)
    if seconds < 0.001:
        raise ValueError("must be at least 1ms")
    return seconds
