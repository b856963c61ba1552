-- Prolong a lease, or the delivery lease of a done run. The rules are those of transitions.renew.
-- KEYS: record, steps [, the owner's slip]
-- ARGV: record as its holder knows it, lease_ms, keep_ms
-- Returns: {1, token} renewed | {2, record} lost | {0, raw} unreadable
--   | {3, token}: it still holds its key, and a copy of the message answers the call
--   | {4, record}: lost, and the call was answered without this run
local held = parse(ARGV[1])
local until_ms = math.floor(now_us() / 1000) + tonumber(ARGV[2])
local record, raw = load_record()
if record == false then return {is_lost(raw, held.token) and 2 or 0, raw} end
if not record or record.token ~= held.token then
  local slip = load_slip(KEYS[3])
  if slip and slip.released and slip.token == held.token then
    -- The run has released its key: its lease is in the slip.
    if not slip.answered or slip.sending_ms > 0 then
      slip.sending_ms = until_ms
      save_slip(KEYS[3], slip, not slip.answered and tonumber(ARGV[3]) or nil)
    end
    return {1, held.token}
  end
end
if not record then
  if held.state == RUNNING or held.state == COMPENSATING then
    local lost = answered_since(load_slip(KEYS[3]), ARGV[1], held.token)
    if lost then return lost end
    save(with_header(ARGV[1], held.state, held.interruptions, held.token, until_ms),
      tonumber(ARGV[3]))
  end
  return {1, held.token}
end
if record.token ~= held.token then return {2, raw} end
local renewed = with_header(raw, record.state, record.interruptions, record.token, until_ms)
if record.state == RUNNING or record.state == COMPENSATING then
  save(renewed, tonumber(ARGV[3]))
elseif record.done and record.until_ms > 0 then
  save_keep_ttl(renewed)
elseif record.state == UNKNOWN then
  local slip = load_slip(KEYS[3])
  if slip and (slip.answered or math.floor(now_us() / 1000) < slip.sending_ms) then
    save_slip(KEYS[3], slip, tonumber(ARGV[3]))
    return {3, held.token}
  end
end
return {1, held.token}
