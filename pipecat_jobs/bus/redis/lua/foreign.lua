-- Deletes values that another program has written to the keys of the channel. The state that they
-- replaced is lost.

local function is_count(_, value) return string.match(value, '^-?%d+$') ~= nil end

local function is_offer(_, value)
  local read, spec = pcall(cjson.decode, value)
  if not read or type(spec) ~= 'table' or type(spec.uid) ~= 'string'
    or type(spec.once) ~= 'table' or type(spec.slots) ~= 'table'
  then
    return false
  end
  for _, slots in pairs(spec.slots) do
    if type(slots) ~= 'number' then
      return false
    end
  end
  return spec.slots[''] ~= nil and type(spec.keys or {}) == 'table'
end

local function is_job(packed)
  local read, job = pcall(cmsgpack.unpack, packed)
  return read and type(job) == 'table' and type(job.w) == 'string' and type(job.j) == 'string'
    and type(job.o) == 'string' and type(job.s) == 'string' and type(job.a) == 'number'
    and type(job.tried) == 'table'
end

local function is_of_process(field, value)
  if field == 'n' or field == 'busy' or string.sub(field, 1, 5) == 'load:'
    or string.sub(field, 1, 4) == 'key:'
  then
    return is_count(field, value)
  end
  if string.sub(field, 1, 5) == 'held:' then
    return string.sub(value, 1, 5) == 'load:'
  end
  return string.sub(field, 1, 4) ~= 'job:' or is_job(value)
end

local function is_own(key, kind, is_own_field)
  local found = redis.call('TYPE', key).ok
  if found == kind and is_own_field then
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
      if not is_own_field(fields[i], fields[i + 1]) then
        return false
      end
    end
  end
  return found == kind or found == 'none'
end

-- Checks the keys that a call of this process may use, and returns whether it has deleted any.
local function remove_foreign()
  local removed = false
  local function check(key, kind, is_own_field)
    if not is_own(key, kind, is_own_field) then
      redis.call('DEL', key)
      removed = true
    end
  end
  check(MEMBERS, 'zset')
  check(WAITING, 'zset')
  check(P .. ':beat', 'string')
  check(P .. ':turns', 'hash', is_count)
  check(HOMES, 'hash')
  check(OLD_HOMES, 'hash')
  check(KEYS_HELD, 'hash')
  -- Commands take the name of a worker or a target as first or second argument.
  local workers = {[ARGV[6] or ''] = true, [ARGV[7] or ''] = true}
  local processes = redis.call('ZRANGE', MEMBERS, 0, -1)
  processes[#processes + 1] = me
  for _, process in ipairs(processes) do
    check(process_of(process), 'hash', is_of_process)
    check(P .. ':hosted:' .. process, 'set')
    check(stream_of(process, 'u'), 'stream')
    check(stream_of(process, 'd'), 'stream')
    for _, name in ipairs(redis.call('SMEMBERS', P .. ':hosted:' .. process)) do
      workers[name] = true
    end
    for _, n in ipairs(fields_of(process, 'job:')) do
      workers[find(process .. ':' .. n).w] = true
    end
  end
  for worker in pairs(workers) do
    check(P .. ':names:' .. worker, 'set')
    check(P .. ':hosts:' .. worker, 'hash', is_offer)
    check(P .. ':queues:' .. worker, 'set')
    local names = redis.call('SMEMBERS', P .. ':queues:' .. worker)
    names[#names + 1] = ARGV[7]
    for _, name in ipairs(names) do
      check(queue_of(worker, name), 'list')
    end
  end
  return removed
end
