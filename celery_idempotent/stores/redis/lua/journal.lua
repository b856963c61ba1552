-- Append events to a journal: a capped stream, whose ids tell the server's time. Keep with it the list
-- of the runs that are under way.
-- KEYS: journal [, the list of runs, a sorted set]
-- ARGV: how many events to keep, ttl_ms, the number of changes to the list, change...: '+' or '-' and
--   an entry, event...
-- Returns: nothing
local ttl_ms, changes = tonumber(ARGV[2]), tonumber(ARGV[3])
if changes > 0 then
  local now_ms = math.floor(now_us() / 1000)
  for i = 4, 3 + changes do
    -- The entry of a run that is over counts as too old, and is deleted below.
    local since_ms = string.sub(ARGV[i], 1, 1) == '+' and now_ms or 0
    redis.call('ZADD', KEYS[2], since_ms, string.sub(ARGV[i], 2))
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now_ms - ttl_ms))
  redis.call('PEXPIRE', KEYS[2], ttl_ms)
end
for i = 4 + changes, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'e', ARGV[i])
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
