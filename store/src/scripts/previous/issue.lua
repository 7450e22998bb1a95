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
-- Put in front of the scripts that know how often codes were asked for; the rules are those of `twofactor_core::limits`. The
-- state has `asked`, the last moment, and `hour`, those of the last hour separated by spaces.
local HOUR = 3600000

-- A moment that lies further ahead than its window was told by a clock that has been put back since.
local function counts_within(moment, window, now)
  return math.abs(now - moment) < window
end

local function moments_of(text, now)
  local moments = {}
  for number in string.gmatch(text or '', '%d+') do
    local moment = tonumber(number)
    if counts_within(moment, HOUR, now) then moments[#moments + 1] = moment end
  end
  table.sort(moments)
  return moments
end

local function write_moments(state_key, moments)
  local numbers = {}
  for index, moment in ipairs(moments) do numbers[index] = whole(moment) end
  redis.call('HSET', state_key, 'hour', table.concat(numbers, ' '))
end

-- How long to wait until the next code; 0 when it may be made now.
local function wait_for(last, moments, interval, most, now)
  local wait = 0
  if last and counts_within(last, interval, now) then wait = last + interval - now end
  -- As many have to leave the window as are too many for one more.
  if most > 0 and #moments >= most then
    wait = math.max(wait, moments[#moments - most + 1] + HOUR - now)
  end
  return wait
end
-- Puts a code into the OTP log, unless it is used up or was asked for too soon; the rules are those of
-- `twofactor_core::decision`.
-- KEYS: state, otp, log
-- ARGV: guards, revision, asked_at, tolerance, caller, tag, step, period, lifetime, interval, codes an hour, retention,
--       channel, address, user agent, most codes in flight (moments and durations in ms, the period in s)
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
