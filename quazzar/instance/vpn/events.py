"""What the VPN announces; the subject is the peer."""

from quazzar.core.records import Event


class PeerAdded(Event):
    """A device may join the network."""

    type = "vpn.peer_added"
    peer_id: str
    name: str
    address: str


class PeerRemoved(Event):
    """A device may not join any more, by a call or because its time was over."""

    type = "vpn.peer_removed"
    peer_id: str
    name: str
    address: str
