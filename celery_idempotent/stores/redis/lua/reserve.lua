-- Reserve a key for a call that is about to be published. The rules are those of transitions.reserve.
-- KEYS: record, steps, the reservation
-- ARGV: the reservation (its times are from now), hold_ms, flags: 1 attaches, 2 checked [, the owner of
--   a call that is over...]
-- Returns: 1, where it is reserved | what has it (0: a queued call; else the record's state):1 owner
local new, flags = parse_reservation(ARGV[1]), tonumber(ARGV[3])
local attaches, checked = flags % 2 == 1, flags >= 2
local now_ms = math.floor(now_us() / 1000)
local function is_over(owner)
  for at = 4, #ARGV do
    if ARGV[at] == owner then return true end
  end
  return false
end

-- Whether the call that was found has the same arguments, where that is checked.
local function is_alike(found) return not checked or found.fingerprint == new.fingerprint end

-- Whether the record's call will have an outcome that another call can get.
local function is_ahead(record)
  if not record or #record.owner == 0 or is_over(record.owner) or not is_alike(record) then
    return false
  end
  if record.state == RUNNING or record.state == RETRYING then
    return now_ms < record.until_ms and label_of(record)[4] ~= 'alone'
  end
  return record.state == SUCCEEDED or record.state == FAILED
end

new.due_ms = now_ms + new.due_ms
if new.expires_ms > 0 then new.expires_ms = now_ms + new.expires_ms end
if attaches then
  local record = load_record()
  if is_ahead(record) then return string.char(record.state) .. record.owner end
  local queued = load_reservation(KEYS[3])
  if queued and queued.is_confirmed and queued.keeps_result and not is_over(queued.owner)
    and queued.due_ms <= new.due_ms and is_alike(queued)
    and (queued.expires_ms == 0 or new.expires_ms > 0 and new.expires_ms <= queued.expires_ms)
  then
    return string.char(0) .. queued.owner
  end
end
new.is_confirmed = false
new.since_ms, new.until_ms = now_ms, now_ms + tonumber(ARGV[2])
redis.call('SET', KEYS[3], pack_reservation(new), 'PX', ARGV[2])
return 1
