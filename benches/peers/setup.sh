#!/bin/sh
# Makes the peers' environment in .venv beside this file; does nothing when it is up to date.
# The interpreter is $FREESTONE_PYTHON312 if set, else the first Python >= 3.12 found on PATH or under pyenv.
set -eu
cd "$(dirname "$0")"

stamp=.venv/requirements.cksum
wanted=$(cksum < requirements.txt)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

# A pyenv shim exists for versions that are not active, so each candidate is run, not just found.
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

python=
if [ -n "${FREESTONE_PYTHON312:-}" ]; then
    usable "$FREESTONE_PYTHON312" || {
        echo "setup.sh: FREESTONE_PYTHON312=$FREESTONE_PYTHON312 is not a Python >= 3.12" >&2
        exit 1
    }
    python=$FREESTONE_PYTHON312
else
    for candidate in python3.12 python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
        if usable "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "setup.sh: no Python >= 3.12 found; install one (pyenv install 3.12) or set FREESTONE_PYTHON312" >&2
    exit 1
fi

"$python" -m venv --clear .venv
echo '*' > .venv/.gitignore
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
# Last, so that an interrupted installation is done again.
echo "$wanted" > "$stamp"
