-- Note that callbacks went out (ttl_ms > 0), and end the delivery lease: transitions.note, restated.
-- KEYS: record, steps, note
-- ARGV: token, ttl_ms
-- Returns: {1}
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[3], '1', 'PX', ARGV[2]) end
local record, raw = load_record()
if record and record.token == tonumber(ARGV[1]) and record.done and record.until_ms > 0 then
  record.raw = with_header(raw, record.state, record.interruptions, record.token, 0)
  save_keep_ttl(with_holder(record, '', ''))
end
return {1}
