-- Record that a message was answered, and end the delivery lease of its run. The rules are those of
-- transitions.note.
-- KEYS: record, steps, slip
-- ARGV: token, ttl_ms, what is added to the slip [, for how many ms its callbacks are still being sent]
-- Returns: nothing
local new, slip = parse_slip(ARGV[3]), load_slip(KEYS[3])
local record, raw = load_record()
if record and record.token == tonumber(ARGV[1]) and record.done and record.until_ms > 0 then
  record.raw = with_header(raw, record.state, record.interruptions, record.token, 0)
  save_keep_ttl(with_holder(record, '', ''))
end
if new.answered then
  if slip then new = merged(slip, new) end
  if ARGV[4] then new.sending_ms = math.floor(now_us() / 1000) + tonumber(ARGV[4]) end
  save_slip(KEYS[3], new, ARGV[2])
elseif slip and slip.sending_ms > 0 then
  if slip.answered then
    slip.sending_ms, slip.holder = 0, ''
    save_slip(KEYS[3], slip)
  else
    redis.call('DEL', KEYS[3])
  end
end
