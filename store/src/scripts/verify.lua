-- Decides about a submitted code; the rules are those of `twofactor_core::decision`.
-- KEYS: state, otp
-- ARGV: guards, revision, asked_at, tolerance, factor, caller, tag, matches, period, skew, threshold,
--       first_block, longest_block (moments and durations in ms, the period in s)
local state_key, otp_key = KEYS[1], KEYS[2]
local factor, caller, field = ARGV[5], ARGV[6], ARGV[6] .. ':' .. ARGV[7]
local period, skew = tonumber(ARGV[9]), tonumber(ARGV[10])

local undecided, now, since, accepted_until, state = ground(
  state_key, ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), { 'failures:' .. caller, 'blocked:' .. caller })
if undecided then return undecided end

local failures, blocked = tonumber(state[4] or 0), tonumber(state[5] or 0)
if blocked > now then return { 'blocked', blocked - now } end

local current = math.floor(now / 1000 / period)
local latest = nil
for number in string.gmatch(ARGV[8], '%d+') do
  local step = tonumber(number)
  if math.abs(step - current) <= skew and (not latest or step > latest) then latest = step end
end

local function accept(step, step_period)
  -- First of all what burns the code: where Redis is out of memory, this is refused, and nothing was accepted.
  redis.call('HSET', state_key, 'until', whole(math.max(accepted_until, end_of(step, step_period))))
  if state[4] then redis.call('HDEL', state_key, 'failures:' .. caller, 'blocked:' .. caller) end
  return { 'accepted', 0 }
end

local function fail(verdict)
  failures = failures + 1
  local changes = { 'failures:' .. caller, whole(failures) }
  local doublings = failures - tonumber(ARGV[11])
  if doublings >= 0 then
    local block = math.min(tonumber(ARGV[12]) * 2 ^ math.min(doublings, 31), tonumber(ARGV[13]))
    changes[3], changes[4] = 'blocked:' .. caller, whole(now + block)
  end
  redis.call('HSET', state_key, unpack(changes))
  return { verdict, 0 }
end

if factor == 'authenticator' then
  if not latest then return fail('wrong') end
  local possibly_used = since > 0 and latest <= math.floor(since / 1000 / period) + skew
  if possibly_used or latest * period * 1000 < accepted_until then return { 'used', 0 } end
  return accept(latest, period)
end

local text = redis.call('HGET', otp_key, field)
if not text then return fail(latest and 'never-issued' or 'wrong') end
local entry = read_entry(text)
if entry.consumed or (since > 0 and entry.issued <= since) then return { 'used', 0 } end
if now > entry.expires then return fail('expired') end

-- The step is burned for every caller, and this caller's other codes with it.
local log = redis.call('HGETALL', otp_key)
for index = 1, #log, 2 do
  local other = read_entry(log[index + 1])
  if not other.consumed and (other.step == entry.step or string.match(log[index], '^[^:]*') == caller) then
    other.consumed = true
    write_entry(otp_key, log[index], other)
  end
end
return accept(entry.step, entry.period)
