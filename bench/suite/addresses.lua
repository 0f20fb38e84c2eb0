-- Each request from one of 10,000 clients: what a throttle keeps of each stays short.
function request()
   wrk.headers["X-Forwarded-For"] = "10.0." .. math.random(0, 99) .. "." .. math.random(0, 99)
   return wrk.format()
end
