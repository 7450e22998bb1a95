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
-- Counts one more delivery of a realm, unless there were as many as there may be within the hour; the rules are those of
-- `twofactor_core::limits`.
-- KEYS: the realm's deliveries
-- ARGV: how many there may be
local key, most, now = KEYS[1], tonumber(ARGV[1]), clock()
local current, minutes, left = math.floor(now / 60000), {}, 0
local counts = redis.call('HGETALL', key)
for index = 1, #counts, 2 do
  local minute, count = tonumber(counts[index]), tonumber(counts[index + 1])
  if math.abs(current - minute) < 60 then
    minutes[#minutes + 1] = { minute = minute, count = count }
    left = left + count
  else
    redis.call('HDEL', key, counts[index])
  end
end
table.sort(minutes, function(one, other) return one.minute < other.minute end)

if left < most then
  local count = 1
  for _, known in ipairs(minutes) do
    if known.minute == current then count = known.count + 1 end
  end
  redis.call('HSET', key, whole(current), whole(count))
  redis.call('PEXPIREAT', key, whole((current + 60) * 60000))
  return { 'granted', 0 }
end
local next_free = current
for _, known in ipairs(minutes) do
  left, next_free = left - known.count, known.minute
  if left < most then break end
end
return { 'used-up', (next_free + 60) * 60000 - now }
