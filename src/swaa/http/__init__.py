"""OpenAI-compatible servers: how they are addressed, and a client that asks them."""
