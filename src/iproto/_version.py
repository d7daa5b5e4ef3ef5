"""The version: written here, and read by whoever shows it and by the build."""

__version__ = "0.1.0"
