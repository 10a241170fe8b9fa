-- Who does a job, and what becomes of it when that process cannot.

local lose

-- Whose turn it is among hosts that are alike, from 0.
local function turn_of(worker, count)
  if count == 1 then
    return 0
  end
  local turn = redis.call('HINCRBY', P .. ':turns', worker, 1)
  live_on(P .. ':turns')
  return turn
end

-- Which process has the jobs of a worker and an affinity key, by its uid, whether it is there or
-- not; and whether it is about to be forgotten.
local function home_of(job)
  local field = job.w .. '\0' .. job.k
  local home = redis.call('HGET', HOMES, field)
  if home then
    return home, false
  end
  return redis.call('HGET', OLD_HOMES, field), true
end

-- What was not needed for so many others is forgotten.
local function keep_home(job, uid)
  if redis.call('HLEN', HOMES) >= MOST_HOMES then
    redis.call('RENAME', HOMES, OLD_HOMES)
  end
  redis.call('HSET', HOMES, job.w .. '\0' .. job.k, uid)
  live_on(HOMES)
end

-- An affinity that the requester names holds a job at its home, as that of a worker class may.
local function affinity_of(job, spec)
  return job.k and (string.sub(job.k, 1, 1) == '=' and 'requester' or spec.affinity)
end

-- What the hosts offer that may have a job, and how firmly the job stays at its home.
local function offers_for(job)
  local hosts, offers, affinity = redis.call('HGETALL', P .. ':hosts:' .. job.w), {}, nil
  for i = 1, #hosts, 2 do
    local offer = cjson.decode(hosts[i + 1])
    if not job.tried[offer.uid] then
      offer.process = hosts[i]
      offers[#offers + 1] = offer
      affinity = affinity or affinity_of(job, offer)
    end
  end
  return offers, affinity
end

-- The host that an offer makes for a job, if it has room.
local function host_of(job, offer)
  local kind = offer.rooms[job.j] and job.j or ''
  local load = 'load:' .. job.w .. '\0' .. kind
  local counts = redis.call('HMGET', process_of(offer.process), load, 'busy')
  local taken, busy = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local share = taken / offer.rooms[kind]
  return share < 1 and {
    process = offer.process, uid = offer.uid, kind = kind, load = load, taken = taken,
    share = share, busy = busy, once = offer.once[job.j],
  }
end

local function with_most_room(job, offers)
  local turn, best = turn_of(job.w, #offers), nil
  for i = 0, #offers - 1 do
    local host = host_of(job, offers[(turn + i) % #offers + 1])
    -- Among equals, the one that has least to do for all its workers.
    if host and (not best or host.share < best.share
      or host.share == best.share and host.busy < best.busy)
    then
      best = host
    end
  end
  return best
end

-- The host for a job, its home before the one with the most room; whether there is any that may
-- have it; and the uid of the only one that it waits for.
local function choose(job)
  local offers, affinity = offers_for(job)
  if #offers == 0 then
    return nil, false
  elseif not affinity then
    return with_most_room(job, offers), true
  end
  local home, fades = home_of(job)
  local is_there = false
  for _, offer in ipairs(offers) do
    if offer.uid == home then
      is_there = true
      local host = host_of(job, offer)
      if host then
        host.is_home = fades
        return host, true
      elseif affinity == 'requester' then
        return nil, true, home
      end
    end
  end
  local host = with_most_room(job, offers)
  if host then
    host.moved, host.is_home = home, not is_there
  end
  return host, true
end

-- To a host that was chosen in this very step; with the request if it is a new one.
local function assign(ref, job, host, request)
  if host.once and job.a > 1 then
    lose(ref, job, 'once')
    return
  end
  job.o, job.s, job.once = host.process, host.kind, job.once or host.once or false
  redis.call(
    'HSET', process_of(job.o), 'held:' .. ref, host.load,
    host.load, host.taken + 1, 'busy', host.busy + 1
  )
  if host.is_home then
    keep_home(job, host.uid)
  end
  keep(ref, job, request)
  push(job.o, 'd', 'j', ref, job.a, request or request_of(ref), host.moved)
end

local function await_host(ref)
  redis.call('ZADD', WAITING, 'NX', now() + takeover, ref)
  live_on(WAITING)
end

-- Until any process has room, or until the one has that the job is for.
local function wait_for_room(ref, job, home, side, request)
  job.q = home and job.j .. '\0' .. home or job.j
  redis.call(side, queue_for(job), ref)
  redis.call('SADD', P .. ':queues:' .. job.w, job.q)
  live_on(queue_for(job))
  live_on(P .. ':queues:' .. job.w)
  keep(ref, job, request)
end

local function place(ref, job, side, request)
  local host, any, home = choose(job)
  if host then
    assign(ref, job, host, request)
    return
  end
  wait_for_room(ref, job, home, side, request)
  if not any then
    await_host(ref)
  end
end

local function forget_queue_if_empty(worker, name)
  if redis.call('EXISTS', queue_of(worker, name)) == 0 then
    redis.call('SREM', P .. ':queues:' .. worker, name)
  end
end

-- Hand out what waits for room. A few at the head may have to wait for another host than this one.
local function fill(worker, name)
  local queue, passed = queue_of(worker, name), {}
  local ref = redis.call('LPOP', queue)
  while ref do
    local job = find(ref)
    local host, any, home
    if job then
      host, any, home = choose(job)
    end
    if host then
      redis.call('ZREM', WAITING, ref)
      assign(ref, job, host)
    elseif home and name ~= job.j .. '\0' .. home then
      -- It must not keep others from the processes that have room.
      wait_for_room(ref, job, home, 'RPUSH')
    elseif job then
      passed[#passed + 1] = ref
      if not next(job.tried) or #passed == 16 then
        break
      end
    end
    ref = redis.call('LPOP', queue)
  end
  for i = #passed, 1, -1 do
    redis.call('LPUSH', queue, passed[i])
  end
  forget_queue_if_empty(worker, name)
end

-- One name after the other begins, or those that share room would keep each other from it.
local function fill_all(worker)
  local names = redis.call('SMEMBERS', P .. ':queues:' .. worker)
  local first = #names > 1 and now() or 0
  for i = 1, #names do
    fill(worker, names[(first + i) % #names + 1])
  end
end

local function free(process, ref, load)
  local key = process_of(process)
  -- What a server has forgotten takes no room.
  if redis.call('HDEL', key, 'held:' .. ref) == 0 then
    return
  end
  if redis.call('HINCRBY', key, load, -1) <= 0 then
    redis.call('HDEL', key, load)
  end
  redis.call('HINCRBY', key, 'busy', -1)
end

local function release(ref, job)
  free(job.o, ref, 'load:' .. job.w .. '\0' .. job.s)
  job.o = ''
end

local function finish(ref, job)
  local asker, n = asker_of(ref)
  redis.call('HDEL', process_of(asker), 'job:' .. n, 'req:' .. n)
  if job.o ~= '' then
    release(ref, job)
    fill_all(job.w)
  else
    redis.call('LREM', queue_for(job), 0, ref)
    redis.call('ZREM', WAITING, ref)
    forget_queue_if_empty(job.w, job.q or job.j)
    -- Those behind it may have been waiting for no more than to be looked at.
    fill_all(job.w)
  end
end

-- End a job that its requester does not wait for any more, and have its worker stopped.
local function abandon(ref, job)
  if job.o ~= '' then
    push(job.o, 'u', 'c', ref, job.a, '')
  end
  finish(ref, job)
end

-- Behind whatever the worker said before, which is why it is not urgent.
function lose(ref, job, why)
  local asker = asker_of(ref)
  push(asker, 'd', 'l', ref, job.a, why)
  finish(ref, job)
end

local function hand_back(ref, job, started_at)
  release(ref, job)
  if job.c then
    lose(ref, job, 'cancelled')
  elseif started_at and job.once then
    lose(ref, job, 'once')
  elseif started_at and job.a >= attempts then
    lose(ref, job, 'attempts')
  else
    if started_at then
      job.a = job.a + 1
      job.tried[started_at] = true
    end
    place(ref, job, 'LPUSH')
  end
  fill_all(job.w)
end

local function withdraw(process, worker)
  redis.call('HDEL', P .. ':hosts:' .. worker, process)
  if redis.call('EXISTS', P .. ':hosts:' .. worker) == 0 then
    redis.call('HDEL', P .. ':turns', worker)
  end
  -- Those that are left may have been tried.
  for _, queue in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. worker)) do
    for _, ref in ipairs(redis.call('LRANGE', queue_of(worker, queue), 0, -1)) do
      await_host(ref)
    end
  end
end

-- What a process has of one kind, by the prefix of the fields.
local function fields_of(process, prefix)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', process_of(process))) do
    if string.sub(field, 1, #prefix) == prefix then
      found[#found + 1] = string.sub(field, #prefix + 1)
    end
  end
  return found
end

local function expel(process)
  local uid, runner = unpack(redis.call('HMGET', process_of(process), 'uid', 'runner'))
  redis.call('ZREM', MEMBERS, process)
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. process)) do
    redis.call('SREM', P .. ':names:' .. name, process)
    withdraw(process, name)
  end
  -- All at once, so that the room of one is not given to the next.
  local asked = {}
  for _, n in ipairs(fields_of(process, 'job:')) do
    local ref = process .. ':' .. n
    asked[ref] = find(ref)
    redis.call('HDEL', process_of(process), 'job:' .. n)
  end
  for ref, job in pairs(asked) do
    abandon(ref, job)
  end
  for _, ref in ipairs(fields_of(process, 'held:')) do
    local job = find(ref)
    if job then
      hand_back(ref, job, uid or '')
    end
  end
  redis.call(
    'DEL', process_of(process), P .. ':hosted:' .. process,
    stream_of(process, 'u'), stream_of(process, 'd')
  )
  for _, other in ipairs(redis.call('ZRANGE', MEMBERS, 0, -1)) do
    push(other, 'u', 'g', process, 0, runner or '')
  end
end
