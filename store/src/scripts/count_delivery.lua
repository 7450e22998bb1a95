-- Counts one delivery of a realm, unless the hourly limit is reached. The rules are those of
-- `twofactor_core::limits`. What cannot be parsed is deleted, because sidecars may write it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local current, minutes, outdated, left = math.floor(now / 60000), {}, {}, 0
local counts = redis.pcall('HGETALL', deliveries_key)
local current_count = 0
for index = 1, #counts, 2 do
  local minute, count = tonumber(counts[index]), tonumber(counts[index + 1])
  if minute and count and math.abs(current - minute) < 60 and count >= 0 and count < 1e9 then
    minutes[#minutes + 1] = { minute = minute, count = count }
    left = left + count
    if minute == current then current_count = count end
  else
    outdated[#outdated + 1] = counts[index]
  end
end
if counts.err then
  -- A moment in the past deletes the key, and services may set one.
  redis.call('PEXPIREAT', deliveries_key, 1)
else
  for index = 1, #outdated do redis.call('HDEL', deliveries_key, outdated[index]) end
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
