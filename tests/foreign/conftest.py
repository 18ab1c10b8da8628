"""Fixtures that the tests of this folder share."""

from foreign.servers import foreign_server as foreign_server
