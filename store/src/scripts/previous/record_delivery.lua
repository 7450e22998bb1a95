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
-- Takes note of what happened after a decision, or in place of one: an entry in the user's stream, and the pause back when a
-- provider refused the code; the rules are those of `twofactor_core::decision`.
-- KEYS: state, log
-- ARGV: caller, operation, outcome, what is given back (nothing or pause), the moment that it was asked for, retention,
--       channel, address, user agent (moments and durations in ms)
local state_key, caller, give_back, asked_at = KEYS[1], ARGV[1], ARGV[4], tonumber(ARGV[5])
local state = redis.call('HMGET', state_key, 'revision', 'asked', 'counted:' .. caller)
-- The user is gone, and nothing of them comes back.
if not state[1] then return { 'no-state', 0 } end
local now = clock()
if give_back == 'pause' and tonumber(state[2]) == asked_at then redis.call('HDEL', state_key, 'asked') end
local trace = { retention = tonumber(ARGV[6]), channel = ARGV[7], address = ARGV[8], user_agent = ARGV[9] }
local keys = { state = state_key, log = KEYS[2] }
return { 'concluded', 0, 0, write_entry_of_history(keys, now, caller, trace, state[3], ARGV[2], ARGV[3]) }
