-- Counts one delivery of a realm, unless the hourly limit or the caller's share of it is used up.
-- The rules are those of `twofactor_core::limits`. What cannot be parsed is deleted, because
-- sidecars may write it.
--
-- A field is a minute and, after a point, digits that stand for the caller. The script of the
-- previous release reads such a field as a number, and writes minutes without a caller.
--
-- All counts are read once in a minute for each caller. The sums that result, as "minute sum", are
-- in the fields of the minute 0, which the script of the previous release deletes whenever it
-- counts.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local current = math.floor(now / 60000)
local this_minute = string.format('%.0f', current)
local this_caller = string.format('.%.0f', tonumber(string.sub(redis.sha1hex(caller), 1, 12), 16))
local is_shared = most_own > 0 and most_own < most

local sums = redis.pcall('HMGET', deliveries_key, '0', '0' .. this_caller, this_minute .. this_caller)
local of_minute, sum = string.match(sums[1] or '', '^(%d+) (%d+)$')
local own_of_minute, own_sum = string.match(sums[2] or '', '^(%d+) (%d+)$')
local count = tonumber(sums[3] or 0)
if of_minute == this_minute and own_of_minute == this_minute and count and count >= 0 and count < 1e9
  and sum + 0 < most and not (is_shared and own_sum + 0 >= most_own) then
  redis.call('HSET', deliveries_key, '0', string.format('%.0f %.0f', current, sum + 1),
    '0' .. this_caller, string.format('%.0f %.0f', current, own_sum + 1),
    this_minute .. this_caller, string.format('%.0f', count + 1))
  return { 'granted', 0 }
end

local counts = redis.pcall('HGETALL', deliveries_key)
-- The counts of each minute, of all callers and of this one; of the current minute by caller.
local minutes, left, own_left, of_current = {}, 0, 0, {}
local outdated, moved = {}, {}
for index = 1, #counts, 2 do
  local field, count = counts[index], tonumber(counts[index + 1])
  local minute, of_caller = string.match(field, '^(%d+)(%.?%d*)$')
  minute = tonumber(minute)
  if minute and count and math.abs(current - minute) < 60 and count >= 0 and count < 1e9 then
    if minute > current + 1 then
      -- It was counted while the clock was ahead, and leaves the hour as if it was counted now.
      outdated[#outdated + 1] = field
      moved[of_caller] = (moved[of_caller] or 0) + count
      minute = current
    elseif minute == current then
      of_current[of_caller] = count
    end
    local own = of_caller == this_caller and count or 0
    minutes[#minutes + 1] = { minute = minute, count = count, own = own }
    left, own_left = left + count, own_left + own
  elseif minute ~= 0 or string.match(counts[index + 1], '^(%d+) %d+$') ~= this_minute then
    outdated[#outdated + 1] = field
  end
end
if counts.err then
  -- A moment in the past deletes the key, and services may set one.
  redis.call('PEXPIREAT', deliveries_key, 1)
else
  for index = 1, #outdated do redis.call('HDEL', deliveries_key, outdated[index]) end
end

local is_granted = left < most and not (is_shared and own_left >= most_own)
-- The new counts of the current minute.
local changed = {}
for of_caller, more in pairs(moved) do changed[of_caller] = (of_current[of_caller] or 0) + more end
if is_granted then
  -- A service can invent callers.
  local is_separate = #counts < 2 * most_fields
  local counted = is_separate and this_caller or ''
  changed[counted] = (changed[counted] or of_current[counted] or 0) + 1
  redis.call('HSET', deliveries_key, '0', string.format('%.0f %.0f', current, left + 1))
  if is_separate then
    redis.call('HSET', deliveries_key, '0' .. this_caller, string.format('%.0f %.0f', current, own_left + 1))
  end
end
for of_caller, new in pairs(changed) do
  redis.call('HSET', deliveries_key, this_minute .. of_caller, string.format('%.0f', new))
end
-- The first count of a minute sets the expiry, because it is the same for the whole minute.
if not next(of_current) and next(changed) then
  redis.call('PEXPIREAT', deliveries_key, string.format('%.0f', (current + 60) * 60000))
end
if is_granted then return { 'granted', 0 } end

table.sort(minutes, function(one, other) return one.minute < other.minute end)
-- The minutes that have to leave the hour, for the limit and for the share.
local last, own_last
for _, known in ipairs(minutes) do
  if left >= most then last = known.minute end
  if is_shared and own_left >= most_own then own_last = known.minute end
  left, own_left = left - known.count, own_left - known.own
end
local word, until_minute = 'limit-reached', last or current
if own_last and own_last > (last or 0) then word, until_minute = 'share-used-up', own_last end
return { word, (until_minute + 60) * 60000 - now }
