-- The usual cases of claim.lua, before any function is made: nothing is known of the key, or another
-- call has succeeded, and its outcome is the answer.
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local now_ms = math.floor(token / 1000)
local lease_ms, _, _, _, asked = struct.unpack('>I8I8I4I4B', ARGV[3])
local deadline_ms = struct.unpack('>I8', ARGV[6])
if asked % 8 < 4 and asked < 128 and (deadline_ms == 0 or now_ms < deadline_ms)
  and not (KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1)
then
  local byte, sub = string.byte, string.sub
  local record = struct.pack('>BBBBI8I8', 1, 1, 0, 0, token, now_ms + lease_ms) .. sub(ARGV[1], 21)
  if redis.call('SET', KEYS[1], record, 'PX', ARGV[4], 'NX') then
    if asked >= 64 then redis.call('DEL', KEYS[#KEYS]) end
    return token
  end
  local raw = redis.call('GET', KEYS[1])
  if raw and byte(raw, 2) == 4 and asked % 4 == 0 and asked < 64 then
    local owner_end = 25 + (byte(raw, 25) or 0)
    local nonce_at = owner_end + 2 + (byte(raw, owner_end + 1) or 0)
    -- Python finds out whether the record can be read.
    if sub(raw, 25, owner_end) ~= sub(ARGV[1], 25, 25 + byte(ARGV[1], 25))
      and byte(raw, nonce_at) == 0
      -- The record lives at least as long as copies of this message may come.
      and not (KEYS[3] and redis.call('PTTL', KEYS[1]) < struct.unpack('>I8', ARGV[3], 42))
    then
      return struct.pack('>BBI8', 3, 0, now_ms) .. raw
    end
  end
end
