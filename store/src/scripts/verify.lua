-- Decides whether a submitted code is accepted, by the rules of `twofactor_core::decision`.
local operation = 'verify'
-- The failures in a row of this caller, and the moment until which the caller is blocked.
local failures, blocked = 0, 0
if state[6] then failures = math.min(disable_after, math.max(0, tonumber(state[6]) or 0)) end
if state[7] then
  blocked = math.max(0, tonumber(state[7]) or 0)
  -- A block that lasts longer than these failures cause was set while the clock was ahead.
  local longest = math.min(first_block * 2 ^ math.max(0, failures - threshold), longest_block)
  if blocked > now + longest + block_margin then blocked = 0 end
end
-- The beginning of the day in which this caller's failures are counted, and their number.
local day, day_failures = now, 0
if state[11] and most_failures > 0 then
  local began, count = string.match(state[11], '^(%d+) (%d+)$')
  if began and began + 0 <= now + block_margin and now - began < budget_length then
    day, day_failures = began + 0, math.min(most_failures, count + 0)
  end
end
-- The moment up to which steps are used if the code is accepted, or the outcome of a failure and
-- the moment up to which steps are used because of it.
local used_until, failed, guessed_until

if disabled then
  word = 'disabled-by-failures'
elseif most_failures > 0 and day_failures >= most_failures then
  word, first = 'failures-used-up', day + budget_length - now
elseif blocked > now then
  word, first = 'blocked', blocked - now
else
  local current = math.floor(now / 1000 / period)
  local latest_step = nil
  for number in string.gmatch(matches, '%d+') do
    local step = tonumber(number)
    if math.abs(step - current) <= skew and (not latest_step or step > latest_step) then latest_step = step end
  end

  if factor == 'authenticator' then
    if not latest_step then
      failed = 'wrong'
    elseif (since > 0 and latest_step <= math.floor(since / 1000 / period) + skew)
      or latest_step * period * 1000 < accepted_until then
      word = 'used'
    else
      used_until = (latest_step + 1) * period * 1000
    end
  else
    local field = caller .. ':' .. tag
    local entry = redis.pcall('HGET', otp_key, field)
    local step, issued, expires, entry_period, consumed
    if type(entry) == 'string' then
      step, issued, expires, entry_period, consumed = string.match(entry, '^(%d+) (%d+) (%d+) (%d+) ([01])$')
    end
    if not step or issued + 0 > latest or expires - issued > longest_lifetime
      or step * entry_period * 1000 > latest then
      failed = latest_step and 'never-issued' or 'wrong'
      -- The answer shows that the guess was right, so the code must not be issued later.
      if latest_step then guessed_until = (latest_step + 1) * period * 1000 end
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
  if state[6] then redis.call('HDEL', state_key, 'failures:' .. caller, 'blocked:' .. caller, 'recent:' .. caller) end
elseif failed then
  word = failed
  -- The failures in a row of all callers together, and those of the last days, which `recent:` has
  -- by the day. The release before writes `failures:` only.
  local today, fields = math.floor(now / 86400000), redis.call('HGETALL', state_key)
  local runs, sums, own_days = {}, {}, {}
  for index = 1, #fields, 2 do
    local kind, name = string.match(fields[index], '^(%l+):(.*)$')
    if kind == 'failures' then
      runs[name] = math.min(disable_after, math.max(0, tonumber(fields[index + 1]) or 0))
    elseif kind == 'recent' and #fields[index + 1] < longest_text then
      local sum = 0
      for number, count in string.gmatch(fields[index + 1], '(%d+)=(%d+)') do
        if number + forget_after_days > today and number + 0 <= today + 1 then
          sum = math.min(disable_after, sum + count)
          if name == caller then own_days[#own_days + 1] = { number + 0, count + 0 } end
        end
      end
      sums[name] = sum
    end
  end
  failures = math.min(failures, sums[caller] or failures) + 1
  local all = failures
  for name, run in pairs(runs) do
    if name ~= caller then all = all + math.min(run, sums[name] or run) end
  end
  if #own_days == 0 and failures > 1 then own_days[1] = { today, failures - 1 } end
  local last = own_days[#own_days]
  if last and last[1] == today then
    last[2] = last[2] + 1
  else
    own_days[#own_days + 1] = { today, 1 }
  end
  for index, known in ipairs(own_days) do own_days[index] = string.format('%.0f=%.0f', known[1], known[2]) end
  local changes = { 'failures:' .. caller, string.format('%.0f', failures), 'recent:' .. caller,
    table.concat(own_days, ' ') }
  if most_failures > 0 then
    changes[5], changes[6] = 'day:' .. caller, string.format('%.0f %.0f', day, day_failures + 1)
  end
  local doublings = failures - threshold
  if doublings >= 0 then
    local block = math.min(first_block * 2 ^ doublings, longest_block)
    changes[#changes + 1], changes[#changes + 2] = 'blocked:' .. caller, string.format('%.0f', now + block)
  end
  if all >= disable_after then
    changes[#changes + 1], changes[#changes + 2] = 'disabled', string.format('%.0f', now)
  end
  if guessed_until and guessed_until > accepted_until then
    changes[#changes + 1], changes[#changes + 2] = 'until', string.format('%.0f', guessed_until)
  end
  redis.call('HSET', state_key, unpack(changes))
end
