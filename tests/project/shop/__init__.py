"""An application with models, for tests of the database."""
