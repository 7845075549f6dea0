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

    Next to an operand that stays as it is, a number becomes the same constant each time: it is made
    once, and cannot be written. Shapes are compared as integers; Triton wraps each number of theirs
    to compare it.
    """
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    cast = semantic.cast
    constants = {}

    def check_others(self, lhs, rhs, *options, **named):
        if type(lhs) is core.tensor:
            if type(rhs) is core.tensor:
                divides = any(options[3:]) or named.get("div_or_mod")
                if lhs.type.name == rhs.type.name and not (divides or lhs.dtype.is_ptr()):
                    return lhs, rhs
            elif type(rhs) in (int, float):
                return with_number(self, lhs, rhs, False, options, named)
        elif type(rhs) is core.tensor and type(lhs) in (int, float):
            return with_number(self, rhs, lhs, True, options, named)
        return check(self, lhs, rhs, *options, **named)

    def with_number(self, tensor, number, first, options, named):
        key = (tensor.type.name, type(number), number, first, options, *named.items())
        if key not in constants:
            given = (number, tensor) if first else (tensor, number)
            made = check(self, *given, *options, **named)
            constant, same = made if first else reversed(made)
            if same is not tensor or number != number:
                return made
            if len(constants) > 1000:
                constants.clear()
            constant.handle.data.flags.writeable = False
            constants[key] = constant
        return (constants[key], tensor) if first else (tensor, constants[key])

    def cast_others(self, input, dst_ty, *options, **named):
        if input.type.scalar.name == dst_ty.scalar.name and not dst_ty.is_ptr():
            return input
        return cast(self, input, dst_ty, *options, **named)

    def broadcast_others(self, lhs, rhs):
        if lhs.type.is_block() and rhs.type.is_block():
            ours, theirs = lhs.type.sizes, rhs.type.sizes
            if ours == theirs:
                return lhs, rhs
            pairs = list(zip(ours, theirs, strict=False))
            if len(ours) == len(theirs) and all(m == n or 1 in (m, n) for m, n in pairs):
                sizes = [n if m == 1 else m for m, n in pairs]
                return stretched(self, lhs, sizes), stretched(self, rhs, sizes)
        return broadcast(self, lhs, rhs)

    def stretched(self, tensor, sizes):
        if tensor.type.sizes == sizes:
            return tensor
        handle = self.builder.create_broadcast(tensor.handle, sizes)
        return self.tensor(handle, core.block_type(tensor.type.scalar, sizes))

    semantic.binary_op_type_checking_impl = check_others
    semantic.broadcast_impl_value = broadcast_others
    semantic.cast = cast_others


def _are_integers(values):
    return all(type(value) is int for value in values)


def _look_for_overflows_in_debug_mode_only(semantic):
    """Elsewhere Triton computes in 64 bits what an assertion then does not look at."""
    look = semantic.binary_op_sanitize_overflow_impl

    def look_in_debug_mode(self, lhs, rhs, binary_op):
        if self.builder.options.debug:
            look(self, lhs, rhs, binary_op)

    semantic.binary_op_sanitize_overflow_impl = look_in_debug_mode
