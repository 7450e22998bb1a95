-- Makes a record current, unless another publisher has changed the user. `expected` is the revision
-- that this publisher has read, '' if there was no state that can be parsed; `reset` is the request
-- to reset the user's failures, '' if there is none; `is_disabled` says that failures have disabled
-- the user before Redis lost the state.
--
-- Everything is parsed before the first write, because sidecars may write state and OTP log. Codes
-- are revoked before the record is published.
local now = clock()
local state = redis.pcall('HMGET', state_key, 'revision', 'since', 'until', 'reset')
local since, used_until = moment_of(state[2]), moment_of(state[3])
local current = since and used_until and revision_of(state[1]) or ''
if current ~= expected then return { 'conflict', tonumber(current) or 0 } end
local log = redis.pcall('HGETALL', otp_key)

local is_new = current == ''
-- A state with the wrong time would lock the user out until that time.
if is_new and not fresh and clock_is_off() then return { 'clock-off', now } end
local last_reset = not is_new and state[4] or ''
if is_new then
  -- Only of a new seed is it certain that no code was used before Redis lost the state.
  since, used_until = fresh and 0 or now, 0
end
local latest = now + longest_ahead
-- Without the log, it is not known which codes were issued until now.
if log.err or since > latest then since = now end
local revoked, unreadable = {}, {}
for index = 1, #log, 2 do
  local step, period = string.match(log[index + 1], '^(%d+) %d+ %d+ (%d+) [01]$')
  if not step then
    unreadable[#unreadable + 1] = log[index]
  elseif revoke then
    revoked[#revoked + 1] = index
    -- The steps of codes in flight are marked used too: the same digits must neither be issued
    -- again nor be accepted from an authenticator.
    used_until = math.max(used_until, (step + 1) * period * 1000)
  end
end

if log.err then redis.call('UNLINK', otp_key) end
for _, field in ipairs(unreadable) do redis.call('HDEL', otp_key, field) end
for _, index in ipairs(revoked) do
  redis.call('HSET', otp_key, log[index], string.sub(log[index + 1], 1, -2) .. '1')
end
if is_new then
  redis.call('UNLINK', state_key)
  -- What is disabled stays disabled, and an earlier request is not carried out again.
  if is_disabled then redis.call('HSET', state_key, 'disabled', whole(now)) end
elseif reset ~= '' and last_reset ~= reset then
  -- Each request is carried out once, even if a refill publishes it again. Everything is removed
  -- that is not needed to accept a code only once.
  for _, field in ipairs(redis.call('HKEYS', state_key)) do
    if field ~= 'revision' and field ~= 'ahead' then redis.call('HDEL', state_key, field) end
  end
end
-- What was accepted while the clock was ahead is used again when that time comes.
if used_until > latest then redis.call('HSET', state_key, 'ahead', whole(used_until)) end
redis.call('HSET', state_key, 'since', whole(since), 'until', whole(math.min(used_until, latest)), 'revision', revision)
if reset ~= '' then redis.call('HSET', state_key, 'reset', reset) end
redis.call('SET', record_key, sealed)
return { 'published', 0 }
