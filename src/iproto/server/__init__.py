"""The server: settings, listeners, connections, calls of user functions, start and drain."""
