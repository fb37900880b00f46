# Starts Redis with the farm's users, each let in by the password in $PASSWORDS/<role>, and no others.
set -eu
umask 077
sed_script=""
for role in sdk worker dispatcher; do
    hash=$(tr -d '\n' <"$PASSWORDS/$role" | sha256sum | cut -c 1-64)
    sed_script="$sed_script
/^user $role /s/#0\{64\}/#$hash/"
done
sed "$sed_script" "$ACL_TEMPLATE" >"$RUN_DIR/users.acl"
server=$(command -v valkey-server || command -v redis-server)
# The append-only file, and never a key dropped for room: a full Redis refuses new jobs instead.
exec "$server" --port "$PORT" --dir "$DATA_DIR" --aclfile "$RUN_DIR/users.acl" \
    --appendonly yes --appendfsync everysec --save '' --maxmemory "$MAXMEMORY" --maxmemory-policy noeviction
