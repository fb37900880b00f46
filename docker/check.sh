#!/bin/bash
# Builds an image of this folder without a Docker engine and looks at it: as root on Debian 12, with
# `apt-get install --no-install-recommends buildah debootstrap podman runc`.
#
#   docker/check.sh control                    about two minutes, and 1 GB under $WORK (/var/tmp/inpaint-farm-images)
#
# BUD_OPTIONS are further options of `buildah bud`, for example `--volume …` where pip needs a certificate or an index.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:?control or worker-cpu}
work=${WORK:-/var/tmp/inpaint-farm-images}
storage=(--storage-driver overlay --root "$work/store" --runroot "$work/run")
mkdir -p "$work"

if ! buildah "${storage[@]}" inspect localhost/debian:12-slim >/dev/null 2>&1; then
    rm -rf "$work/root"
    debootstrap --variant=minbase bookworm "$work/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
    # What Debian's slim image leaves out.
    printf 'path-exclude /usr/share/%s/*\n' man locale info groff lintian doc >"$work/root/etc/dpkg/dpkg.cfg.d/slim"
    echo 'path-include /usr/share/doc/*/copyright' >>"$work/root/etc/dpkg/dpkg.cfg.d/slim"
    find "$work/root/usr/share/doc" ! -name copyright ! -type d -delete
    rm -rf "$work"/root/usr/share/{man,locale,info,groff,lintian}/* "$work"/root/var/{cache/apt,lib/apt/lists}/*
    base=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" add -q "$base" "$work/root" / >/dev/null
    buildah "${storage[@]}" commit -q --format docker "$base" localhost/debian:12-slim
    buildah "${storage[@]}" rm "$base" >/dev/null
    rm -rf "$work/root"
fi

# shellcheck disable=SC2086  # a list of options
buildah "${storage[@]}" bud --isolation chroot --network host --format docker --pull-never ${BUD_OPTIONS:-} \
    --build-arg BASE=localhost/debian:12-slim --build-arg REVISION="$(git rev-parse HEAD)" \
    -f "docker/$image.Dockerfile" -t "localhost/inpaint-farm/$image" .

# As Kubernetes runs it: read-only root, no capability, no network, a /tmp.
run() {
    podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs run --rm --network none --read-only --cap-drop all \
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --no-healthcheck "$@"
}
tag=localhost/inpaint-farm/$image
run "$tag" --version
[ "$(run --entrypoint id "$tag" -u)" = 10001 ]
[ "$(run --entrypoint sh "$tag" -c 'command -v gcc pip || echo none')" = none ]
run --entrypoint python "$tag" -c '
import json
bill = json.load(open("/usr/share/sbom/inpaint-farm.cdx.json"))
print(len(bill["components"]), "packages in the bill of materials")'
case $image in
control) { run "$tag" dispatcher 2>&1 || true; } | grep "FARM_STORE is not set" ;;
worker-cpu) run "$tag" demo-model /tmp/model ;;
esac
size=$(podman "${storage[@]}" image inspect --format '{{.Size}}' "$tag")
echo "$tag: $((size / 1000000)) MB"
[ "$image" != control ] || [ "$size" -lt 250000000 ]
