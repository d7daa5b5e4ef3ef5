"""iproto bench: a load on a server, with every request accounted for."""
