-- Put in front of the deciding scripts. Enters: the checked nodes in ARGV[1], as "node=since" separated by
-- spaces. Leaves: who this node is, what its clock says, and helpers.

-- The process (run_id) and its reign as a master (master_replid changes with every promotion): writes can only
-- have been lost when one of the two has changed. The latter also changes when the first replica is attached, and when
-- none has been for `repl-backlog-ttl`; that costs a check, and a minute of refused codes, without any loss.
local function node_identity()
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local reign = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  return run .. '.' .. reign
end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Lua would write large numbers with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- An entry of the OTP log: step, issued at, expires at (both in ms), period (s), and whether it is used up.
local function read_entry(text)
  local step, issued, expires, period, consumed = string.match(text, '^(%d+) (%d+) (%d+) (%d+) ([01])$')
  return {
    step = tonumber(step), issued = tonumber(issued), expires = tonumber(expires),
    period = tonumber(period), consumed = consumed == '1',
  }
end

local function write_entry(key, field, entry)
  redis.call('HSET', key, field, table.concat({
    whole(entry.step), whole(entry.issued), whole(entry.expires), whole(entry.period), entry.consumed and '1' or '0',
  }, ' '))
end

local function end_of(step, period)
  return (step + 1) * period * 1000
end

-- Returns nothing when the ground is firm, or the answer that says why not; then the state.
local function ground(state_key, guards, revision, asked_at, tolerance, fields)
  local node = node_identity()
  local guard = string.match(' ' .. guards, ' ' .. node .. '=(%d+)')
  if not guard then return { 'unguarded', 0 } end
  local state = redis.call('HMGET', state_key, 'revision', 'since', 'until', unpack(fields or {}))
  if not state[1] then return { 'no-state', 0 } end
  local now = clock()
  if math.abs(now - asked_at) > tolerance then return { 'clock-off', now } end
  if state[1] ~= revision then return { 'stale', tonumber(state[1]) } end
  return nil, now, math.max(tonumber(state[2]), tonumber(guard)), tonumber(state[3]), state
end
-- Put in front of the scripts that leave an entry in a user's stream; the rules are those of `twofactor_core::audit`.

-- What nothing else bounds is written once and then counted, for an hour at most.
local UNBOUNDED = {
  blocked = true, consumed = true, ['deliveries-used-up'] = true, ['disabled-by-failures'] = true,
  ['no-delivery-method'] = true, ['no-secret'] = true, ['too-soon'] = true, used = true,
}
local COUNTED_FOR = 3600000

-- trace: retention (ms), channel, address and user agent ('' when not known or not to be kept); `counted` is what the state
-- has of this caller. Errors are left alone, those of a login without the permission or of a Redis without memory: a decision
-- that was made stays made. Returns 0, or 1 when it could not be written.
local function write_entry_of_history(keys, now, caller, trace, counted, operation, outcome)
  local kind, unbounded = operation .. '/' .. outcome, UNBOUNDED[outcome]
  counted = counted or ''
  local since = tonumber(string.match(counted, '^%d+'))
  local kinds, counts = {}, {}
  for name, count in string.gmatch(counted, ' (%S+)=(%d+)') do
    kinds[#kinds + 1], counts[name] = name, tonumber(count)
  end
  local fresh = since and math.abs(now - since) < COUNTED_FOR
  local function remember()
    local parts = { whole(since) }
    for _, name in ipairs(kinds) do parts[#parts + 1] = name .. '=' .. whole(counts[name]) end
    redis.pcall('HSET', keys.state, 'counted:' .. caller, table.concat(parts, ' '))
  end

  if unbounded and fresh and counts[kind] then
    counts[kind] = counts[kind] + 1
    remember()
    return 0
  end
  local repeated = {}
  for _, name in ipairs(kinds) do
    if counts[name] > 0 then repeated[#repeated + 1] = name .. '=' .. whole(counts[name]) end
  end
  local entry = { 'operation', operation, 'outcome', outcome, 'caller', caller, 'channel', trace.channel }
  local function add(field, value)
    if value ~= '' then entry[#entry + 1], entry[#entry + 2] = field, value end
  end
  add('address', trace.address)
  add('user_agent', trace.user_agent)
  add('repeated', table.concat(repeated, ' '))
  local oldest = math.max(now - trace.retention, 0)
  local added = redis.pcall('XADD', keys.log, 'MINID', whole(oldest), '*', unpack(entry))
  redis.pcall('PEXPIREAT', keys.log, whole(now + trace.retention))
  if unbounded then
    if not fresh then since, kinds, counts = now, {}, {} end
    for _, name in ipairs(kinds) do counts[name] = 0 end
    kinds[#kinds + 1], counts[kind] = kind, 0
    remember()
  elseif counted ~= '' then
    redis.pcall('HDEL', keys.state, 'counted:' .. caller)
  end
  return type(added) == 'table' and 1 or 0
end
-- Decides about a submitted code; the rules are those of `twofactor_core::decision`.
-- KEYS: state, otp, log
-- ARGV: guards, revision, asked_at, tolerance, factor, caller, tag, matches, period, skew, threshold, first_block,
--       longest_block, disable_after, retention, channel, address, user agent (moments and durations in ms, the period in s)
local state_key, otp_key = KEYS[1], KEYS[2]
local factor, caller, field = ARGV[5], ARGV[6], ARGV[6] .. ':' .. ARGV[7]
local period, skew = tonumber(ARGV[9]), tonumber(ARGV[10])

local undecided, now, since, accepted_until, state = ground(
  state_key, ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]),
  { 'failures:' .. caller, 'blocked:' .. caller, 'disabled', 'counted:' .. caller })
if undecided then return undecided end

local function done(verdict, number)
  local keys = { state = state_key, log = KEYS[3] }
  local trace = { retention = tonumber(ARGV[15]), channel = ARGV[16], address = ARGV[17], user_agent = ARGV[18] }
  return { verdict, number, 0, write_entry_of_history(keys, now, caller, trace, state[7], 'verify', verdict) }
end

if state[6] then return done('disabled-by-failures', 0) end

local failures, blocked = tonumber(state[4] or 0), tonumber(state[5] or 0)
if blocked > now then return done('blocked', blocked - now) end

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
  return done('accepted', 0)
end

-- Failures in a row, those of all callers together, this one's being `failures`.
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
  local doublings = failures - tonumber(ARGV[11])
  if doublings >= 0 then
    local block = math.min(tonumber(ARGV[12]) * 2 ^ math.min(doublings, 31), tonumber(ARGV[13]))
    changes[3], changes[4] = 'blocked:' .. caller, whole(now + block)
  end
  if all_failures() >= tonumber(ARGV[14]) then
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
