-- Decides whether a submitted code is accepted, by the rules of `twofactor_core::decision`.
local operation = 'verify'
-- The failures in a row of this caller, and the moment until which the caller is blocked.
local failures, blocked = state[6] or 0, (state[7] or 0) + 0
-- The moment up to which steps are used if the code is accepted, or the outcome of a failure and
-- the moment up to which steps are used because of it.
local used_until, failed, guessed_until

if disabled then
  word = 'disabled-by-failures'
elseif blocked > now then
  word, first = 'blocked', blocked - now
else
  local current = math.floor(now / 1000 / period)
  local latest = nil
  for number in string.gmatch(matches, '%d+') do
    local step = tonumber(number)
    if math.abs(step - current) <= skew and (not latest or step > latest) then latest = step end
  end

  if factor == 'authenticator' then
    if not latest then
      failed = 'wrong'
    elseif (since > 0 and latest <= math.floor(since / 1000 / period) + skew) or latest * period * 1000 < accepted_until then
      word = 'used'
    else
      used_until = (latest + 1) * period * 1000
    end
  else
    local field = caller .. ':' .. tag
    local entry = redis.call('HGET', otp_key, field)
    local step, issued, expires, entry_period, consumed
    if entry then
      step, issued, expires, entry_period, consumed = string.match(entry, '^(%d+) (%d+) (%d+) (%d+) ([01])$')
    end
    if not entry then
      failed = latest and 'never-issued' or 'wrong'
      -- The answer shows that the guess was right, so the code must not be issued later.
      if latest then guessed_until = (latest + 1) * period * 1000 end
    elseif consumed == '1' or (since > 0 and issued + 0 <= since) then
      word = 'used'
    elseif now > expires + 0 then
      failed = 'expired'
    else
      -- The step is marked used for every caller, and with it all other codes of this caller.
      local log = redis.call('HGETALL', otp_key)
      for index = 1, #log, 2 do
        local other = log[index + 1]
        if string.sub(other, -1) == '0'
          and (string.match(other, '^%d+') == step or string.match(log[index], '^[^:]*') == caller) then
          redis.call('HSET', otp_key, log[index], string.sub(other, 1, -2) .. '1')
        end
      end
      used_until = (step + 1) * entry_period * 1000
    end
  end
end

if used_until then
  word = 'accepted'
  -- The write that marks the code used comes before the reply: if Redis is out of memory, it fails
  -- and nothing is accepted.
  redis.call('HSET', state_key, 'until', string.format('%.0f', math.max(accepted_until, used_until)))
  if state[6] then redis.call('HDEL', state_key, 'failures:' .. caller, 'blocked:' .. caller) end
elseif failed then
  word = failed
  -- The failures in a row of all callers together.
  local all, fields = 1, redis.call('HGETALL', state_key)
  for index = 1, #fields, 2 do
    if string.sub(fields[index], 1, 9) == 'failures:' then all = all + fields[index + 1] end
  end
  failures = failures + 1
  local changes = { 'failures:' .. caller, string.format('%.0f', failures) }
  local doublings = failures - threshold
  if doublings >= 0 then
    local block = math.min(first_block * 2 ^ math.min(doublings, 31), longest_block)
    changes[3], changes[4] = 'blocked:' .. caller, string.format('%.0f', now + block)
  end
  if all >= disable_after then
    changes[#changes + 1], changes[#changes + 2] = 'disabled', string.format('%.0f', now)
  end
  if guessed_until and guessed_until > accepted_until then
    changes[#changes + 1], changes[#changes + 2] = 'until', string.format('%.0f', guessed_until)
  end
  redis.call('HSET', state_key, unpack(changes))
end
