"""Rules over the whole repository that no single module can hold."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("quazzar", "migrations", "tests", "benchmarks", "deploy", "docs", ".ci")
SUFFIXES = ".py .md .toml .yaml .yml .json .sh .lock .service .mako .txt .js .html"
TEXT = {"", *SUFFIXES.split()}
LARGEST_BYTES = 2 * 1024 * 1024


@cache
def files() -> tuple[Path, ...]:
    """Every file that belongs to the project, without what is made from them."""
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return tuple(sorted(path for path in found if path.suffix != ".pyc" and "results" not in path.parts))


def texts() -> Iterator[tuple[str, str]]:
    for path in files():
        if path.suffix in TEXT:
            yield str(path.relative_to(ROOT)), path.read_text(errors="replace")


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for path in files():
        name = str(path.relative_to(ROOT))
        if path.suffix == ".py" and name.split("/", maxsplit=1)[0] in folders:
            yield name, ast.parse(path.read_text(), name)


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of what is called: `os.system(x)` as `system`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    yield name, node


def test_the_walk_sees_the_project() -> None:
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"Makefile", "quazzar/settings.py", "deploy/install.sh", ".ci/run", "requirements.lock"} <= names


def test_s02_nothing_is_given_to_a_shell() -> None:
    shells = {"create_subprocess_shell", "subprocess_shell", "system", "popen", "getoutput", "getstatusoutput"}
    found = []
    for name, tree in modules("quazzar", "migrations", "benchmarks", ".ci"):
        for function, call in called(tree):
            shell = any(
                word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                for word in call.keywords
            )
            on_platform = isinstance(call.func, ast.Attribute) and ast.unparse(call.func).startswith("platform.")
            attribute = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in {"os", "subprocess"}
            unsafe = function in {"create_subprocess_shell", "subprocess_shell"} or (function in shells and attribute)
            if (shell or unsafe) and not on_platform:
                found.append(f"{name}:{call.lineno}")
    assert found == []


def test_the_shell_rule_would_notice() -> None:
    tree = ast.parse("import os, asyncio\nos.system('x')\nasyncio.create_subprocess_shell('x')\nrun('x', shell=flag)")
    assert [name for name, _ in called(tree)] == ["system", "create_subprocess_shell", "run"]


# Who commits: the one place of transactions, and the runner of migrations, which has none around it.
COMMITTERS = {"quazzar/core/db.py", "quazzar/core/migrations.py"}


def test_nothing_commits_but_the_one_place_that_does() -> None:
    found = [
        f"{name}:{call.lineno}"
        for name, tree in modules("quazzar", "migrations")
        for function, call in called(tree)
        if function in {"commit", "rollback"} and isinstance(call.func, ast.Attribute) and name not in COMMITTERS
    ]
    assert found == []


# Put together here, so that this file does not name them either.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("rubygems", "org"),
    )
]
# Images have homes of their own: `node` is the user of many.
MACHINE = re.compile(
    "|".join(
        ("/work" + "/(main|shared)", "/tmp" + "/(q/|bash_jobs)", r"/home/(?!quazzar|node)[a-z]+/", r"\.pyenv" + "/")
    )
)


def test_no_file_names_a_package_registry() -> None:
    found = [f"{name}: {host}" for name, text in texts() for host in REGISTRIES if host in text]
    assert found == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [f"{name}: {match[0]}" for name, text in texts() for match in MACHINE.finditer(text)]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name
        for name, tree in modules("quazzar", "tests", "benchmarks", "migrations", ".ci")
        if ast.get_docstring(tree) is None and not (name.endswith("__init__.py") and not tree.body)
    ]
    assert silent == []


def test_no_module_is_called_after_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert [str(path) for path in files() if path.stem in empty and path.suffix == ".py"] == []


def test_no_file_is_huge() -> None:
    assert [str(path) for path in files() if path.stat().st_size > LARGEST_BYTES] == []


@pytest.mark.parametrize("script", [".ci/run", ".ci/newer_engine"])
def test_what_is_called_by_name_can_be_executed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


class TestLocks:
    LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-uv.lock")

    @staticmethod
    def pins(lock: str) -> dict[str, str]:
        found = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
        return dict(found)

    @pytest.mark.parametrize("lock", LOCKS)
    def test_every_requirement_is_an_exact_pin_with_hashes_and_no_address(self, lock: str) -> None:
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert not re.search(r"^-", text, re.MULTILINE)
        for requirement in re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()):
            assert re.match(r"[a-z0-9][a-z0-9._-]*==\S+", requirement), requirement[:60]
            assert "--hash=sha256:" in requirement, requirement[:60]

    def test_tests_run_with_the_versions_that_are_shipped(self) -> None:
        assert self.pins("requirements.lock").items() <= self.pins("requirements-dev.lock").items()

    def test_every_dependency_is_pinned(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        names = {re.split(r"[^A-Za-z0-9._-]", item)[0].lower() for item in project["project"]["dependencies"]}
        assert names <= self.pins("requirements.lock").keys()
        names = {re.split(r"[^A-Za-z0-9._-]", item)[0].lower() for item in project["dependency-groups"]["dev"]}
        assert names <= self.pins("requirements-dev.lock").keys()


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert phony is not None
    declared = set(phony[1].replace("\\\n", " ").split())
    assert declared == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def test_the_docs_lead_somewhere() -> None:
    broken = []
    for name, text in texts():
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
                if not (ROOT / name).parent.joinpath(target).exists():
                    broken.append(f"{name}: {target}")
    assert broken == []


def test_the_errors_that_operating_explains_are_those_that_are_written() -> None:
    text = (ROOT / "docs" / "operating.md").read_text().partition("## When it does not start")[2]
    spans = [re.findall("`(.*?)`", row) for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)]
    written = "\n".join(
        node.value
        for _, tree in modules("quazzar")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    parts = [part.strip(" ?") for row in spans for span in row for part in re.split("…|; ", span) if len(part) > 5]
    assert len(parts) > 15
    # A number in a sentence may be written by its name.
    unknown = [part for part in parts if part not in written and not re.search(r"\b(16|32|64)\b|: [A-Z]", part)]
    assert unknown == []
