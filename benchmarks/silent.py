"""The process itself, but announcing nothing: what publishing adds is the difference. Takes the product's arguments."""

import runpy

from quazzar.core import records


def _say_nothing(*_: object, **__: object) -> str:
    return "evt_" + "a" * 26


if __name__ == "__main__":
    # Every domain imports the name from here, after this.
    records.publish = _say_nothing
    runpy.run_module("quazzar", run_name="__main__", alter_sys=False)
