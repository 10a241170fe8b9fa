-- Commands that send messages about jobs, and other messages.

-- Sends to the processes that have a subscriber with the name `target`, or to all.
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

-- With an attempt above 1, the requester does not know whether its earlier request was taken. Jobs
-- with the same affinity key belong together; without a key, jobs of the same requester do. A job
-- that is requested beside another one goes to another process, if there is one, whatever its
-- affinity.
function commands.request(worker, job_name, once, attempt, body, source, affinity, beside)
  local job = {w = worker, j = job_name, o = '', s = '', once = once == '1', tried = {}}
  job.a = tonumber(attempt)
  if affinity and affinity ~= '' then
    job.k = '=' .. affinity
  elseif beside and beside ~= '' then
    avoid_process_of(me .. ':' .. beside, job)
  elseif source and my_uid then
    job.k = my_uid .. ':' .. source
  end
  place(me .. ':' .. number, job, 'RPUSH', body)
  return 'ok'
end

-- Sends a message or flow control to the process that does a job of the calling process. If no
-- process does it yet, a cancel ends it.
function commands.notify_worker(n, lane, kind, cancels, body)
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
    save(ref, job)
  end
  if job.o ~= '' then
    local named = kind == 'f' or cancels == '1'
    push(job.o, lane, kind, named and ref or '', named and job.a or 0, body)
  end
  return 'ok'
end

-- Makes a command that only the process that does a job may use, and only for the current attempt.
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

-- Sends a message to the requester of a job.
commands.notify_requester = for_owner(function(ref, job, lane, kind, last, body)
  push((requester_of(ref)), lane, kind, ref, job.a, body)
  if last == '1' then
    finish(ref, job)
  end
end)

commands.reassign = for_owner(function(ref, job, started)
  reassign(ref, job, started == '1' and redis.call('HGET', process_of(me), 'uid'))
end)

commands.reject = for_owner(function(ref, job)
  lose(ref, job, 'unreadable')
end)

-- Reassigns a job that the calling process does according to this state, but does not know. If the
-- job itself is lost, only its slot has to be freed.
function commands.disown(ref)
  local job, load = find(ref), redis.call('HGET', process_of(me), 'held:' .. ref)
  if job and job.o == me then
    reassign(ref, job, redis.call('HGET', process_of(me), 'uid'))
  elseif load then
    free_slot(me, ref, load)
    assign_all_waiting(string.match(load, '^load:(.*)%z'))
  end
  return 'ok'
end
