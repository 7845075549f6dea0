"""On PYTHONPATH, every process of vLLM's believes that Triton serves this CPU.

The V2 model runner is made of Triton kernels, which a CPU has only the interpreter for; vLLM looks
for a CPU backend by this name, and asks nothing else of it.
"""

from types import SimpleNamespace

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: False), compiler=None)
