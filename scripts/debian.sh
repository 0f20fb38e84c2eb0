#!/bin/sh
# debian.sh COMMAND PACKAGE CONSEQUENCE: make sure of a command, by apt-get where we may.
# COMMAND: a name on the PATH or the pattern of a path; several are alternatives.
set -u
found() {
    for each in $1; do
        command -v "$each" >/dev/null && return 0
    done
    return 1
}
found "$1" && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Debian's $2"
    # The package would make a cluster and start it; the tests make their own.
    no_cluster=/etc/postgresql-common/createcluster.d/greenroom.conf
    if [ "$2" = postgresql ]; then
        mkdir -p "${no_cluster%/*}" && echo "create_main_cluster = off" >"$no_cluster"
    fi
    # Nor is a server to be started: policy-rc.d is what packages ask before they do.
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    fi
    apt-get update -qq >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null 2>&1
    rm -f "$no_cluster" $policy
fi
found "$1" && exit 0
echo "$2 is missing: $3. On Debian: apt-get install $2" >&2
exit 1
