-- What wrk sends, by the environment: TOKEN and BODY are the same on each
-- request; LINES is a file with a part of each request on a line, which AS says
-- where to put: token, body or path (its last segment). FIRST and LAST are the
-- bytes between which the lines are read, in turn; with ONCE set, none is
-- read twice.

local env = os.getenv
local expected = tonumber(env("STATUS"))
local lines, position, first, last

unexpected, statuses = 0, "" -- global: done reads them out of the thread

local threads = {}
function setup(thread) table.insert(threads, thread) end

local function seek()
	lines:seek("set", math.max(first - 1, 0))
	if first > 0 then lines:read("*l") end -- the rest of a line that began before
	position = lines:seek()
end

local stopped = false
local function stop()
	if stopped then return end
	stopped = true
	wrk.thread:stop()
	io.stderr:write("used up\n") -- for who wakes the main thread, which sleeps for the whole duration
end

local function line()
	if position >= last then
		if env("ONCE") then stop() end
		seek()
	end
	local text = lines:read("*l")
	position = position + #text + 1
	return text
end

local function head()
	local text = "Host: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
	for name, value in pairs(wrk.headers) do
		if name ~= "Host" then text = text .. name .. ": " .. value .. "\r\n" end
	end
	return text
end

local function dynamic(as)
	local start = wrk.method .. " " .. wrk.path .. " HTTP/1.1\r\n" .. head()
	if as == "token" then
		start = start .. "Authorization: Bearer "
		return function() return start .. line() .. "\r\n\r\n" end
	elseif as == "body" then
		return function()
			local body = line()
			return start .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
		end
	end
	start = wrk.method .. " " .. wrk.path
	local rest = " HTTP/1.1\r\n" .. head() .. "\r\n"
	return function() return start .. line() .. rest end
end

function init()
	wrk.method = env("METHOD")
	if env("TOKEN") then wrk.headers["Authorization"] = "Bearer " .. env("TOKEN") end
	if env("BASIC") then wrk.headers["Authorization"] = "Basic " .. env("BASIC") end
	if env("TYPE") then wrk.headers["Content-Type"] = env("TYPE") end
	if env("BODY") then wrk.body = env("BODY") end
	if env("LINES") then
		first, last = tonumber(env("FIRST")), tonumber(env("LAST"))
		lines = assert(io.open(env("LINES")))
		seek()
		request = dynamic(env("AS"))
	else
		local fixed = wrk.format()
		wrk.request = function() return fixed end
	end
	io.stderr:write("ready\n")
end

-- wrk itself tells only statuses above 399 from others, and not which they were.
-- Where all are to be 200, they are too many for more.
if expected ~= 200 then
	local times = {}
	function response(status)
		if status == expected then return end
		unexpected = unexpected + 1
		times[status] = (times[status] or 0) + 1
		statuses = ""
		for each, n in pairs(times) do statuses = statuses .. string.format(" (%d × %d)", n, each) end
	end
end

function done(summary, latency)
	local errors = summary.errors
	local wrong = errors.status
	if expected ~= 200 then wrong = threads[1]:get("unexpected") end
	io.stderr:write(string.format(
		'{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"wrong":%d,"statuses":"%s","broken":%d,"late":%d}\n',
		summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
		wrong, threads[1]:get("statuses"), errors.connect + errors.read + errors.write, errors.timeout))
end
