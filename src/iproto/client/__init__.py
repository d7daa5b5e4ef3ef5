"""The clients: asyncio and blocking twins over one codec."""
