-- Put in front of the scripts that know how often codes were asked for; the rules are those of
-- `twofactor_core::limits`. The state has `asked`, the last moment, and `hour`, those of the last
-- hour separated by spaces.
local HOUR = 3600000

-- A moment that lies further ahead than its window was told by a clock that has been put back
-- since.
local function counts_within(moment, window, now)
  return math.abs(now - moment) < window
end

local function moments_of(text, now)
  local moments = {}
  for number in string.gmatch(text or '', '%d+') do
    local moment = tonumber(number)
    if counts_within(moment, HOUR, now) then moments[#moments + 1] = moment end
  end
  table.sort(moments)
  return moments
end

local function write_moments(state_key, moments)
  local numbers = {}
  for index, moment in ipairs(moments) do numbers[index] = whole(moment) end
  redis.call('HSET', state_key, 'hour', table.concat(numbers, ' '))
end

-- How long to wait until the next code; 0 when it may be made now.
local function wait_for(last, moments, interval, most, now)
  local wait = 0
  if last and counts_within(last, interval, now) then wait = last + interval - now end
  -- As many have to leave the window as are too many for one more.
  if most > 0 and #moments >= most then
    wait = math.max(wait, moments[#moments - most + 1] + HOUR - now)
  end
  return wait
end
