-- Writes entries of a user's history, by the rules of `twofactor_core::audit`. Uses the script's
-- arguments state_key, log_key, caller, retention, channel, address and user_agent; the last two
-- are '' if they are unknown or not recorded.

-- Nothing else bounds how often these outcomes occur, so each is written once and then counted, for
-- at most one hour.
local UNBOUNDED = {
  blocked = true, consumed = true, ['delivery-limit-reached'] = true, ['disabled-by-failures'] = true,
  ['no-delivery-method'] = true, ['no-secret'] = true, ['too-soon'] = true, used = true,
}
local COUNTED_FOR = 3600000

-- `counted` is what the state has counted for this caller. Errors are ignored, because a decision
-- stays valid if the login lacks a permission or Redis is out of memory. Returns 1 if the entry
-- could not be written, otherwise 0.
local function write_history(now, counted, what, result)
  local kind, unbounded = what .. '/' .. result, UNBOUNDED[result]
  counted = counted or ''
  local since = tonumber(string.match(counted, '^%d+'))
  local kinds, counts = {}, {}
  for name, count in string.gmatch(counted, ' (%S+)=(%d+)') do
    kinds[#kinds + 1], counts[name] = name, tonumber(count)
  end
  local fresh = since and math.abs(now - since) < COUNTED_FOR
  local function write_counts()
    local parts = { whole(since) }
    for _, name in ipairs(kinds) do parts[#parts + 1] = name .. '=' .. whole(counts[name]) end
    redis.pcall('HSET', state_key, 'counted:' .. caller, table.concat(parts, ' '))
  end

  if unbounded and fresh and counts[kind] then
    counts[kind] = counts[kind] + 1
    write_counts()
    return 0
  end
  local repeated = {}
  for _, name in ipairs(kinds) do
    if counts[name] > 0 then repeated[#repeated + 1] = name .. '=' .. whole(counts[name]) end
  end
  local entry = { 'operation', what, 'outcome', result, 'caller', caller, 'channel', channel }
  local function add(field, value)
    if value ~= '' then entry[#entry + 1], entry[#entry + 2] = field, value end
  end
  add('address', address)
  add('user_agent', user_agent)
  add('repeated', table.concat(repeated, ' '))
  local oldest = math.max(now - retention, 0)
  local added = redis.pcall('XADD', log_key, 'MINID', whole(oldest), '*', unpack(entry))
  redis.pcall('PEXPIREAT', log_key, whole(now + retention))
  if unbounded then
    if not fresh then since, kinds, counts = now, {}, {} end
    for _, name in ipairs(kinds) do counts[name] = 0 end
    kinds[#kinds + 1], counts[kind] = kind, 0
    write_counts()
  elseif counted ~= '' then
    redis.pcall('HDEL', state_key, 'counted:' .. caller)
  end
  return type(added) == 'table' and 1 or 0
end
