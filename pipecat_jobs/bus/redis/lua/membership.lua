-- Commands for the processes on the channel, and the requests that they take.

-- Extends all leases and waits after the server was away or its clock was set forward, because no
-- process could renew its lease meanwhile.
local function extend_all(at)
  for key, length in pairs({[MEMBERS] = lease, [WAITING] = takeover}) do
    for _, name in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZADD', key, 'XX', 'GT', at + length, name)
    end
  end
end

-- Shortens leases or waits that end later than one that begins now: they were stored before the
-- clock of the server was set back.
local function shorten(key, at, length_of)
  local shortest = length_of()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. at + shortest, '+inf')) do
    local latest = at + length_of(name)
    if tonumber(redis.call('ZSCORE', key, name)) > latest then
      redis.call('ZADD', key, 'XX', latest, name)
    end
  end
end

local function lease_of(process)
  return process and tonumber(redis.call('HGET', process_of(process), 'lease') or '') or lease
end

local function renew_lease()
  local at, beat = now(), tonumber(redis.call('GET', P .. ':beat') or '')
  if beat and at - beat > lease then
    extend_all(at)
  end
  shorten(MEMBERS, at, lease_of)
  shorten(WAITING, at, function() return takeover end)
  redis.call('SET', P .. ':beat', at, 'PX', linger)
  redis.call('ZADD', MEMBERS, at + lease, me)
  extend_ttl(MEMBERS)
end

-- Keeps the keys of a process from expiring, and returns whether all exist and have the right type.
local function keep_alive(process)
  local whole = true
  local kinds = {
    [process_of(process)] = 'hash',
    [stream_of(process, 'u')] = 'stream',
    [stream_of(process, 'd')] = 'stream',
  }
  for key, kind in pairs(kinds) do
    whole = extend_ttl(key) and redis.call('TYPE', key).ok == kind and whole
  end
  return whole
end

local function evict_expired(at)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', at, 'LIMIT', 0, 16)) do
    evict(other)
  end
end

local function lose_expired(at)
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', WAITING, '-inf', at, 'LIMIT', 0, 256)) do
    redis.call('ZREM', WAITING, ref)
    local job = find(ref)
    if job and not select(2, choose(ref, job)) then
      lose(ref, job, 'unhosted')
    end
  end
end

function commands.join(uid, runner)
  redis.call('HSET', process_of(me), 'uid', uid, 'runner', runner, 'lease', lease, 'n', 0)
  -- The streams must exist before the first message, because `push` does not create them.
  for _, lane in ipairs({'u', 'd'}) do
    local stream = stream_of(me, lane)
    redis.call('XDEL', stream, redis.call('XADD', stream, '*', 'k', 'joined'))
  end
  keep_alive(me)
  renew_lease()
  return 'ok'
end

function commands.leave()
  evict(me)
  if redis.call('EXISTS', MEMBERS) == 0 then
    redis.call('DEL', P .. ':beat', P .. ':turns', HOMES, OLD_HOMES, KEYS_HELD)
  end
  return 'ok'
end

function commands.renew()
  if not redis.call('ZSCORE', MEMBERS, me) then
    return 'fenced'
  end
  if not keep_alive(me) then
    remove_foreign()
    evict(me)
    return 'fenced'
  end
  renew_lease()
  evict_expired(now())
  lose_expired(now())
  extend_ttl(HOMES)
  extend_ttl(OLD_HOMES)
  extend_ttl(KEYS_HELD)
  extend_ttl(P .. ':hosted:' .. me)
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. me)) do
    extend_ttl(P .. ':names:' .. name)
    extend_ttl(P .. ':hosts:' .. name)
    for _, queue in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. name)) do
      extend_ttl(P .. ':queues:' .. name)
      extend_ttl(queue_of(name, queue))
    end
  end
  return 'ok'
end

function commands.roster()
  local runners = {}
  for _, process in ipairs(redis.call('ZRANGE', MEMBERS, 0, -1)) do
    runners[#runners + 1] = redis.call('HGET', process_of(process), 'runner')
  end
  return runners
end

function commands.host(name, spec)
  if not redis.call('ZSCORE', MEMBERS, me) then
    return 'fenced'
  end
  redis.call('SADD', P .. ':names:' .. name, me)
  redis.call('SADD', P .. ':hosted:' .. me, name)
  extend_ttl(P .. ':names:' .. name)
  extend_ttl(P .. ':hosted:' .. me)
  if spec ~= '' then
    redis.call('HSET', P .. ':hosts:' .. name, me, spec)
    extend_ttl(P .. ':hosts:' .. name)
    assign_all_waiting(name)
  end
  return 'ok'
end

function commands.withdraw(name)
  withdraw(me, name)
  assign_all_waiting(name)
  return 'ok'
end

function commands.unhost(name)
  withdraw(me, name)
  redis.call('SREM', P .. ':names:' .. name, me)
  redis.call('SREM', P .. ':hosted:' .. me, name)
  assign_all_waiting(name)
  return 'ok'
end

-- Puts an entry behind all entries in the inbox of the calling process.
function commands.mark(number)
  push(me, 'd', 'e', '', 0, number)
  return 'ok'
end

-- Returns whether any process may take a job. For a first attempt, no offer has to be decoded.
local function has_offer(job)
  if next(job.tried) then
    return #offers_for(job) > 0
  end
  return redis.call('EXISTS', P .. ':hosts:' .. job.w) == 1
end

-- Returns whether something can still end a job: a process that does it, or its place in a queue
-- from which a process takes jobs, or a time at which its wait ends.
local function is_whole(ref, job, queues)
  if job.o ~= '' then
    return redis.call('ZSCORE', MEMBERS, job.o)
      and redis.call('HEXISTS', process_of(job.o), 'held:' .. ref) == 1
  end
  local name, queue = job.q or job.j, queue_for(job)
  if not queues[queue] then
    queues[queue] = {}
    if redis.call('SISMEMBER', P .. ':queues:' .. job.w, name) == 1 then
      for _, waiting in ipairs(redis.call('LRANGE', queue, 0, -1)) do
        queues[queue][waiting] = true
      end
    end
  end
  return queues[queue][ref]
    and (redis.call('ZSCORE', WAITING, ref) or has_offer(job))
end

-- Counts the taken slots and the keys of a process again, because slots would stay unused, and keys
-- bound to the process, if a count were wrong.
local function recount(process)
  local key, counts, held_keys = process_of(process), {busy = 0}, {}
  for _, name in ipairs(fields_of(process, 'load:')) do
    counts['load:' .. name] = 0
  end
  for _, ref in ipairs(fields_of(process, 'held:')) do
    local load = redis.call('HGET', key, 'held:' .. ref)
    counts[load], counts.busy = (counts[load] or 0) + 1, counts.busy + 1
    local job = find(ref)
    if job and job.x then
      local field = key_field(job)
      held_keys[field] = (held_keys[field] or 0) + 1
    end
  end
  for _, field in ipairs(fields_of(process, 'key:')) do
    if held_keys[field] then
      redis.call('HSET', key, 'key:' .. field, held_keys[field])
    else
      redis.call('HDEL', key, 'key:' .. field)
      give_up_key(process, field)
    end
  end
  for field, count in pairs(counts) do
    redis.call('HSET', key, field, count)
  end
end

-- Finds differences between the state of the calling process and this state, after this state was
-- partly lost: jobs that the process requested and nothing here can end, which are lost, and all
-- jobs that it does according to this state. The reply goes to the inbox, behind all messages about
-- them.
function commands.audit(...)
  recount(me)
  local lost, queues = {}, {}
  for _, n in ipairs({...}) do
    local ref = me .. ':' .. n
    local job = find(ref)
    if not job or not is_whole(ref, job, queues) then
      lost[#lost + 1] = n
      if job then
        abandon(ref, job)
      end
    end
  end
  local held = fields_of(me, 'held:')
  if #lost + #held > 0 then
    push(me, 'd', 'x', '', 0, table.concat(lost, ' ') .. '|' .. table.concat(held, ' '))
  end
  return 'ok'
end
