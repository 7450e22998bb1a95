-- Helpers of the scripts that publish. Keys and arguments follow as local variables, which are
-- declared in `redis/scripts.rs`. Moments and durations are in milliseconds, the period of a code
-- is in seconds.

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

-- Parses a moment that sidecars may have written. Returns nil if it is not written as they write
-- it.
local function moment_of(text)
  return text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- Returns a revision if it is written as the publisher writes it.
local function revision_of(text)
  return text and #text <= 15 and string.match(text, '^[1-9]%d*$')
end
