"""What an instance says of itself: facts, and what it measures right now."""

import contextlib
import hashlib
import platform
import socket
import time
from pathlib import Path

import msgspec
import psutil

from quazzar import __version__
from quazzar.link.messages import Facts, Url
from quazzar.link.metrics import row_of

_MACHINE_ID = Path("/etc/machine-id")


def facts_of(data_dir: Path, url: str | None) -> Facts:
    """`url` is where people find this server. Reads files; call it in a thread."""
    return Facts(
        name=socket.gethostname()[:200] or "server",
        hostname=socket.gethostname()[:200],
        machine_id=machine_id(data_dir),
        version=__version__,
        os=_os_name()[:200],
        arch=platform.machine()[:50],
        cpu_cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=psutil.disk_usage(str(data_dir)).total,
        url=_told(url),
    )


def _told(url: str | None) -> str | None:
    """A panel would refuse the whole message for one that it can't take."""
    try:
        return msgspec.convert(url, Url | None)
    except msgspec.ValidationError:
        return None


def machine_id(data_dir: Path) -> str:
    """A digest by which a panel knows this machine and data folder again."""
    machine = ""
    with contextlib.suppress(OSError):
        machine = _MACHINE_ID.read_text().strip()
    return hashlib.sha256(f"{machine or socket.gethostname()}\n{data_dir.resolve()}".encode()).hexdigest()


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return platform.system()


class Meter:
    """Rates need a moment before: the first measurement has none."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._before: tuple[float, list[float]] | None = None
        psutil.cpu_percent()

    def measure(self) -> list[float | None]:
        """The values of `HOST_METRICS`; reads files, call it in a thread."""
        memory, disk, load = psutil.virtual_memory(), psutil.disk_usage(str(self._data_dir)), psutil.getloadavg()
        values: dict[str, float | None] = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_used_bytes": memory.total - memory.available,
            "memory_percent": memory.percent,
            "swap_used_bytes": psutil.swap_memory().used,
            "disk_used_bytes": disk.used,
            "disk_percent": disk.percent,
            "load_1": load[0],
            "load_5": load[1],
            "load_15": load[2],
            "processes": len(psutil.pids()),
            "uptime_seconds": time.time() - psutil.boot_time(),
        }
        return row_of(values | self._rates())

    def _rates(self) -> dict[str, float]:
        network, disks = psutil.net_io_counters(), psutil.disk_io_counters()
        now = time.monotonic()
        counts = [
            float(disks.read_bytes if disks else 0),
            float(disks.write_bytes if disks else 0),
            float(network.bytes_recv),
            float(network.bytes_sent),
        ]
        before, self._before = self._before, (now, counts)
        if before is None or now <= before[0]:
            return {}
        names = ("disk_read", "disk_write", "network_rx", "network_tx")
        return {
            f"{name}_bytes_per_second": max(0.0, count - former) / (now - before[0])
            for name, count, former in zip(names, counts, before[1], strict=True)
        }
