-- Limits how often codes are issued, by the rules of `twofactor_core::limits`. The state has
-- `asked`, the last moment at which a code was issued, and `hour`, the moments of the last hour
-- separated by spaces.
local HOUR = 3600000

-- Returns true if the moment is within the window. A moment that is further ahead than the window
-- is ignored, because the clock was set back since.
local function is_within(moment, window, now)
  return math.abs(now - moment) < window
end

local function read_moments(text, now)
  local moments = {}
  for number in string.gmatch(text or '', '%d+') do
    local moment = tonumber(number)
    if is_within(moment, HOUR, now) then moments[#moments + 1] = moment end
  end
  table.sort(moments)
  return moments
end

local function write_moments(moments)
  local numbers = {}
  for index, moment in ipairs(moments) do numbers[index] = whole(moment) end
  redis.call('HSET', state_key, 'hour', table.concat(numbers, ' '))
end

-- Returns how long to wait until the next code may be issued, or 0 if it may be issued now.
local function wait_for_next(last, moments, now)
  local wait = 0
  if last and is_within(last, interval, now) then wait = last + interval - now end
  -- Enough moments must leave the window that one more does not exceed the limit.
  if most_per_hour > 0 and #moments >= most_per_hour then
    wait = math.max(wait, moments[#moments - most_per_hour + 1] + HOUR - now)
  end
  return wait
end
