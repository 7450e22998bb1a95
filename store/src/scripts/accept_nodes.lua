-- Makes nodes that have kept every write of the publisher (`checked_nodes`, "node=since" separated
-- by spaces) the checked nodes of a complete realm.
if node_identity() ~= node then return { 'another-node', 0 } end
if redis.call('HGET', meta_key, 'complete') ~= '1' then return { 'interrupted', 0 } end
local nodes = {}
for identity, moment in string.gmatch(checked_nodes, '(%S+)=(%d+)') do nodes[identity] = moment end
set_checked_nodes(nodes)
return { 'accepted', 0 }
