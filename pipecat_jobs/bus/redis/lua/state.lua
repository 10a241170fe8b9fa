-- The state of one channel. Redis runs a script as one step, so no process sees a half-made change.
--
-- KEYS[1]  prefix of the channel's keys
-- ARGV[1]  command          ARGV[2]  the calling process
-- ARGV[3]  "lease takeover attempts inbox linger": milliseconds, except attempts and inbox
-- ARGV[4]  number of the call, or 0 if doing the call twice changes nothing
-- ARGV[5]  number of the call that must have been done before this one, or 0
-- ARGV[6]  and on: the command's arguments
--
-- A job's ref is "P:N": the process that requested it, and the number of that call.
--
-- Keys, after the prefix:
--   members        processes, scored by the end of their lease
--   proc:P         a hash with the state of a process:
--                    n uid runner   number of its last call, its uid, and names of its runners
--                    lease          length of its lease
--                    job:N req:N    a job that it has requested, and the request as it was sent
--                    held:R         a job that it does, with the name of its load field
--                    load:W\0K      how many slots of kind K are taken at worker W
--                    busy           how many jobs it does
--                    key:W\0X       how many jobs of worker W with key X it does
--   hosted:P       names that P has subscribers for
--   names:N        processes that have a subscriber N
--   hosts:W        processes that take requests for worker W, with their offers
--   in:P:u in:P:d  the inbox of P: urgent entries and the others
--   queues:W       names of the queues of worker W
--   queue:N:W:J    requests for job J of W that wait for a free slot, in order; N is the length of
--                  W. J followed by \0 and a uid: requests that wait for that process alone.
--                  J followed by \0 and a key: requests that wait for the process that has the key
--   waiting        requests that no process can take, scored by the time at which they are lost
--   turns          by worker, which of several equal hosts gets the next job
--   beat           the time of the last renewal of any lease
--   homes          by worker and affinity key, the uid of the process that has such jobs
--   homes:old      the same, for pairs that were not used since `homes` was last full
--   keys           by worker and key, the process that does all jobs of that key
--
-- The keys of a process are made when it joins, and expire `linger` after its last renewal.
--
-- Entries of an inbox have the fields k (kind), r (ref), a (attempt) and b (body). A request that
-- its affinity would have sent to another process also has m. Kinds, as in `EntryKind` in Python:
--   m message    j request    f flow control    c requester no longer waits    l job lost
--   g process gone    x reply to an audit    e mark

local P = KEYS[1]
local me, number = ARGV[2], tonumber(ARGV[4])
local lease, takeover, attempts, inbox, linger =
  string.match(ARGV[3], '(%d+) (%d+) (%d+) (%d+) (%d+)')
lease, takeover, attempts, inbox =
  tonumber(lease), tonumber(takeover), tonumber(attempts), tonumber(inbox)

local MEMBERS, WAITING = P .. ':members', P .. ':waiting'
local KEYS_HELD = P .. ':keys'
local HOMES, OLD_HOMES, MOST_HOMES = P .. ':homes', P .. ':homes:old', 50000
local overflowing, commands = {}, {}
-- The uid of the calling process, if the call has a number.
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

-- Fields of a job: w worker, j job name, o the process that does it, s kind of the slot that it
-- takes there, a attempt, once, c cancelled, k affinity key, x key (false: it has none), q name of
-- its queue, tried the uids of the processes of earlier attempts.

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
