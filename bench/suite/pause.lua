-- Half a second between an answer and the next request of a connection.
function delay()
   return 500
end
