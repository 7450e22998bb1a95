-- Put in front of the deciding scripts. Enters: the checked nodes in ARGV[1], as "node=since"
-- separated by spaces. Leaves: who this node is, what its clock says, and helpers.

-- The process (run_id) and its reign as a master (master_replid changes with every promotion):
-- writes can only have been lost when one of the two has changed. The latter also changes when the
-- first replica is attached, and when none has been for `repl-backlog-ttl`; that costs a check, and
-- a minute of refused codes, without any loss.
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

-- An entry of the OTP log: step, issued at, expires at (both in ms), period (s), and whether it is
-- used up.
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
