"""Triton's interpreter, made faster without a change to what it computes."""

import functools
import math
import os


@functools.cache
def interpret():
    """Let Triton interpret its kernels on the CPU; before anything imports triton."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch_lang_tensor = interpreter._patch_lang_tensor

    def patch_for_numpy_2_4(tensor, scope):
        # Triton 3.6 keeps scalars as arrays of one element; NumPy 2.4 no longer takes these
        # for ints, so loops with computed bounds would fail.
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_for_numpy_2_4
    hasten(interpreter)


def hasten(interpreter):
    """Let Triton patch its language once in a launch, and keep what it finds out about types.

    Of an interpreted kernel's time the arithmetic is a small part. Most goes into patching the
    language for each function that a kernel calls, into describing shapes and types anew for each
    value, and into a search for overflows whose result is read in Triton's debug mode only.

    Args:
        interpreter: the module ``triton.runtime.interpreter``.
    """
    _patch_once(interpreter)
    _keep_number_types(interpreter)
    _keep_shapes(interpreter.tl.core)
    _take_operands_that_fit(interpreter.TritonSemantic, interpreter.tl.core)
    _look_for_overflows_in_debug_mode_only(interpreter.TritonSemantic)


def _patch_once(interpreter):
    """Within a launch the language is patched; the functions that a kernel calls need not do it."""
    patch_lang = interpreter._patch_lang
    tl = interpreter.tl

    @functools.cache
    def modules_of(fn):
        named = {id(value) for value in fn.__globals__.values()}
        return [tl, *(module for module in (tl.core,) if id(module) in named)]

    def patch(fn):
        if any(tl.core.is_builtin(module.load) for module in modules_of(fn)):
            return patch_lang(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch


def _keep_number_types(interpreter):
    """NumPy's types, by the names of Triton's; Triton makes a table of all for each question."""
    numpy_type = interpreter._get_np_dtype
    known = {}

    def known_type(kind):
        scalar = kind.scalar
        if scalar.name not in known:
            known[scalar.name] = numpy_type(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = known_type


def _keep_shapes(core):
    """What a block's type and its values say of a shape is made once for each shape."""
    make_block_type, equal = core.block_type.__init__, core.tuple.__eq__
    known = {}

    def numbers(shape):
        return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(n) for n in shape])

    def make_known_block_type(self, element_ty, shape):
        key = (element_ty.name, *shape)
        if key not in known or not _are_integers(shape):
            make_block_type(self, element_ty, shape)
            made = list(self.shape)
            key = (element_ty.name, *made)
            known.setdefault(key, (self.shape, self.numel, self.name, numbers(made), made))
        self.element_ty = element_ty
        self.shape, self.numel, self.name, self.numbers, self.sizes = known[key]

    no_shape = numbers([])

    def make_tensor(self, handle, type):
        self.handle = handle
        self.type = type
        self.dtype = type.scalar
        self.numel, self.shape = type.numbers if type.is_block() else no_shape

    def equal_numbers(self, other):
        values = list(other)
        return (
            core.constexpr(self.values == values) if _are_integers(values) else equal(self, other)
        )

    core.block_type.__init__ = make_known_block_type
    core.tensor.__init__ = make_tensor
    core.tuple.__eq__ = equal_numbers


def _take_operands_that_fit(semantic, core):
    """Operands of one type are what Triton would find to compute with; others it looks at.

    Shapes are compared as integers; Triton wraps each number of theirs to compare it.
    """
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value

    def check_others(self, lhs, rhs, *options, **named):
        divides = any(options[3:]) or named.get("div_or_mod")
        if (
            type(lhs) is type(rhs) is core.tensor
            and lhs.type.name == rhs.type.name
            and not (divides or lhs.dtype.is_ptr())
        ):
            return lhs, rhs
        return check(self, lhs, rhs, *options, **named)

    def broadcast_others(self, lhs, rhs):
        if not (lhs.type.is_block() and rhs.type.is_block()):
            return broadcast(self, lhs, rhs)
        ours, theirs = lhs.type.sizes, rhs.type.sizes
        if ours == theirs:
            return lhs, rhs
        pairs = list(zip(ours, theirs, strict=False))
        if len(ours) != len(theirs) or any(m != n and 1 not in (m, n) for m, n in pairs):
            return broadcast(self, lhs, rhs)
        sizes = [n if m == 1 else m for m, n in pairs]
        return tuple(
            each
            if each.type.sizes == sizes
            else self.tensor(
                self.builder.create_broadcast(each.handle, sizes),
                core.block_type(each.type.scalar, sizes),
            )
            for each in (lhs, rhs)
        )

    semantic.binary_op_type_checking_impl = check_others
    semantic.broadcast_impl_value = broadcast_others


def _are_integers(values):
    return all(type(value) is int for value in values)


def _look_for_overflows_in_debug_mode_only(semantic):
    """Elsewhere Triton computes in 64 bits what an assertion then does not look at."""
    look = semantic.binary_op_sanitize_overflow_impl

    def look_in_debug_mode(self, lhs, rhs, binary_op):
        if self.builder.options.debug:
            look(self, lhs, rhs, binary_op)

    semantic.binary_op_sanitize_overflow_impl = look_in_debug_mode
