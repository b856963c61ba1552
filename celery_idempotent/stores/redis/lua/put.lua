-- Write a record of another store, unless this store has a newer one. The rules are those of transitions.put.
-- KEYS: record, steps
-- ARGV: the record, for how many milliseconds it is held or waits (0: it isn't, or doesn't), ttl_ms
--   [, name, step]...
-- Returns: {1} written | {0} left as it is here
local new = parse(ARGV[1])
local record = load_record()
if record == false then return {0} end
if record and not (record.token < new.token
  or (record.token == new.token and record.state == RUNNING))
then
  return {0}
end
local until_ms = tonumber(ARGV[2])
if until_ms > 0 then until_ms = math.floor(now_us() / 1000) + until_ms end
redis.call('DEL', KEYS[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
-- Those who wait for its run wait at the other store.
local flags = has_steps(new.flags) and 1 or 0
save(with_header(ARGV[1], new.state, new.interruptions, new.token, until_ms, flags), tonumber(ARGV[3]))
return {1}
