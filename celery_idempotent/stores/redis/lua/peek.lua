-- Read a record together with the clock.
-- KEYS: record, steps
-- ARGV: none
-- Returns: {record or nil, now_ms}
return {redis.call('GET', KEYS[1]), math.floor(now_us() / 1000)}
