-- Decides whether a submitted code is accepted, by the rules of `twofactor_core::decision`.
local field = caller .. ':' .. tag

local undecided, now, since, accepted_until, state = preconditions(
  { 'failures:' .. caller, 'blocked:' .. caller, 'disabled', 'counted:' .. caller })
if undecided then return undecided end

local function done(verdict, number)
  return { verdict, number, 0, write_history(now, state[7], 'verify', verdict) }
end

if state[6] then return done('disabled-by-failures', 0) end

local failures, blocked = tonumber(state[4] or 0), tonumber(state[5] or 0)
if blocked > now then return done('blocked', blocked - now) end

local current = math.floor(now / 1000 / period)
local latest = nil
for number in string.gmatch(matches, '%d+') do
  local step = tonumber(number)
  if math.abs(step - current) <= skew and (not latest or step > latest) then latest = step end
end

local function accept(step, step_period)
  -- The write that marks the code used comes first: if Redis is out of memory, it fails and nothing
  -- is accepted.
  redis.call('HSET', state_key, 'until', whole(math.max(accepted_until, end_of(step, step_period))))
  if state[4] then redis.call('HDEL', state_key, 'failures:' .. caller, 'blocked:' .. caller) end
  return done('accepted', 0)
end

-- Returns the failures in a row of all callers together, with `failures` for this caller.
local function all_failures()
  local all, fields = 0, redis.call('HGETALL', state_key)
  for index = 1, #fields, 2 do
    if string.sub(fields[index], 1, 9) == 'failures:' then all = all + tonumber(fields[index + 1]) end
  end
  return all + failures - tonumber(state[4] or 0)
end

local function fail(verdict)
  failures = failures + 1
  local changes = { 'failures:' .. caller, whole(failures) }
  local doublings = failures - threshold
  if doublings >= 0 then
    local block = math.min(first_block * 2 ^ math.min(doublings, 31), longest_block)
    changes[3], changes[4] = 'blocked:' .. caller, whole(now + block)
  end
  if all_failures() >= disable_after then
    changes[#changes + 1], changes[#changes + 2] = 'disabled', whole(now)
  end
  redis.call('HSET', state_key, unpack(changes))
  return done(verdict, 0)
end

if factor == 'authenticator' then
  if not latest then return fail('wrong') end
  local possibly_used = since > 0 and latest <= math.floor(since / 1000 / period) + skew
  if possibly_used or latest * period * 1000 < accepted_until then return done('used', 0) end
  return accept(latest, period)
end

local text = redis.call('HGET', otp_key, field)
if not text then return fail(latest and 'never-issued' or 'wrong') end
local entry = read_entry(text)
if entry.consumed or (since > 0 and entry.issued <= since) then return done('used', 0) end
if now > entry.expires then return fail('expired') end

-- The step is marked used for every caller, and with it all other codes of this caller.
local log = redis.call('HGETALL', otp_key)
for index = 1, #log, 2 do
  local other = read_entry(log[index + 1])
  if not other.consumed and (other.step == entry.step or string.match(log[index], '^[^:]*') == caller) then
    other.consumed = true
    write_entry(otp_key, log[index], other)
  end
end
return accept(entry.step, entry.period)
