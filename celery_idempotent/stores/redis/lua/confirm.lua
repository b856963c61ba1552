-- Record that a reserved call was published. The rules are those of transitions.confirm.
-- KEYS: record, steps, the reservation
-- ARGV: owner, ttl_ms after it is due, if its message doesn't expire
-- Returns: nothing
local queued = load_reservation(KEYS[3])
if not queued or queued.owner ~= ARGV[1] then return end
local until_ms = queued.expires_ms
if until_ms == 0 then until_ms = queued.due_ms + tonumber(ARGV[2]) end
local left_ms = until_ms - math.floor(now_us() / 1000)
if left_ms > 0 then
  queued.is_confirmed = true
  queued.until_ms = until_ms
  redis.call('SET', KEYS[3], pack_reservation(queued), 'PX', left_ms)
else
  redis.call('DEL', KEYS[3])
end
