-- Write what a run became, if it still holds its key. The rules are those of transitions.settle.
-- KEYS: record, steps [, the owner's slip] [, the reservation, which a release ends]
-- ARGV: new record (its token is the run's), delay_ms, ttl_ms [, the slip to write or '', its ttl_ms
--   [, 1: the next run begins without the steps
--   [, what the names begin with of the steps that are deleted]]]
-- Returns: the token, where it is recorded | {2, record} lost | {0, raw} unreadable
--   | {3, token}: recorded, and a copy of the message answers the call
--   | {4, record}: lost, and the call was answered without this run
local new = parse(ARGV[1])
local delay_ms, ttl_ms = tonumber(ARGV[2]), ARGV[3]
local left = ARGV[4] and #ARGV[4] > 0 and parse_slip(ARGV[4]) or nil
local now_ms = math.floor(now_us() / 1000)
local record, raw = load_record()
local queued = queued_key()
local slip_key = KEYS[3] ~= queued and KEYS[3] or nil
local slip = load_slip(slip_key)
local told = slip and slip.answered
if record == false and not is_lost(raw, new.token) then return {0, raw} end
-- Write the recorded end once more. WAIT counts the connection's last write: without this one it would
-- count an older write, which a lagging replica has had for long. What a slip holds is written once more for
-- the same reason.
local function recorded()
  redis.call('SET', KEYS[1], raw, 'KEEPTTL')
  return record.token
end
local token = new.token
if new.state == RELEASED then token = token + 1 end

-- The end of a run that had released its key: transitions._settle_released.
if slip and slip.released and slip.token == new.token then
  local gave_up_before = left and left.released and not left.answered
  if gave_up_before or told then
    save_slip(slip_key, slip)
    return gave_up_before and new.token + 1 or new.token
  end
  if new.state == RUNNING and not left then
    slip.sending_ms = now_ms
    save_slip(slip_key, slip)
  elseif new.state == RELEASED and not new.done and not left then
    redis.call('DEL', slip_key)
  else
    slip.answered, slip.outcome, slip.sending_ms = true, '', 0
    if left then
      slip.outcome = left.outcome
    elseif new.state ~= RETRYING then
      slip.outcome = outcome_of(new)
    end
    if delay_ms > 0 and #slip.outcome > 0 then slip.sending_ms = now_ms + delay_ms end
    save_slip(slip_key, slip, math.max(tonumber(ttl_ms), tonumber(ARGV[5] or 0)))
  end
  return new.token
end

-- Whether a copy of the message answers the call of a run that tells its end again.
local function is_told_by_a_copy()
  if not slip then return false end
  local is_telling = now_ms < slip.sending_ms and slip.holder ~= (left and left.holder or '')
  return is_telling or told and slip.token ~= new.token
end

-- Keep the slip of a run whose call a copy of its message answers: transitions._kept. Until the copy has
-- answered, the slip keeps this run's outcome, for that copy or the next.
local function keep_slip()
  local ttl = math.max(tonumber(ttl_ms), tonumber(ARGV[5] or 0))
  if left and not told then
    left.token, left.sending_ms = new.token, slip.sending_ms
    left.holder, left.digests = slip.holder, slip.digests
    slip = left
  end
  save_slip(slip_key, slip, ttl)
end

-- The slip that comes with the end, and the lease on its callbacks: transitions._with_slip_of.
local function leave_slip()
  if not left then return end
  left.token = new.token
  if delay_ms > 0 then left.sending_ms = now_ms + delay_ms end
  save_slip(slip_key, left, ARGV[5])
end

-- Another run has the key. This end may have been recorded before, and the answer to that was lost.
local function lost()
  if not told then return {2, raw} end
  if slip.token ~= new.token then
    keep_slip()
    return {4, raw}
  end
  save_slip(slip_key, slip)
  return is_told_by_a_copy() and {3, token} or token
end

-- Whether the worker's parent has answered the call of a run that it is about to end.
local function is_ended() return told and slip.released and record.state == RUNNING end

if record == false then return lost() end
if record then
  local again = record.token == token and record.state == new.state and record.owner == new.owner
  if again and new.state ~= RUNNING and new.state ~= COMPENSATING then
    recorded()
    return is_told_by_a_copy() and {3, token} or token
  end
  if record.token ~= new.token then return lost() end
  if record.state == SUCCEEDED or record.state == FAILED then return recorded() end
  if record.state == UNKNOWN and new.state == RUNNING then
    -- An interrupt changes nothing, unless the call fails by it.
    if left and slip and (told or now_ms < slip.sending_ms) then
      keep_slip()
      return {3, record.token}
    end
    leave_slip()
    return recorded()
  end
  if new.state == RETRYING and slip
    and (record.state == UNKNOWN and (told or now_ms < slip.sending_ms) or is_ended())
  then
    keep_slip()
    return {3, record.token}  -- there is nothing to retry any more
  end
else
  local answer = answered_since(slip, ARGV[1], new.token)
  if answer then
    keep_slip()
    return answer
  end
end
-- A copy can have answered the run's call only while its outcome was unknown. Else it was the worker's
-- parent, before it ended the run.
local answered = slip and record and ((record.state == UNKNOWN or record.state == COMPENSATING)
  and (slip.answered or now_ms < slip.sending_ms) or is_ended() and (new.state ~= RUNNING or left))
local until_ms = 0
-- A key that is released before the run's end has no lease: it is in the slip. Where a copy has answered
-- the call, nobody is told this outcome, and no delivery lease is needed.
local gives_up = left and left.released and not left.answered
local timed = delay_ms > 0 and not gives_up and not answered
  or new.state == RUNNING or new.state == RETRYING or new.state == COMPENSATING
-- Who was cut off holds nothing more: what it may still send has its lease in the slip.
if timed then until_ms = now_ms + (new.state == RUNNING and 0 or delay_ms) end
local interruptions = record and record.interruptions or 0
if new.state == COMPENSATING and record and record.state ~= COMPENSATING then interruptions = 0 end
local flags = record and record.flags or new.flags
if ARGV[6] == '1' and has_steps(flags) then
  flags = 0
  redis.call('DEL', KEYS[2])
end
new.raw = with_header(ARGV[1], new.state, interruptions, token, until_ms, flags)
new.given_up = record and record.given_up or ''
save(with_holder(new, new.process, new.nonce), ttl_ms)
if queued and new.state == RELEASED then redis.call('DEL', queued) end
if ARGV[7] then
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(name, 1, #ARGV[7]) == ARGV[7] then redis.call('HDEL', KEYS[2], name) end
  end
end
if answered then
  keep_slip()
  return {3, token}
end
leave_slip()
return token
