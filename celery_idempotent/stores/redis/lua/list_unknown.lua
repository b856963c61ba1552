-- Add a record whose outcome is unknown to the list of what needs a person.
-- KEYS: the list of one prefix, a sorted set: it is on one node, and the records are on all
-- ARGV: the record's token and key, for how many milliseconds a record may stay unknown
-- Returns: 1
local now_ms, most = math.floor(now_us() / 1000), tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], 'NX', now_ms, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now_ms - most))
redis.call('PEXPIRE', KEYS[1], most)
return 1
