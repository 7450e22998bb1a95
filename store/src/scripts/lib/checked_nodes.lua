-- Makes `nodes` the checked nodes of the realm and removes all others, because a former master that
-- returns must be checked again. `nodes` maps each identity to the moment since which its data
-- counts; a node that is known keeps its moment, unless that is none or is ahead. Uses the
-- script's argument meta_key.
local function set_checked_nodes(nodes)
  for _, field in ipairs(redis.call('HKEYS', meta_key)) do
    if string.sub(field, 1, 6) == 'guard:' and not nodes[string.sub(field, 7)] then
      redis.call('HDEL', meta_key, field)
    end
  end
  for identity, moment in pairs(nodes) do
    local known = moment_of(redis.call('HGET', meta_key, 'guard:' .. identity))
    if not known or known > clock() + longest_ahead then
      redis.call('HSET', meta_key, 'guard:' .. identity, moment)
    end
  end
end
