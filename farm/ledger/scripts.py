"""The index's Lua scripts. Each is one change, whole or not at all.

All of them share a prelude: Redis' clock, and what it means for a row to be made, made ready and ended. Keys are made
from ids inside the scripts (prefix first in ARGV), so the index lives on one Redis, not on a cluster's shards.
"""

from __future__ import annotations

from typing import Final

from farm import keys
from farm.ledger.records import ROW_FIELDS

_LINE = 10**12  # places in line that each priority has: 100 comes first, within one first come first


def first_place(priority: int) -> int:
    """Of all places in line of this priority; larger ones are those of what is less urgent."""
    return (100 - priority) * _LINE


def priority_at(place: float) -> int:
    return 100 - int(place) // _LINE


_LUA_FIELDS = ", ".join(f"'{name}'" for name in ROW_FIELDS)

PRELUDE: Final = (
    f"""
local t = redis.call('TIME') local now = t[1] + t[2] / 1000000
local FIELDS = {{ {_LUA_FIELDS} }}
local ROW, BATCH, DUE = '{keys.job_row("")}', '{keys.batch_row("")}', '{keys.DUE}'
local READY, TENANTS, HINTED = '{keys.READY}', '{keys.TENANTS}', '{keys.HINTED}'
local OPEN, WEIGHTS = '{keys.OPEN}', '{keys.WEIGHTS}'
local SEQUENCE, EPOCH, LINE = '{keys.SEQUENCE}', '{keys.EPOCH}', {_LINE}
local FINISHED, PACE, RUNNING = '{keys.FINISHED}', '{keys.PACE}', '{keys.RUNNING}'
local LIVE, QUEUED, HELD, WAKE = '{keys.LIVE}', '{keys.QUEUED}', '{keys.HELD}', '{keys.WAKE}'
"""
    + """
local function next_place(priority)
  return (100 - priority) * LINE + redis.call('INCR', SEQUENCE)
end

local function wake()
  if redis.call('LLEN', WAKE) < 2 then redis.call('RPUSH', WAKE, '1') end
end

-- A new row from ARGV[at…]: job_id, then FIELDS.
local function make(at, state)
  local row = {ROW .. ARGV[at], 'state', state, 'attempt', 0, 'crashes', 0, 'queued_at', now}
  for i, name in ipairs(FIELDS) do row[#row + 1] = name row[#row + 1] = ARGV[at + i] end
  redis.call('HSET', unpack(row))
  redis.call('HINCRBY', LIVE, ARGV[at + 1] .. '/' .. ARGV[at + 3], 1)
  if tonumber(ARGV[at + 4]) >= 0 then redis.call('HINCRBY', BATCH .. ARGV[at + 2], 'live', 1) end
end

-- A count, which a lost Redis may have left too low.
local function lower(counts, name, by)
  if redis.call('HINCRBY', counts, name, -(by or 1)) <= 0 then redis.call('HDEL', counts, name) end
end

-- Put a queued job where the dispatcher takes it: at the end of those of its priority.
local function make_ready(id, tenant, model, priority)
  redis.call('ZADD', READY .. model .. ':' .. tenant, next_place(priority), id)
  redis.call('SADD', READY, model)
  if not redis.call('ZSCORE', TENANTS .. model, tenant) then
    local first = redis.call('ZRANGE', TENANTS .. model, 0, 0, 'WITHSCORES')
    redis.call('ZADD', TENANTS .. model, first[2] or 0, tenant)
  end
end

-- Put a queued job of a paused batch aside: it comes back when the batch goes on.
local function hold(id, tenant, batch, model)
  redis.call('ZREM', HINTED .. model, id)
  redis.call('ZREM', READY .. model .. ':' .. tenant, id)
  redis.call('ZREM', DUE, id)
  if redis.call('ZADD', HELD .. batch, 0, id) == 1 then lower(LIVE, tenant .. '/' .. model) end
end

local function requeue(id)
  local row = redis.call('HMGET', ROW .. id, 'tenant', 'model', 'priority')
  redis.call('HSET', ROW .. id, 'state', 'queued', 'owner', '')
  redis.call('ZREM', HINTED .. row[2], id)
  redis.call('SREM', RUNNING .. row[2], id)
  redis.call('ZREM', DUE, id)
  make_ready(id, row[1], row[2], row[3])
end

-- Forget a job that ended as `outcome`. A row that was made from a hint is not counted: its job may have ended, and
-- been counted, before. A job in other hands than `owner`'s leaves a mark, so that their next beat is refused.
local function forget(id, outcome, owner)
  local row = redis.call('HMGET', ROW .. id, 'tenant', 'batch_id', 'model', 'shard', 'remade', 'state', 'owner')
  local tenant, name, model = row[1], row[2], row[3]
  if row[6] == 'running' and row[7] ~= owner then
    redis.call('HSET', ROW .. id, 'state', 'ended', 'owner', '')
    redis.call('EXPIRE', ROW .. id, 600)
  else
    redis.call('DEL', ROW .. id)
  end
  if not tenant or row[6] == 'ended' then return nil end
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', HINTED .. model, id)
  redis.call('ZREM', READY .. model .. ':' .. tenant, id)
  redis.call('SREM', RUNNING .. model, id)
  if not row[5] then lower(QUEUED, tenant) end
  if redis.call('ZREM', HELD .. name, id) == 0 then lower(LIVE, tenant .. '/' .. model) end
  if tonumber(row[4]) >= 0 then
    local batch = BATCH .. name
    local live = redis.call('HINCRBY', batch, 'live', -1)
    local known = redis.call('HMGET', batch, 'state', 'shards', 'next_shard')
    if not known[1] then
      if live <= 0 then redis.call('DEL', batch) end
    else
      if not row[5] then redis.call('HINCRBY', batch, 'n:' .. outcome, 1) end
      if known[2] and tonumber(known[3]) < tonumber(known[2]) then wake()
      elseif known[2] and live <= 0 then
        redis.call('ZADD', DUE, now, 'batch:' .. tenant .. '/' .. name)
        wake()
      end
    end
  end
  return model
end

-- A row for a job that is to run, from ARGV[at…], unless it has one → whether it is new. An earlier generation's row
-- stands for a job that has failed and whose worker has not said so yet.
local function bring_in(at)
  local id = ARGV[at]
  local row = redis.call('HMGET', ROW .. id, 'state', 'generation')
  if row[1] == 'ended' then
    redis.call('DEL', ROW .. id)
  elseif row[1] and tonumber(row[2]) < tonumber(ARGV[at + 7]) then
    forget(id, 'failed', '')
    redis.call('DEL', ROW .. id)
  elseif row[1] then
    redis.call('HDEL', ROW .. id, 'remade')
    return false
  end
  make(at, 'queued')
  make_ready(id, ARGV[at + 1], ARGV[at + 3], ARGV[at + 8])
  return true
end
"""
)

# ARGV: counted, (job_id, FIELDS…)* → how many were new. For jobs that no shard of a batch will bring; those of an open
# batch are `counted` among its tenant's already.
ENQUEUE: Final = """
local width, new = #FIELDS + 1, 0
for at = 2, #ARGV, width do
  if bring_in(at) then
    if ARGV[1] == '1' then redis.call('HINCRBY', QUEUED, ARGV[at + 1], 1) end
    new = new + 1
  end
  if tonumber(ARGV[at + 4]) < 0 then
    redis.call('DEL', BATCH .. ARGV[at + 2])
    redis.call('ZREM', DUE, 'batch:' .. ARGV[at + 1] .. '/' .. ARGV[at + 2])
  end
end
if new > 0 then wake() end
return new
"""

# ARGV: owner, lease, (job_id, FIELDS…)* → (outcome, attempt, crashes, waited, saved)*
# A row that is missing (Redis lost it, or the job has ended) is made from the hint; whoever claims it looks for a
# result first. A hint of another generation than the row's comes too late, one from before a pause too early.
CLAIM: Final = """
local width, answer = #FIELDS + 1, {}
for at = 3, #ARGV, width do
  local id, model = ARGV[at], ARGV[at + 3]
  local key = ROW .. id
  local row = redis.call('HMGET', key, 'state', 'crashes', 'queued_at', 'saved', 'generation')
  local outcome, crashes = 'claimed', tonumber(row[2] or 0)
  if not row[1] then
    make(at, 'queued')
    redis.call('HSET', key, 'remade', 1)
    row[3] = now
  elseif row[5] ~= ARGV[at + 7] then
    outcome = 'busy'
  elseif row[1] == 'running' then
    local expiry = redis.call('ZSCORE', DUE, id)
    if expiry and tonumber(expiry) > now then outcome = 'busy' else
      crashes = redis.call('HINCRBY', key, 'crashes', 1)
    end
  elseif row[1] == 'ended' then
    outcome = 'busy'
  else
    local batch = redis.call('HMGET', BATCH .. ARGV[at + 2], 'paused', 'state')
    if batch[1] == '1' and batch[2] ~= 'canceled' then
      outcome = 'busy'
      hold(id, ARGV[at + 1], ARGV[at + 2], model)
    end
  end
  local attempt = 0
  if outcome ~= 'busy' then
    if redis.call('HGET', BATCH .. ARGV[at + 2], 'state') == 'canceled' then outcome = 'canceled' end
    redis.call('HSET', key, 'state', 'running', 'owner', ARGV[1])
    redis.call('HDEL', key, 'looks')
    redis.call('ZADD', DUE, now + ARGV[2], id)
    if redis.call('ZREM', HELD .. ARGV[at + 2], id) == 1 then
      redis.call('HINCRBY', LIVE, ARGV[at + 1] .. '/' .. model, 1)
    end
    redis.call('ZREM', HINTED .. model, id)
    redis.call('ZREM', READY .. model .. ':' .. ARGV[at + 1], id)
    redis.call('SADD', RUNNING .. model, id)
    attempt = redis.call('HINCRBY', key, 'attempt', 1)
  end
  answer[#answer + 1] = {outcome, attempt, crashes, tostring(now - (row[3] or now)), row[4] or '0'}
end
wake()
return answer
"""

# ARGV: owner, lease, (job_id, FIELDS…)* → (0 lost | 1 held | 2 canceled)*
# A row that Redis lost is made again by whoever holds the job.
BEAT: Final = """
local width, answer = #FIELDS + 1, {}
for at = 3, #ARGV, width do
  local id = ARGV[at]
  local row = redis.call('HMGET', ROW .. id, 'state', 'owner')
  if not row[1] then
    make(at, 'running')
    redis.call('HSET', ROW .. id, 'owner', ARGV[1], 'attempt', 1, 'remade', 1)
    redis.call('SADD', RUNNING .. ARGV[at + 3], id)
    row = {'running', ARGV[1]}
  end
  if row[1] == 'running' and row[2] == ARGV[1] then
    redis.call('ZADD', DUE, now + ARGV[2], id)
    local canceled = redis.call('HGET', BATCH .. ARGV[at + 2], 'state') == 'canceled'
    answer[#answer + 1] = canceled and 2 or 1
  else
    answer[#answer + 1] = 0
  end
end
return answer
"""

# ARGV: job_id, owner, delay, charged, saved → 1 if it was this owner's
RELEASE: Final = """
local row = redis.call('HMGET', ROW .. ARGV[1], 'state', 'owner')
if row[1] ~= 'running' or row[2] ~= ARGV[2] then return 0 end
if ARGV[4] == '0' then redis.call('HINCRBY', ROW .. ARGV[1], 'attempt', -1) end
if ARGV[5] == '1' then redis.call('HSET', ROW .. ARGV[1], 'saved', 1) end
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', ROW .. ARGV[1], 'state', 'queued', 'owner', '')
  redis.call('SREM', RUNNING .. redis.call('HGET', ROW .. ARGV[1], 'model'), ARGV[1])
  redis.call('ZADD', DUE, now + ARGV[3], ARGV[1])
else
  requeue(ARGV[1])
end
wake()
return 1
"""

# ARGV: job_id* → give back what was hinted and not claimed
GIVE_BACK: Final = """
for _, id in ipairs(ARGV) do
  local row = redis.call('HMGET', ROW .. id, 'state', 'model')
  if row[1] == 'queued' and redis.call('ZSCORE', HINTED .. row[2], id) then requeue(id) end
end
wake()
return 1
"""

# ARGV: (job_id, generation, state, seconds, owner)*: forget jobs whose results are written.
FINISH: Final = """
for at = 1, #ARGV, 5 do
  local generation = redis.call('HGET', ROW .. ARGV[at], 'generation')
  if generation == ARGV[at + 1] then
    local model = forget(ARGV[at], ARGV[at + 2], ARGV[at + 4])
    if model then
      redis.call('INCR', FINISHED .. model)
      redis.call('INCRBYFLOAT', PACE .. model, ARGV[at + 3])
    end
  end
end
return 1
"""

# ARGV: limit, look_again → batches (tenant/batch) to look at, seconds to the next, jobs. Jobs that are due become ready
# by this very call: a lease that ended counts as a crash, a retry's time has come, a hint came to nothing.
TAKE_DUE: Final = """
local batches, jobs = {}, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if string.sub(id, 1, 6) == 'batch:' then
    local batch = BATCH .. string.gsub(id, '.*/', '')
    local looks = redis.call('EXISTS', batch) == 1 and redis.call('HINCRBY', batch, 'looks', 1) or 1
    redis.call('ZADD', DUE, now + ARGV[2] * 2 ^ math.min(looks - 1, 6), id)
    batches[#batches + 1] = string.sub(id, 7)
  else
    local state = redis.call('HGET', ROW .. id, 'state')
    if state == 'running' then redis.call('HINCRBY', ROW .. id, 'crashes', 1) end
    if state then requeue(id) else redis.call('ZREM', DUE, id) end
    jobs = jobs + 1
  end
end
local next = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
return {batches, tostring(next[2] and math.max(0, next[2] - now) or -1), jobs}
"""

# ARGV: model, window, limit, quantum, look_again → (job_id, FIELDS…)*: ready jobs in their order: the tenant that has
# had the least of its share first, `quantum` jobs at a time; within a tenant by priority, then by age.
TAKE_READY: Final = """
local model, taken = ARGV[1], {}
local room = math.min(tonumber(ARGV[3]), ARGV[2] - redis.call('ZCARD', HINTED .. model))
while room > 0 do
  local first = redis.call('ZRANGE', TENANTS .. model, 0, 0, 'WITHSCORES')
  local tenant = first[1]
  if not tenant then redis.call('SREM', READY, model) break end
  local popped = redis.call('ZPOPMIN', READY .. model .. ':' .. tenant, math.min(room, tonumber(ARGV[4])))
  if #popped == 0 then
    redis.call('ZREM', TENANTS .. model, tenant)
  else
    local given = 0
    for i = 1, #popped, 2 do
      local id = popped[i]
      local row = redis.call('HMGET', ROW .. id, 'state', unpack(FIELDS))
      if row[1] == 'queued' then
        if redis.call('HGET', BATCH .. row[3], 'paused') == '1' then
          hold(id, tenant, row[3], model)
        else
          local looks = redis.call('HINCRBY', ROW .. id, 'looks', 1)
          redis.call('ZADD', HINTED .. model, now, id)
          redis.call('ZADD', DUE, now + ARGV[5] * 2 ^ math.min(looks - 1, 4), id)
          row[1] = id
          taken[#taken + 1] = row
          given = given + 1
        end
      end
    end
    room = room - given
    local weight = tonumber(redis.call('HGET', WEIGHTS, tenant) or 1)
    redis.call('ZINCRBY', TENANTS .. model, given / weight, tenant)
  end
end
return taken
"""
