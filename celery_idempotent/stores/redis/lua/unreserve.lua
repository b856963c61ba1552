-- Undo the reservation of a call that could not be published. The rules are those of transitions.unreserve.
-- KEYS: record, steps, the reservation
-- ARGV: owner
-- Returns: nothing
local queued = load_reservation(KEYS[3])
if queued and queued.owner == ARGV[1] then redis.call('DEL', KEYS[3]) end
