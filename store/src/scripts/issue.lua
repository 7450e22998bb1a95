-- Decides whether a code may be delivered, and adds it to the OTP log unless it is consumed or was
-- requested too soon. The rules are those of `twofactor_core::decision` and
-- `twofactor_core::limits`.
--
-- The state has `asked`, the last moment at which a code was issued, and `hour`, the moments of the
-- last hour separated by spaces. A moment that is further ahead than its window is ignored, because
-- the clock was set back since.
local operation = 'generate'
if step ~= math.floor(now / 1000 / period) then return { 'clock-off', now } end

local step_end = (step + 1) * period * 1000
-- How long to wait until the next code may be issued, 0 if it may be issued now.
local wait, moments = 0, {}
-- The same for this caller's share, and the moments at which it got codes, in the field of the
-- caller.
local own_wait, own_moments, own_hour = 0, {}, 'hour:' .. caller
local is_shared = most_own > 0 and most_own < most_per_hour

if disabled then
  word = 'disabled-by-failures'
else
  local last = tonumber(state[8])
  if last and math.abs(now - last) < interval then wait = last + interval - now end
  if most_per_hour > 0 and state[9] and #state[9] < longest_text then
    for number in string.gmatch(state[9], '%d+') do
      local moment = number + 0
      if math.abs(now - moment) < 3600000 then moments[#moments + 1] = moment end
    end
    table.sort(moments)
    -- Enough moments must leave the window that one more does not exceed the limit.
    if #moments >= most_per_hour then
      wait = math.max(wait, moments[#moments - most_per_hour + 1] + 3600000 - now)
    end
  end

  if is_shared then
    local text = redis.call('HGET', state_key, own_hour)
    if text and #text < longest_text then
      for number in string.gmatch(text, '%d+') do
        if math.abs(now - number) < 3600000 then own_moments[#own_moments + 1] = number + 0 end
      end
      table.sort(own_moments)
      if #own_moments >= most_own then own_wait = own_moments[#own_moments - most_own + 1] + 3600000 - now end
    end
  end
  if own_wait > wait then word, first = 'share-used-up', own_wait end

  local possibly_used = since > 0 and step <= math.floor(since / 1000 / period)
  if not word and wait == 0 and (possibly_used or step * period * 1000 < accepted_until) then
    word, first = 'consumed', step_end - now
  end
end

if not word then
  local field, log = caller .. ':' .. tag, redis.pcall('HGETALL', otp_key)
  -- The moment until which the same code is accepted if it is known, and whether it was used.
  local expires, is_used
  -- The number of this caller's codes, when the first of them is no longer needed, and the moment
  -- until which the last of them is accepted.
  local own, first_end, in_flight = 0, math.huge, 0
  -- Whether a code of this time was issued to another caller, which has the same digits. If an
  -- entry or the whole log cannot be parsed, it may have been.
  local taken, is_lost = false, log.err ~= nil
  local keep_until, outdated = step_end, {}
  for index = 1, #log, 2 do
    local other_step, issued, other_expires, other_period, consumed =
      string.match(log[index + 1], '^(%d+) (%d+) (%d+) (%d+) ([01])$')
    if not other_step or issued + 0 > latest or other_expires - issued > longest_lifetime
      or other_period + 0 > longest_period or other_step * other_period * 1000 > latest then
      outdated[#outdated + 1], is_lost = log[index], is_lost or not other_step
    else
      other_expires = other_expires + 0
      -- An entry is needed until it has expired and its step has ended.
      local needed_until = math.max(other_expires, (other_step + 1) * other_period * 1000)
      if needed_until < now then
        outdated[#outdated + 1] = log[index]
      else
        keep_until = math.max(keep_until, needed_until)
        local is_current = other_expires >= now
        if string.match(log[index], '^[^:]*') == caller then
          own, first_end = own + 1, math.min(first_end, needed_until)
          local lost = since > 0 and issued + 0 <= since
          if is_current and consumed == '0' and not lost then in_flight = math.max(in_flight, other_expires) end
        elseif other_step * other_period * 1000 < step_end and (other_step + 1) * other_period > step * period then
          taken = true
        end
        if is_current and log[index] == field and other_step + 0 == step then
          expires, is_used = other_expires, consumed == '1'
        end
      end
    end
  end
  if log.err then
    -- A moment in the past deletes the key, and services may set one.
    redis.call('PEXPIREAT', otp_key, 1)
  else
    for index = 1, #outdated do redis.call('HDEL', otp_key, outdated[index]) end
  end
  if is_lost then
    taken = true
    redis.call('HSET', state_key, 'until', string.format('%.0f', math.max(accepted_until, step_end)))
  end
  if wait == 0 and not taken and not expires and own >= most_in_flight then wait = first_end + 1 - now end

  if wait > 0 then
    word, first, second = 'too-soon', wait, in_flight
  elseif taken or is_used then
    word, first = 'consumed', step_end - now
  else
    if not expires then
      expires = math.floor(now / 1000) * 1000 + lifetime
      redis.call('HSET', otp_key, field, string.format('%.0f %.0f %.0f %.0f 0', step, now, expires, period))
      -- One second is added, because an entry must still exist in the millisecond in which it
      -- expires.
      redis.call('PEXPIREAT', otp_key, string.format('%.0f', math.max(keep_until, expires) + 1000))
    end
    local asked = string.format('%.0f', now)
    if most_per_hour > 0 then
      for index, moment in ipairs(moments) do moments[index] = string.format('%.0f', moment) end
      moments[#moments + 1] = asked
      redis.call('HSET', state_key, 'asked', asked, 'hour', table.concat(moments, ' '))
      if is_shared then
        for index, moment in ipairs(own_moments) do own_moments[index] = string.format('%.0f', moment) end
        own_moments[#own_moments + 1] = asked
        redis.call('HSET', state_key, own_hour, table.concat(own_moments, ' '))
      end
    else
      -- Without a limit, nothing would bound the number of moments.
      redis.call('HSET', state_key, 'asked', asked)
    end
    word, first, second = 'issued', expires, now
  end
end
