-- Deletes what sidecars may write of a user and no script of theirs writes, and returns what was
-- found: a word, whether failures have disabled the user, the revision in the state, and the
-- beginning of the record. The words are 'fine', 'repaired', and 'lost' if there is no state.
local now, word = clock(), 'fine'
local latest = now + longest_ahead

local record = redis.pcall('GETRANGE', record_key, 0, record_beginning - 1)
if type(record) ~= 'string' then record = '' end
local fields = redis.pcall('HLEN', state_key)
local state = is_spoilt(state_key, fields, most_fields) and {}
  or redis.call('HMGET', state_key, 'revision', 'since', 'until', 'disabled')
local revision, since, used_until = revision_of(state[1]), moment_of(state[2]), moment_of(state[3])
if is_spoilt(otp_key, redis.pcall('HLEN', otp_key), most_fields) then
  redis.call('UNLINK', otp_key)
  -- It is not known which codes were issued until now.
  since, word = since and math.max(now, since), 'repaired'
end
if is_spoilt(history_key, redis.pcall('LLEN', history_key), most_entries) then
  redis.call('UNLINK', history_key)
  word = 'repaired'
end
if type(redis.pcall('XLEN', log_key)) ~= 'number' then
  redis.call('UNLINK', log_key)
  word = 'repaired'
end
if not (revision and since and used_until) then
  -- The publisher writes the state again, and then every code of until now counts as used.
  if fields ~= 0 then
    redis.call('UNLINK', state_key)
    word = 'repaired'
  end
  return { word == 'fine' and 'lost' or word, 0, 0, record }
end
if redis.call('PTTL', state_key) >= 0 then
  redis.call('PERSIST', state_key)
  word = 'repaired'
end
if since > latest or used_until > latest or word == 'repaired' then
  -- What was accepted while the clock was ahead is used again when that time comes.
  if used_until > latest then redis.call('HSET', state_key, 'ahead', whole(used_until)) end
  if since > latest then since = now end
  redis.call('HSET', state_key, 'since', whole(since), 'until', whole(math.min(used_until, latest)))
end
return { word, state[4] and 1 or 0, tonumber(revision), record }
