-- Counts one delivery of a realm, unless the hourly limit is reached. The rules are those of
-- `twofactor_core::limits`.
local now = clock()
local current, minutes, left = math.floor(now / 60000), {}, 0
local counts = redis.call('HGETALL', deliveries_key)
for index = 1, #counts, 2 do
  local minute, count = tonumber(counts[index]), tonumber(counts[index + 1])
  if math.abs(current - minute) < 60 then
    minutes[#minutes + 1] = { minute = minute, count = count }
    left = left + count
  else
    redis.call('HDEL', deliveries_key, counts[index])
  end
end
table.sort(minutes, function(one, other) return one.minute < other.minute end)

if left < most then
  local count = 1
  for _, known in ipairs(minutes) do
    if known.minute == current then count = known.count + 1 end
  end
  redis.call('HSET', deliveries_key, whole(current), whole(count))
  redis.call('PEXPIREAT', deliveries_key, whole((current + 60) * 60000))
  return { 'granted', 0 }
end
local next_free = current
for _, known in ipairs(minutes) do
  left, next_free = left - known.count, known.minute
  if left < most then break end
end
return { 'limit-reached', (next_free + 60) * 60000 - now }
