-- End what a dead process held: transitions.end_lease, restated.
-- KEYS: record, steps
-- ARGV: owner, process
-- Returns: {1} ended | {0} there was nothing
local now_ms = math.floor(now_us() / 1000)
local record, raw = load_record()
if not record or record.owner ~= ARGV[1] or record.process ~= ARGV[2] then return {0} end
if not (record.state == RUNNING or record.state == COMPENSATING or record.done) then return {0} end
if record.until_ms <= now_ms then return {0} end
record.raw = with_header(raw, record.state, record.interruptions, record.token, now_ms)
save_keep_ttl(with_holder(record, record.process, ''))
return {1}
