-- One channel's state and everything that changes it. Redis runs a script as one step, so that
-- whoever asks, answers, dies or comes back at the same moment finds the state whole.
--
-- KEYS[1]  prefix of the channel's keys
-- ARGV[1]  command          ARGV[2]  process that calls
-- ARGV[3]  "lease takeover attempts inbox linger": milliseconds, but for attempts and inbox
-- ARGV[4]  the call's number, or 0 where doing it twice is doing it once
-- ARGV[5]  and on: what the command takes
--
-- Keys, after the prefix:
--   members        processes, by the end of their lease
--   proc:P         number of P's last call, its uid, its runner
--   hosted:P       names that P has subscribers for
--   names:N        processes that have a subscriber N
--   hosts:W        processes that take requests for worker W, with their room
--   in:P:u in:P:d  what P has to read, urgent and not
--   jobs:P reqs:P  jobs that P has asked for, and the requests as they were sent
--   held:P load:P  jobs that P has taken, and how many of each kind
--   queues:W       job names that have requests waiting for room at W
--   queue:N:W:J    those requests, in order
--   waiting        requests that no process can take, by when they are given up
--   turns beat     whose turn it is among hosts; when a lease was last renewed

local P = KEYS[1]
local command, me, number = ARGV[1], ARGV[2], tonumber(ARGV[4])
local lease, takeover, attempts, inbox, linger =
  string.match(ARGV[3], '(%d+) (%d+) (%d+) (%d+) (%d+)')
attempts, inbox = tonumber(attempts), tonumber(inbox)

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local MEMBERS, WAITING = P .. ':members', P .. ':waiting'
local overflowing = {}

local function live_on(key) redis.call('PEXPIRE', key, linger) end

local function queue_of(worker, job)
  return P .. ':queue:' .. #worker .. ':' .. worker .. ':' .. job
end

local function asker_of(ref)
  return string.match(ref, '^(.*):(%d+)$')
end

local function push(process, lane, kind, ref, attempt, body)
  if not redis.call('ZSCORE', MEMBERS, process) then
    return false
  end
  local stream = P .. ':in:' .. process .. ':' .. lane
  if redis.call('XLEN', stream) >= inbox then
    overflowing[process] = true
    return false
  end
  redis.call('XADD', stream, '*', 'k', kind, 'r', ref, 'a', attempt, 'b', body)
  live_on(stream)
  return true
end

-- Jobs: w worker, j job name, o owner, s kind of room it takes there, a attempt, once, c cancelled,
-- tried uids of the processes it has been lost with.

local function find(ref)
  local asker, n = asker_of(ref)
  local packed = asker and redis.call('HGET', P .. ':jobs:' .. asker, n)
  return packed and cmsgpack.unpack(packed)
end

local function keep(ref, job)
  local asker, n = asker_of(ref)
  redis.call('HSET', P .. ':jobs:' .. asker, n, cmsgpack.pack(job))
  live_on(P .. ':jobs:' .. asker)
end

local function has_tried(job, uid)
  for _, tried in ipairs(job.tried) do
    if tried == uid then
      return true
    end
  end
  return false
end

-- The host with the most room for a job, and whether there is any host at all that may have it.
local function choose(job)
  local hosts = redis.call('HGETALL', P .. ':hosts:' .. job.w)
  local count = #hosts / 2
  local best, any = nil, false
  if count == 0 then
    return nil, false
  end
  local turn = redis.call('HINCRBY', P .. ':turns', job.w, 1)
  live_on(P .. ':turns')
  for i = 0, count - 1 do
    local at = (turn + i) % count * 2 + 1
    local process, spec = hosts[at], cjson.decode(hosts[at + 1])
    if not has_tried(job, spec.uid) then
      any = true
      local slot = spec.rooms[job.j] and job.j or ''
      local taken = redis.call('HGET', P .. ':load:' .. process, job.w .. '\0' .. slot)
      local share = (tonumber(taken) or 0) / spec.rooms[slot]
      if share < 1 then
        -- Among equals, the one that has least to do for all its workers.
        local busy = redis.call('SCARD', P .. ':held:' .. process)
        if not best or share < best.share or share == best.share and busy < best.busy then
          local once = spec.once[job.j]
          best = {process = process, slot = slot, share = share, busy = busy, once = once}
        end
      end
    end
  end
  return best, any
end

local lose

local function assign(ref, job, host)
  if host.once and job.a > 1 then
    lose(ref, job, 'once')
    return
  end
  local asker, n = asker_of(ref)
  job.o, job.s, job.once = host.process, host.slot, job.once or host.once or false
  local load, held = P .. ':load:' .. job.o, P .. ':held:' .. job.o
  redis.call('HINCRBY', load, job.w .. '\0' .. job.s, 1)
  redis.call('SADD', held, ref)
  redis.call('ZREM', WAITING, ref)
  live_on(load)
  live_on(held)
  keep(ref, job)
  push(job.o, 'd', 'j', ref, job.a, redis.call('HGET', P .. ':reqs:' .. asker, n))
end

local function await_host(ref)
  redis.call('ZADD', WAITING, 'NX', now + takeover, ref)
  live_on(WAITING)
end

local function place(ref, job, side)
  local host, any = choose(job)
  if host then
    assign(ref, job, host)
    return
  end
  local queue = queue_of(job.w, job.j)
  redis.call(side, queue, ref)
  redis.call('SADD', P .. ':queues:' .. job.w, job.j)
  live_on(queue)
  live_on(P .. ':queues:' .. job.w)
  keep(ref, job)
  if not any then
    await_host(ref)
  end
end

local function forget_queue_if_empty(worker, job_name)
  if redis.call('EXISTS', queue_of(worker, job_name)) == 0 then
    redis.call('SREM', P .. ':queues:' .. worker, job_name)
  end
end

-- Hand out what waits for room. A few at the head may have to wait for another host than this one.
local function fill(worker, job_name)
  local queue, passed = queue_of(worker, job_name), {}
  while #passed < 16 do
    local ref = redis.call('LPOP', queue)
    if not ref then
      break
    end
    local job = find(ref)
    local host = choose(job)
    if host then
      assign(ref, job, host)
    else
      passed[#passed + 1] = ref
      if #job.tried == 0 then
        break
      end
    end
  end
  for i = #passed, 1, -1 do
    redis.call('LPUSH', queue, passed[i])
  end
  forget_queue_if_empty(worker, job_name)
end

local function release(ref, job)
  local load, slot = P .. ':load:' .. job.o, job.w .. '\0' .. job.s
  if redis.call('HINCRBY', load, slot, -1) <= 0 then
    redis.call('HDEL', load, slot)
  end
  redis.call('SREM', P .. ':held:' .. job.o, ref)
  job.o = ''
end

local function finish(ref, job)
  local asker, n = asker_of(ref)
  redis.call('HDEL', P .. ':jobs:' .. asker, n)
  redis.call('HDEL', P .. ':reqs:' .. asker, n)
  if job.o ~= '' then
    release(ref, job)
    fill(job.w, job.j)
  else
    redis.call('LREM', queue_of(job.w, job.j), 0, ref)
    redis.call('ZREM', WAITING, ref)
    forget_queue_if_empty(job.w, job.j)
  end
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
      job.tried[#job.tried + 1] = started_at
    end
    place(ref, job, 'LPUSH')
  end
end

local function withdraw(process, worker)
  redis.call('HDEL', P .. ':hosts:' .. worker, process)
  if redis.call('EXISTS', P .. ':hosts:' .. worker) == 0 then
    redis.call('HDEL', P .. ':turns', worker)
    for _, job_name in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. worker)) do
      for _, ref in ipairs(redis.call('LRANGE', queue_of(worker, job_name), 0, -1)) do
        await_host(ref)
      end
    end
  end
end

local function expel(process)
  local uid, runner = unpack(redis.call('HMGET', P .. ':proc:' .. process, 'uid', 'runner'))
  redis.call('ZREM', MEMBERS, process)
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. process)) do
    redis.call('SREM', P .. ':names:' .. name, process)
    withdraw(process, name)
  end
  for _, n in ipairs(redis.call('HKEYS', P .. ':jobs:' .. process)) do
    local ref = process .. ':' .. n
    local job = find(ref)
    if job.o ~= '' then
      push(job.o, 'u', 'c', ref, job.a, '')
    end
    finish(ref, job)
  end
  for _, ref in ipairs(redis.call('SMEMBERS', P .. ':held:' .. process)) do
    hand_back(ref, find(ref), uid or '')
  end
  for _, kind in ipairs({'proc', 'hosted', 'jobs', 'reqs', 'held', 'load'}) do
    redis.call('DEL', P .. ':' .. kind .. ':' .. process)
  end
  redis.call('DEL', P .. ':in:' .. process .. ':u', P .. ':in:' .. process .. ':d')
  for _, other in ipairs(redis.call('ZRANGE', MEMBERS, 0, -1)) do
    push(other, 'u', 'g', process, 0, runner or '')
  end
end

-- While the server is away no lease is renewed, which is nobody's fault.
local function note_beat()
  local beat = redis.call('GET', P .. ':beat')
  if beat and now - beat > tonumber(lease) then
    for _, other in ipairs(redis.call('ZRANGE', MEMBERS, 0, -1)) do
      redis.call('ZADD', MEMBERS, 'XX', 'GT', now + lease, other)
    end
  end
  redis.call('SET', P .. ':beat', now, 'PX', linger)
end

local commands = {}

function commands.join(uid, runner)
  note_beat()
  redis.call('ZADD', MEMBERS, now + lease, me)
  redis.call('HSET', P .. ':proc:' .. me, 'uid', uid, 'runner', runner, 'n', 0)
  live_on(MEMBERS)
  live_on(P .. ':proc:' .. me)
  return 'ok'
end

function commands.leave()
  expel(me)
  if redis.call('EXISTS', MEMBERS) == 0 then
    redis.call('DEL', P .. ':beat', P .. ':turns')
  end
  return 'ok'
end

function commands.renew()
  if not redis.call('ZSCORE', MEMBERS, me) then
    return 'fenced'
  end
  note_beat()
  redis.call('ZADD', MEMBERS, now + lease, me)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', now, 'LIMIT', 0, 16)) do
    expel(other)
  end
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', WAITING, '-inf', now, 'LIMIT', 0, 256)) do
    redis.call('ZREM', WAITING, ref)
    local job = find(ref)
    local _, any = choose(job)
    if not any then
      lose(ref, job, 'unhosted')
    end
  end
  live_on(MEMBERS)
  for _, kind in ipairs({'proc', 'hosted', 'jobs', 'reqs', 'held', 'load'}) do
    live_on(P .. ':' .. kind .. ':' .. me)
  end
  for _, lane in ipairs({'u', 'd'}) do
    live_on(P .. ':in:' .. me .. ':' .. lane)
  end
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. me)) do
    live_on(P .. ':names:' .. name)
    live_on(P .. ':hosts:' .. name)
    for _, job_name in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. name)) do
      live_on(P .. ':queues:' .. name)
      live_on(queue_of(name, job_name))
    end
  end
  return 'ok'
end

function commands.roster()
  local runners = {}
  for _, process in ipairs(redis.call('ZRANGE', MEMBERS, 0, -1)) do
    runners[#runners + 1] = redis.call('HGET', P .. ':proc:' .. process, 'runner')
  end
  return runners
end

function commands.host(name, spec)
  redis.call('SADD', P .. ':names:' .. name, me)
  redis.call('SADD', P .. ':hosted:' .. me, name)
  live_on(P .. ':names:' .. name)
  live_on(P .. ':hosted:' .. me)
  if spec ~= '' then
    redis.call('HSET', P .. ':hosts:' .. name, me, spec)
    live_on(P .. ':hosts:' .. name)
    for _, job_name in ipairs(redis.call('SMEMBERS', P .. ':queues:' .. name)) do
      fill(name, job_name)
    end
  end
  return 'ok'
end

function commands.withdraw(name)
  withdraw(me, name)
  return 'ok'
end

function commands.unhost(name)
  withdraw(me, name)
  redis.call('SREM', P .. ':names:' .. name, me)
  redis.call('SREM', P .. ':hosted:' .. me, name)
  return 'ok'
end

-- To the processes that have a subscriber of that name, or to all.
function commands.route(lane, target, body, to_self)
  local processes
  if target == '' then
    processes = redis.call('ZRANGE', MEMBERS, 0, -1)
  else
    processes = redis.call('SMEMBERS', P .. ':names:' .. target)
  end
  for _, process in ipairs(processes) do
    if process ~= me or to_self == '1' then
      push(process, lane, 'm', '', 0, body)
    end
  end
  return 'ok'
end

-- An attempt above the first is one of which the caller never heard whether it was taken.
function commands.ask(worker, job_name, once, attempt, body)
  local ref = me .. ':' .. number
  redis.call('HSET', P .. ':reqs:' .. me, number, body)
  live_on(P .. ':reqs:' .. me)
  local job = {w = worker, j = job_name, o = '', s = '', once = once == '1', tried = {}}
  job.a = tonumber(attempt)
  place(ref, job, 'RPUSH')
  return 'ok'
end

-- To the process that has taken a job of the caller's; a cancel of one that nobody has taken wins.
function commands.order(n, lane, cancels, body)
  local ref = me .. ':' .. n
  local job = find(ref)
  if not job then
    return 'over'
  end
  if cancels == '1' then
    if job.o == '' then
      finish(ref, job)
      return 'untaken'
    end
    job.c = true
    keep(ref, job)
  end
  if job.o ~= '' then
    push(job.o, lane, 'm', '', 0, body)
  end
  return 'ok'
end

-- For the process that has taken a job, while the job is still its own.
local function for_owner(act)
  return function(ref, attempt, ...)
    local job = find(ref)
    if not job or job.o ~= me or job.a ~= tonumber(attempt) then
      return 'stale'
    end
    act(ref, job, ...)
    return 'ok'
  end
end

commands.tell = for_owner(function(ref, job, lane, last, body)
  local asker = asker_of(ref)
  push(asker, lane, 'm', ref, job.a, body)
  if last == '1' then
    finish(ref, job)
  end
end)

commands.give_back = for_owner(function(ref, job, started)
  local worker, job_name = job.w, job.j
  hand_back(ref, job, started == '1' and redis.call('HGET', P .. ':proc:' .. me, 'uid'))
  fill(worker, job_name)
end)

commands.refuse = for_owner(function(ref, job)
  lose(ref, job, 'unreadable')
end)

-- Behind all that is in the caller's inbox by now.
function commands.mark()
  push(me, 'd', 'e', '', 0, '')
  return 'ok'
end

-- A job that the caller holds by what the server says, and knows nothing of.
function commands.disown(ref)
  local job = find(ref)
  if job and job.o == me then
    hand_back(ref, job, redis.call('HGET', P .. ':proc:' .. me, 'uid'))
  end
  return 'ok'
end

-- Where the caller's books and the server's may differ, after a server has lost its last moments:
-- which of the caller's jobs are unknown here, and which it holds. The answer comes through the
-- inbox, behind all that has been said of them.
function commands.audit(...)
  local unknown = {}
  for _, n in ipairs({...}) do
    if redis.call('HEXISTS', P .. ':jobs:' .. me, n) == 0 then
      unknown[#unknown + 1] = n
    end
  end
  local held = redis.call('SMEMBERS', P .. ':held:' .. me)
  if #unknown + #held > 0 then
    push(me, 'd', 'x', '', 0, table.concat(unknown, ' ') .. '|' .. table.concat(held, ' '))
  end
  return 'ok'
end

if number > 0 then
  if not redis.call('ZSCORE', MEMBERS, me) then
    return 'fenced'
  end
  if number <= tonumber(redis.call('HGET', P .. ':proc:' .. me, 'n') or 0) then
    return 'again'
  end
  redis.call('HSET', P .. ':proc:' .. me, 'n', number)
end
local reply = commands[command](unpack(ARGV, 5))
while next(overflowing) do
  local process = next(overflowing)
  overflowing[process] = nil
  expel(process)
end
return reply
