-- Append events to a journal: a capped stream, whose ids tell the server's time.
-- KEYS: journal
-- ARGV: how many to keep, ttl_ms, event...
-- Returns: {1}
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'e', ARGV[i])
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1}
