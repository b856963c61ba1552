-- One message asks for its key: transitions.claim, restated.
-- KEYS: record, steps [, note]
-- ARGV: candidate, awaited, packed: lease_ms:8 unknown_ms:8 max_interruptions:4
--   max_compensations:4 flags:1 (1 checked, 2 callbacks, 4 compensates only), and keep_ms
-- Returns: the token, where it is claimed and nothing was before
--   | {token, interruptions, record to compensate or '', steps}: claimed
--   | code:1 flags:1 now_ms:8 record: 0 unreadable, 2 busy (1 mine), 3 replay (1 mine, 2 noted),
--     4 superseded (no record), 5 mismatch, 6 unknown
-- One string, or one number, costs the client less than an array does.
local candidate = ARGV[1]
local lease_ms, unknown_ms, max_interruptions, max_compensations, asked =
  struct.unpack('>I8I8I4I4B', ARGV[3])
local keep_ms = ARGV[4]
local checked, callbacks, compensates_only = asked % 2 == 1, asked % 4 >= 2, asked >= 4
local now = now_us()
local now_ms = math.floor(now / 1000)
local new = parse(candidate)
local record, raw = load_record()
local function answer(code, flags, it) return struct.pack('>BBI8', code, flags, now_ms) .. it end

if record == false then return answer(0, 0, raw) end
local noted = KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1
local mine = record and record.owner == new.owner

local function claimed(token, interruptions, failed)
  local kept = record and has_steps(record.flags)
  if not kept and not failed and interruptions == 0 then return token end
  return {token, interruptions, failed or '', kept and redis.call('HGETALL', KEYS[2]) or {}}
end

local function take(interruptions)
  local token = record and math.max(record.token + 1, now) or now
  local flags = record and record.flags or 0
  save(with_header(candidate, RUNNING, interruptions, token, now_ms + lease_ms, flags), keep_ms)
  return claimed(token, interruptions)
end

local function become_unknown(interruptions)
  record.raw = with_header(raw, UNKNOWN, interruptions, record.token, 0)
  local unknown = with_holder(record, record.process, '')
  save(unknown, unknown_ms)
  return answer(6, 0, unknown)
end

local function superseded() return answer(4, 0, '') end
local function busy() return answer(2, mine and 1 or 0, raw) end
local function replay() return answer(3, (mine and 1 or 0) + (noted and 2 or 0), raw) end

if noted and not mine then return superseded() end
if compensates_only and not (record and record.state == COMPENSATING) then return superseded() end
if not record then return take(0) end

if #new.nonce > 0 and record.nonce == new.nonce then
  if record.state == RUNNING then return claimed(record.token, record.interruptions) end
  if record.state == COMPENSATING and #record.process > 0 then
    return claimed(record.token, record.interruptions, raw)
  end
  if record.done and record.until_ms > 0 then return replay() end
  return busy()
end

local live = now_ms < record.until_ms
if record.state == RELEASED and not record.done then
  if mine and #record.nonce > 0 and new.retries < record.retries then return superseded() end
  return take(#record.nonce > 0 and record.interruptions or 0)
end
if checked and not mine and record.fingerprint ~= new.fingerprint then
  return answer(5, 0, raw)
end
if record.state == RUNNING then
  if mine and new.retries < record.retries then return superseded() end
  if live then return busy() end
  if mine and new.retries > record.retries then return take(0) end
  local interruptions = record.interruptions + 1
  if interruptions <= max_interruptions then return take(interruptions) end
  return become_unknown(interruptions)
end
if record.state == RETRYING then
  if mine and new.retries < record.retries then return superseded() end
  if mine or now_ms >= record.until_ms + lease_ms then return take(0) end
  return busy()
end
if record.done then
  if mine then
    if live then return busy() end
    if callbacks and not noted then
      record.raw = with_header(raw, record.state, record.interruptions, record.token,
        now_ms + lease_ms)
      raw = with_holder(record, new.process, new.nonce)
      save_keep_ttl(raw)
    end
    return replay()
  end
  if record.state == RELEASED and ARGV[2] ~= record.owner then return take(0) end
  return replay()
end
if record.state == COMPENSATING then
  if live then return busy() end
  local interruptions = record.interruptions + (#record.process > 0 and 1 or 0)
  if interruptions > max_compensations then return become_unknown(interruptions) end
  local token = math.max(record.token + 1, now)
  record.raw = with_header(raw, COMPENSATING, interruptions, token, now_ms + lease_ms)
  local taken = with_holder(record, new.process, new.nonce)
  save(taken, keep_ms)
  return claimed(token, interruptions, taken)
end
return answer(6, 0, raw)
