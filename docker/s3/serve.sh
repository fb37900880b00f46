#!/bin/bash
# Makes a one-node Ceph in $S3_FOLDER, its objects in memory, serves S3 on $S3_PORT and creates $S3_BUCKET.
# The keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Ends when any of its servers ends.
set -euo pipefail
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${S3_FOLDER:?}" "${S3_PORT:?}" "${S3_BUCKET:?}"
monitor_port=${S3_MONITOR_PORT:-13300}
bind=${S3_BIND:-0.0.0.0}

rm -rf "$S3_FOLDER"
mkdir -p "$S3_FOLDER"/{mon,osd/0,rgw,run}
cd "$S3_FOLDER"
export CEPH_CONF=$S3_FOLDER/ceph.conf
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >ceph.conf <<EOF
[global]
fsid = $fsid
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
ms bind ipv4 = true
mon initial members = a
mon host = [v2:127.0.0.1:$monitor_port]
mon data = $S3_FOLDER/mon/\$id
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
osd data = $S3_FOLDER/osd/\$id
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = ${S3_BYTES:-2147483648}
keyring = $S3_FOLDER/keyring
run dir = $S3_FOLDER/run
admin socket = $S3_FOLDER/run/\$name.\$pid.asok
log to file = false
log to stderr = true
[client]
rgw frontends = beast endpoint=$bind:$S3_PORT
rgw data = $S3_FOLDER/rgw
EOF

ceph-authtool keyring --create-keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool keyring --gen-key -n osd.0 --cap mon 'allow *' --cap osd 'allow *'
ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
monmaptool --create --addv a "[v2:127.0.0.1:$monitor_port]" --fsid "$fsid" monmap
osdmaptool osdmap --createsimple 1
ceph-mon --mkfs -i a --monmap monmap --osdmap osdmap --keyring keyring

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
trap 'exit 0' TERM INT
ceph-mon -i a -f &
ceph-osd -i 0 --mkfs # asks the monitor
ceph-osd -i 0 -f &
# Waits for both, and makes the gateway's pools.
radosgw-admin user create --uid=farm --display-name=farm \
    --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY" >/dev/null
radosgw -n client.admin -f &
gateway=$!

# curl signs the request by itself, if it is told the sha256 of nothing.
until curl --silent --header x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 \
    --fail --output /dev/null --aws-sigv4 aws:amz:us-east-1:s3 --request PUT \
    --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "http://127.0.0.1:$S3_PORT/$S3_BUCKET"; do
    kill -0 $gateway 2>/dev/null || exit 1
    sleep 0.5
done
touch "$S3_FOLDER/ready"
echo "S3 on port $S3_PORT, bucket $S3_BUCKET"
wait -n
exit 1
