-- One message asks for its key: transitions.claim, restated.
-- KEYS: record, steps [, note]
-- ARGV: candidate, lease_ms, keep_ms, unknown_ms, max_interruptions, checked, callbacks, awaited,
--   max_compensations, compensates_only
-- Returns: {1, token, interruptions [, record to compensate or '', steps]} claimed | {2, mine, now_ms, record} busy
--   | {3, mine, noted, record} replay | {4} superseded | {5, record} mismatch | {6, record} unknown
--   | {0, raw} unreadable
local candidate, lease_ms, keep_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_us()
local now_ms = math.floor(now / 1000)
local new = parse(candidate)
local record, raw = load_record()
if record == false then return {0, raw} end
local noted = KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1
local mine = record and record.owner == new.owner
if noted and not mine then return {4} end

local function claimed(token, interruptions, failed)
  local kept = record and has_steps(record.flags)
  if not kept and not failed then return {1, token, interruptions} end
  return {1, token, interruptions, failed or '', kept and redis.call('HGETALL', KEYS[2]) or {}}
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
  save(unknown, tonumber(ARGV[4]))
  return {6, unknown}
end

local function busy() return {2, mine and 1 or 0, now_ms, raw} end
local function replay() return {3, mine and 1 or 0, noted and 1 or 0, raw} end

if ARGV[10] == '1' and not (record and record.state == COMPENSATING) then return {4} end
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
  return take(#record.nonce > 0 and record.interruptions or 0)
end
if ARGV[6] == '1' and not mine and record.fingerprint ~= new.fingerprint then return {5, raw} end
if record.state == RUNNING then
  if mine and new.retries < record.retries then return {4} end
  if live then return busy() end
  if mine and new.retries > record.retries then return take(0) end
  local interruptions = record.interruptions + 1
  if interruptions <= tonumber(ARGV[5]) then return take(interruptions) end
  return become_unknown(interruptions)
end
if record.state == RETRYING then
  if mine and new.retries < record.retries then return {4} end
  if mine or now_ms >= record.until_ms + lease_ms then return take(0) end
  return busy()
end
if record.done then
  if mine then
    if live then return busy() end
    if ARGV[7] == '1' and not noted then
      record.raw = with_header(raw, record.state, record.interruptions, record.token,
        now_ms + lease_ms)
      raw = with_holder(record, new.process, new.nonce)
      save_keep_ttl(raw)
    end
    return replay()
  end
  if record.state == RELEASED and ARGV[8] ~= record.owner then return take(0) end
  return replay()
end
if record.state == COMPENSATING then
  if live then return busy() end
  local interruptions = record.interruptions + (#record.process > 0 and 1 or 0)
  if interruptions > tonumber(ARGV[9]) then return become_unknown(interruptions) end
  local token = math.max(record.token + 1, now)
  record.raw = with_header(raw, COMPENSATING, interruptions, token, now_ms + lease_ms)
  local taken = with_holder(record, new.process, new.nonce)
  save(taken, keep_ms)
  return claimed(token, interruptions, taken)
end
return {6, raw}
