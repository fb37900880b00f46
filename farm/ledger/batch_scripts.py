"""The index's Lua scripts that are about whole batches. They share the prelude of `farm.ledger.scripts`."""

from __future__ import annotations

from typing import Final

# ARGV: tenant, batch_id, shard, n, (state, count)*n, (job_id, FIELDS…)*: index one shard, once → new rows, or -1 if it
# was indexed already. The counts are of its jobs that have ended and need no row.
INDEX_SHARD: Final = """
local batch = BATCH .. ARGV[2]
if tonumber(redis.call('HGET', batch, 'next_shard') or 0) ~= tonumber(ARGV[3]) then return -1 end
local width, new, first = #FIELDS + 1, 0, 5 + 2 * ARGV[4]
for at = 5, first - 1, 2 do
  redis.call('HINCRBY', batch, 'n:' .. ARGV[at], ARGV[at + 1])
  lower(QUEUED, ARGV[1], ARGV[at + 1])
end
for at = first, #ARGV, width do
  if bring_in(at) then new = new + 1 end
end
local known = redis.call('HMGET', batch, 'shards', 'live', 'model')
if redis.call('HINCRBY', batch, 'next_shard', 1) >= tonumber(known[1] or 0) then
  redis.call('ZREM', OPEN, ARGV[1] .. '/' .. ARGV[2] .. '/' .. known[3])
  if tonumber(known[2] or 0) <= 0 then redis.call('ZADD', DUE, now, 'batch:' .. ARGV[1] .. '/' .. ARGV[2]) end
end
return new
"""

# ARGV: tenant, batch_id, look_again, quota → 0 if the tenant has as many jobs queued as it may. Work is about to be
# accepted under this batch: look there if no word comes.
ANNOUNCE: Final = """
if tonumber(ARGV[4]) > 0 and tonumber(redis.call('HGET', QUEUED, ARGV[1]) or 0) >= tonumber(ARGV[4]) then return 0 end
redis.call('HSETNX', BATCH .. ARGV[2], 'state', 'accepting')
redis.call('HDEL', BATCH .. ARGV[2], 'looks')
redis.call('ZADD', DUE, now + ARGV[3], 'batch:' .. ARGV[1] .. '/' .. ARGV[2])
return 1
"""

# ARGV: tenant, batch_id, jobs, shards, next_shard, priority, model, look_again, retries, reopened, ended,
# (state, count)*: all of it is in the store; `ended` of its jobs need nothing more, and these are the counts of how.
OPEN_BATCH: Final = """
local batch, name = BATCH .. ARGV[2], ARGV[1] .. '/' .. ARGV[2]
if redis.call('HEXISTS', batch, 'shards') == 1 then return 0 end
local place = next_place(ARGV[6])
redis.call('HSET', batch, 'jobs', ARGV[3], 'shards', ARGV[4], 'next_shard', ARGV[5], 'state', 'open', 'model', ARGV[7],
  'retries', ARGV[9], 'reopened', ARGV[10], 'place', place)
redis.call('HSETNX', batch, 'live', 0)
redis.call('HDEL', batch, 'looks')
redis.call('HINCRBY', QUEUED, ARGV[1], ARGV[3] - ARGV[11])
for at = 12, #ARGV, 2 do redis.call('HSET', batch, 'n:' .. ARGV[at], ARGV[at + 1]) end
if tonumber(ARGV[5]) < tonumber(ARGV[4]) then redis.call('ZADD', OPEN, place, name .. '/' .. ARGV[7]) end
redis.call('ZADD', DUE, ARGV[4] == '0' and now or now + ARGV[8], 'batch:' .. name)
wake()
return 1
"""

# ARGV: tenant, batch_id, retries, again → 0 if jobs of it are left, or were retried meanwhile. Nothing of it is left to
# do; or, with `again`, it is to be opened once more.
CLOSE_BATCH: Final = """
local batch, name = BATCH .. ARGV[2], ARGV[1] .. '/' .. ARGV[2]
local known = redis.call('HMGET', batch, 'live', 'retries', 'jobs', 'model')
if tonumber(known[1] or 0) > 0 or (known[2] and known[2] ~= ARGV[3]) then return 0 end
local left, row = tonumber(known[3] or 0), redis.call('HGETALL', batch)
for at = 1, #row, 2 do
  if string.sub(row[at], 1, 2) == 'n:' then left = left - row[at + 1] end
end
if left > 0 then lower(QUEUED, ARGV[1], left) end
redis.call('DEL', batch, HELD .. ARGV[2])
redis.call('ZREM', DUE, 'batch:' .. name)
if known[4] then redis.call('ZREM', OPEN, name .. '/' .. known[4]) end
if ARGV[4] == '1' then
  redis.call('HSET', batch, 'state', 'accepting')
  redis.call('ZADD', DUE, now, 'batch:' .. name)
end
return 1
"""

# ARGV: tenant, batch_id, state, n: so many jobs that ended in this state are to run again → 0 where the batch is over
UNCOUNT: Final = """
local batch = BATCH .. ARGV[2]
if redis.call('HEXISTS', batch, 'shards') == 0 then return 0 end
redis.call('HINCRBY', batch, 'n:' .. ARGV[3], -ARGV[4])
redis.call('HINCRBY', batch, 'retries', 1)
redis.call('HINCRBY', QUEUED, ARGV[1], ARGV[4])
return 1
"""

# ARGV: tenant, batch_id, pause → 0 where the batch is not known. What is held comes back when it goes on.
PAUSE: Final = """
local batch, name = BATCH .. ARGV[2], ARGV[1] .. '/' .. ARGV[2]
if redis.call('HEXISTS', batch, 'shards') == 0 then return 0 end
redis.call('HSET', batch, 'paused', ARGV[3])
local known = redis.call('HMGET', batch, 'shards', 'next_shard', 'place', 'model')
if ARGV[3] == '1' then
  redis.call('ZREM', OPEN, name .. '/' .. known[4])
else
  if tonumber(known[2]) < tonumber(known[1]) then redis.call('ZADD', OPEN, known[3], name .. '/' .. known[4]) end
  for _, id in ipairs(redis.call('ZRANGE', HELD .. ARGV[2], 0, -1)) do
    local row = redis.call('HMGET', ROW .. id, 'state', 'tenant', 'model', 'priority')
    if row[1] == 'queued' then
      make_ready(id, row[2], row[3], row[4])
      redis.call('HINCRBY', LIVE, row[2] .. '/' .. row[3], 1)
    end
  end
  redis.call('DEL', HELD .. ARGV[2])
  wake()
end
return 1
"""

# ARGV: batch_id: every claim and every beat of it answers "canceled" from now on
CANCEL: Final = """
local batch = BATCH .. ARGV[1]
if redis.call('HEXISTS', batch, 'shards') == 0 then return 0 end
redis.call('HSET', batch, 'state', 'canceled')
return 1
"""

# ARGV: walk: it is over; the index is whole if Redis is still the one that it began with
END_WALK: Final = """
if redis.call('DEL', ARGV[1]) == 1 then redis.call('SETNX', EPOCH, ARGV[1]) end
return 1
"""
