-- Takes note of what happened after a decision, or in place of one: an entry in the user's stream,
-- and the pause back when a provider refused the code; the rules are those of
-- `twofactor_core::decision`. KEYS: state, log ARGV: caller, operation, outcome, what is given back
-- (nothing or pause), the moment that it was asked for, retention, channel, address, user agent
-- (moments and durations in ms)
local state_key, caller, give_back, asked_at = KEYS[1], ARGV[1], ARGV[4], tonumber(ARGV[5])
local state = redis.call('HMGET', state_key, 'revision', 'asked', 'counted:' .. caller)
-- The user is gone, and nothing of them comes back.
if not state[1] then return { 'no-state', 0 } end
local now = clock()
if give_back == 'pause' and tonumber(state[2]) == asked_at then redis.call('HDEL', state_key, 'asked') end
local trace = { retention = tonumber(ARGV[6]), channel = ARGV[7], address = ARGV[8], user_agent = ARGV[9] }
local keys = { state = state_key, log = KEYS[2] }
return { 'concluded', 0, 0, write_entry_of_history(keys, now, caller, trace, state[3], ARGV[2], ARGV[3]) }
