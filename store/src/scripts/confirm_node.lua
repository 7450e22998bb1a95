-- At the end of a fill, confirms that a master of a cluster is the node that was checked, and that
-- it was not flushed since the fill began. Returns the moment since which its data counts, 0 if
-- the node was empty when the check began.
if node_identity() ~= node then return { 'another-node', 0 } end
if clock_is_off() then return { 'clock-off', clock() } end
if redis.call('GET', fill_key) ~= fill_id then return { 'interrupted', 0 } end
if was_empty then return { 'confirmed', 0 } end
return { 'confirmed', clock() }
