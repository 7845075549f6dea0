"""vLLM: a plugin that gives each attention layer its own window, sinks, phases and KV memory.

``plugin.register`` is the entry point; nothing is imported, and nothing happens, before vLLM calls
it, and nothing changes afterwards unless a configuration asks for it.
"""
