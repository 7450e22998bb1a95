-- Puts a code into the OTP log, unless it is used up; the rules are those of `twofactor_core::decision`.
-- KEYS: state, otp
-- ARGV: guards, revision, asked_at, tolerance, caller, tag, step, period, lifetime (moments and durations in
--       ms, the period in s)
local state_key, otp_key = KEYS[1], KEYS[2]
local field = ARGV[5] .. ':' .. ARGV[6]
local step, period, lifetime = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])

local undecided, now, since, accepted_until = ground(state_key, ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
if undecided then return undecided end

local current = math.floor(now / 1000 / period)
if step ~= current then return { 'clock-off', now } end
local possibly_used = since > 0 and current <= math.floor(since / 1000 / period)
if possibly_used or step * period * 1000 < accepted_until then
  return { 'consumed', end_of(step, period) - now }
end

-- An entry is kept while it could be accepted or its step come again.
local log, keep_until, known = redis.call('HGETALL', otp_key), 0, nil
for index = 1, #log, 2 do
  local entry = read_entry(log[index + 1])
  local needed_until = math.max(entry.expires, end_of(entry.step, entry.period))
  if needed_until < now then
    redis.call('HDEL', otp_key, log[index])
  else
    keep_until = math.max(keep_until, needed_until)
    if log[index] == field then known = entry end
  end
end

if known and known.step == step and known.expires >= now then
  if known.consumed then return { 'consumed', end_of(step, period) - now } end
  return { 'issued', known.expires }
end
local expires = math.floor(now / 1000) * 1000 + lifetime
write_entry(otp_key, field, { step = step, issued = now, expires = expires, period = period, consumed = false })
-- One second more: an entry must still be there in the millisecond in which it expires.
redis.call('PEXPIREAT', otp_key, whole(math.max(keep_until, expires, end_of(step, period)) + 1000))
return { 'issued', expires }
