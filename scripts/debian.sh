#!/bin/sh
# debian.sh COMMAND PACKAGE CONSEQUENCE: make sure of a command, by apt-get where we may.
set -u
command -v "$1" >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Debian's $2"
    apt-get update -qq >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null 2>&1
fi
command -v "$1" >/dev/null && exit 0
echo "$1 is missing: $3. On Debian: apt-get install $2" >&2
exit 1
