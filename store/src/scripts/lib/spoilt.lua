-- Returns whether a key is of another type than expected (`length` is an error then), has too many
-- elements, or is too large. Uses the script's argument most_bytes.
local function is_spoilt(key, length, most)
  if type(length) ~= 'number' or length > most then return true end
  if length == 0 then return false end
  local size = redis.pcall('MEMORY', 'USAGE', key)
  return type(size) == 'number' and size > most_bytes
end
