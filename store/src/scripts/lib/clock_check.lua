-- Returns whether the clocks of Redis and of the publisher differ by so much that no moment of this
-- node may be published: codes could be accepted twice, or users be locked out. Uses the script's
-- arguments asked_at and clock_tolerance.
local function clock_is_off()
  return math.abs(clock() - asked_at) > clock_tolerance
end
