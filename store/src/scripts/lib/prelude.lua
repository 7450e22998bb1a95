-- Helpers of all scripts. Each script begins with this file; its keys and arguments follow as local
-- variables, which are declared in `redis/scripts.rs`. Moments and durations are in milliseconds,
-- the period of a code is in seconds.

-- Returns the identity of this node: its process (run_id) and its term as a master (master_replid,
-- which changes with every promotion). Writes can only have been lost if one of the two has
-- changed. The latter also changes when the first replica is attached, and when no replica was
-- attached for `repl-backlog-ttl`. That costs a check and a minute of rejected codes, but nothing
-- was lost.
local function node_identity()
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local term = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  return run .. '.' .. term
end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Formats a whole number, because Lua writes large numbers with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- Parses an entry of the OTP log: step, issued at, expires at, period, and whether it is consumed.
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

local function end_of(step, step_period)
  return (step + 1) * step_period * 1000
end
