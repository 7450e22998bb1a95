-- Confirms that a node has kept every write of the publisher up to a number. Returns the moment
-- since which its data counts: what sidecars wrote after that number may be lost.
if node_identity() ~= node then return { 'another-node', 0 } end
local known, kept = string.match(redis.call('GET', number_key) or '', '^(%x+):(%d+)$')
if known ~= epoch or tonumber(kept) < number then return { 'lost', 0 } end
if clock_is_off() then return { 'clock-off', clock() } end
return { 'confirmed', clock() }
