-- Free a key: only a higher token is kept, so that no late run is accepted. A record that can't be read
-- is freed, too, and so is what another program put there.
-- KEYS: record, steps, the reservation
-- ARGV: ttl_ms
-- Returns: {1} freed | {0} there was no record, and no reservation
local now = now_us()
local kind = redis.call('TYPE', KEYS[1]).ok
local queued = redis.call('DEL', KEYS[3])
if kind == 'none' then return {queued} end
local record = kind == 'string' and load_record()
redis.call('DEL', KEYS[2])
local token = record and math.max(record.token + 1, now) or now
save(struct.pack('>BBBBI8I8I4BBBBI2', VERSION, RELEASED, 0, 0, token, 0, 0, 0, 0, 0, 0, 0),
  tonumber(ARGV[1]))
return {1}
