-- Makes a record current, unless another publisher has changed the user. `expected` is the revision
-- that this publisher has read, '' if there was no state; `reset` is the request to reset the
-- user's failures, '' if there is none.
local current = redis.call('HGET', state_key, 'revision') or ''
if current ~= expected then return { 'conflict', tonumber(current) or 0 } end
if current == '' then
  -- Only of a new seed is it certain that no code was used before Redis lost the state.
  local since = 0
  if not fresh then since = clock() end
  redis.call('HSET', state_key, 'since', whole(since), 'until', '0')
end
if reset ~= '' and redis.call('HGET', state_key, 'reset') ~= reset then
  -- Each request is carried out once, even if a refill publishes it again.
  for _, field in ipairs(redis.call('HKEYS', state_key)) do
    if field == 'disabled' or string.match(field, '^failures:') or string.match(field, '^blocked:') then
      redis.call('HDEL', state_key, field)
    end
  end
  redis.call('HSET', state_key, 'reset', reset)
end
redis.call('HSET', state_key, 'revision', revision)
redis.call('SET', record_key, sealed)
if revoke then
  -- The steps of codes in flight are marked used too: the same digits must neither be issued again
  -- nor be accepted from an authenticator.
  local used_until = tonumber(redis.call('HGET', state_key, 'until'))
  local log = redis.call('HGETALL', otp_key)
  for index = 1, #log, 2 do
    local step, period = string.match(log[index + 1], '^(%d+) %d+ %d+ (%d+) [01]$')
    redis.call('HSET', otp_key, log[index], string.sub(log[index + 1], 1, -2) .. '1')
    used_until = math.max(used_until, (step + 1) * period * 1000)
  end
  redis.call('HSET', state_key, 'until', whole(used_until))
end
return { 'published', 0 }
