#!/bin/sh
# Installs the Debian packages that the tests use as real parts: Ceph's radosgw (S3), redis-server (the second Redis),
# prometheus (which scrapes a farm, and whose promtool tries the alerts) and chromium (which opens the report).
# Does nothing, fast, when they are there. Without root or apt it says so in one line and ends 0: the tests say again
# what they use instead.
set -eu

missing=
for pair in radosgw:radosgw radosgw-admin:radosgw ceph-mon:ceph-mon ceph-osd:ceph-osd \
    ceph-authtool:ceph-common monmaptool:ceph-common osdmaptool:ceph-common redis-server:redis-server \
    prometheus:prometheus promtool:prometheus chromium:chromium; do
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1; then
        case " $missing " in
        *" ${pair#*:} "*) ;;
        *) missing="$missing ${pair#*:}" ;;
        esac
    fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests' real servers and browser need$missing; install them as root on Debian, or the tests use stand-ins." >&2
    exit 0
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
kept=
finish() {
    rm -f "$log"
    if [ -n "$kept" ]; then mv -f "$kept" "$policy"; else rm -f "$policy"; fi
}
# 101 tells Debian's maintainer scripts not to start services; whatever policy the machine had comes back afterwards.
if [ -e "$policy" ]; then kept=$(mktemp "$policy.XXXXXX") && mv -f "$policy" "$kept"; fi
trap finish EXIT
trap 'exit 130' INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "Installing$missing …"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words
if ! { apt-get -q update &&
    apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt-get could not install$missing." >&2
    exit 1
fi
# Nor shall they start with the machine: the tests run servers of their own.
for service in redis-server prometheus; do
    case " $missing " in
    *" $service "*)
        if command -v systemctl >/dev/null 2>&1; then systemctl disable "$service.service" >/dev/null 2>&1 || true; fi
        ;;
    esac
done
