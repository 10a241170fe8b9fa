-- The state of one channel. Redis runs a script as one step, so every process sees a whole state.
--
-- KEYS[1]  prefix of the channel's keys
-- ARGV[1]  command          ARGV[2]  process that calls
-- ARGV[3]  "lease takeover attempts inbox linger": milliseconds, except attempts and inbox
-- ARGV[4]  the call's number, or 0 if doing it twice changes nothing
-- ARGV[5]  number of the call that must have been done before, or 0
-- ARGV[6]  and on: the command's arguments
--
-- A job's ref is "P:N": the process that requested it, and the number of that call.
--
-- Keys, after the prefix:
--   members        processes, scored by the end of their lease
--   proc:P         a hash with the state of a process:
--                    n uid runner   number of its last call, its uid, and its runners' names
--                    lease          length of its lease
--                    job:N req:N    a job that it has requested, and the request as it was sent
--                    held:R         a job that it does, with the name of its load field
--                    load:W\0K      how many jobs of one kind it does at one worker
--                    busy           how many jobs it does
--   hosted:P       names that P has subscribers for
--   names:N        processes that have a subscriber N
--   hosts:W        processes that take requests for worker W, with their offers
--   in:P:u in:P:d  the inbox of P: urgent entries and the others
--   queues:W       names of the queues of worker W
--   queue:N:W:J    requests for job J of W that wait for a free slot, in order; N is W's length.
--                  J followed by \0 and a uid: requests that wait for that process alone
--   waiting        requests that no process can take, scored by when they end as lost
--   turns          where to start among hosts that are alike
--   beat           when a lease was last renewed
--   homes          by worker and affinity key, the uid of the process that has such jobs
--   homes:old      the same for those that were not used since `homes` was last full
--
-- The keys of a process are made when it joins, and stay for `linger` after its last renewal.
--
-- Entries of an inbox have k (kind), r (ref), a (attempt), b (body) and, for a request that its
-- affinity would have sent elsewhere, m. Kinds, as in `EntryKind` in Python:
--   m message    j request    f flow control    c requester no longer waits    l job lost
--   g process gone    x reply to an audit    e mark

local P = KEYS[1]
local me, number = ARGV[2], tonumber(ARGV[4])
local lease, takeover, attempts, inbox, linger =
  string.match(ARGV[3], '(%d+) (%d+) (%d+) (%d+) (%d+)')
lease, takeover, attempts, inbox =
  tonumber(lease), tonumber(takeover), tonumber(attempts), tonumber(inbox)

local MEMBERS, WAITING = P .. ':members', P .. ':waiting'
local HOMES, OLD_HOMES, MOST_HOMES = P .. ':homes', P .. ':homes:old', 50000
local overflowing, commands = {}, {}
-- The uid of the process that calls, if the call has a number.
local my_uid

local function now()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- Returns whether the key exists.
local function extend_ttl(key) return redis.call('PEXPIRE', key, linger) == 1 end

local function process_of(process) return P .. ':proc:' .. process end

local function stream_of(process, lane) return P .. ':in:' .. process .. ':' .. lane end

local function queue_of(worker, job)
  return P .. ':queue:' .. #worker .. ':' .. worker .. ':' .. job
end

local function queue_for(job) return queue_of(job.w, job.q or job.j) end

local function requester_of(ref)
  return string.match(ref, '^(.*):(%d+)$')
end

local function push(process, lane, kind, ref, attempt, body, moved)
  local stream = stream_of(process, lane)
  if redis.call('XLEN', stream) >= inbox then
    overflowing[process] = true
    return
  end
  local entry = {'k', kind, 'r', ref, 'a', attempt, 'b', body}
  if moved then
    entry[9], entry[10] = 'm', '1'
  end
  redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(entry))
end

-- Fields of a job: w worker, j job name, o owner, s kind of slot it takes there, a attempt, once,
-- c cancelled, k affinity key, q name of its queue, tried the uids of processes it was lost with.

local function find(ref)
  local requester, n = requester_of(ref)
  local packed = requester and redis.call('HGET', process_of(requester), 'job:' .. n)
  return packed and cmsgpack.unpack(packed)
end

local function save(ref, job, request)
  local requester, n = requester_of(ref)
  local key, name, packed = process_of(requester), 'job:' .. n, cmsgpack.pack(job)
  if request then
    redis.call('HSET', key, name, packed, 'req:' .. n, request)
  else
    redis.call('HSET', key, name, packed)
  end
end

local function request_of(ref)
  local requester, n = requester_of(ref)
  return redis.call('HGET', process_of(requester), 'req:' .. n)
end
