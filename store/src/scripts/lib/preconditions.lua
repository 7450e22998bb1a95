-- Checks what must hold before a script decides anything. Uses the script's arguments state_key,
-- checked_nodes ("node=since", separated by spaces), revision, asked_at and tolerance.

-- Returns nil if all preconditions hold, otherwise the reply to send. The other return values are
-- the current time, the moment up to which codes may have been used before Redis lost data, the
-- moment up to which steps are used, and the user's state: revision, since, until, then `fields`.
local function preconditions(fields)
  local node = node_identity()
  local checked_since = string.match(' ' .. checked_nodes, ' ' .. node .. '=(%d+)')
  if not checked_since then return { 'unchecked-node', 0 } end
  local state = redis.call('HMGET', state_key, 'revision', 'since', 'until', unpack(fields))
  if not state[1] then return { 'no-state', 0 } end
  local now = clock()
  if math.abs(now - asked_at) > tolerance then return { 'clock-off', now } end
  if state[1] ~= revision then return { 'stale', tonumber(state[1]) } end
  return nil, now, math.max(tonumber(state[2]), tonumber(checked_since)), tonumber(state[3]), state
end
