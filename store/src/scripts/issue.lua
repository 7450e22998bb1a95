-- Decides whether a code may be delivered, and adds it to the OTP log unless it is consumed or was
-- requested too soon. The rules are those of `twofactor_core::decision`.
local field = caller .. ':' .. tag

local undecided, now, since, accepted_until, state = preconditions(
  { 'disabled', 'asked', 'hour', 'counted:' .. caller })
if undecided then return undecided end
if step ~= math.floor(now / 1000 / period) then return { 'clock-off', now } end

local function done(word, first, second)
  return { word, first, second, write_history(now, state[7], 'generate', word) }
end

if state[4] then return done('disabled-by-failures', 0, 0) end

local function too_soon(wait)
  -- The moment until which this caller's last code is accepted, 0 if none is.
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

local moments = read_moments(state[6], now)
local wait = wait_for_next(tonumber(state[5]), moments, now)
if wait > 0 then return too_soon(wait) end

local function issued(expires)
  -- Without a limit, nothing would bound the number of moments.
  if most_per_hour > 0 then
    moments[#moments + 1] = now
    write_moments(moments)
  end
  redis.call('HSET', state_key, 'asked', whole(now))
  return done('issued', expires, now)
end

local possibly_used = since > 0 and step <= math.floor(since / 1000 / period)
if possibly_used or step * period * 1000 < accepted_until then
  return done('consumed', end_of(step, period) - now, 0)
end

-- An entry is needed until it has expired and its step has ended.
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
if own >= most_in_flight then return too_soon(first_end + 1 - now) end
local expires = math.floor(now / 1000) * 1000 + lifetime
write_entry(otp_key, field, { step = step, issued = now, expires = expires, period = period, consumed = false })
-- One second is added, because an entry must still exist in the millisecond in which it expires.
redis.call('PEXPIREAT', otp_key, whole(math.max(keep_until, expires, end_of(step, period)) + 1000))
return issued(expires)
