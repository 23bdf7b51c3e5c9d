"""Archives that stream by are put under another folder and stay what they are, however their bytes arrive."""

import io
import tarfile
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core import tars

KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
PIECE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120).filter(
    lambda text: text not in {".", ".."}
)
NAME = st.lists(PIECE, min_size=1, max_size=4).map("/".join)


def packed(entries: list[tarfile.TarInfo], contents: list[bytes], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for one, content in zip(entries, contents, strict=True):
            tar.addfile(one, io.BytesIO(content))
    return buffer.getvalue()


def told(content: bytes) -> list[tuple[Any, ...]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found: list[tuple[Any, ...]] = []
        for one in tar:
            file = tar.extractfile(one) if one.isreg() else None
            whole = (one.name, one.type, one.linkname, one.mode, one.uid, one.gid, one.mtime, one.devmajor)
            found.append((*whole, file.read() if file else b""))
        return found


async def pieces(content: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def moved(content: bytes, *, size: int = 700, to: str = "app/volumes/data") -> bytes:
    return b"".join([chunk async for chunk in tars.moved(pieces(content, size), root="volume", to=to)]) + tars.END


@given(
    files=st.lists(st.tuples(NAME, st.sampled_from(KINDS), st.binary(max_size=1500), NAME), max_size=8),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    size=st.integers(1, 3000),
    to=st.sampled_from(["x", "app/volumes/data", "n" * 63 + "/volumes/" + "v" * 63]),
)
async def test_every_entry_stays_what_it_is(
    files: list[tuple[str, bytes, bytes, str]], form: int, size: int, to: str
) -> None:
    entries, contents = [tarfile.TarInfo("volume")], [b""]
    entries[0].type, entries[0].mode = tarfile.DIRTYPE, 0o2751
    for name, kind, content, link in files:
        one = tarfile.TarInfo(f"volume/{name}")
        one.type, one.mode, one.uid, one.gid, one.mtime = kind, 0o4755, 1000, 2**22, 1_700_000_000
        one.size = len(content) if kind == tarfile.REGTYPE else 0
        if kind == tarfile.CHRTYPE:
            one.devmajor, one.devminor = 1, 3
        if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
            one.linkname = link if kind == tarfile.SYMTYPE else f"volume/{link}"
        entries.append(one)
        contents.append(content if kind == tarfile.REGTYPE else b"")
    given_ = packed(entries, contents, form)
    expected = []
    for path, kind, link, *rest in told(given_):
        target = link.replace("volume", to, 1) if kind == tarfile.LNKTYPE else link
        expected.append((path.replace("volume", to, 1), kind, target, *rest))
    assert told(await moved(given_, size=size, to=to)) == expected


async def test_extended_attributes_and_large_numbers_stay() -> None:
    one = tarfile.TarInfo("volume/x")
    one.pax_headers = {"SCHILY.xattr.security.capability": "\x01\x00\x02", "mtime": "1700000000.5"}
    one.uid = 2**40
    with tarfile.open(fileobj=io.BytesIO(await moved(packed([one], [b""], tarfile.PAX_FORMAT)))) as tar:
        [found] = tar.getmembers()
    assert found.pax_headers["SCHILY.xattr.security.capability"] == "\x01\x00\x02"
    assert (found.mtime, found.uid) == (1700000000.5, 2**40)


@pytest.mark.parametrize(
    "name", ["other/x", "volumes/x", "/volume/x", "volume/../x", "volume/a/../../x", "../volume/x", "x"]
)
async def test_what_lies_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(tars.TarBroken):
        await moved(packed([tarfile.TarInfo(name)], [b""], tarfile.PAX_FORMAT))


async def test_a_hard_link_to_elsewhere_is_refused() -> None:
    one = tarfile.TarInfo("volume/x")
    one.type, one.linkname = tarfile.LNKTYPE, "etc/passwd"
    with pytest.raises(tars.TarBroken):
        await moved(packed([one], [b""], tarfile.PAX_FORMAT))


@given(content=st.binary(max_size=2000), cut=st.integers(0, 3000))
async def test_what_is_no_archive_or_cut_off_is_told(content: bytes, cut: int) -> None:
    one = tarfile.TarInfo("volume/x")
    one.size = 1500
    whole = packed([one], [b"x" * 1500], tarfile.GNU_FORMAT)
    for broken in (content, whole[: min(cut, 2047)], content + whole):
        if broken in {whole, b""} or not broken.strip(b"\0"):
            continue
        with pytest.raises(tars.TarBroken):
            await moved(broken)


async def test_a_huge_header_is_refused_before_it_is_held() -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**31

    async def endless() -> AsyncGenerator[bytes, None]:
        yield header.tobuf(tarfile.USTAR_FORMAT)
        while True:
            yield bytes(65536)

    with pytest.raises(tars.TarBroken):
        async for _ in tars.moved(endless(), root="volume", to="x"):
            pass


def test_entries_of_our_own() -> None:
    content = tars.folder("a/", mode=0o700, at=1.9) + tars.entry("a/b", b"x" * 513, mode=0o600, at=5) + tars.END
    assert told(content) == [
        ("a", tarfile.DIRTYPE, "", 0o700, 0, 0, 1, 0, b""),
        ("a/b", tarfile.REGTYPE, "", 0o600, 0, 0, 5, 0, b"x" * 513),
    ]
