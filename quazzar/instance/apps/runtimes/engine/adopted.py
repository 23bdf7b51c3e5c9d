"""What is an app's though it carries no label of ours: containers, networks and volumes of adopted Compose projects.

An engine can't label what is there already. So what would stand on their labels is told to the driver, and read here as
if it stood there: by the id of a container or network, and by the name of a volume, as long as that has the labels that
it had when it was adopted. Nothing else of an engine is ever taken for an app's.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from quazzar.instance.apps.runtimes.base import Adoption
from quazzar.instance.apps.runtimes.engine import objects

COMPOSE_PROJECT: Final = "com.docker.compose.project"


class Adopted:
    """All adoptions that the driver was told of; empty for most."""

    def __init__(self) -> None:
        self._by_app: dict[str, Adoption] = {}
        self._containers: dict[str, dict[str, str]] = {}
        self._networks: dict[str, dict[str, str]] = {}
        self._volumes: dict[str, tuple[str, str]] = {}
        self._volume_names: dict[tuple[str, str], str] = {}
        self._network_names: dict[tuple[str, str], str] = {}

    def __bool__(self) -> bool:
        return bool(self._by_app)

    def own(self, app_id: str, adoption: Adoption) -> None:
        self.disown(app_id)
        self._by_app[app_id] = adoption
        for container_id, one in adoption.containers.items():
            self._containers[container_id] = objects.labels(
                app_id,
                {
                    objects.SERVICE: one.service,
                    objects.SPEC: one.digest,
                    objects.ORDER: str(one.order),
                    objects.DEPENDS: objects.depends_text(one.depends_on),
                    objects.IMAGE: one.image,
                },
            )
        for network_id, network in adoption.networks.items():
            self._networks[network_id] = objects.labels(app_id, {objects.NETWORK: network.name})
            self._network_names[app_id, network.name] = network.engine_name
        for name, volume in adoption.volumes.items():
            self._volumes[name] = (app_id, volume.name)
            self._volume_names[app_id, volume.name] = name

    def disown(self, app_id: str) -> None:
        if self._by_app.pop(app_id, None) is None:
            return
        for index in (self._containers, self._networks):
            for key in [key for key, labels in index.items() if labels[objects.APP] == app_id]:
                del index[key]
        for name in [name for name, (owner, _) in self._volumes.items() if owner == app_id]:
            del self._volumes[name]
        for names in (self._volume_names, self._network_names):
            for pair in [pair for pair in names if pair[0] == app_id]:
                del names[pair]

    def filters(self, app_id: str | None) -> dict[str, list[str]] | None:
        """The engine-side filter for containers and networks that may be adopted ones; None where there are none."""
        if app_id is None:
            return {"label": [COMPOSE_PROJECT]} if self._by_app else None
        adoption = self._by_app.get(app_id)
        return {"label": [f"{COMPOSE_PROJECT}={adoption.project}"]} if adoption is not None else None

    def volume_names(self, app_id: str | None) -> list[str]:
        return [name for name, (owner, _) in self._volumes.items() if app_id in {None, owner}]

    def container(self, container_id: str) -> Mapping[str, str]:
        """The labels that a container would carry; none for one that is not adopted."""
        return self._containers.get(container_id, {})

    def network(self, network_id: str) -> Mapping[str, str]:
        return self._networks.get(network_id, {})

    def volume(self, volume: Mapping[str, Any]) -> Mapping[str, str]:
        found = self._volumes.get(volume["Name"])
        if found is None:
            return {}
        app_id, name = found
        adopted = self._by_app[app_id].volumes[volume["Name"]]
        return objects.labels(app_id, {objects.VOLUME: name}) if (volume.get("Labels") or {}) == adopted.labels else {}

    def labelled(self, found: Iterable[Mapping[str, Any]], app_id: str | None, kind: str) -> list[dict[str, Any]]:
        """Those of the containers, networks or volumes (`kind`) that are adopted, by the app where one is given."""
        told = []
        for one in found:
            match kind:
                case "volume":
                    labels = self.volume(one)
                case "network":
                    labels = self.network(one["Id"])
                case _:
                    labels = self.container(one["Id"])
            if labels and app_id in {None, labels[objects.APP]}:
                told.append({**one, "Labels": {**(one.get("Labels") or {}), **labels}})
        return told

    def volume_name(self, app_id: str, name: str) -> str:
        """What the engine calls a volume of an app."""
        return self._volume_names.get((app_id, name)) or objects.engine_name(app_id, name)

    def network_name(self, app_id: str, name: str) -> str:
        """What the engine calls a network of an app."""
        return self._network_names.get((app_id, name)) or objects.engine_name(app_id, name)
