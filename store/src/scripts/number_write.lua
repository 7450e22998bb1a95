-- Ends a write of the publisher with the next number of its epoch. Each node that has a number has
-- every write with a lower one. The number is not written on a node that is not the checked one,
-- because that may lack earlier writes.
if node_identity() ~= node then return { 'another-node', 0 } end
local known, number = string.match(redis.call('GET', number_key) or '', '^(%x+):(%d+)$')
if starts then
  number = 0
elseif known ~= epoch then
  return { 'another-epoch', 0 }
end
redis.call('SET', number_key, epoch .. ':' .. whole(number + 1))
return { 'numbered', number + 1 }
