-- Write what a run became, if it still holds its key: transitions.settle, restated.
-- KEYS: record, steps
-- ARGV: new record (its token is the run's), delay_ms, ttl_ms
-- Returns: the token, where it is recorded | {2, record} lost | {0, raw} unreadable
local new = parse(ARGV[1])
local delay_ms, ttl_ms = tonumber(ARGV[2]), ARGV[3]
local now_ms = math.floor(now_us() / 1000)
local record, raw = load_record()
if record == false then return {0, raw} end
-- An end that is told again is written again: WAIT counts what its own connection wrote last, and
-- would otherwise count something older, which a replica that lags has long since had.
local function recorded()
  save_keep_ttl(raw)
  return record.token
end
local token = new.token
if new.state == RELEASED then token = token + 1 end
if record then
  local again = record.token == token and record.state == new.state and record.owner == new.owner
  if again and new.state ~= RUNNING and new.state ~= COMPENSATING then return recorded() end
  if record.token ~= new.token then return {2, raw} end
  if record.state == SUCCEEDED or record.state == FAILED then return recorded() end
  if record.state == UNKNOWN and new.state == RUNNING then return recorded() end
end
local until_ms = 0
if delay_ms > 0 or new.state == RUNNING or new.state == RETRYING or new.state == COMPENSATING then
  until_ms = now_ms + delay_ms
end
local interruptions = record and record.interruptions or 0
if new.state == COMPENSATING and record and record.state ~= COMPENSATING then interruptions = 0 end
local flags = record and record.flags or new.flags
save(with_header(ARGV[1], new.state, interruptions, token, until_ms, flags), ttl_ms)
return token
