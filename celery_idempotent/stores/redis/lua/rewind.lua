-- Free a key whose next run goes on after the steps that are kept. The rules are those of
-- transitions.rewind.
-- KEYS: record, steps
-- ARGV: token, ttl_ms [, name of a step that is kept]...
-- Returns: {1} done | {2} it has another token, or is held | {0, raw} unreadable
local now = now_us()
local record, raw = load_record()
if record == false then return {0, raw} end
if not record or record.token ~= tonumber(ARGV[1]) or record.state == COMPENSATING then return {2} end
if math.floor(now / 1000) < record.until_ms then return {2} end
local flags = record.flags
if has_steps(flags) then
  local kept = {}
  for i = 3, #ARGV do kept[ARGV[i]] = true end
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if not kept[name] then redis.call('HDEL', KEYS[2], name) end
  end
  if #ARGV == 2 then flags = flags - 1 end
end
if #record.owner > 0 then raw = with_origin(record, hex(record.owner)) end
local left = parse(with_header(raw, RELEASED, 0, math.max(record.token + 1, now), 0, flags))
left.owner = ''
local freed = with_holder(left, '', '')
save(string.sub(freed, 1, #freed - #outcome_of(left)), tonumber(ARGV[2]))
return {1}
