-- One message asks for its key: transitions.claim, restated.
-- KEYS: record, steps [, the owner's slip, the slip of the run that was waited for last]
--   [, the reservation]
-- ARGV: candidate, awaited owner, packed: lease_ms:8 unknown_ms:8 max_interruptions:4
--   max_compensations:4 flags:1 patient_until_ms:8 refused_from_ms:8 horizon_ms:8, keep_ms, the
--   message as a packed slip, packed: deadline_ms:8 broke:1; flags: 1 checked, 2 callbacks,
--   4 compensates only, 8 is new, 16 frees, 32 in turn, 64 there is the key of a reservation
-- Returns: the token, where it is claimed and nothing was before
--   | {token, interruptions, record to compensate or '', steps, origin}: claimed
--   | code:1 flags:1 now_ms:8 record: 0 unreadable, 2 busy (1 mine), 3 replay (1 mine, 2 noted),
--     4 superseded (no record), 5 mismatch, 6 unknown (2 noted), 7 replay of a slip (1 mine,
--     2 noted), 8 busy: the slip's callbacks are being sent, 9 too late (no record)
-- One string, or one number, costs the client less than an array does.
local candidate = ARGV[1]
local lease_ms, unknown_ms, max_interruptions, max_compensations, asked, patient_until_ms,
  refused_from_ms, horizon_ms = struct.unpack('>I8I8I4I4BI8I8I8', ARGV[3])
local deadline_ms, broke = struct.unpack('>I8B', ARGV[6])
-- The store was away a moment ago: the runs that lived through that renew first.
if broke == 1 then patient_until_ms = math.huge end
local keep_ms, message = ARGV[4], ARGV[5]
local checked, callbacks, compensates_only = asked % 2 == 1, asked % 4 >= 2, asked % 8 >= 4
local is_new, frees, in_turn = asked % 16 >= 8, asked % 32 >= 16, asked % 64 >= 32
local queued = asked >= 64 and KEYS[#KEYS] or nil
local slip_key = KEYS[3] ~= queued and KEYS[3] or nil
local awaited_key = KEYS[4] ~= queued and KEYS[4] or nil
local now = now_us()
local now_ms = math.floor(now / 1000)
local function answer(code, flags, it) return struct.pack('>BBI8', code, flags, now_ms) .. it end

-- It lay in the socket of a server that stood still: whoever sent it has given it up.
if deadline_ms > 0 and now_ms > deadline_ms then return answer(9, 0, '') end

local new = parse(candidate)
local record, raw = load_record()
if record == false then return answer(0, 0, raw) end
-- A delivery of the call that is reserved: it waits in no queue any more.
local reserved = load_reservation(queued)
if reserved and reserved.owner == new.owner then redis.call('DEL', queued) end
local mine = record and record.owner == new.owner
local function superseded() return answer(4, 0, '') end
if compensates_only and not (record and record.state == COMPENSATING) then return superseded() end

local slip, own = load_slip(slip_key), slip_key and parse_slip(message)
local noted = slip and callbacks and has_sent(slip, own.digests) or false
-- What was answered, unless nobody has yet, or the key was forgotten since.
local told = slip and slip.answered and not (record and #record.owner == 0) and slip or nil
local is_copy = told and not is_new and told.publication == own.publication
  and (told.succeeded or #told.outcome > 0
    or own.retries <= told.retries and own.deaths <= told.deaths) or false

local function claimed(token, interruptions, failed, origin)
  if reserved then redis.call('DEL', queued) end
  local kept = record and has_steps(record.flags)
  if not kept and not failed and interruptions == 0 and origin == '' then return token end
  return {
    token, interruptions, failed or '', kept and redis.call('HGETALL', KEYS[2]) or {}, origin or '',
  }
end

-- Who began what a claim goes on with; empty: its own call, or the key has a window.
local function find_origin()
  if not record or not frees or #record.owner == 0 or record.done then return '' end
  local function hex(bytes)
    return (string.gsub(bytes, '.', function(it) return string.format('%02x', string.byte(it)) end))
  end
  local origin = in_turn and '' or label_of(record)[5]
  -- A released key with a count is one whose claim was given up: the run before it was cut off.
  local cut_off = record.state ~= RELEASED or (#record.nonce > 0 and record.interruptions > 0)
  if origin == '' and cut_off then origin = hex(record.owner) end
  return origin ~= hex(new.owner) and origin or ''
end

local become_unknown

local function take(interruptions)
  local token = record and math.max(record.token + 1, now) or now
  local flags = record and record.flags or 0
  if slip and slip.released and not slip.answered and new.retries <= slip.retries then
    -- The run that had given its key up was cut off after that.
    interruptions = (string.byte(slip.outcome) or 0) + 1
    if interruptions > max_interruptions then
      local given_up = record and record.given_up or ''
      raw = with_header(candidate, RUNNING, 0, token, 0, flags)
      record, slip = parse(raw), nil
      record.given_up = given_up
      return become_unknown(interruptions)
    end
  end
  local origin = find_origin()
  if origin ~= '' then candidate = with_origin(new, origin) end
  local taken = with_header(candidate, RUNNING, interruptions, token, now_ms + lease_ms, flags)
  if record and #record.given_up > 0 then
    new.raw, new.given_up = taken, still_given_up(record.given_up, now_ms)
    taken = with_holder(new, new.process, new.nonce)
  end
  save(taken, keep_ms)
  if slip then redis.call('DEL', slip_key) end
  return claimed(token, interruptions, nil, origin)
end

-- Whether somebody else sends the callbacks of this message at this moment.
local function is_being_sent()
  local nonce = new.nonce .. string.sub(NO_NONCE, #new.nonce + 1)
  return slip and now_ms < slip.sending_ms
    and (#new.nonce == 0 or string.sub(slip.holder, 1, 8) ~= nonce)
end

-- With a lease in a slip: by default in that of the message, which without one begins with it.
local function send_alone(left, ttl_ms)
  local sending = left or slip or own
  if not left and not slip then sending.digests, ttl_ms = '', lease_ms end
  sending.sending_ms = now_ms + lease_ms
  local nonce = new.nonce .. string.sub(NO_NONCE, #new.nonce + 1)
  sending.holder = string.sub(nonce .. new.process, 1, 255)
  save_slip(slip_key, sending, ttl_ms)
end

-- A verdict; callbacks that are unsent are sent under a lease in the message's slip.
local function leased(code, flags, it)
  if not noted and callbacks and slip_key then send_alone() end
  return answer(code, flags + (noted and 2 or 0), it)
end

-- A verdict that the record does not keep, or not for long; the slip does: transitions._told.
local function tell(code, it, outcome, ttl_ms)
  ttl_ms = ttl_ms or keep_ms
  local left, is_told = nil, slip and slip.answered or false
  if outcome and slip_key then
    left = parse_slip(message)
    left.answered, left.digests, left.outcome, is_told = true, '', outcome, true
    if slip then left = merged(slip, left) end
  end
  if slip_key and (callbacks and not noted or not callbacks and not is_told) then
    send_alone(left, left and ttl_ms)
  elseif left then
    save_slip(slip_key, left, ttl_ms)
  end
  return answer(code, noted and 2 or 0, it)
end

-- Where the record may be gone when the next copy of the message comes, the slip has the outcome.
local function replay_other()
  local outcome, left_ms = outcome_of(record), redis.call('PTTL', KEYS[1])
  if #outcome > 0 and left_ms >= 0 and left_ms < horizon_ms then
    return tell(3, raw, outcome, horizon_ms)
  end
  return leased(3, 0, raw)
end

local function answer_again()
  if #told.outcome == 0 then return superseded() end
  return leased(7, 1, told.raw)
end

function become_unknown(interruptions)
  record.raw = with_header(raw, UNKNOWN, interruptions, record.token, 0)
  local unknown = with_holder(record, record.process, '')
  save(unknown, unknown_ms)
  -- While a copy tells this, its run can't tell otherwise.
  if slip_key then send_alone() end
  return answer(6, 0, unknown)
end

-- Whether a key without a window no longer says which arguments its calls have.
local function is_free()
  return frees and (record.state == UNKNOWN
    or record.state == RELEASED and ARGV[2] ~= record.owner)
end

-- The record is marked: the end of its run is to be told. Who is refused does not wait, but its copies
-- do, until that is noted.
local function busy()
  if not mine and now_ms >= refused_from_ms then return tell(2, raw) end
  if not is_awaited(record.flags) and keeps_waiting(record.state, record.until_ms, 0) > 0 then
    raw = with_header(raw, record.state, record.interruptions, record.token, record.until_ms,
      record.flags + AWAITED)
    redis.call('SET', KEYS[1], raw, 'KEEPTTL')
  end
  return answer(2, mine and 1 or 0, raw)
end

-- Whatever this delivery would become: somebody tells the call's answer at this moment.
if not noted and is_being_sent() then return answer(8, 1, slip.raw) end

if not record then
  if is_copy then return answer_again() end
  return take(0)
end

if #new.nonce > 0 and record.nonce == new.nonce then
  if record.state == RUNNING then
    return claimed(record.token, record.interruptions, nil, label_of(record)[5])
  end
  if record.state == COMPENSATING and #record.process > 0 then
    return claimed(record.token, record.interruptions, raw)
  end
  if record.done and record.until_ms > 0 then
    return answer(3, (mine and 1 or 0) + (noted and 2 or 0), raw)
  end
  return busy()
end
if #new.nonce > 0 and has_given_up(record.given_up, new.nonce) then return busy() end

-- Runs that lived through an outage renew first. A lease that was ended has no nonce.
local live = now_ms < record.until_ms or (#record.nonce > 0 and now_ms < patient_until_ms)
if record.state == RELEASED and not record.done then
  if mine and is_copy then return answer_again() end
  if mine and #record.nonce > 0 and new.retries < record.retries then return superseded() end
  if mine or not is_copy then return take(#record.nonce > 0 and record.interruptions or 0) end
end
if not mine then
  if told and (is_copy or #told.outcome > 0) then
    local kept = record.state == SUCCEEDED or record.state == FAILED
    if #told.outcome > 0 or not (told.succeeded and kept) then return answer_again() end
    return replay_other()
  end
  local awaited = load_slip(awaited_key)
  -- The key was free before that run ended.
  if awaited and awaited.released then awaited = nil end
  local is_kept = record.state == SUCCEEDED or record.state == FAILED
  if awaited and awaited.answered and #awaited.outcome > 0 and not is_kept then
    return tell(7, awaited.raw, awaited.outcome)
  end
  if checked and record.fingerprint ~= new.fingerprint and not is_free() then
    return tell(5, raw)
  end
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
    if now_ms < record.until_ms then return busy() end
    if is_copy and #told.outcome > 0 then return answer_again() end
    if callbacks and not noted then
      record.raw = with_header(raw, record.state, record.interruptions, record.token,
        now_ms + lease_ms)
      raw = with_holder(record, new.process, new.nonce)
      save_keep_ttl(raw)
    end
    return answer(3, 1 + (noted and 2 or 0), raw)
  end
  if record.state == RELEASED then
    if ARGV[2] ~= record.owner then return take(0) end
    return tell(3, raw, outcome_of(record))
  end
  return replay_other()
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
return tell(6, raw)
