-- End what a dead process held. The rules are those of transitions.end_lease.
-- KEYS: record, steps [, the owner's slip]
-- ARGV: owner, process
-- Returns: {1} ended | {0} there was nothing
local now_ms = math.floor(now_us() / 1000)
local ended = 0
local slip = load_slip(KEYS[3])
if slip and string.sub(slip.holder, 9) == ARGV[2] and now_ms < slip.sending_ms then
  slip.sending_ms, slip.holder, ended = 0, '', 1
  save_slip(KEYS[3], slip)
end
local record, raw = load_record()
if not record or record.owner ~= ARGV[1] or record.process ~= ARGV[2] then return {ended} end
if not (record.state == RUNNING or record.state == COMPENSATING or record.done) then
  return {ended}
end
if record.until_ms <= now_ms then return {ended} end
record.raw = with_header(raw, record.state, record.interruptions, record.token, now_ms)
save_keep_ttl(with_holder(record, record.process, ''))
return {1}
