-- Records what became of a delivery in the user's history. If the provider refused the code, the
-- pause until the next one is cancelled. The rules are those of `twofactor_core::decision`.
local state = redis.pcall('HMGET', state_key, 'revision', 'asked', 'counted:' .. caller)
-- The user was removed, so nothing of the user may be written again.
if not state[1] then return { 'no-state', 0 } end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if give_back == 'pause' and tonumber(state[2]) == asked_at then redis.call('HDEL', state_key, 'asked') end
local counted, word, first, second = state[3], outcome, 0, 0
-- The decision about the code was made at most some seconds ago.
local follows_a_decision = outcome == 'sent' or give_back == 'pause'
