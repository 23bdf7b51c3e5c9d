"""What one panel process keeps of the fleet: the CA, the address that tokens name, and the line to every instance."""

import asyncio
import ipaddress
import socket

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.panel.fleet.authority import Authority, ensure_authority
from quazzar.panel.fleet.hub import Hub
from quazzar.panel.fleet.service import Address
from quazzar.settings import Settings


class Fleet:
    """One per process that serves the panel, in `app.state.fleet`."""

    def __init__(self, settings: Settings, keyring: Keyring, database: Database) -> None:
        self.settings = settings
        self.keyring = keyring
        self.database = database
        self.port = settings.agent.port
        agent = settings.agent
        self.hub = Hub(database, agent.heartbeat_seconds, self.panel_url, agent.public_addresses)
        self._authority: Authority | None = None
        self._loading = asyncio.Lock()

    async def authority(self) -> Authority:
        """The panel's CA, made at the first use if there is none."""
        if self._authority is None:
            async with self._loading:
                if self._authority is None:
                    async with self.database.begin() as session:
                        self._authority = await ensure_authority(session, self.keyring)
        return self._authority

    def panel_url(self) -> str:
        """Where people find the panel."""
        server = self.settings.server
        if server.public_url is not None:
            return server.public_url
        host = own_address() if is_everywhere(server.host) else server.host
        return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"

    async def address(self) -> Address:
        """What a registration token says about this panel."""
        authority = await self.authority()
        return Address(dialled_host(self.settings), self.port, authority.fingerprint)

    async def local_address(self) -> Address:
        """As `address`, for an instance on this machine."""
        host = self.settings.agent.host
        return Address(LOCAL if host in ("0.0.0.0", "::") else host, self.port, (await self.authority()).fingerprint)  # noqa: S104


LOCAL = "127.0.0.1"


def dialled_host(settings: Settings) -> str:
    """The host that instances are told; where the listener stands on all addresses, the one that leads outside."""
    host = settings.agent_public_host
    return own_address() if is_everywhere(host) else host


def is_everywhere(host: str) -> bool:
    """Whether a listener on this host stands on all addresses, so that it names none."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def own_address() -> str:
    """The address that this machine has towards others; loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: connecting a datagram socket only picks the address (RFC 5737 names nobody).
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
