-- Says that this node, and in a cluster the other masters, have been checked, and drops the guards
-- of all others: a node that comes back as master has to be checked again. KEYS: realm meta ARGV:
-- the node that was checked, whether it was empty when the check began (1 or 0), the mark of this
-- filling; then for each other master its node and since when it counts (ms), as mark.lua says
local node = node_identity()
if node ~= ARGV[1] then return { 'another-node', 0 } end
-- Gone when the node was emptied while it was being filled, or when another filling has begun
-- since.
if redis.call('HGET', KEYS[1], 'filling') ~= ARGV[3] then return { 'lost', 0 } end
redis.call('HDEL', KEYS[1], 'filling')
local since = 0
if ARGV[2] ~= '1' then since = clock() end
local guards = { ['guard:' .. node] = whole(since) }
for index = 4, #ARGV, 2 do guards['guard:' .. ARGV[index]] = ARGV[index + 1] end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'guard:' and not guards[field] then redis.call('HDEL', KEYS[1], field) end
end
for field, moment in pairs(guards) do redis.call('HSETNX', KEYS[1], field, moment) end
redis.call('HSET', KEYS[1], 'complete', '1', 'filled', ARGV[3])
return { 'stamped', since }
