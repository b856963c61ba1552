-- Stands in front of every script: reads and writes what is packed. The layouts are in core/record.py,
-- core/slip.py and core/reservation.py.
-- KEYS: record, steps [, slip]: they have one hash tag, so they are on one node.
local RUNNING, RETRYING, RELEASED, SUCCEEDED, FAILED, UNKNOWN, COMPENSATING = 1, 2, 3, 4, 5, 6, 7
local VERSION = 1
-- Lua's numbers are doubles: above this number they differ from what Python reads.
local MAX_NUMBER = 2 ^ 53 - 1
local NO_NONCE = string.rep('\0', 8)
-- The bit of the flags that says: somebody waits for the record's run.
local AWAITED = 2
-- Python puts SPUBLISH here for a cluster.
local PUBLISH = 'PUBLISH'

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The flags that this version knows: whether there are steps, and whether somebody waits.
local function known_flags(raw) return string.byte(raw, 3) % 4 end

local function is_awaited(flags) return flags % 4 >= AWAITED end

-- Return whom a record keeps waiting: 2 everybody, 1 copies of its own message, 0 nobody.
local function keeps_waiting(state, until_ms, now_ms)
  if state == RETRYING then return 2 end
  if until_ms <= now_ms then return 0 end
  return (state == RUNNING or state == COMPENSATING) and 2 or 1
end

-- A field is a byte with its length, and then its bytes.
local function field(it) return struct.pack('B', #it) .. it end

-- Return so many fields that begin at this place, and the place behind them; nil: they are cut short.
local function read_fields(raw, at, count)
  local fields = {}
  for i = 1, count do
    local length = string.byte(raw, at)
    if not length or at + length > #raw then return nil end
    fields[i] = string.sub(raw, at + 1, at + length)
    at = at + 1 + length
  end
  return fields, at
end

-- Return a record as a table, or false if this version can't read it.
local function parse(raw)
  if #raw < 30 or string.byte(raw, 1) ~= VERSION then return false end
  local _, state, _, interruptions, token, until_ms, retries = struct.unpack('>BBBBI8I8I4', raw)
  if state < RUNNING or state > COMPENSATING then return false end
  if token > MAX_NUMBER or until_ms > MAX_NUMBER then return false end
  local fields, at = read_fields(raw, 25, 4)
  if not fields or at + 1 > #raw then return false end
  local outcome_at = at + 2 + struct.unpack('>I2', string.sub(raw, at, at + 1))
  if outcome_at > #raw + 1 then return false end
  -- The claims that were given up follow the claim's own nonce, 16 bytes each.
  local nonce, given_up = fields[3], ''
  if #nonce > 8 then
    if #nonce % 16 ~= 8 then return false end
    given_up, nonce = string.sub(nonce, 9), string.sub(nonce, 1, 8)
    if nonce == NO_NONCE then nonce = '' end
  end
  local done = state == SUCCEEDED or state == FAILED or (state == RELEASED and outcome_at <= #raw)
  return {
    raw = raw, state = state, interruptions = interruptions, token = token, until_ms = until_ms,
    retries = retries, owner = fields[1], process = fields[2], nonce = nonce,
    given_up = given_up, fingerprint = fields[4], tail_at = at, done = done,
    flags = known_flags(raw),
  }
end

-- Whom the loaded record keeps waiting, if it is marked; 0: nobody waits.
local waited_for = 0

local function load_record()
  local raw = redis.call('GET', KEYS[1])
  if not raw then return nil, nil end
  local record = parse(raw)
  if record and is_awaited(record.flags) then
    waited_for = keeps_waiting(record.state, record.until_ms, 0)
  end
  return record, raw
end

-- Return the record to write: with the mark, as long as somebody has to wait for its run. When that is
-- over, the mark is cleared, and the end is published: transitions.with_mark.
local function with_mark(raw)
  if waited_for == 0 then return raw end
  local _, state, flags, _, _, until_ms = struct.unpack('>BBBBI8I8', raw)
  flags = flags % 2
  local over = keeps_waiting(state, until_ms, math.floor(now_us() / 1000)) < waited_for
  if over or state == RETRYING then
    -- Where this user may not publish, those who wait look again by themselves.
    redis.pcall(PUBLISH, KEYS[1] .. ':ended', '')
  end
  if not over then flags = flags + AWAITED end
  return string.sub(raw, 1, 2) .. string.char(flags) .. string.sub(raw, 4)
end

-- Whether a record of a newer release, which this one can't read, has another token than the run.
-- Token and owner stand at these places in every version to come.
local function is_lost(raw, token)
  return #raw > 24 and string.byte(raw, 1) > VERSION and struct.unpack('>I8', raw, 5) ~= token
end

-- Return the record with another header. Retries and all fields stay; flags too, unless they are given.
local function with_header(raw, state, interruptions, token, until_ms, flags)
  flags = flags or known_flags(raw)
  -- The count has one byte: without this bound 256 would be written as 0.
  interruptions = math.min(interruptions, 255)
  return struct.pack('>BBBBI8I8', VERSION, state, flags, interruptions, token, until_ms)
    .. string.sub(raw, 21)
end

local function has_steps(flags) return flags % 2 == 1 end

-- Return a nonce in its field of 8 bytes.
local function padded(nonce) return nonce .. string.sub(NO_NONCE, #nonce + 1) end

-- Return the record with another process and nonce, without the flags that this version doesn't know.
local function with_holder(record, process, nonce)
  if #record.given_up > 0 then
    nonce = padded(nonce) .. record.given_up
  end
  return string.sub(record.raw, 1, 2) .. string.char(known_flags(record.raw))
    .. string.sub(record.raw, 4, 24) .. field(record.owner) .. field(process) .. field(nonce)
    .. field(record.fingerprint) .. string.sub(record.raw, record.tail_at)
end

-- The lines of a record's label: task, readable key, trace, alone, origin, came, cut off.
local function label_of(record)
  local at, lines = record.tail_at, {}
  local text = string.sub(record.raw, at + 2, at + 1 + struct.unpack('>I2', record.raw, at))
  for line in string.gmatch(text .. '\n', '([^\n]*)\n') do lines[#lines + 1] = line end
  for i = #lines + 1, 7 do lines[i] = '' end
  return lines
end

local function hex(bytes)
  return (string.gsub(bytes, '.', function(it) return string.format('%02x', string.byte(it)) end))
end

local function outcome_of(record)
  local at = record.tail_at
  return string.sub(record.raw, at + 2 + struct.unpack('>I2', record.raw, at))
end

-- Return the packed record with three lines of its label replaced: the owner that began the work which
-- the run continues, when its call came, and the other calls whose runs were cut off.
local function with_origin(record, origin, came, cut_off)
  local at, raw, lines = record.tail_at, record.raw, label_of(record)
  lines[5], lines[6], lines[7] = origin, came or lines[6], cut_off or lines[7]
  local label = string.gsub(table.concat(lines, '\n', 1, 7), '\n+$', '')
  return string.sub(raw, 1, at - 1) .. struct.pack('>I2', #label) .. label .. outcome_of(record)
end

-- Return when the call of the record's run came first; 0: that is not known.
local function came_of(record)
  local came = label_of(record)[6]
  return string.find(came, '^%d+$') and tonumber(came) or 0
end

-- Return the reservation's key, if the script has to end the reservation: it is the last of KEYS.
local function queued_key()
  local last = KEYS[#KEYS]
  return last == KEYS[1] .. ':queued' and last or nil
end

-- Return a reservation as a table (core/reservation.py has the layout). An unreadable one stops nobody.
local function parse_reservation(raw)
  local none = {owner = '', fingerprint = '', due_ms = 0, expires_ms = 0}
  if #raw < 36 or string.byte(raw, 1) ~= 1 then return none end
  local _, flags, due_ms, expires_ms, since_ms, until_ms = struct.unpack('>BBI8I8I8I8', raw)
  local fields = read_fields(raw, 35, 2)
  if not fields then return none end
  return {
    owner = fields[1], fingerprint = fields[2],
    due_ms = due_ms, expires_ms = expires_ms, since_ms = since_ms, until_ms = until_ms,
    is_confirmed = flags % 2 == 1, keeps_result = flags % 4 >= 2, waits = flags % 8 >= 4,
  }
end

local function load_reservation(key)
  local raw = key and redis.call('GET', key)
  return raw and parse_reservation(raw) or nil
end

local function pack_reservation(it)
  local flags = (it.is_confirmed and 1 or 0) + (it.keeps_result and 2 or 0) + (it.waits and 4 or 0)
  return struct.pack('>BBI8I8I8I8', 1, flags, it.due_ms, it.expires_ms, it.since_ms, it.until_ms)
    .. field(it.owner) .. field(it.fingerprint)
end

-- Write the record. Its steps live as long as it does.
local function save(raw, ttl_ms)
  redis.call('SET', KEYS[1], with_mark(raw), 'PX', ttl_ms)
  if has_steps(string.byte(raw, 3)) then redis.call('PEXPIRE', KEYS[2], ttl_ms) end
end

local function save_keep_ttl(raw)
  redis.call('SET', KEYS[1], with_mark(raw), 'KEEPTTL')
end

-- Return those given-up claims that could still arrive in time. All others are refused anyway.
local function still_given_up(given_up, now_ms)
  local kept = {}
  for at = 1, #given_up, 16 do
    if struct.unpack('>I8', given_up, at + 8) > now_ms then
      kept[#kept + 1] = string.sub(given_up, at, at + 15)
    end
  end
  return table.concat(kept)
end

local function has_given_up(given_up, nonce)
  nonce = padded(nonce)
  for at = 1, #given_up, 16 do
    if string.sub(given_up, at, at + 7) == nonce then return true end
  end
  return false
end

-- Return a slip as a table (core/slip.py has the layout). An unreadable one counts as answered, with
-- all callbacks sent.
local function parse_slip(raw)
  local strange = {
    raw = raw, answered = true, succeeded = true, all_sent = true, deaths = 0, retries = 0,
    token = 0, sending_ms = 0, publication = '', holder = '', digests = '', outcome = '',
    released = false,
  }
  if #raw < 27 or string.byte(raw, 1) ~= 1 then return strange end
  local _, flags, deaths, retries, token, sending_ms = struct.unpack('>BBI2I4I8I8', raw)
  local fields, at = read_fields(raw, 25, 3)
  if not fields then return strange end
  return {
    raw = raw, answered = flags % 2 == 1, succeeded = flags % 4 >= 2, all_sent = flags % 8 >= 4,
    deaths = deaths, retries = retries, token = token, sending_ms = sending_ms,
    publication = fields[1], holder = fields[2], digests = fields[3], outcome = string.sub(raw, at),
    released = flags % 16 >= 8,
  }
end

local function pack_slip(slip)
  local flags = (slip.answered and 1 or 0) + (slip.succeeded and 2 or 0) + (slip.all_sent and 4 or 0)
    + (slip.released and 8 or 0)
  return struct.pack('>BBI2I4I8I8', 1, flags, slip.deaths, slip.retries, slip.token,
    slip.sending_ms) .. field(slip.publication) .. field(slip.holder) .. field(slip.digests)
    .. slip.outcome
end

local function load_slip(key)
  local raw = key and redis.call('GET', key)
  return raw and parse_slip(raw) or nil
end

-- Return the loss of a run whose record has expired and whose call was answered by another run: it
-- outlived its key's window. Else return nil.
local function answered_since(slip, raw, token)
  if not slip or not slip.answered or slip.token == token then return nil end
  return {4, with_header(raw, RELEASED, 0, slip.token, 0)}
end

local function has_sent(slip, digest)
  if slip.all_sent then return true end
  for at = 1, #slip.digests, 8 do
    if string.sub(slip.digests, at, at + 7) == digest then return true end
  end
  return false
end

-- Return a slip with another one added: see Slip.merged.
local function merged(slip, new)
  local digests, known = slip.digests, {}
  for at = 1, #digests, 8 do known[string.sub(digests, at, at + 7)] = true end
  for at = 1, #new.digests, 8 do
    local digest = string.sub(new.digests, at, at + 7)
    if not known[digest] then digests = digests .. digest end
  end
  local told = slip
  -- The delivery that had the lease on the callbacks told its own outcome, and not the one that was
  -- left here meanwhile.
  if not slip.answered or (#new.outcome > 0 and (slip.sending_ms > 0 or #slip.outcome == 0)) then
    told = new
  end
  told.sending_ms, told.holder, told.all_sent = 0, '', slip.all_sent
  told.digests = string.sub(digests, -128)
  return told
end

-- Write a slip. Without ttl_ms its expiry stays as it is.
local function save_slip(key, slip, ttl_ms)
  if ttl_ms then
    redis.call('SET', key, pack_slip(slip), 'PX', ttl_ms)
  else
    redis.call('SET', key, pack_slip(slip), 'KEEPTTL')
  end
end
