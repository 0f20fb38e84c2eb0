#!/bin/sh
# Says what is wrong with the interpreter before pip does.
set -eu
"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "Greenroom needs Python 3.11 or newer as '$1'; name one with: make PYTHON=/path/to/python" >&2
    exit 1
}
"$1" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "'$1' has no venv module; on Debian: apt-get install python3-venv" >&2
    exit 1
}
