-- Who is on the channel, and what they take.

-- No lease and no wait is renewed while the server is away, or while its clock is set forward.
local function extend_all(at)
  for key, length in pairs({[MEMBERS] = lease, [WAITING] = takeover}) do
    for _, name in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZADD', key, 'XX', 'GT', at + length, name)
    end
  end
end

-- What ends later than anything can that begins now was stored before the clock was set back.
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

local function note_beat()
  local at, beat = now(), tonumber(redis.call('GET', P .. ':beat') or '')
  if beat and at - beat > lease then
    extend_all(at)
  end
  shorten(MEMBERS, at, lease_of)
  shorten(WAITING, at, function() return takeover end)
  redis.call('SET', P .. ':beat', at, 'PX', linger)
  redis.call('ZADD', MEMBERS, at + lease, me)
  live_on(MEMBERS)
end

-- Tells whether all of it is there, and as it was made.
local function keep_alive(process)
  local whole = true
  local kinds = {
    [process_of(process)] = 'hash',
    [stream_of(process, 'u')] = 'stream',
    [stream_of(process, 'd')] = 'stream',
  }
  for key, kind in pairs(kinds) do
    whole = live_on(key) and redis.call('TYPE', key).ok == kind and whole
  end
  return whole
end

local function bury(at)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', at, 'LIMIT', 0, 16)) do
    expel(other)
  end
end

local function give_up_waiting(at)
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', WAITING, '-inf', at, 'LIMIT', 0, 256)) do
    redis.call('ZREM', WAITING, ref)
    local job = find(ref)
    if job and not select(2, choose(job)) then
      lose(ref, job, 'unhosted')
    end
  end
end

function commands.join(uid, runner)
  redis.call('HSET', process_of(me), 'uid', uid, 'runner', runner, 'lease', lease, 'n', 0)
  -- There before the first message: without its streams a process is sent nothing.
  for _, lane in ipairs({'u', 'd'}) do
    local stream = stream_of(me, lane)
    redis.call('XDEL', stream, redis.call('XADD', stream, '*', 'k', 'joined'))
  end
  keep_alive(me)
  note_beat()
  return 'ok'
end

function commands.leave()
  expel(me)
  if redis.call('EXISTS', MEMBERS) == 0 then
    redis.call('DEL', P .. ':beat', P .. ':turns', HOMES, OLD_HOMES)
  end
  return 'ok'
end

function commands.renew()
  if not redis.call('ZSCORE', MEMBERS, me) then
    return 'fenced'
  end
  if not keep_alive(me) then
    remove_foreign()
    expel(me)
    return 'fenced'
  end
  note_beat()
  bury(now())
  give_up_waiting(now())
  live_on(HOMES)
  live_on(OLD_HOMES)
  live_on(P .. ':hosted:' .. me)
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. me)) do
    live_on(P .. ':names:' .. name)
    live_on(P .. ':hosts:' .. name)
    for _, queue in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. name)) do
      live_on(P .. ':queues:' .. name)
      live_on(queue_of(name, queue))
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
  live_on(P .. ':names:' .. name)
  live_on(P .. ':hosted:' .. me)
  if spec ~= '' then
    redis.call('HSET', P .. ':hosts:' .. name, me, spec)
    live_on(P .. ':hosts:' .. name)
    fill_all(name)
  end
  return 'ok'
end

function commands.withdraw(name)
  withdraw(me, name)
  fill_all(name)
  return 'ok'
end

function commands.unhost(name)
  withdraw(me, name)
  redis.call('SREM', P .. ':names:' .. name, me)
  redis.call('SREM', P .. ':hosted:' .. me, name)
  fill_all(name)
  return 'ok'
end

-- Behind all that is in the caller's inbox by now.
function commands.mark(number)
  push(me, 'd', 'e', '', 0, number)
  return 'ok'
end

-- Has what waits for a worker looked at again, and gives what waits, as a set.
local function look_at(queue, job)
  local queues, waits = P .. ':queues:' .. job.w, {}
  redis.call('SADD', queues, job.q or job.j)
  live_on(queues)
  for _, ref in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    waits[ref] = true
  end
  fill(job.w, job.q or job.j)
  return waits
end

-- A job that is neither with its owner nor where requests wait, or that nobody waits for, since a
-- server has lost a key. `seen` holds what has been looked at in this step: many may wait.
local function mend(ref, seen)
  local job = find(ref)
  local queue = job.o == '' and queue_for(job)
  if queue and not seen[queue] then
    seen[queue] = look_at(queue, job)
    job = find(ref)
  end
  if not job then
    return
  elseif job.o ~= '' then
    if redis.call('HEXISTS', process_of(job.o), 'held:' .. ref) == 0 then
      hand_back(ref, job, '')
    end
  elseif not seen[queue][ref] then
    place(ref, job, 'RPUSH')
  elseif redis.call('EXISTS', P .. ':hosts:' .. job.w) == 0
    or next(job.tried) and not select(2, choose(job))
  then
    await_host(ref)
  end
end

-- What a process has taken, counted anew: another count than that keeps it from its jobs.
local function recount(process)
  local key, counts = process_of(process), {busy = 0}
  for _, ref in ipairs(fields_of(process, 'held:')) do
    local load = redis.call('HGET', key, 'held:' .. ref)
    counts[load], counts.busy = (counts[load] or 0) + 1, counts.busy + 1
  end
  for _, name in ipairs(fields_of(process, 'load:')) do
    if not counts['load:' .. name] then
      redis.call('HDEL', key, 'load:' .. name)
    end
  end
  for field, count in pairs(counts) do
    redis.call('HSET', key, field, count)
  end
end

-- Where the caller's books and the server's may differ, after a server has lost its last moments:
-- which of the caller's jobs are unknown here, and which it holds. The answer comes through the
-- inbox, behind all that has been said of them.
function commands.audit(...)
  local unknown, seen = {}, {}
  recount(me)
  for _, n in ipairs({...}) do
    local ref = me .. ':' .. n
    if find(ref) then
      mend(ref, seen)
    else
      unknown[#unknown + 1] = n
    end
  end
  local held = fields_of(me, 'held:')
  if #unknown + #held > 0 then
    push(me, 'd', 'x', '', 0, table.concat(unknown, ' ') .. '|' .. table.concat(held, ' '))
  end
  return 'ok'
end
