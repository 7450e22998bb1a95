-- Put in front of the scripts that leave an entry in a user's stream; the rules are those of
-- `twofactor_core::audit`.

-- What nothing else bounds is written once and then counted, for an hour at most.
local UNBOUNDED = {
  blocked = true, consumed = true, ['delivery-limit-reached'] = true, ['disabled-by-failures'] = true,
  ['no-delivery-method'] = true, ['no-secret'] = true, ['too-soon'] = true, used = true,
}
local COUNTED_FOR = 3600000

-- trace: retention (ms), channel, address and user agent ('' when not known or not to be kept);
-- `counted` is what the state has of this caller. Errors are left alone, those of a login without
-- the permission or of a Redis without memory: a decision that was made stays made. Returns 0, or 1
-- when it could not be written.
local function write_entry_of_history(keys, now, caller, trace, counted, operation, outcome)
  local kind, unbounded = operation .. '/' .. outcome, UNBOUNDED[outcome]
  counted = counted or ''
  local since = tonumber(string.match(counted, '^%d+'))
  local kinds, counts = {}, {}
  for name, count in string.gmatch(counted, ' (%S+)=(%d+)') do
    kinds[#kinds + 1], counts[name] = name, tonumber(count)
  end
  local fresh = since and math.abs(now - since) < COUNTED_FOR
  local function remember()
    local parts = { whole(since) }
    for _, name in ipairs(kinds) do parts[#parts + 1] = name .. '=' .. whole(counts[name]) end
    redis.pcall('HSET', keys.state, 'counted:' .. caller, table.concat(parts, ' '))
  end

  if unbounded and fresh and counts[kind] then
    counts[kind] = counts[kind] + 1
    remember()
    return 0
  end
  local repeated = {}
  for _, name in ipairs(kinds) do
    if counts[name] > 0 then repeated[#repeated + 1] = name .. '=' .. whole(counts[name]) end
  end
  local entry = { 'operation', operation, 'outcome', outcome, 'caller', caller, 'channel', trace.channel }
  local function add(field, value)
    if value ~= '' then entry[#entry + 1], entry[#entry + 2] = field, value end
  end
  add('address', trace.address)
  add('user_agent', trace.user_agent)
  add('repeated', table.concat(repeated, ' '))
  local oldest = math.max(now - trace.retention, 0)
  local added = redis.pcall('XADD', keys.log, 'MINID', whole(oldest), '*', unpack(entry))
  redis.pcall('PEXPIREAT', keys.log, whole(now + trace.retention))
  if unbounded then
    if not fresh then since, kinds, counts = now, {}, {} end
    for _, name in ipairs(kinds) do counts[name] = 0 end
    kinds[#kinds + 1], counts[kind] = kind, 0
    remember()
  elseif counted ~= '' then
    redis.pcall('HDEL', keys.state, 'counted:' .. caller)
  end
  return type(added) == 'table' and 1 or 0
end
