"""Images that stand in for real ones: they take the real command, listen where the real one does, and pass its check.

What is run is busybox and one script under many names. A program that a template names and that is not listed here is
not found, as in a real image without it.
"""

import re

from quazzar.instance.apps.spec import ServiceSpec

SERVERS = ("redis-server", "mosquitto", "ntfy", "syncthing", "filebrowser", "entrypoint.sh", "cron.sh")
"""Programs that a template starts by name: servers, and some that first do one thing and end."""
CHECKS = (
    "pg_isready", "mysqladmin", "redis-cli", "mosquitto_sub", "bash", "node", "php", "python3", "immich-healthcheck",
    "healthcheck.sh", "mmctl", "miniflux", "vikunja", "healthcheck",
)  # fmt: skip
"""Programs of health checks that are not in busybox."""
PLACES = {
    "entrypoint.sh": "/", "cron.sh": "/", "healthcheck.sh": "/usr/local/bin/", "mmctl": "/mattermost/bin/",
    "miniflux": "/usr/bin/", "vikunja": "/app/vikunja/", "healthcheck": "/work/extra/",
}  # fmt: skip
KNOWN_PORTS = {
    "postgres": 5432, "mariadb": 3306, "mysql": 3306, "redis": 6379, "clickhouse-server": 8123,
    "immich-machine-learning": 3003,
}  # fmt: skip

_SERVE = """\
#!/bin/sh
case " $* " in
  *" generate "*|*" user add "*|*" users add "*|*" config init "*|*" db createdb "*|*" db migrate "*) exit 0;;
  *" sh -c "*) exec "$@";;
esac
trap 'exit 0' TERM INT QUIT
for port in $STAND_IN_PORTS; do nc -ll -p "$port" -e /answer & done
while true; do sleep 3600 & wait $!; done
"""
_ENTRY = """\
#!/bin/sh
if [ $# -gt 0 ] && command -v "$1" >/dev/null; then exec "$@"; fi
exec /serve "$@"
"""
_ANSWER = """\
#!/bin/sh
while read -r line; do [ "${#line}" -gt 1 ] || break; done
printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n'
"""
_CHECK = """\
#!/bin/sh
for port in $STAND_IN_PORTS; do wget -q -O /dev/null "http://127.0.0.1:$port/" || exit 1; done
"""
_CURL = """\
#!/bin/sh
for url; do :; done
exec wget -q -O /dev/null "$url"
"""
_TINI = '#!/bin/sh\nshift\nexec "$@"\n'
_USERS = """\
root:x:0:0:root:/root:/bin/sh
redis:x:999:999:redis:/data:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
"""


def files() -> dict[str, bytes]:
    """What every stand-in has beside busybox."""
    found = {
        "/serve": _SERVE,
        "/entry": _ENTRY,
        "/answer": _ANSWER,
        "/bin/curl": _CURL,
        "/bin/tini": _TINI,
        "/bin/entrypoint.sh": '#!/bin/sh\nexec "$@"\n',
        "/bin/mosquitto_passwd": "#!/bin/sh\n",
        "/healthcheck.sh": _CHECK,
        "/etc/passwd": _USERS,
    }
    for names, script in ((SERVERS, _SERVE), (CHECKS, _CHECK)):
        for name in names:
            found[PLACES.get(name, "/bin/") + name] = script
    return {path: text.encode() for path, text in found.items()}


def ports_of(service: ServiceSpec) -> set[int]:
    """The TCP ports that a service listens on: those that it publishes, that its check asks, and its kind's own."""
    found = {port.container_port for port in service.ports if port.protocol == "tcp"}
    if service.healthcheck is not None:
        found |= {
            int(port or 80) for port in re.findall(r"http://127\.0\.0\.1(?::(\d+))?", str(service.healthcheck.test))
        }
    kind = service.image.rpartition(":")[0].rpartition("/")[2]
    return found | ({KNOWN_PORTS[kind]} if kind in KNOWN_PORTS else set())


def changes(ports: set[int]) -> list[str]:
    """The lines of a Dockerfile that make busybox one of these."""
    listed = " ".join(str(port) for port in sorted(ports))
    return ['ENTRYPOINT ["/entry"]', "WORKDIR /work", f"ENV STAND_IN_PORTS={listed!r}"]
