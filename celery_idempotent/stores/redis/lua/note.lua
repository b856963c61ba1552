-- Write down that a message was answered, and end the delivery lease of its run: transitions.note,
-- restated.
-- KEYS: record, steps, slip
-- ARGV: token, ttl_ms, what is added to the slip
-- Returns: {1}
local new, slip = parse_slip(ARGV[3]), load_slip(KEYS[3])
local record, raw = load_record()
if record and record.token == tonumber(ARGV[1]) and record.done and record.until_ms > 0 then
  record.raw = with_header(raw, record.state, record.interruptions, record.token, 0)
  save_keep_ttl(with_holder(record, '', ''))
end
if new.answered then
  if slip then
    local digests, known = slip.digests, {}
    for at = 1, #digests, 8 do known[string.sub(digests, at, at + 7)] = true end
    for at = 1, #new.digests, 8 do
      local digest = string.sub(new.digests, at, at + 7)
      if not known[digest] then digests = digests .. digest end
    end
    local told = slip
    -- An outcome that was left while somebody told another one was not told.
    if not slip.answered or (#new.outcome > 0 and (slip.sending_ms > 0 or #slip.outcome == 0)) then
      told = new
    end
    told.sending_ms, told.holder, told.all_sent = 0, '', slip.all_sent
    told.digests = string.sub(digests, -128)
    new = told
  end
  save_slip(KEYS[3], new, ARGV[2])
elseif slip and slip.sending_ms > 0 then
  if slip.answered then
    slip.sending_ms, slip.holder = 0, ''
    save_slip(KEYS[3], slip)
  else
    redis.call('DEL', KEYS[3])
  end
end
return {1}
