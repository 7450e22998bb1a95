-- Writes the mark of the operator that owns the installation's data, if the mark there is one that
-- it continues (of its lineage, with no higher number), is `replaced`, or is no mark. Otherwise
-- returns the mark of the other owner.
local held = redis.pcall('GET', owner_key)
if type(held) ~= 'string' then held = '' end
local known, reached = string.match(held, '^(%x+) (%d+)$')
local continues = known == lineage and reached + 0 <= number
if known and not continues and held ~= replaced then return held end
redis.call('SET', owner_key, lineage .. ' ' .. whole(number), 'PX', lifetime)
return ''
