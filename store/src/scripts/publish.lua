-- Makes a record current, if nobody else did since the publisher looked. KEYS: record, state, otp
-- ARGV: expected revision ('' when there was no state), new revision, sealed record, fresh seed (1
-- or 0), revoke the codes in flight (1 or 0), the request to reset the failures ('' when there is
-- none)
local current = redis.call('HGET', KEYS[2], 'revision') or ''
if current ~= ARGV[1] then return { 'conflict', tonumber(current) or 0 } end
if current == '' then
  -- Only of a seed that was just made is it certain that no code of it was used before the store
  -- was lost.
  local since = 0
  if ARGV[4] ~= '1' then since = clock() end
  redis.call('HSET', KEYS[2], 'since', whole(since), 'until', '0')
end
if ARGV[6] ~= '' and redis.call('HGET', KEYS[2], 'reset') ~= ARGV[6] then
  -- Once for each request, also when it comes again with a refill.
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    if field == 'disabled' or string.match(field, '^failures:') or string.match(field, '^blocked:') then
      redis.call('HDEL', KEYS[2], field)
    end
  end
  redis.call('HSET', KEYS[2], 'reset', ARGV[6])
end
redis.call('HSET', KEYS[2], 'revision', ARGV[2])
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[5] == '1' then
  -- Burned with their steps: the same digits must not be issued, or come from an authenticator,
  -- once more.
  local burned = tonumber(redis.call('HGET', KEYS[2], 'until'))
  local log = redis.call('HGETALL', KEYS[3])
  for index = 1, #log, 2 do
    local entry = read_entry(log[index + 1])
    entry.consumed = true
    write_entry(KEYS[3], log[index], entry)
    burned = math.max(burned, end_of(entry.step, entry.period))
  end
  redis.call('HSET', KEYS[2], 'until', whole(burned))
end
return { 'published', 0 }
