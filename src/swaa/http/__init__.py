"""OpenAI-compatible servers: their addresses, and a client that asks them."""
