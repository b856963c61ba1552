-- The usual case of settle.lua, before any function is made: the run that holds the key succeeded
-- without steps, nobody waits for it, its call was not answered before, and no delivery lease follows.
-- The record is stored as it was sent.
local raw, byte, sub = redis.call('GET', KEYS[1]), string.byte, string.sub
-- Version, state and flags come first, then interruptions and token, which have to be the run's.
if raw and sub(raw, 1, 3) == '\1\1\0' and sub(ARGV[1], 1, 3) == '\1\4\0'
  and sub(raw, 4, 12) == sub(ARGV[1], 4, 12)
  and sub(ARGV[1], 13, 20) == '\0\0\0\0\0\0\0\0' and ARGV[2] == '0'
  and byte(raw, 13) == 0 and byte(raw, 14) < 32 and not ARGV[4]
  and not (KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1)
then
  local at = 25
  local nonce_length
  for i = 1, 4 do
    if i == 3 then nonce_length = byte(raw, at) end
    at = at + 1 + (byte(raw, at) or #raw)
  end
  if nonce_length and nonce_length <= 8 and at < #raw and at + 1 + byte(raw, at) * 256 + byte(raw, at + 1) <= #raw then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
    return (struct.unpack('>I8', ARGV[1], 5))
  end
end
