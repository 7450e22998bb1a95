-- Counts one delivery of a realm, unless the hourly limit is reached. The rules are those of
-- `twofactor_core::limits`.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local current, minutes, left = math.floor(now / 60000), {}, 0
local counts = redis.call('HGETALL', deliveries_key)
local current_count = 0
for index = 1, #counts, 2 do
  local minute, count = counts[index] + 0, counts[index + 1] + 0
  if math.abs(current - minute) < 60 then
    minutes[#minutes + 1] = { minute = minute, count = count }
    left = left + count
    if minute == current then current_count = count end
  else
    redis.call('HDEL', deliveries_key, counts[index])
  end
end

if left < most then
  redis.call('HSET', deliveries_key, string.format('%.0f', current), string.format('%.0f', current_count + 1))
  -- The first count of a minute sets the expiry, because it is the same for the whole minute.
  if current_count == 0 then
    redis.call('PEXPIREAT', deliveries_key, string.format('%.0f', (current + 60) * 60000))
  end
  return { 'granted', 0 }
end
table.sort(minutes, function(one, other) return one.minute < other.minute end)
local next_free = current
for _, known in ipairs(minutes) do
  left, next_free = left - known.count, known.minute
  if left < most then break end
end
return { 'limit-reached', (next_free + 60) * 60000 - now }
