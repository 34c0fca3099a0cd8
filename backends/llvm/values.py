"""Loop IR value operations as LLVM instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.llvm import codes, vecmath
from backends.llvm.writer import IrWriter, literal, llvm_type
from compiler.errors import InternalError
from compiler.ir.loop import Let, Reg, VecType
from compiler.ir.types import DType, compute_dtype, is_coded

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_COMPARE = {"eq": ("oeq", "eq"), "ne": ("une", "ne"), "lt": ("olt", "lt"), "le": ("ole", "le"), "gt": ("ogt", "gt"), "ge": ("oge", "ge")}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "rint": "rint", "trunc": "trunc"}
_HALF = (DType.FLOAT16, DType.BFLOAT16)


class ValueEmitter:
    """Emits ``Let`` statements; ``names`` maps register ids to LLVM operands, ``constants`` those that are literals to their values."""

    def __init__(self, writer: IrWriter, names: dict[int, str]) -> None:
        self.writer = writer
        self.names = names
        self.constants: dict[int, float | int | bool] = {}

    def emit(self, let: Let) -> None:
        """Append the instructions of one operation and record its result's name. ``index`` is emitted by the caller."""
        if let.op == "const":
            if not isinstance(let.value, int | float):
                raise InternalError(f"const {let.result} has no literal", where="backends.llvm")
            self.constants[let.result.id] = let.value
            self.names[let.result.id] = self.writer.constant(let.value, let.result.type)
            return
        args = [self.names[r.id] for r in let.args]
        structural = self._structural(let, args)
        self.names[let.result.id] = structural if structural is not None else self._function(let.op, let.args, args, let.result.type)

    # -- lanes --------------------------------------------------------------------------------------------------

    def _structural(self, let: Let, args: Sequence[str]) -> str | None:
        w, type_ = self.writer, let.result.type
        ty = llvm_type(type_)
        match let.op:
            case "splat":
                return self.splat(args[0], type_)
            case "extract":
                return w.ins(f"extractelement {llvm_type(let.args[0].type)} {args[0]}, i32 {let.value}")
            case "insert":
                return w.ins(f"insertelement {ty} {args[0]}, {llvm_type(let.args[1].type)} {args[1]}, i32 {let.value}")
            case "shuffle":
                if not isinstance(let.value, tuple):
                    raise InternalError(f"shuffle {let.result} has no lane numbers", where="backends.llvm")
                source = llvm_type(let.args[0].type)
                mask = ", ".join(f"i32 {lane}" for lane in let.value)
                return w.ins(f"shufflevector {source} {args[0]}, {source} {args[1]}, <{len(let.value)} x i32> <{mask}>")
            case "iota":
                scalar = llvm_type(VecType(type_.dtype, 1))
                return "0" if type_.lanes == 1 else f"<{', '.join(f'{scalar} {literal(i, type_.dtype)}' for i in range(type_.lanes))}>"
            case "bitcast":
                return w.bitcast(let.args[0].type, type_, args[0])
            case "reduce_add" | "reduce_mul" | "reduce_max" | "reduce_min":
                return self._reduce(let.op.removeprefix("reduce_"), let.args[0].type, args[0])
        return None

    def splat(self, scalar: str, type_: VecType) -> str:
        """A scalar operand in every lane."""
        if type_.lanes == 1:
            return scalar
        ty = llvm_type(type_)
        one = self.writer.ins(f"insertelement {ty} poison, {llvm_type(VecType(type_.dtype, 1))} {scalar}, i32 0")
        return self.writer.ins(f"shufflevector {ty} {one}, {ty} poison, <{type_.lanes} x i32> zeroinitializer")

    def _reduce(self, fn: str, type_: VecType, value: str) -> str:
        lanes = type_.lanes
        while lanes > 1:
            half = lanes // 2
            whole, part = llvm_type(VecType(type_.dtype, lanes)), VecType(type_.dtype, half)
            halves = []
            for start in (0, half):
                mask = ", ".join(f"i32 {start + i}" for i in range(half))
                pick = f"extractelement {whole} {value}, i32 {start}"
                halves.append(self.writer.ins(pick if half == 1 else f"shufflevector {whole} {value}, {whole} poison, <{half} x i32> <{mask}>"))
            value = self.function(fn, halves, [part, part], part)
            lanes = half
        return value

    # -- functions ----------------------------------------------------------------------------------------------

    def _function(self, fn: str, regs: Sequence[Reg], args: Sequence[str], type_: VecType) -> str:
        if fn in ("max", "min") and type_.dtype.is_float and compute_dtype(type_.dtype) is type_.dtype:
            for at in (0, 1):
                value = self.constants.get(regs[at].id)
                if value is not None and not math.isnan(value):
                    return self._extreme_of_constant(fn, type_, args[1 - at], args[at])
        return self.function(fn, args, [r.type for r in regs], type_)

    def _extreme_of_constant(self, fn: str, type_: VecType, value: str, constant: str) -> str:
        """One instruction: the comparison is false for NaN, so a NaN in value is kept."""
        chosen = self.writer.binary("fcmp ogt" if fn == "max" else "fcmp olt", type_, constant, value)
        return self.writer.select(type_, chosen, constant, value)

    def function(self, fn: str, args: Sequence[str], types: Sequence[VecType], type_: VecType) -> str:
        """A function of ``scalar.FUNCTIONS`` on operands of the given types."""
        if compute_dtype(types[0].dtype) is not types[0].dtype and fn not in ("cast", "select"):
            return self._widened(fn, args, types, type_)
        if fn == "cast":
            return self.cast(args[0], types[0], type_)
        if fn == "select":
            return self._select(args, type_)
        if fn in _COMPARE:
            return self._compare(fn, types[0], args)
        if types[0].dtype.is_float:
            return self._float(fn, args, types[0])
        return self._integer(fn, args, types[0])

    def _select(self, args: Sequence[str], type_: VecType) -> str:
        """Half-precision values are chosen as integers: without instructions for their type, LLVM would round them by a library call."""
        w = self.writer
        if type_.dtype not in _HALF:
            return w.select(type_, args[0], args[1], args[2])
        bits = VecType(DType.UINT16, type_.lanes)
        return w.bitcast(bits, type_, w.select(bits, args[0], *(w.bitcast(type_, bits, value) for value in args[1:])))

    def _widened(self, fn: str, args: Sequence[str], types: Sequence[VecType], type_: VecType) -> str:
        wide = [VecType(compute_dtype(t.dtype), t.lanes) for t in types]
        result = VecType(compute_dtype(type_.dtype), type_.lanes)
        value = self.function(fn, [self.cast(a, t, w) for a, t, w in zip(args, types, wide, strict=True)], wide, result)
        return self.cast(value, result, type_)

    def _compare(self, fn: str, type_: VecType, args: Sequence[str]) -> str:
        ordered, plain = _COMPARE[fn]
        if type_.dtype.is_float:
            return self.writer.binary(f"fcmp {ordered}", type_, args[0], args[1])
        sign = "" if plain in ("eq", "ne") else "s" if type_.dtype.is_signed else "u"
        return self.writer.binary(f"icmp {sign}{plain}", type_, args[0], args[1])

    def _float(self, fn: str, args: Sequence[str], type_: VecType) -> str:
        w = self.writer
        if fn in _FLOAT_BINARY:
            return w.binary(_FLOAT_BINARY[fn], type_, args[0], args[1])
        if fn in _ROUNDING:
            return w.intrinsic(_ROUNDING[fn], type_, args[0])
        match fn:
            case "fma":
                return w.fma(type_, args[0], args[1], args[2])
            case "max" | "min":
                chosen = w.binary("fcmp ogt" if fn == "max" else "fcmp olt", type_, args[0], args[1])
                result = w.select(type_, chosen, args[0], args[1])
                return w.select(type_, w.binary("fcmp uno", type_, args[0], args[0]), args[0], result)
            case "neg":
                return w.ins(f"fneg {llvm_type(type_)} {args[0]}")
            case "abs":
                return w.intrinsic("fabs", type_, args[0])
            case "sqrt":
                return w.intrinsic("sqrt", type_, args[0])
            case "sign":
                positive = w.binary("fcmp ogt", type_, args[0], w.constant(0.0, type_))
                negative = w.binary("fcmp olt", type_, args[0], w.constant(0.0, type_))
                below = w.select(type_, negative, w.constant(-1.0, type_), args[0])
                return w.select(type_, positive, w.constant(1.0, type_), below)
            case "isnan":
                return w.binary("fcmp uno", type_, args[0], args[0])
            case "isinf":
                return w.binary("fcmp oeq", type_, w.intrinsic("fabs", type_, args[0]), w.constant(math.inf, type_))
        return vecmath.emit(w, fn, type_, args)

    def _integer(self, fn: str, args: Sequence[str], type_: VecType) -> str:
        w, signed = self.writer, type_.dtype.is_signed
        if fn in _INT_BINARY:
            if type_.dtype is DType.BOOL and fn in ("add", "mul", "sub"):
                return w.binary({"add": "or", "mul": "and", "sub": "xor"}[fn], type_, args[0], args[1])
            return w.binary(_INT_BINARY[fn], type_, args[0], args[1])
        zero, one = w.constant(0, type_), w.constant(1, type_)
        match fn:
            case "fma":
                return w.binary("add", type_, w.binary("mul", type_, args[0], args[1]), args[2])
            case "shr":
                return w.binary("ashr" if signed else "lshr", type_, args[0], args[1])
            case "max" | "min":
                compare = ("icmp sgt" if signed else "icmp ugt") if fn == "max" else ("icmp slt" if signed else "icmp ult")
                return w.select(type_, w.binary(compare, type_, args[0], args[1]), args[0], args[1])
            case "neg":
                return w.binary("sub", type_, zero, args[0])
            case "not":
                return w.binary("xor", type_, args[0], w.constant(True if type_.dtype is DType.BOOL else -1, type_))
            case "abs":
                return (
                    args[0]
                    if not signed
                    else w.select(type_, w.binary("icmp slt", type_, args[0], zero), w.binary("sub", type_, zero, args[0]), args[0])
                )
            case "sign":
                positive = w.select(type_, w.binary("icmp ne", type_, args[0], zero), one, zero)
                return w.select(type_, w.binary("icmp slt", type_, args[0], zero), w.constant(-1, type_), positive) if signed else positive
            case "div" | "mod" | "fmod":
                return self._divide(fn, args, type_)
            case "floor" | "ceil" | "rint" | "trunc":
                return args[0]
            case "isnan" | "isinf":
                return w.constant(False, VecType(DType.BOOL, type_.lanes))
        wide = VecType(DType.FLOAT64, type_.lanes)
        value = self.function(fn, [self.cast(a, type_, wide) for a in args], [wide] * len(args), wide)
        return self.cast(value, wide, type_)

    def _divide(self, fn: str, args: Sequence[str], type_: VecType) -> str:
        """Integer division; a zero divisor counts as one, and the most negative number over -1 wraps: neither may trap."""
        w, signed = self.writer, type_.dtype.is_signed
        zero, one = w.constant(0, type_), w.constant(1, type_)
        if not signed:
            divisor = w.select(type_, w.binary("icmp eq", type_, args[1], zero), one, args[1])
            return w.binary("udiv" if fn == "div" else "urem", type_, args[0], divisor)
        minus = w.binary("icmp eq", type_, args[1], w.constant(-1, type_))
        special = w.ins(f"or {llvm_type(VecType(DType.BOOL, type_.lanes))} {minus}, {w.binary('icmp eq', type_, args[1], zero)}")
        divisor = w.select(type_, special, one, args[1])
        if fn == "div":
            quotient = w.binary("sdiv", type_, args[0], divisor)
            return w.select(type_, minus, w.binary("sub", type_, zero, args[0]), quotient)
        rest = w.binary("srem", type_, args[0], divisor)
        if fn == "fmod":
            return rest
        differs = w.binary("icmp slt", type_, w.binary("xor", type_, rest, divisor), zero)
        adjust = w.select(type_, w.binary("icmp ne", type_, rest, zero), divisor, zero)
        return w.select(type_, differs, w.binary("add", type_, rest, adjust), rest)

    def cast(self, value: str, from_: VecType, to: VecType) -> str:
        """C-like conversion, as ``scalar.cast_array``."""
        if from_.dtype is to.dtype:
            return value
        w, a, b = self.writer, from_.dtype, to.dtype
        if is_coded(a):
            wide = VecType(compute_dtype(a), from_.lanes)
            return self.cast(codes.decode(w, from_, value), wide, to)
        if is_coded(b):
            wide = VecType(compute_dtype(b), to.lanes)
            return codes.encode(w, to, self.cast(value, from_, wide))
        source, target = llvm_type(from_), llvm_type(to)
        if b is DType.BOOL:
            return w.binary("fcmp une" if a.is_float else "icmp ne", from_, value, w.constant(0, from_))
        if b in _HALF and a is not DType.FLOAT32:
            wide = VecType(DType.FLOAT32, to.lanes)
            single = self._rounded_to_odd(value, from_) if a is DType.FLOAT64 and b is DType.FLOAT16 else self.cast(value, from_, wide)
            return self.cast(single, wide, to)
        if b is DType.BFLOAT16:
            return self._to_bfloat16(value, to)
        if a.is_float and b.is_float:
            return w.ins(f"{'fpext' if a.itemsize < b.itemsize else 'fptrunc'} {source} {value} to {target}")
        if a.is_float:
            return self._float_to_integer(value, from_, to)
        if b.is_float:
            return w.ins(f"{'sitofp' if a.is_signed else 'uitofp'} {source} {value} to {target}")
        if a is not DType.BOOL and a.itemsize == b.itemsize:
            return value
        if a is DType.BOOL or a.itemsize < b.itemsize:
            return w.ins(f"{'sext' if a.is_signed else 'zext'} {source} {value} to {target}")
        return w.ins(f"trunc {source} {value} to {target}")

    def _rounded_to_odd(self, value: str, from_: VecType) -> str:
        """A float64 as one of the two float32 around it, of which the one with an odd last bit, so that rounding that again rounds value once.

        Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd, 2008.
        """
        w = self.writer
        single, word = VecType(DType.FLOAT32, from_.lanes), VecType(DType.UINT32, from_.lanes)
        nearest = w.ins(f"fptrunc {llvm_type(from_)} {value} to {llvm_type(single)}")
        back = w.ins(f"fpext {llvm_type(single)} {nearest} to {llvm_type(from_)}")
        bits = w.bitcast(single, word, nearest)
        beyond = w.binary("fcmp ogt", from_, w.intrinsic("fabs", from_, back), w.intrinsic("fabs", from_, value))
        below = w.select(word, beyond, w.binary("sub", word, bits, w.constant(1, word)), bits)
        odd = w.binary("or", word, below, w.constant(1, word))
        return w.bitcast(word, single, w.select(word, w.binary("fcmp one", from_, back, value), odd, bits))

    def _to_bfloat16(self, value: str, to: VecType) -> str:
        """The upper half of a float32, rounded to nearest even; x86 before AVX512-BF16 has no instruction, and LLVM calls a library for it."""
        w = self.writer
        single, word, half = (VecType(dtype, to.lanes) for dtype in (DType.FLOAT32, DType.UINT32, DType.UINT16))
        bits = w.bitcast(single, word, value)
        odd = w.binary("and", word, w.binary("lshr", word, bits, w.constant(16, word)), w.constant(1, word))
        rounded = w.binary("add", word, w.binary("add", word, bits, odd), w.constant(0x7FFF, word))
        quiet = w.binary("or", word, bits, w.constant(0x400000, word))
        kept = w.select(word, w.binary("fcmp uno", single, value, value), quiet, rounded)
        upper = w.binary("lshr", word, kept, w.constant(16, word))
        return w.bitcast(half, to, w.ins(f"trunc {llvm_type(word)} {upper} to {llvm_type(half)}"))

    def _float_to_integer(self, value: str, from_: VecType, to: VecType) -> str:
        w = self.writer
        if from_.dtype in _HALF:
            wide = VecType(DType.FLOAT32, from_.lanes)
            return self._float_to_integer(self.cast(value, from_, wide), wide, to)
        if to.dtype in (DType.INT32, DType.INT64, DType.UINT64):
            return w.ins(f"{'fptoui' if to.dtype is DType.UINT64 else 'fptosi'} {llvm_type(from_)} {value} to {llvm_type(to)}")
        wide = VecType(DType.INT64 if to.dtype is DType.UINT32 else DType.INT32, to.lanes)
        whole = w.ins(f"fptosi {llvm_type(from_)} {value} to {llvm_type(wide)}")
        return self.cast(whole, wide, to)
