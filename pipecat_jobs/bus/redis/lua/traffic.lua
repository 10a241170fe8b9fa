-- What is said about jobs, and everything else that is sent.

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

-- An attempt above the first is one of which the caller never heard whether it was taken. Jobs with
-- the same affinity belong together; without one, those of the same subscriber of the caller do.
function commands.ask(worker, job_name, once, attempt, body, source, affinity)
  local job = {w = worker, j = job_name, o = '', s = '', once = once == '1', tried = {}}
  job.a = tonumber(attempt)
  if affinity and affinity ~= '' then
    job.k = '=' .. affinity
  elseif source and my_uid then
    job.k = my_uid .. ':' .. source
  end
  place(me .. ':' .. number, job, 'RPUSH', body)
  return 'ok'
end

-- To the process that has taken a job of the caller's: a message, or how its stream has to flow.
-- A cancel of a job that nobody has taken wins.
function commands.order(n, lane, kind, cancels, body)
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
    local named = kind == 'f' or cancels == '1'
    push(job.o, lane, kind, named and ref or '', named and job.a or 0, body)
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

-- To the process that has asked for a job.
commands.tell = for_owner(function(ref, job, lane, kind, last, body)
  local asker = asker_of(ref)
  push(asker, lane, kind, ref, job.a, body)
  if last == '1' then
    finish(ref, job)
  end
end)

commands.give_back = for_owner(function(ref, job, started)
  hand_back(ref, job, started == '1' and redis.call('HGET', process_of(me), 'uid'))
end)

commands.refuse = for_owner(function(ref, job)
  lose(ref, job, 'unreadable')
end)

-- A job that the caller holds by what the server says, and knows nothing of. Where the server has
-- lost the job itself, the room that it takes is all there is left of it.
function commands.disown(ref)
  local job, load = find(ref), redis.call('HGET', process_of(me), 'held:' .. ref)
  if job and job.o == me then
    hand_back(ref, job, redis.call('HGET', process_of(me), 'uid'))
  elseif load then
    free(me, ref, load)
    fill_all(string.match(load, '^load:(.*)%z'))
  end
  return 'ok'
end
