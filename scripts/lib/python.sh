# shellcheck shell=bash
# Sourced by the scripts here: sets PYTHON to a Python 3.11 or newer, installing Debian's where that is possible.

python_is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in /usr/bin/python3 "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && python_is_recent "$candidate"; then
            PYTHON=$candidate
            return 0
        fi
    done
    return 1
}

if ! find_python; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing python3 with apt-get"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv; } >/dev/null
    fi
    find_python || {
        echo "error: this script needs Python 3.11 or newer; on Debian 12: apt-get install python3 python3-venv" >&2
        exit 1
    }
fi
# shellcheck disable=SC2034  # used by the script that sources this
readonly PYTHON
