-- Declares the realm complete. Adds this node and the other masters of a cluster (`other_nodes`,
-- "node=since" separated by spaces) to the checked nodes and removes all others, because a former
-- master that returns must be checked again.
local this_node = node_identity()
if this_node ~= node then return { 'another-node', 0 } end
-- The id is missing if this node was flushed during the fill, and differs if another fill has
-- begun.
if redis.call('HGET', meta_key, 'filling') ~= fill_id then return { 'interrupted', 0 } end
redis.call('HDEL', meta_key, 'filling')
local since = 0
if not was_empty then since = clock() end
local checked = { ['guard:' .. this_node] = whole(since) }
for other, moment in string.gmatch(other_nodes, '(%S+)=(%d+)') do checked['guard:' .. other] = moment end
for _, field in ipairs(redis.call('HKEYS', meta_key)) do
  if string.sub(field, 1, 6) == 'guard:' and not checked[field] then redis.call('HDEL', meta_key, field) end
end
for field, moment in pairs(checked) do redis.call('HSETNX', meta_key, field, moment) end
redis.call('HSET', meta_key, 'complete', '1', 'filled', fill_id)
return { 'completed', since }
