"""The storage in a file: opening, checking, flushing and repairing it."""
