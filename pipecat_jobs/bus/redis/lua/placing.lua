-- Assigns jobs to processes, and reassigns them.

local lose

-- Returns which host to try first, counted from 0. Equal hosts take turns.
local function turn_of(worker, count)
  if count == 1 then
    return 0
  end
  local turn = redis.call('HINCRBY', P .. ':turns', worker, 1)
  extend_ttl(P .. ':turns')
  return turn
end

-- Returns the uid of the process that has the jobs of a worker and an affinity key, also if that
-- process is dead; and whether the pair is in the older half, which is deleted next.
local function home_of(job)
  local field = job.w .. '\0' .. job.k
  local home = redis.call('HGET', HOMES, field)
  if home then
    return home, false
  end
  return redis.call('HGET', OLD_HOMES, field), true
end

-- When the newer half is full, it replaces the older half, which has the least recently used pairs.
local function keep_home(job, uid)
  if redis.call('HLEN', HOMES) >= MOST_HOMES then
    redis.call('RENAME', HOMES, OLD_HOMES)
  end
  redis.call('HSET', HOMES, job.w .. '\0' .. job.k, uid)
  extend_ttl(HOMES)
end

-- An affinity key from the requester always binds a job to its home.
local function affinity_of(job, spec)
  return job.k and (string.sub(job.k, 1, 1) == '=' and 'requester' or spec.affinity)
end

-- Raises for a request that has no key. Keys that differ may have the same text: their jobs only
-- share a process.
local function read_key(request, fields)
  local payload = cjson.decode(string.match(request, '^[^\n]*\n[^\n]*\n(.*)$')).v.payload
  -- A dict with other keys than text is sent as pairs.
  if payload['$'] == 'dict' then
    local sent = payload.v
    payload = {}
    for _, pair in ipairs(sent) do
      payload[pair.v[1]] = pair.v[2]
    end
  end
  local values = {}
  for i, field in ipairs(fields) do
    local value = payload[field]
    if type(value) ~= 'string' and type(value) ~= 'number' and type(value) ~= 'boolean' then
      return false
    end
    values[i] = value
  end
  return redis.sha1hex(cjson.encode(values))
end

-- Returns the values of the fields that are a request's key, as a short text; false if it has none.
-- Its worker refuses a request without a key.
local function key_of(request, fields)
  local read, key = pcall(read_key, request, fields)
  return read and key
end

local function key_field(job) return job.w .. '\0' .. job.x end

-- Returns the process that has the open jobs with the key of a job.
local function holder_of(job)
  local holder = redis.call('HGET', KEYS_HELD, key_field(job))
  return holder and redis.call('HEXISTS', process_of(holder), 'key:' .. key_field(job)) == 1
    and holder
end

local function hold_key(job)
  redis.call('HSET', KEYS_HELD, key_field(job), job.o)
  redis.call('HINCRBY', process_of(job.o), 'key:' .. key_field(job), 1)
  extend_ttl(KEYS_HELD)
end

-- Lets another process have the key from now on.
local function give_up_key(process, field)
  if redis.call('HGET', KEYS_HELD, field) == process then
    redis.call('HDEL', KEYS_HELD, field)
  end
end

local function free_key(job)
  local field = 'key:' .. key_field(job)
  if redis.call('HINCRBY', process_of(job.o), field, -1) <= 0 then
    redis.call('HDEL', process_of(job.o), field)
    give_up_key(job.o, key_field(job))
  end
end

-- Returns the offers of the hosts that may take a job, how firmly the job is bound to its home, and
-- which fields of its payload are its key.
local function offers_for(job)
  local hosts, offers, affinity = redis.call('HGETALL', P .. ':hosts:' .. job.w), {}, nil
  local fields
  for i = 1, #hosts, 2 do
    local offer = cjson.decode(hosts[i + 1])
    if not job.tried[offer.uid] then
      offer.process = hosts[i]
      offers[#offers + 1] = offer
      affinity = affinity or affinity_of(job, offer)
      fields = fields or (offer.keys and offer.keys[job.j])
    end
  end
  return offers, affinity, fields
end

-- Keeps a job from the process that does another one, if others host its worker. A job with a key
-- goes to the process that has the key.
local function avoid_process_of(other_ref, job)
  local other = find(other_ref)
  local alone = redis.call('HLEN', P .. ':hosts:' .. job.w) < 2
  if other and other.o ~= '' and not other.x and not alone then
    local uid = redis.call('HGET', process_of(other.o), 'uid')
    if uid then
      job.tried[uid] = true
    end
  end
end

-- Returns the host that made an offer, if it has a free slot for the job.
local function host_of(job, offer)
  local kind = offer.slots[job.j] and job.j or ''
  local load = 'load:' .. job.w .. '\0' .. kind
  local counts = redis.call('HMGET', process_of(offer.process), load, 'busy')
  local taken, busy = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local share = taken / offer.slots[kind]
  return share < 1 and {
    process = offer.process, uid = offer.uid, kind = kind, load = load, taken = taken,
    share = share, busy = busy, once = offer.once[job.j],
  }
end

local function most_free_host(job, offers)
  local turn, best = turn_of(job.w, #offers), nil
  for i = 0, #offers - 1 do
    local host = host_of(job, offers[(turn + i) % #offers + 1])
    -- Of equal hosts, take the one that does the fewest jobs at all its workers together.
    if host and (not best or host.share < best.share
      or host.share == best.share and host.busy < best.busy)
    then
      best = host
    end
  end
  return best
end

local function host_with_key(job, offers, holder)
  for _, offer in ipairs(offers) do
    if offer.process == holder then
      return host_of(job, offer)
    end
  end
end

-- Returns the host for a job (the process that has its key, its home, or else the host with the
-- largest share of free slots); whether any host may take it; and, if one process alone may take
-- it, what names its queue: the key of the job, or the uid of its home.
local function choose(ref, job, request)
  local offers, affinity, fields = offers_for(job)
  if #offers == 0 then
    return nil, false
  end
  if fields and job.x == nil then
    job.x = key_of(request or request_of(ref), fields)
  end
  local holder = job.x and holder_of(job)
  if holder then
    return host_with_key(job, offers, holder) or nil, true, job.x
  elseif not affinity then
    return most_free_host(job, offers), true
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
  local host = most_free_host(job, offers)
  if host then
    host.moved, host.is_home = home, not is_there
  end
  return host, true
end

-- Assigns a job to a host that was chosen in the same step. A new job comes with its `request`.
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
  if job.x then
    hold_key(job)
  end
  save(ref, job, request)
  push(job.o, 'd', 'j', ref, job.a, request or request_of(ref), host.moved)
end

local function start_waiting(ref)
  redis.call('ZADD', WAITING, 'NX', now() + takeover, ref)
  extend_ttl(WAITING)
end

-- Queues a job until any process has a free slot, or until its home has one.
local function wait_for_slot(ref, job, home, side, request)
  job.q = home and job.j .. '\0' .. home or job.j
  redis.call(side, queue_for(job), ref)
  redis.call('SADD', P .. ':queues:' .. job.w, job.q)
  extend_ttl(queue_for(job))
  extend_ttl(P .. ':queues:' .. job.w)
  save(ref, job, request)
end

local function place(ref, job, side, request)
  local host, any, home = choose(ref, job, request)
  if host then
    assign(ref, job, host, request)
    return
  end
  wait_for_slot(ref, job, home, side, request)
  if not any then
    start_waiting(ref)
  end
end

local function forget_queue_if_empty(worker, name)
  if redis.call('EXISTS', queue_of(worker, name)) == 0 then
    redis.call('SREM', P .. ':queues:' .. worker, name)
  end
end

-- Assigns the jobs of a queue. A few jobs at its head may have to wait for another host.
local function assign_waiting(worker, name)
  local queue, passed = queue_of(worker, name), {}
  local ref = redis.call('LPOP', queue)
  while ref do
    local job = find(ref)
    local host, any, home
    if job then
      host, any, home = choose(ref, job)
    end
    if host then
      redis.call('ZREM', WAITING, ref)
      assign(ref, job, host)
    elseif home and name ~= job.j .. '\0' .. home then
      -- The job waits for its home alone, and must not block the jobs behind it.
      wait_for_slot(ref, job, home, 'RPUSH')
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

-- Starts with another queue each time, so that all queues that share slots make progress.
local function assign_all_waiting(worker)
  local names = redis.call('SMEMBERS', P .. ':queues:' .. worker)
  local first = #names > 1 and now() or 0
  for i = 1, #names do
    assign_waiting(worker, names[(first + i) % #names + 1])
  end
end

local function free_slot(process, ref, load)
  local key = process_of(process)
  -- A job without this field takes no slot.
  if redis.call('HDEL', key, 'held:' .. ref) == 0 then
    return
  end
  if redis.call('HINCRBY', key, load, -1) <= 0 then
    redis.call('HDEL', key, load)
  end
  redis.call('HINCRBY', key, 'busy', -1)
end

local function release(ref, job)
  free_slot(job.o, ref, 'load:' .. job.w .. '\0' .. job.s)
  if job.x then
    free_key(job)
  end
  job.o = ''
end

local function finish(ref, job)
  local requester, n = requester_of(ref)
  redis.call('HDEL', process_of(requester), 'job:' .. n, 'req:' .. n)
  if job.o ~= '' then
    release(ref, job)
  else
    redis.call('LREM', queue_for(job), 0, ref)
    redis.call('ZREM', WAITING, ref)
    forget_queue_if_empty(job.w, job.q or job.j)
  end
  -- Also if the job waited: the jobs behind it may have waited only because it was at the head.
  assign_all_waiting(job.w)
end

-- Ends a job that its requester no longer waits for, and stops its worker.
local function abandon(ref, job)
  if job.o ~= '' then
    push(job.o, 'u', 'c', ref, job.a, '')
  end
  finish(ref, job)
end

-- Settles a job as lost. Not urgent, so that the requester reads it after all that the worker sent.
function lose(ref, job, why)
  push((requester_of(ref)), 'd', 'l', ref, job.a, why)
  finish(ref, job)
end

local function reassign(ref, job, started_at)
  -- A process that no longer offers the worker has stopped all jobs of the key, and has them
  -- reassigned one by one. The first of them takes the key to another process.
  if job.x and started_at
    and redis.call('HEXISTS', P .. ':hosts:' .. job.w, job.o) == 0
  then
    give_up_key(job.o, key_field(job))
  end
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
  assign_all_waiting(job.w)
end

local function withdraw(process, worker)
  redis.call('HDEL', P .. ':hosts:' .. worker, process)
  if redis.call('EXISTS', P .. ':hosts:' .. worker) == 0 then
    redis.call('HDEL', P .. ':turns', worker)
  end
  -- The other hosts may all have made an earlier attempt at these jobs.
  for _, queue in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. worker)) do
    for _, ref in ipairs(redis.call('LRANGE', queue_of(worker, queue), 0, -1)) do
      start_waiting(ref)
    end
  end
end

-- Returns the fields of a process that begin with a prefix, without that prefix.
local function fields_of(process, prefix)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', process_of(process))) do
    if string.sub(field, 1, #prefix) == prefix then
      found[#found + 1] = string.sub(field, #prefix + 1)
    end
  end
  return found
end

local function evict(process)
  local uid, runner = unpack(redis.call('HMGET', process_of(process), 'uid', 'runner'))
  redis.call('ZREM', MEMBERS, process)
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. process)) do
    redis.call('SREM', P .. ':names:' .. name, process)
    withdraw(process, name)
  end
  for _, field in ipairs(fields_of(process, 'key:')) do
    give_up_key(process, field)
  end
  -- All jobs are removed first, so that the slot of one job is not assigned to the next one.
  local requested = {}
  for _, n in ipairs(fields_of(process, 'job:')) do
    local ref = process .. ':' .. n
    requested[ref] = find(ref)
    redis.call('HDEL', process_of(process), 'job:' .. n)
  end
  for ref, job in pairs(requested) do
    abandon(ref, job)
  end
  for _, ref in ipairs(fields_of(process, 'held:')) do
    local job = find(ref)
    if job then
      reassign(ref, job, uid or '')
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
