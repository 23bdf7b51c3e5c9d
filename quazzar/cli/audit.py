"""`quazzar audit verify`: whether every audit log of the database is whole."""

from quazzar.cli.arguments import Arguments
from quazzar.cli.database import usable_database
from quazzar.cli.serve import run_async
from quazzar.settings import Settings


def verify(arguments: Arguments) -> int:
    """Prints a line per chain; 1 when one of them is not whole."""
    return 0 if run_async(_verify(arguments.settings())) else 1


async def _verify(settings: Settings) -> bool:
    from quazzar.audit.verify import verify_all  # noqa: PLC0415 - after the arguments are judged

    whole = True
    async with usable_database(settings) as database:
        async for chain, check in verify_all(database):
            if check.valid:
                print(f"ok    {chain}  {check.checked} records", flush=True)
                continue
            whole = False
            name = f" ({check.first_bad})" if check.first_bad is not None else ""
            print(f"fail  {chain}  record {check.first_bad_number}{name}: {check.problem}", flush=True)
    return whole
