"""Password hashing: the parameters, the dummy hash, and the queue."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import pytest
from argon2 import extract_parameters

from quazzar.core.errors import Unavailable
from quazzar.core.passwords import Passwords


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


async def test_a_hash_is_argon2id_at_the_floor_or_above_and_salted(passwords: Passwords) -> None:
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert first.startswith("$argon2id$")
    assert first != second
    parameters = extract_parameters(first)
    assert parameters.time_cost >= 2
    assert parameters.memory_cost >= 19 * 1024
    assert parameters.parallelism >= 1
    assert parameters.salt_len >= 16
    assert not passwords.is_outdated(first)


async def test_verify(passwords: Passwords) -> None:
    made = await passwords.hash("Pässwort, lang genug")
    assert await passwords.verify(made, "Pässwort, lang genug")
    # The same letters in decomposed form, as some systems send them.
    assert await passwords.verify(made, "Pa\u0308sswort, lang genug")
    assert not await passwords.verify(made, "passwort, lang genug")
    assert not await passwords.verify("not a hash", "passwort")


async def test_weaker_hashes_are_outdated_but_verify(passwords: Passwords) -> None:
    from argon2 import PasswordHasher  # noqa: PLC0415

    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("correct horse")
    assert passwords.is_outdated(weak)
    assert await passwords.verify(weak, "correct horse")


async def test_s21_an_unknown_user_costs_as_much_as_a_known_one(passwords: Passwords) -> None:
    made = await passwords.hash("correct horse")

    async def seconds(password_hash: str | None) -> float:
        started = time.thread_time()
        # In this thread, where nothing else runs, so that the CPU time is that of the hash alone.
        from quazzar.core.passwords import _plain, _verify  # noqa: PLC0415

        assert not _verify(password_hash or passwords._unknown, _plain("wrong"))
        return time.thread_time() - started

    # A machine that others use as well is uneven at times; a hash that is not made is missing each time.
    for _ in range(3):
        known, unknown = [], []
        for _ in range(15):
            known.append(await seconds(made))
            unknown.append(await seconds(None))
        if statistics.median(unknown) == pytest.approx(statistics.median(known), rel=0.15):
            break
    else:
        pytest.fail(f"{statistics.median(known):.4f} s for who is known, {statistics.median(unknown):.4f} s for others")
    assert not await passwords.verify(None, "wrong")


async def test_no_more_at_once_than_there_are_threads_and_503_beyond_the_queue() -> None:
    passwords = Passwords(at_once=1, waiting=2)
    try:
        results = await asyncio.gather(*(passwords.verify(None, "x") for _ in range(10)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert len(refused) == 7
        assert refused[0].status == 503
        assert refused[0].headers["Retry-After"] == "2"
        # Room is given back.
        await asyncio.sleep(0)
        assert await asyncio.gather(*(passwords.verify(None, "x") for _ in range(3))) == [False] * 3
    finally:
        passwords.close()


async def test_room_of_callers_who_left_is_given_back() -> None:
    passwords = Passwords(at_once=1, waiting=3)
    try:
        tasks = [asyncio.create_task(passwords.verify(None, "x")) for _ in range(4)]
        await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            while passwords._room < 4:
                await asyncio.sleep(0.005)
    finally:
        passwords.close()


async def test_the_event_loop_goes_on_while_hashes_are_made(passwords: Passwords) -> None:
    hashing = asyncio.gather(*(passwords.verify(None, "x") for _ in range(12)))
    late, began = [], time.perf_counter()
    while not hashing.done():
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - started)
    await hashing
    # Held up by hashes, it would wait for one each time; on a busy machine those take longer, too.
    assert statistics.median(late) < max(0.03, (time.perf_counter() - began) / 12 / 2)
