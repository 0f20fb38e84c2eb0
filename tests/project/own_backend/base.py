"""A backend as third parties write them: a subclass of Django's, with notes on connections."""

from django.db.backends.postgresql import base

made: list[int] = []


class DatabaseWrapper(base.DatabaseWrapper):
    display_name = "Our PostgreSQL"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prepared = None

    def get_new_connection(self, conn_params):
        connection = super().get_new_connection(conn_params)
        made.append(connection.pgconn.backend_pid)
        self.prepared = made[-1]
        return connection

    def _close(self):
        # What it noted is of that connection.
        assert self.prepared is not None
        self.prepared = None
        return super()._close()
