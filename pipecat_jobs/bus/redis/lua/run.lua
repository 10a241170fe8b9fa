if number > 0 then
  local last = redis.call('HGET', process_of(me), 'n')
  if not last then
    return 'fenced'
  end
  if number <= tonumber(last) then
    return 'again'
  end
  redis.call('HSET', process_of(me), 'n', number)
end
local reply = commands[ARGV[1]](unpack(ARGV, 5))
while next(overflowing) do
  local process = next(overflowing)
  overflowing[process] = nil
  expel(process)
end
return reply
