-- Records what became of a delivery in the user's history. If the provider refused the code, the
-- pause until the next one is cancelled. The rules are those of `twofactor_core::decision`.
local state = redis.call('HMGET', state_key, 'revision', 'asked', 'counted:' .. caller)
-- The user was removed, so nothing of the user may be written again.
if not state[1] then return { 'no-state', 0 } end
local now = clock()
if give_back == 'pause' and tonumber(state[2]) == asked_at then redis.call('HDEL', state_key, 'asked') end
return { 'recorded', 0, 0, write_history(now, state[3], operation, outcome) }
