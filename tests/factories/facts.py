"""What a server says of itself when it joins a panel."""

import uuid

from quazzar.link.messages import Facts


def server_facts(name: str = "server", *, machine_id: str | None = None) -> Facts:
    """Of a machine that nobody has seen before, unless told which one it is."""
    return Facts(
        name=name,
        hostname=name,
        machine_id=machine_id or uuid.uuid4().hex * 2,
        version="0.1.0",
        os="Linux",
        arch="x86_64",
        cpu_cores=1,
        memory_bytes=1,
        disk_bytes=1,
    )
