#!/bin/sh
# Makes a virtual environment with the pinned uv in it: venv.sh PYTHON FOLDER LOCK
# Everything else is then installed by that uv, which takes seconds where pip takes a minute.
set -eu

python=$1
folder=$2
lock=$3

say() {
    printf 'quazzar: %s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    say "$python is not installed; Quazzar needs Python 3.11 or newer (give another by PYTHON=…)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    say "$python is $("$python" -V 2>&1), Quazzar needs Python 3.11 or newer (give another by PYTHON=…)"

which='import sys; print(sys.base_prefix, sys.version)'
if [ ! -x "$folder/bin/python" ] || [ "$("$folder/bin/python" -c "$which")" != "$("$python" -c "$which")" ]; then
    rm -rf "$folder"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$folder"
    elif "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$folder" 2>/dev/null; then
        :
    else
        say "Python's venv module is incomplete here; install it with: apt-get install python3-venv"
    fi
fi

if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    set -- "$folder/bin/python" -m pip
else
    # No pip inside: the one of the system installs into the environment.
    set -- "$python" -m pip --python "$folder/bin/python"
fi
"$@" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$lock" ||
    say "uv could not be installed; see the message above"
