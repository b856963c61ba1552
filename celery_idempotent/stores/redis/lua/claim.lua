-- One message asks for its key. The rules are those of transitions.claim.
-- KEYS: record, steps [, the owner's slip, the slip of the run that was waited for last]
--   [, the reservation]
-- ARGV: candidate, awaited owner, packed: lease_ms:8 unknown_ms:8 max_interruptions:4
--   max_compensations:4 flags:1 patient_until_ms:8 refused_from_ms:8 horizon_ms:8 came_ms:8,
--   keep_ms, the message as a packed slip, packed: deadline_ms:8 broke:1; flags: 1 checked, 2 callbacks,
--   4 compensates only, 8 is new, 16 frees, 32 in turn, 64 there is the key of a reservation,
--   128 only the latest of those that wait runs
-- Returns: the token, where it is claimed and nothing was before
--   | {token, interruptions, record to compensate or '', steps, origin, came, cut off}: claimed
--   | code:1 flags:1 now_ms:8 record: 0 unreadable, 2 busy (1 mine), 3 replay (1 mine, 2 noted),
--     4 superseded (no record), 5 mismatch, 6 unknown (2 noted), 7 replay of a slip (1 mine,
--     2 noted), 8 busy: the slip's callbacks are being sent, 9 too late (no record)
-- One string, or one number, costs the client less than an array does.
local candidate = ARGV[1]
local lease_ms, unknown_ms, max_interruptions, max_compensations, asked, patient_until_ms,
  refused_from_ms, horizon_ms, came_ms = struct.unpack('>I8I8I4I4BI8I8I8I8', ARGV[3])
local deadline_ms, broke = struct.unpack('>I8B', ARGV[6])
-- The store was away a moment ago: runs that are still alive get the time to renew.
if broke == 1 then patient_until_ms = math.huge end
local keep_ms, message = ARGV[4], ARGV[5]
local checked, callbacks, compensates_only = asked % 2 == 1, asked % 4 >= 2, asked % 8 >= 4
local is_new, frees, in_turn = asked % 16 >= 8, asked % 32 >= 16, asked % 64 >= 32
local latest = asked >= 128 and not compensates_only
local queued = asked % 128 >= 64 and KEYS[#KEYS] or nil
local slip_key = KEYS[3] ~= queued and KEYS[3] or nil
local awaited_key = KEYS[4] ~= queued and KEYS[4] or nil
local now = now_us()
local now_ms = math.floor(now / 1000)
local function answer(code, flags, it) return struct.pack('>BBI8', code, flags, now_ms) .. it end

-- The claim lay in a socket while the server stood still: its sender has given it up.
if deadline_ms > 0 and now_ms >= deadline_ms then return answer(9, 0, '') end

local new = parse(candidate)
local record, raw = load_record()
if record == false then return answer(0, 0, raw) end
-- This message is the call that has the reservation: it is no longer queued.
local reserved = load_reservation(queued)
if reserved and reserved.owner == new.owner then redis.call('DEL', queued) end
local mine = record and record.owner == new.owner
local function superseded() return answer(4, 0, '') end
if compensates_only and not (record and record.state == COMPENSATING) then return superseded() end

local slip, own = load_slip(slip_key), slip_key and parse_slip(message)
-- Whether the message does not say when its call came first; the call that waits to run next, if it is
-- this one; when the other one came, and the one that runs: transitions._claim_latest.
local is_first = came_ms == 0
local waiting_own = latest and reserved and reserved.owner == new.owner and reserved or nil
local others_ms = latest and reserved and not waiting_own and reserved.since_ms or 0
local runs_ms = latest and record and came_of(record) or 0
if latest then
  if mine and runs_ms > 0 then came_ms = runs_ms end
  if came_ms == 0 and slip and not slip.answered and slip.digests == '' then
    came_ms = slip.released and math.floor(slip.token / 1000) or slip.token
  end
  if came_ms == 0 then came_ms = math.max(now_ms, runs_ms + 1, others_ms + 1) end
end
local noted = slip and callbacks and has_sent(slip, own.digests) or false
-- The slip, if the call was answered and the key was not forgotten since.
local told = slip and slip.answered
  and not (record and #record.owner == 0 and slip.token < record.token) and slip or nil
local is_copy = told and not is_new and told.publication == own.publication
  and (told.succeeded or #told.outcome > 0
    or own.retries <= told.retries and own.deaths <= told.deaths) or false
-- Whether a key expires before all copies of the message can have come.
local function ends_too_soon(key)
  local left_ms = redis.call('PTTL', key)
  return left_ms >= 0 and left_ms < horizon_ms
end
-- More copies may come after this one.
if is_copy and ends_too_soon(slip_key) then redis.call('PEXPIRE', slip_key, horizon_ms) end

local function claimed(token, interruptions, failed, origin, came, cut_off)
  if reserved and not latest then redis.call('DEL', queued) end
  origin, came, cut_off = origin or '', came or '', cut_off or ''
  local kept = record and has_steps(record.flags)
  if not kept and not failed and interruptions == 0 and #origin + #came + #cut_off == 0 then
    return token
  end
  return {
    token, interruptions, failed or '', kept and redis.call('HGETALL', KEYS[2]) or {}, origin, came,
    cut_off,
  }
end

-- Return the owner that began the work which this claim continues. Empty: this call began it, or the
-- key has a window.
local function find_origin()
  if not record or not frees or in_turn or #record.owner == 0 or record.done then return '' end
  local origin = label_of(record)[5]
  -- The record was released with a count: its claim was given up, and the run before it was cut off.
  local cut_off = record.state ~= RELEASED or (#record.nonce > 0 and record.interruptions > 0)
  if origin == '' and cut_off then origin = hex(record.owner) end
  return origin ~= hex(new.owner) and origin or ''
end

-- Return the other calls whose runs were cut off, and how often runs of this call were:
-- transitions._cut_off.
local function find_cut_off()
  if not record then return '', 0 end
  local kept, own, others = {}, 0, label_of(record)[7]
  local gave_up = record.state == RELEASED and not record.done and #record.nonce > 0
  local count = record.interruptions + (record.state == RUNNING and 1 or 0)
  local last = hex(record.owner)
  local is_last = count > 0 and not mine and (gave_up or record.state == RUNNING)
  if is_last and #last > 0 then
    others = string.gsub(',' .. others, ',' .. last .. ':%d+', '')
      .. ',' .. last .. ':' .. string.format('%.0f', math.min(count, 255))
  end
  local owner = hex(new.owner)
  for call, times in string.gmatch(others, '(%x+):(%d+)') do
    if call == owner then own = tonumber(times) else kept[#kept + 1] = call .. ':' .. times end
  end
  return table.concat(kept, ',', math.max(1, #kept - 15)), own
end

local become_unknown

-- Remember when the call came: its message may come again as it was, and must not count as newer then.
local function save_came()
  if not slip_key then return end
  save_slip(slip_key, {
    deaths = 0, retries = 0, token = came_ms, sending_ms = 0, publication = '', holder = '',
    digests = '', outcome = '',
  }, keep_ms)
end

local function save_waiting(it)
  redis.call('SET', queued, pack_reservation(it), 'PX', it.until_ms - now_ms)
end

-- Keep the free key for the call that is to run next. Return the answer to this one: it waits for that
-- run, which has not begun. nil: that call did not come in time.
local function let_go_first()
  local until_ms = reserved.due_ms > 0 and reserved.due_ms or now_ms + lease_ms
  if now_ms >= until_ms then return nil end
  if reserved.due_ms == 0 then
    reserved.due_ms = until_ms
    save_waiting(reserved)
  end
  local label = '\n\n\n\n\n' .. string.format('%.0f', others_ms)
  return struct.pack('>BBI8', 2, 0, is_first and came_ms or now_ms)
    .. struct.pack('>BBBBI8I8I4', VERSION, RUNNING, 0, 0, math.max(now, others_ms * 1000), until_ms, 0)
    .. field(reserved.owner) .. '\0\0\0'
    .. struct.pack('>I2', #label) .. label
end

local function take(interruptions)
  local token = record and math.max(record.token + 1, now) or now
  local flags = record and record.flags or 0
  local others, cut_off = find_cut_off()
  if slip and slip.released and not slip.answered and new.retries <= slip.retries then
    -- An earlier run had released its key before its end, and was cut off after that.
    cut_off = math.max(cut_off, (string.byte(slip.outcome) or 0) + 1)
  end
  interruptions = math.max(interruptions, cut_off)
  if cut_off > max_interruptions then
    local given_up = record and record.given_up or ''
    if others ~= '' then candidate = with_origin(new, '', '', others) end
    raw = with_header(candidate, RUNNING, 0, token, 0, flags)
    record, slip = parse(raw), nil
    record.given_up = given_up
    return become_unknown(interruptions)
  end
  if latest then
    local may_wait = not mine and now_ms < refused_from_ms
    local ahead = may_wait and reserved and came_ms <= others_ms and let_go_first()
    if ahead then return ahead end
    -- Other calls waited for this run before it began: its end has to be published.
    if reserved and reserved.due_ms > 0 and not is_awaited(flags) then flags = flags + AWAITED end
    if reserved and not mine then redis.call('DEL', queued) end
  end
  local origin, came = find_origin(), latest and string.format('%.0f', came_ms) or ''
  if #origin + #came + #others > 0 then candidate = with_origin(new, origin, came, others) end
  local taken = with_header(candidate, RUNNING, interruptions, token, now_ms + lease_ms, flags)
  if record and #record.given_up > 0 then
    new.raw, new.given_up = taken, still_given_up(record.given_up, now_ms)
    taken = with_holder(new, new.process, new.nonce)
  end
  save(taken, keep_ms)
  if latest and slip_key then
    save_came()
  elseif slip then
    redis.call('DEL', slip_key)
  end
  return claimed(token, interruptions, nil, origin, came, others)
end

-- Whether another delivery is sending the callbacks of this message at this moment.
local function is_being_sent()
  return slip and now_ms < slip.sending_ms
    and (#new.nonce == 0 or string.sub(slip.holder, 1, 8) ~= padded(new.nonce))
end

-- Return the slip, unless it is of a run that released its key and has lost its lease.
local function without_run()
  return slip and (slip.answered or not slip.released) and slip or nil
end

-- Take the lease for sending callbacks. It is written into the slip `left`, or else into the
-- message's slip, which is made where there is none.
local function send_alone(left, ttl_ms)
  local slip = without_run()
  local sending = left or slip or own
  if not left and not slip then sending.digests, ttl_ms = '', lease_ms end
  sending.sending_ms = now_ms + lease_ms
  sending.holder = string.sub(padded(new.nonce) .. new.process, 1, 255)
  save_slip(slip_key, sending, ttl_ms)
end

-- Return a verdict. If callbacks are unsent, take a lease on sending them in the message's slip.
local function leased(code, flags, it)
  if not noted and callbacks and slip_key then send_alone() end
  return answer(code, flags + (noted and 2 or 0), it)
end

-- Return a verdict that the slip keeps, because the record does not keep it long enough:
-- transitions._told.
local function tell(code, it, outcome, ttl_ms)
  ttl_ms = ttl_ms or keep_ms
  local slip = without_run()
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

-- Replay another call's outcome. The slip keeps it too, if the record may expire before the next copy
-- of this message comes.
local function replay_other()
  local outcome = outcome_of(record)
  if #outcome > 0 and (ends_too_soon(KEYS[1]) or slip and not without_run()) then
    return tell(3, raw, outcome, horizon_ms > 0 and horizon_ms)
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
  -- While a copy tells its caller this, the run can't tell the caller anything else.
  if slip_key then send_alone() end
  return answer(6, 0, unknown)
end

-- Whether a call with other arguments may have a key that has no window.
local function is_free()
  return frees and (record.state == UNKNOWN
    or record.state == RELEASED and ARGV[2] ~= record.owner)
end

-- Let the call wait to run next, unless it came before the call that runs, or before one that waits.
-- Return the time for its answer: now, or when it came first, if its message does not say that.
local function wait_next()
  if came_ms > runs_ms and came_ms > others_ms then
    local it = {
      owner = new.owner, due_ms = 0, expires_ms = 0, is_confirmed = true, keeps_result = true,
      waits = true, fingerprint = '', since_ms = came_ms, until_ms = waiting_own and waiting_own.until_ms or 0,
    }
    local same = waiting_own and pack_reservation(it) == pack_reservation(waiting_own)
    if not same or 2 * (it.until_ms - now_ms) < tonumber(keep_ms) then
      it.until_ms = now_ms + tonumber(keep_ms)
    end
    save_waiting(it)
  end
  if not is_first then return now_ms end
  if not slip then save_came() end
  return came_ms
end

-- Mark the record, so that the end of its run is published. A call that is refused does not wait, but
-- its copies do, until the refusal is noted.
local function busy()
  if not mine and now_ms >= refused_from_ms then return tell(2, raw) end
  if not is_awaited(record.flags) and keeps_waiting(record.state, record.until_ms, 0) > 0 then
    raw = with_header(raw, record.state, record.interruptions, record.token, record.until_ms,
      record.flags + AWAITED)
    redis.call('SET', KEYS[1], raw, 'KEEPTTL')
  end
  local told_ms = latest and not mine and wait_next() or now_ms
  return struct.pack('>BBI8', 2, mine and 1 or 0, told_ms) .. raw
end

-- Another delivery is answering the caller at this moment, so this one waits in any case.
if not noted and is_being_sent() then return answer(8, 1, slip.raw) end

if not record then
  if is_copy then return answer_again() end
  return take(0)
end

if #new.nonce > 0 and record.nonce == new.nonce then
  if record.state == RUNNING then
    local label = label_of(record)
    return claimed(record.token, record.interruptions, nil, label[5], label[6], label[7])
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

-- After an outage, runs that are still alive get the time to renew. An ended lease has no nonce.
local live = now_ms < record.until_ms or (#record.nonce > 0 and now_ms < patient_until_ms)
if record.state == RELEASED and not record.done then
  if mine and is_copy then return answer_again() end
  if mine and #record.nonce > 0 and new.retries < record.retries then return superseded() end
  local counts = #record.nonce > 0 and (mine or not in_turn)
  if mine or not is_copy then return take(counts and record.interruptions or 0) end
end
if not mine then
  local is_kept = record.state == SUCCEEDED or record.state == FAILED
  if told and (is_copy or #told.outcome > 0) then
    if #told.outcome > 0 or not (told.succeeded and is_kept) then return answer_again() end
    return replay_other()
  end
  local awaited = load_slip(awaited_key)
  -- A run that released its key answers its own call only.
  if awaited and awaited.released then awaited = nil end
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
  -- The worker's parent has answered the call, and ended its run.
  if mine and is_copy then return answer_again() end
  if mine and new.retries > record.retries then return take(0) end
  -- Where calls run in turn, the interruption of another call's run counts for that call only.
  local anothers = in_turn and not mine
  local interruptions = anothers and 1 or record.interruptions + 1
  if interruptions <= max_interruptions then return take(anothers and 0 or interruptions) end
  return become_unknown(interruptions)
end
if record.state == RETRYING then
  if mine and new.retries < record.retries then return superseded() end
  if mine and is_copy then return answer_again() end
  if mine or now_ms >= record.until_ms + lease_ms then return take(0) end
  return busy()
end
if record.done then
  if mine then
    if now_ms < record.until_ms then return busy() end
    if is_copy and #told.outcome > 0 then return answer_again() end
    local outcome = outcome_of(record)
    if slip_key and #outcome > 0 and ends_too_soon(KEYS[1]) then
      local kept = slip and slip.answered and slip or parse_slip(message)
      if kept ~= slip then kept.digests = slip and slip.digests or '' end
      kept.answered, kept.token, kept.outcome = true, record.token, outcome
      save_slip(slip_key, kept, horizon_ms)
    end
    if callbacks and not noted then
      record.raw = with_header(raw, record.state, record.interruptions, record.token,
        now_ms + lease_ms)
      raw = with_holder(record, new.process, new.nonce)
      save_keep_ttl(raw)
    end
    return answer(3, 1 + (noted and 2 or 0), raw)
  end
  if record.state == RELEASED then
    local shares = ARGV[2] == record.owner
    if latest then shares = came_ms <= runs_ms end
    if not shares then return take(0) end
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
if mine and is_copy and told.released then return answer_again() end
return tell(6, raw)
