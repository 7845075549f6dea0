"""SGLang: a plugin that gives each attention layer its own window, sinks, phases and KV memory.

``plugin.register`` is the entry point. Before SGLang calls it, nothing is imported and nothing
happens; afterwards nothing changes unless a configuration asks for it.
"""
