local function run()
  if number > 0 then
    local last
    last, my_uid = unpack(redis.call('HMGET', process_of(me), 'n', 'uid'))
    if not last then
      return 'fenced'
    end
    if number <= tonumber(last) then
      return 'again'
    end
    -- The call before this one was refused. If it were done after this one, its lower number would
    -- make it look like a repetition.
    if tonumber(ARGV[5]) > tonumber(last) then
      return 'early'
    end
    redis.call('HSET', process_of(me), 'n', number)
  end
  local reply = commands[ARGV[1]](unpack(ARGV, 6))
  while next(overflowing) do
    local process = next(overflowing)
    overflowing[process] = nil
    evict(process)
  end
  return reply
end

local done, reply = pcall(run)
if done then
  return reply
end
if not remove_foreign() then
  return error(reply, 0)
end
if number == 0 then
  return run()
end
-- The command may be half done, so the calling process has to join again.
evict(me)
return 'fenced'
