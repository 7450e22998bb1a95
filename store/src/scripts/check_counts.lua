-- Deletes the counts of a realm's deliveries if no script of sidecars has written them. Their
-- content is parsed by those scripts.
if not is_spoilt(deliveries_key, redis.pcall('HLEN', deliveries_key), most_fields) then return { 'fine', 0 } end
redis.call('UNLINK', deliveries_key)
return { 'repaired', 0 }
