-- Put in front of every script: reads and writes the packed record (core/record.py has the layout).
-- KEYS: record, steps [, note]: the same hash tag, so the same node.
local RUNNING, RETRYING, RELEASED, SUCCEEDED, FAILED, UNKNOWN, COMPENSATING = 1, 2, 3, 4, 5, 6, 7
local VERSION = 1
-- Numbers are doubles here: above this they would not be the ones that Python reads.
local MAX_NUMBER = 2 ^ 53 - 1

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The flags that this version knows: only whether there are steps.
local function known_flags(raw) return string.byte(raw, 3) % 2 end

-- A record as a table; false where the string is none that this version can read.
local function parse(raw)
  if #raw < 30 or string.byte(raw, 1) ~= VERSION then return false end
  local _, state, _, interruptions, token, until_ms, retries = struct.unpack('>BBBBI8I8I4', raw)
  if state < RUNNING or state > COMPENSATING then return false end
  if token > MAX_NUMBER or until_ms > MAX_NUMBER then return false end
  local fields, at = {}, 25
  for i = 1, 4 do
    local length = string.byte(raw, at)
    if not length or at + length > #raw then return false end
    fields[i] = string.sub(raw, at + 1, at + length)
    at = at + 1 + length
  end
  if at + 1 > #raw then return false end
  local outcome_at = at + 2 + struct.unpack('>I2', string.sub(raw, at, at + 1))
  if outcome_at > #raw + 1 then return false end
  local done = state == SUCCEEDED or state == FAILED or (state == RELEASED and outcome_at <= #raw)
  return {
    raw = raw, state = state, interruptions = interruptions, token = token, until_ms = until_ms,
    retries = retries, owner = fields[1], process = fields[2], nonce = fields[3],
    fingerprint = fields[4], tail_at = at, done = done, flags = known_flags(raw),
  }
end

local function load_record()
  local raw = redis.call('GET', KEYS[1])
  if not raw then return nil, nil end
  return parse(raw), raw
end

-- The same record with another header; retries and all fields stay, and flags unless given.
local function with_header(raw, state, interruptions, token, until_ms, flags)
  flags = flags or known_flags(raw)
  -- The count has one byte; unbounded, 256 would be written as 0.
  interruptions = math.min(interruptions, 255)
  return struct.pack('>BBBBI8I8', VERSION, state, flags, interruptions, token, until_ms)
    .. string.sub(raw, 21)
end

local function has_steps(flags) return flags % 2 == 1 end

-- The same record with another process and nonce.
local function with_holder(record, process, nonce)
  return string.sub(record.raw, 1, 24)
    .. struct.pack('B', #record.owner) .. record.owner
    .. struct.pack('B', #process) .. process
    .. struct.pack('B', #nonce) .. nonce
    .. struct.pack('B', #record.fingerprint) .. record.fingerprint
    .. string.sub(record.raw, record.tail_at)
end

-- Steps live as long as their record.
local function save(raw, ttl_ms)
  redis.call('SET', KEYS[1], raw, 'PX', ttl_ms)
  if has_steps(string.byte(raw, 3)) then redis.call('PEXPIRE', KEYS[2], ttl_ms) end
end

local function save_keep_ttl(raw)
  redis.call('SET', KEYS[1], raw, 'KEEPTTL')
end
