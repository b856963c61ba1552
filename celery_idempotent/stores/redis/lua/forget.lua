-- Free a key. A higher token is kept, so that no late run is accepted, and so are the claims that were
-- given up. A record that can't be read is freed, too, and so is what another program put there.
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
local given_up = record and still_given_up(record.given_up, math.floor(now / 1000)) or ''
if #given_up > 0 then given_up = NO_NONCE .. given_up end
save(struct.pack('>BBBBI8I8I4BB', VERSION, RELEASED, 0, 0, token, 0, 0, 0, 0) .. field(given_up)
  .. struct.pack('>BI2', 0, 0), tonumber(ARGV[1]))
return {1}
