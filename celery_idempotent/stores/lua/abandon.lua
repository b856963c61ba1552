-- Undo a claim that was given up, or see to it that it gets nothing late: transitions.abandon.
-- KEYS: record, steps
-- ARGV: the claim's candidate, ttl_ms
-- Returns: {1}
local given_up, ttl_ms = parse(ARGV[1]), tonumber(ARGV[2])
local now = now_us()
local record, raw = load_record()
if record == false then return {1} end
if not record then
  given_up.raw = with_header(ARGV[1], RELEASED, 0, now, 0)
  save(with_holder(given_up, '', given_up.nonce), ttl_ms)
elseif record.state == RUNNING then
  if record.nonce ~= given_up.nonce then return {1} end
  record.raw = with_header(raw, RELEASED, record.interruptions, record.token + 1, 0)
  save(with_holder(record, '', record.nonce), ttl_ms)
elseif record.state == COMPENSATING and #record.process > 0 then
  if record.nonce ~= given_up.nonce then return {1} end
  record.raw = with_header(raw, COMPENSATING, record.interruptions, record.token + 1,
    math.floor(now / 1000))
  save_keep_ttl(with_holder(record, '', record.nonce))
elseif record.done and record.until_ms > 0 then
  if record.nonce ~= given_up.nonce then return {1} end
  record.raw = with_header(raw, record.state, record.interruptions, record.token, 0)
  save_keep_ttl(with_holder(record, '', record.nonce))
elseif record.nonce ~= given_up.nonce then
  local counted = record.interruptions
  if record.state == RELEASED and #record.nonce == 0 then counted = 0 end
  record.raw = with_header(raw, record.state, counted, record.token, record.until_ms)
  save_keep_ttl(with_holder(record, record.process, given_up.nonce))
end
return {1}
