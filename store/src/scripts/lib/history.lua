-- Writes the entry of a decision or delivery to the user's history, by the rules of
-- `twofactor_core::audit`, and replies. Uses the script's arguments state_key, history_key, caller,
-- details, retention and most_entries, the moment now, what the state has counted for this caller
-- (counted), the operation, whether the entry follows_a_decision whose entry is in the history
-- already, and the reply.
--
-- An entry is "moment operation outcome caller channel", then on a line of its own each the
-- address, the user agent and the counted outcomes. Errors are ignored, because a decision stays
-- valid if the login lacks a permission or Redis is out of memory; the last number of the reply is
-- 1 then.
local history_failed = 0
-- Nothing else bounds how often these outcomes occur, so each is written once and then counted, for
-- at most one hour.
local unbounded = word == 'used' or word == 'too-soon' or word == 'blocked' or word == 'consumed'
  or word == 'disabled-by-failures' or word == 'delivery-limit-reached' or word == 'no-delivery-method'
  or word == 'no-secret' or word == 'failures-used-up' or word == 'share-used-up'
local write_entry, repeated = true, ''
if counted and #counted > longest_text then counted = false end
-- What becomes of an issued code is the next entry, which has the counts. Otherwise a limit of
-- deliveries would leave an entry each time.
if word == 'issued' then counted = false end

if unbounded or counted then
  local kind = operation .. '/' .. word
  local counted_since = tonumber(string.match(counted or '', '^%d+'))
  local kinds, counts = {}, {}
  for name, count in string.gmatch(counted or '', ' (%S+)=(%d+)') do
    kinds[#kinds + 1], counts[name] = name, tonumber(count)
  end
  local fresh = counted_since and math.abs(now - counted_since) < 3600000
  if unbounded and fresh and counts[kind] then
    counts[kind], write_entry = counts[kind] + 1, false
  else
    local parts = {}
    for _, name in ipairs(kinds) do
      if counts[name] > 0 then parts[#parts + 1] = string.format('%s=%.0f', name, counts[name]) end
    end
    if #parts > 0 then repeated = '\n' .. table.concat(parts, ' ') end
    if unbounded then
      if not fresh then counted_since, kinds, counts = now, {}, {} end
      for _, name in ipairs(kinds) do counts[name] = 0 end
      kinds[#kinds + 1], counts[kind] = kind, 0
    end
  end
  if unbounded then
    local parts = { string.format('%.0f', counted_since) }
    for _, name in ipairs(kinds) do parts[#parts + 1] = string.format('%s=%.0f', name, counts[name]) end
    redis.pcall('HSET', state_key, 'counted:' .. caller, table.concat(parts, ' '))
  else
    redis.pcall('HDEL', state_key, 'counted:' .. caller)
  end
end

if write_entry then
  local entry = string.format('%.0f ', now) .. operation .. ' ' .. word .. ' ' .. caller .. details .. repeated
  local length = redis.pcall('RPUSH', history_key, entry)
  if type(length) ~= 'number' and string.find(length.err, 'WRONGTYPE', 1, true) then
    -- It is no list. A moment in the past deletes it.
    redis.pcall('PEXPIREAT', history_key, 1)
    length = redis.pcall('RPUSH', history_key, entry)
  end
  if type(length) ~= 'number' then
    history_failed = 1
  elseif not (follows_a_decision and length > 1 and length <= most_entries) then
    -- The entry of the decision has removed what is too old, and set the expiry. The oldest entries
    -- are the first ones. A bounded number of them is removed at a time, because
    -- other scripts wait meanwhile.
    for _ = 1, 100 do
      local oldest = length > 1 and redis.pcall('LINDEX', history_key, 0)
      if type(oldest) ~= 'string' then break end
      local moment = tonumber(string.match(oldest, '^%d+'))
      if length <= most_entries and moment and moment >= now - retention then break end
      redis.pcall('LPOP', history_key)
      length = length - 1
    end
    redis.pcall('PEXPIRE', history_key, retention)
  end
end
return { word, first, second, history_failed }
