"""Worker processes over one storage, and the supervisor that keeps them running."""
