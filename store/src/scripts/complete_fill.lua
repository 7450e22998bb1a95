-- Declares the realm complete. This node and the other masters of a cluster (`other_nodes`,
-- "node=since" separated by spaces) become the checked nodes.
local this_node = node_identity()
if this_node ~= node then return { 'another-node', 0 } end
if clock_is_off() then return { 'clock-off', clock() } end
-- The id is missing if this node was flushed during the fill, and differs if another fill has
-- begun.
if redis.call('HGET', meta_key, 'filling') ~= fill_id then return { 'interrupted', 0 } end
redis.call('HDEL', meta_key, 'filling')
local since = 0
if not was_empty then since = clock() end
local nodes = { [this_node] = whole(since) }
for other, moment in string.gmatch(other_nodes, '(%S+)=(%d+)') do nodes[other] = moment end
set_checked_nodes(nodes)
redis.call('HSET', meta_key, 'complete', '1', 'filled', fill_id)
return { 'completed', since }
