"""Metrics: collectors over the native counters, and their HTTP endpoint."""
