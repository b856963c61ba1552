-- Let a run write a step, if it holds its key. The rules are those of transitions.step.
-- KEYS: record, steps [, the owner's slip]
-- ARGV: record as its holder knows it, lease_ms, keep_ms, name, packed step
-- Returns: {1, token} recorded | {2, record} lost | {0, raw} unreadable
--   | {4, record}: lost, and the call was answered without this run
local keep_ms = tonumber(ARGV[3])
local until_ms = math.floor(now_us() / 1000) + tonumber(ARGV[2])
local record, raw = load_record()
local held = parse(ARGV[1])
if record == false then return {is_lost(raw, held.token) and 2 or 0, raw} end
if not record then
  local lost = answered_since(load_slip(KEYS[3]), ARGV[1], held.token)
  if lost then return lost end
  record, raw = held, ARGV[1]
elseif record.token ~= held.token then
  return {2, raw}
end
if record.state == UNKNOWN then
  -- It still has to be resolved, and expires when it would have.
  until_ms, keep_ms = record.until_ms, redis.call('PTTL', KEYS[1])
elseif record.state ~= RUNNING and record.state ~= COMPENSATING then
  return {2, raw}
end
local flags = record.flags
if not has_steps(flags) then
  redis.call('DEL', KEYS[2])
  flags = flags + 1
end
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
save(with_header(raw, record.state, record.interruptions, record.token, until_ms, flags), keep_ms)
return {1, held.token}
