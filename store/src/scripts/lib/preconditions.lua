-- Checks what must hold before a script decides anything, and declares what both deciding scripts
-- use: now, since (the moment up to which codes may have been used before Redis lost data),
-- accepted_until (the moment up to which steps are used), the user's state, and the reply. Uses the
-- script's arguments state_key, checked_nodes ("process.term=since", separated by spaces),
-- revision, asked_at, tolerance and caller.
--
-- Deciding scripts declare no functions, because Lua would build each of them in every call.
-- Moments and durations are in milliseconds, the period of a code is in seconds.

-- A master gets another term (master_replid) whenever it starts and whenever it is promoted, so a
-- term that was checked is that of the same process. A replica has the term of its master.
local replication = redis.call('INFO', 'replication')
local term = string.match(replication, 'master_replid:(%x+)')
local checked_since = string.find(replication, 'role:master', 1, true)
  and string.match(checked_nodes, '%.' .. term .. '=(%d+)')
if not checked_since then return { 'unchecked-node', 0 } end

local state = redis.call('HMGET', state_key, 'revision', 'since', 'until', 'disabled', 'counted:' .. caller,
  'failures:' .. caller, 'blocked:' .. caller, 'asked', 'hour')
if not state[1] then return { 'no-state', 0 } end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if math.abs(now - asked_at) > tolerance then return { 'clock-off', now } end
if state[1] ~= revision then return { 'stale', tonumber(state[1]) } end

local since, accepted_until = math.max(state[2], checked_since), state[3] + 0
local disabled, counted = state[4], state[5]
-- The reply: a word, and two numbers.
local word, first, second = nil, 0, 0
