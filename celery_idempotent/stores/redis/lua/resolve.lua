-- Settle an unknown outcome as a person decided. The rules are those of transitions.resolve.
-- KEYS: record, steps
-- ARGV: state, outcome, ttl_ms, compensate, clears_steps
-- Returns: {1} resolved | {2} it is not unknown | {0, raw} unreadable
local now = now_us()
local state = tonumber(ARGV[1])
local record, raw = load_record()
if record == false then return {0, raw} end
if not record or record.state ~= UNKNOWN then return {2} end
local until_ms = 0
if state == FAILED then
  state = RELEASED
  if ARGV[4] == '1' then state, until_ms = COMPENSATING, math.floor(now / 1000) end
end
-- For a rerun the owner is deleted, as if the key were forgotten: no copy was answered.
if state == RELEASED and ARGV[1] ~= tostring(FAILED) then record.owner = '' end
local flags = record.flags
if ARGV[5] == '1' and has_steps(flags) then
  flags = 0
  redis.call('DEL', KEYS[2])
end
record.raw = with_header(raw, state, 0, math.max(record.token + 1, now), until_ms, flags)
local resolved = with_holder(record, '', '')
save(string.sub(resolved, 1, #resolved - #outcome_of(record)) .. ARGV[2], tonumber(ARGV[3]))
return {1}
