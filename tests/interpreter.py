"""Triton's interpreter, made faster without a change to what it computes."""


def patch_once(interpreter):
    """Let Triton patch its language once in a launch, not in each function that a kernel calls.

    Patching takes a fifth of an interpreted kernel's time, and within a launch it is done.

    Args:
        interpreter: the module ``triton.runtime.interpreter``.
    """
    patch_lang = interpreter._patch_lang
    tl = interpreter.tl

    def patch(fn):
        used = [m for m in (tl, tl.core) if any(m is x for x in fn.__globals__.values())]
        if any(tl.core.is_builtin(module.load) for module in (tl, *used)):
            return patch_lang(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch
