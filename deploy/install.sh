#!/bin/sh
# Installs Quazzar on a plain Debian or Ubuntu server, or brings it to the release in the source folder.
#
#   sudo sh deploy/install.sh                    an instance: this server with its apps
#   sudo sh deploy/install.sh --mode panel       a Control Panel (its database.url in /etc/quazzar/panel.environment)
#   sudo sh deploy/install.sh --uninstall        takes it away and keeps data and settings
#
# May be run again at any time: what is there already is left or replaced. Other flags: --source FOLDER (a checkout;
# default: the one that this script lies in), --python PROGRAM, --with-docker (install Docker from the distribution),
# --no-start, --root FOLDER (install below FOLDER for an image: no user, no service).
set -eu

say() { printf '%s\n' "$1"; }

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

mode=instance
source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# The distribution's own: one that lies in somebody's home can't be run by the service's user.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
root=
start=yes
action=install
docker=no

while [ $# -gt 0 ]; do
    case $1 in
        --mode | --source | --python | --root)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --mode) mode=$2 ;;
                --source) source=$2 ;;
                --python) python=$2 ;;
                --root) root=${2%/} ;;
            esac
            shift
            ;;
        --with-docker) docker=yes ;;
        --no-start) start=no ;;
        --uninstall) action=uninstall ;;
        -h | --help)
            sed -n '2,/^set -eu/{ /^#/s/^# \{0,1\}//p; }' "$0"
            exit 0
            ;;
        *) fail "unknown flag: $1 (see --help)" ;;
    esac
    shift
done

case $mode in
    instance) data=/var/lib/quazzar environment=/etc/quazzar/environment ;;
    panel) data=/var/lib/quazzar-panel environment=/etc/quazzar/panel.environment ;;
    *) fail "--mode must be instance or panel" ;;
esac

home=/opt/quazzar
config=/etc/quazzar
unit=quazzar-$mode.service
units=/etc/systemd/system
command=/usr/local/bin/quazzar

[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "must be run as root, for example with sudo"

has_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

uninstall() {
    if has_systemd; then
        for each in quazzar-instance.service quazzar-panel.service; do
            systemctl disable --now "$each" 2>/dev/null || true
        done
    fi
    rm -f "$root$units/quazzar-instance.service" "$root$units/quazzar-panel.service" "$root$command"
    rm -rf "$root$home"
    if has_systemd; then systemctl daemon-reload; fi
    say "Quazzar is taken away. Data in /var/lib/quazzar*, settings in $config and the user quazzar were kept."
}

need_packages() {
    packages=
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then packages="python3 python3-venv"; fi
    if [ "$docker" = yes ] && ! command -v dockerd >/dev/null 2>&1; then
        packages="$packages docker.io"
        # Each app has a network of its own, and the engine's own pools hold about 30.
        if [ -z "$root" ] && ! [ -e /etc/docker/daemon.json ]; then
            mkdir -p /etc/docker
            echo '{"default-address-pools": [{"base": "10.200.0.0/14", "size": 24}]}' >/etc/docker/daemon.json
        fi
    fi
    [ -n "$packages" ] || return 0
    [ -z "$root" ] && command -v apt-get >/dev/null 2>&1 || fail "please install first: $packages"
    say "Installing $packages"
    # The names are ours, and meant to be several words.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages >/dev/null ||
        { apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends $packages >/dev/null; } ||
        fail "apt-get could not install $packages"
}

make_user() {
    [ -z "$root" ] || return 0
    # The unit names the group of the engine's socket, so it must be there before the engine is.
    getent group docker >/dev/null || groupadd --system docker
    getent passwd quazzar >/dev/null ||
        useradd --system --user-group --home-dir /var/lib/quazzar --no-create-home --shell /usr/sbin/nologin quazzar
}

put_files() {
    for needed in quazzar/__main__.py migrations/env.py requirements.lock requirements-uv.lock deploy/venv.sh; do
        [ -f "$source/$needed" ] || fail "$source is not a checkout of Quazzar: $needed is missing"
    done
    mkdir -p "$root$home" "$root$config" "$root$units" "$root$(dirname "$command")"
    chmod 0755 "$root$home"
    if [ -z "$root" ]; then chown root:quazzar "$config"; fi
    chmod 0750 "$root$config"

    rm -rf "$root$home/app.new" "$root$home/app.old"
    mkdir -p "$root$home/app.new/docs"
    cp -R "$source/quazzar" "$source/migrations" "$root$home/app.new/"
    find "$root$home/app.new" -name __pycache__ -type d -prune -exec rm -rf {} +
    for file in docs/operating.md CHANGELOG.md; do
        if [ -f "$source/$file" ]; then cp "$source/$file" "$root$home/app.new/$file"; fi
    done
    sh "$source/deploy/venv.sh" "$python" "$root$home/venv" "$source/requirements-uv.lock"
    [ -n "$root" ] || runuser -u quazzar -- "$home/venv/bin/python" -c '' 2>/dev/null ||
        fail "$python can't be run by the user quazzar; give another one by --python"
    "$root$home/venv/bin/uv" pip sync --quiet --require-hashes --compile-bytecode \
        --python "$root$home/venv/bin/python" "$source/requirements.lock"
    "$root$home/venv/bin/python" -m compileall -q "$root$home/app.new"
    chmod -R u=rwX,go=rX "$root$home/app.new"

    cat >"$root$command.new" <<END
#!/bin/sh
# The command line of the installed Quazzar, run as its own user: what it writes must belong to that user.
set -eu
# The settings of the service, as systemd reads them: without them a command would look at another database.
if [ -r $environment ]; then
    while read -r line || [ -n "\$line" ]; do
        name=\${line%%=*} value=\${line#*=}
        case \$line in *=*) ;; *) continue ;; esac
        case \$name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        case \$value in
            \"*\") value=\${value#\"} value=\${value%\"} ;;
            \'*\') value=\${value#\'} value=\${value%\'} ;;
        esac
        printenv "\$name" >/dev/null || export "\$name=\$value"
    done <$environment
fi
export PYTHONPATH=$home/app QUAZZAR_SERVER_DATA_DIR="\${QUAZZAR_SERVER_DATA_DIR:-$data}"
export QUAZZAR_SERVER_MODE="\${QUAZZAR_SERVER_MODE:-$mode}"
set -- $home/venv/bin/python -P -m quazzar "\$@"
if [ "\$(id -u)" -eq 0 ]; then set -- runuser -u quazzar -- "\$@"; fi
exec "\$@"
END
    chmod 0755 "$root$command.new"
    mv -f "$root$command.new" "$root$command"
    cp "$source/deploy/$unit" "$root$units/$unit"
    chmod 0644 "$root$units/$unit"
}

swap() {
    # Between the two renames there is no program, and a running process must not load half of it from the new one.
    restart=
    if has_systemd; then
        for each in quazzar-instance.service quazzar-panel.service; do
            if [ "$each" != "$unit" ] && systemctl is-active --quiet "$each"; then restart=$each; fi
            systemctl stop "$each" 2>/dev/null || true
        done
    fi
    if [ -d "$root$home/app" ]; then mv "$root$home/app" "$root$home/app.old"; fi
    mv "$root$home/app.new" "$root$home/app"
    rm -rf "$root$home/app.old"
}

start_service() {
    if ! has_systemd; then
        say "Installed. No systemd runs here, so start it yourself: $command --mode=$mode"
        return 0
    fi
    systemctl daemon-reload
    if [ -n "$restart" ]; then systemctl start "$restart"; fi
    if [ "$start" = no ]; then
        say "Installed. Start it with: systemctl enable --now $unit"
        return 0
    fi
    systemctl enable --quiet "$unit"
    systemctl restart "$unit"
    port=$(PYTHONPATH=$home/app QUAZZAR_SERVER_DATA_DIR=$data "$home/venv/bin/python" -P -c \
        'from quazzar.settings import load_settings; print(load_settings().server.port)' 2>/dev/null) || port=8080
    tries=0
    until "$home/venv/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=2)' \
        "http://127.0.0.1:$port/api/ready" 2>/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" -ge 60 ] || ! systemctl is-active --quiet "$unit"; then
            fail "it did not become ready on port $port; see: journalctl -u $unit, and: quazzar doctor"
        fi
        sleep 0.5
    done
    say "Quazzar runs on http://127.0.0.1:$port (systemctl status $unit)."
    if [ "$mode" = instance ] && [ -f "$data/setup-token" ]; then
        say "From another machine the first setup needs the token in $data/setup-token"
    fi
}

if [ "$action" = uninstall ]; then
    uninstall
    exit 0
fi
need_packages
make_user
put_files
swap
if [ "$mode" = instance ] && [ -z "$root" ] && ! [ -S /var/run/docker.sock ]; then
    say "No container engine is here yet: install Docker (or run this again with --with-docker) to run apps."
fi
start_service
