-- The usual case of claim.lua, before anything else is set up: nothing is known of the key.
if string.byte(ARGV[3], 33) < 4 and not (KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1) then
  local lease_ms, keep_ms = struct.unpack('>I8I8', ARGV[3])
  local time = redis.call('TIME')
  local token = time[1] * 1000000 + time[2]
  local record = struct.pack('>BBBBI8I8', 1, 1, 0, 0, token, math.floor(token / 1000) + lease_ms)
    .. string.sub(ARGV[1], 21)
  if redis.call('SET', KEYS[1], record, 'PX', keep_ms, 'NX') then return token end
end
