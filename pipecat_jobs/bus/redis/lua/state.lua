-- One channel's state. Redis runs a script as one step, so that whoever asks, answers, dies or
-- comes back at the same moment finds the state whole.
--
-- KEYS[1]  prefix of the channel's keys
-- ARGV[1]  command          ARGV[2]  process that calls
-- ARGV[3]  "lease takeover attempts inbox linger": milliseconds, but for attempts and inbox
-- ARGV[4]  the call's number, or 0 where doing it twice is doing it once
-- ARGV[5]  number of the call that has to have been done before, or 0
-- ARGV[6]  and on: what the command takes
--
-- Keys, after the prefix:
--   members        processes, by the end of their lease
--   proc:P         a hash of what there is of a process:
--                    n uid runner   number of its last call, and who it is
--                    lease          how long its lease is
--                    job:N req:N    a job that it has asked for, and the request as it was sent
--                    held:R         a job that it has taken, with its load; busy: how many
--                    load:W\0K      how many of them are of one kind at one worker
--   hosted:P       names that P has subscribers for
--   names:N        processes that have a subscriber N
--   hosts:W        processes that take requests for worker W, with their room
--   in:P:u in:P:d  what P has to read, urgent and not
--   queues:W       job names that have requests waiting for room at W
--   queue:N:W:J    those requests, in order
--                  J followed by \0 and a uid: those that wait for that process alone
--   waiting        requests that no process can take, by when they are given up
--   turns beat     whose turn it is among hosts; when a lease was last renewed
--   homes          by worker and affinity key, the uid of the process that has such jobs
--   homes:old      those before the last MOST_HOMES
--
-- The keys of a process are made when it joins, and outlive it by `linger` after its last renewal.

local P = KEYS[1]
local me, number = ARGV[2], tonumber(ARGV[4])
local lease, takeover, attempts, inbox, linger =
  string.match(ARGV[3], '(%d+) (%d+) (%d+) (%d+) (%d+)')
lease, takeover, attempts, inbox =
  tonumber(lease), tonumber(takeover), tonumber(attempts), tonumber(inbox)

local MEMBERS, WAITING = P .. ':members', P .. ':waiting'
local HOMES, OLD_HOMES, MOST_HOMES = P .. ':homes', P .. ':homes:old', 50000
local overflowing, commands = {}, {}
-- Of the process that calls, where the call has a number.
local my_uid

local function now()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- Tells whether there is such a key.
local function live_on(key) return redis.call('PEXPIRE', key, linger) == 1 end

local function process_of(process) return P .. ':proc:' .. process end

local function stream_of(process, lane) return P .. ':in:' .. process .. ':' .. lane end

local function queue_of(worker, job)
  return P .. ':queue:' .. #worker .. ':' .. worker .. ':' .. job
end

local function queue_for(job) return queue_of(job.w, job.q or job.j) end

local function asker_of(ref)
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

-- Jobs: w worker, j job name, o owner, s kind of room it takes there, a attempt, once, c cancelled,
-- k affinity key, q name of the queue it waits in, tried by uid the processes it was lost with.

local function find(ref)
  local asker, n = asker_of(ref)
  local packed = asker and redis.call('HGET', process_of(asker), 'job:' .. n)
  return packed and cmsgpack.unpack(packed)
end

local function keep(ref, job, request)
  local asker, n = asker_of(ref)
  local key, name, packed = process_of(asker), 'job:' .. n, cmsgpack.pack(job)
  if request then
    redis.call('HSET', key, name, packed, 'req:' .. n, request)
  else
    redis.call('HSET', key, name, packed)
  end
end

local function request_of(ref)
  local asker, n = asker_of(ref)
  return redis.call('HGET', process_of(asker), 'req:' .. n)
end
