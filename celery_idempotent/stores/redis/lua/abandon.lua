-- Undo a claim that was given up, or remember it, so that it is refused if it arrives late. The rules
-- are those of transitions.abandon.
-- KEYS: record, steps
-- ARGV: the claim's candidate, ttl_ms, for how many milliseconds it could still be in time
-- Returns: nothing
local given_up, ttl_ms = parse(ARGV[1]), tonumber(ARGV[2])
local now = now_us()
local now_ms = math.floor(now / 1000)
local record, raw = load_record()
if record == false then return end
local entry = padded(given_up.nonce) .. struct.pack('>I8', now_ms + tonumber(ARGV[3]))

-- Return the packed record with one more given-up claim.
local function remembering(it, process, holder)
  it.given_up = string.sub(still_given_up(it.given_up, now_ms) .. entry, -240)
  return with_holder(it, process, holder)
end

if not record then
  given_up.raw = with_header(ARGV[1], RELEASED, 0, now, 0)
  save(remembering(given_up, '', given_up.nonce), ttl_ms)
  return
end
if has_given_up(record.given_up, given_up.nonce) then return end
local holds = record.nonce == given_up.nonce
local compensates = record.state == COMPENSATING and #record.process > 0
local delivers = record.done and record.until_ms > 0
if record.state == RUNNING and holds then
  record.raw = with_header(raw, RELEASED, record.interruptions, record.token + 1, 0)
  save(remembering(record, '', record.nonce), ttl_ms)
elseif compensates and holds then
  record.raw = with_header(raw, COMPENSATING, record.interruptions, record.token + 1, now_ms)
  save_keep_ttl(remembering(record, '', record.nonce))
elseif delivers and holds then
  record.raw = with_header(raw, record.state, record.interruptions, record.token, 0)
  save_keep_ttl(remembering(record, '', record.nonce))
elseif record.state == RUNNING or compensates or delivers then
  save_keep_ttl(remembering(record, record.process, record.nonce))
else
  local counted = record.interruptions
  if record.state == RELEASED and #record.nonce == 0 then counted = 0 end
  record.raw = with_header(raw, record.state, counted, record.token, record.until_ms)
  save_keep_ttl(remembering(record, record.process, given_up.nonce))
end
