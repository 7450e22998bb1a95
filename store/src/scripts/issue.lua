-- Puts a code into the OTP log, unless it is used up or was asked for too soon; the rules are those
-- of `twofactor_core::decision`. KEYS: state, otp, log ARGV: guards, revision, asked_at, tolerance,
-- caller, tag, step, period, lifetime, interval, codes an hour, retention, channel, address, user
-- agent, most codes in flight (moments and durations in ms, the period in s)
local state_key, otp_key, caller = KEYS[1], KEYS[2], ARGV[5]
local field = caller .. ':' .. ARGV[6]
local step, period, lifetime = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local interval, most = tonumber(ARGV[10]), tonumber(ARGV[11])

local undecided, now, since, accepted_until, state = ground(
  state_key, ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), { 'disabled', 'asked', 'hour', 'counted:' .. caller })
if undecided then return undecided end
if step ~= math.floor(now / 1000 / period) then return { 'clock-off', now } end

local function done(word, first, second)
  local keys = { state = state_key, log = KEYS[3] }
  local trace = { retention = tonumber(ARGV[12]), channel = ARGV[13], address = ARGV[14], user_agent = ARGV[15] }
  local unwritten = write_entry_of_history(keys, now, caller, trace, state[7], 'generate', word)
  return { word, first, second, unwritten }
end

if state[4] then return done('disabled-by-failures', 0, 0) end

local function too_soon(wait)
  -- Until when this caller's last code is accepted, while it is.
  local in_flight, log = 0, redis.call('HGETALL', otp_key)
  for index = 1, #log, 2 do
    local entry = read_entry(log[index + 1])
    local lost = since > 0 and entry.issued <= since
    if string.match(log[index], '^[^:]*') == caller and not entry.consumed and not lost and entry.expires >= now then
      in_flight = math.max(in_flight, entry.expires)
    end
  end
  return done('too-soon', wait, in_flight)
end

local moments = moments_of(state[6], now)
local wait = wait_for(tonumber(state[5]), moments, interval, most, now)
if wait > 0 then return too_soon(wait) end

local function issued(expires)
  -- Without a limit, nothing bounds how many moments there would be.
  if most > 0 then
    moments[#moments + 1] = now
    write_moments(state_key, moments)
  end
  redis.call('HSET', state_key, 'asked', whole(now))
  return done('issued', expires, now)
end

local possibly_used = since > 0 and step <= math.floor(since / 1000 / period)
if possibly_used or step * period * 1000 < accepted_until then
  return done('consumed', end_of(step, period) - now, 0)
end

-- An entry is kept while it could be accepted or its step come again.
local log, keep_until, known = redis.call('HGETALL', otp_key), 0, nil
local own, first_end = 0, nil
for index = 1, #log, 2 do
  local entry = read_entry(log[index + 1])
  local needed_until = math.max(entry.expires, end_of(entry.step, entry.period))
  if needed_until < now then
    redis.call('HDEL', otp_key, log[index])
  else
    keep_until = math.max(keep_until, needed_until)
    if log[index] == field then known = entry end
    if string.match(log[index], '^[^:]*') == caller then
      own = own + 1
      first_end = math.min(first_end or needed_until, needed_until)
    end
  end
end

if known and known.step == step and known.expires >= now then
  if known.consumed then return done('consumed', end_of(step, period) - now, 0) end
  return issued(known.expires)
end
if own >= tonumber(ARGV[16]) then return too_soon(first_end + 1 - now) end
local expires = math.floor(now / 1000) * 1000 + lifetime
write_entry(otp_key, field, { step = step, issued = now, expires = expires, period = period, consumed = false })
-- One second more: an entry must still be there in the millisecond in which it expires.
redis.call('PEXPIREAT', otp_key, whole(math.max(keep_until, expires, end_of(step, period)) + 1000))
return issued(expires)
