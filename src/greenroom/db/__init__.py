"""The database on the loop: the unmodified ORM in coroutines, transactions included.

`borrow`       which wrapper code sees, and how long it has a connection
`pool`         the connections of a database in this process
`postgresql`   psycopg's connection, waiting on the loop
`sqlite`       a thread for each connection
`transaction`  `atomic` in tasks
`route`        which `sync_to_async` calls need no thread
`selftest`     whether a query yields, asked when a worker starts

What is replaced in other packages stands in `greenroom.patches`.
"""
