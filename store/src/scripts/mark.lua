-- Of a master of a cluster, at the end of a filling: is it the one that was checked, and has it
-- kept everything since? KEYS: the mark that the filling left on this node ARGV: the node that was
-- checked, whether it was empty when the check began (1 or 0), the mark of this filling
if node_identity() ~= ARGV[1] then return { 'another-node', 0 } end
if redis.call('GET', KEYS[1]) ~= ARGV[3] then return { 'lost', 0 } end
if ARGV[2] == '1' then return { 'kept', 0 } end
return { 'kept', clock() }
