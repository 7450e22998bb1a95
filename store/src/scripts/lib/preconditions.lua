-- Checks what must hold before a script decides anything, and declares what both deciding scripts
-- use: now, since (the moment up to which codes may have been used before Redis lost data),
-- accepted_until (the moment up to which steps are used), the user's state, and the reply. Uses the
-- script's arguments state_key, otp_key, checked_nodes ("process.term=since", separated by spaces),
-- revision, asked_at, tolerance, caller and period.
--
-- Deciding scripts declare no functions, because Lua would build each of them in every call.
-- Moments and durations are in milliseconds, the period of a code is in seconds.
--
-- What a sidecar may write is read as if an attacker had written it: what cannot be parsed counts
-- as lost, and a moment beyond `latest` was written while the clock was ahead. Everything is parsed
-- before the first write that depends on it.

-- A master gets another term (master_replid) whenever it starts and whenever it is promoted, so a
-- term that was checked is that of the same process. A replica has the term of its master.
local replication = redis.call('INFO', 'replication')
local term = string.match(replication, 'master_replid:(%x+)')
local checked_since = string.find(replication, 'role:master', 1, true)
  and string.match(checked_nodes, '%.' .. term .. '=(%d+)')
if not checked_since then return { 'unchecked-node', 0 } end

local state = redis.pcall('HMGET', state_key, 'revision', 'since', 'until', 'disabled', 'counted:' .. caller,
  'failures:' .. caller, 'blocked:' .. caller, 'asked', 'hour', 'ahead', 'day:' .. caller)
if revision == '0' and state[1] ~= revision then
  -- The question is about a dummy record. A user's would have been written about, and with
  -- `appendfsync always` a write delays the answer until the disk has it, so this writes as well.
  local written = redis.pcall('HSET', otp_key, '-', '')
  if type(written) == 'table' and string.find(written.err, 'OOM', 1, true) then return written end
  if type(written) == 'number' then redis.call('HDEL', otp_key, '-') end
end
local since, accepted_until = tonumber(state[2]), tonumber(state[3])
-- A comparison with a number that is not one is false.
if not (state[1] and since and since >= 0 and since < 1e15)
  or not (accepted_until and accepted_until >= 0 and accepted_until < 1e15) then
  return { 'no-state', 0 }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if math.abs(now - asked_at) > tolerance then return { 'clock-off', now } end
if state[1] ~= revision then return { 'stale', tonumber(state[1]) } end

local latest = now + 2 * period * 1000
-- The publisher replaces such a moment with its next check.
if checked_since + 0 > latest then return { 'unchecked-node', 0 } end
if since > latest or accepted_until > latest then
  -- What was accepted while the clock was ahead is used again when that time comes.
  local ahead = string.format('%.0f', math.max(since, accepted_until, tonumber(state[10]) or 0))
  since, accepted_until = math.min(since, now), math.min(accepted_until, latest)
  redis.call('HSET', state_key, 'since', string.format('%.0f', since), 'until', string.format('%.0f', accepted_until),
    'ahead', ahead)
elseif state[10] and (tonumber(state[10]) or 0) <= latest then
  accepted_until = math.max(accepted_until, tonumber(state[10]) or 0)
end
since = math.max(since, checked_since)
local disabled, counted = state[4], state[5]
-- The reply: a word, and two numbers.
local word, first, second = nil, 0, 0
local follows_a_decision = false
