"""A program's own functions as LLVM text: ``ts_main``, which runs its steps, and ``ts_prepare``, which works out what its sizes ask for.

Every worker runs every step. What it reads to decide where to go, the memory of a result that another may be about to write over, is
followed by a barrier. A symbol that a step defines lives in a variable of each worker's own, since all work out the same value.
"""

from __future__ import annotations

from backends.llvm.indices import IndexWriter
from compiler.errors import CALL_BITS
from compiler.ir.intexpr import sym, symbols
from compiler.ir.program import (
    SHARE,
    TEXTS,
    WORKERS,
    Address,
    Allocate,
    Branch,
    Check,
    Define,
    KernelCall,
    Program,
    Read,
    Repeat,
    Shares,
    Space,
    Step,
    Swap,
    walk,
)
from runtime.context import ALLOC, ARENA, FIRST_TENSOR, FREE, OUT_OF_MEMORY, STATE, WEIGHTS

_ALIGNMENT = 64

_GROW = f"""
define internal void @ts_grow(ptr %slots, i64 %slot, i64 %nbytes, i1 %keep) nounwind noinline {{
entry:
  %at = getelementptr ptr, ptr %slots, i64 %slot
  %capacity.at = getelementptr i64, ptr %at, i64 1
  %capacity = load i64, ptr %capacity.at
  %small = icmp slt i64 %capacity, %nbytes
  br i1 %small, label %grow, label %done
grow:
  %twice = mul i64 %capacity, 2
  %more = icmp sgt i64 %twice, %nbytes
  %wanted = select i1 %more, i64 %twice, i64 %nbytes
  %padded = add i64 %wanted, {_ALIGNMENT - 1}
  %size = and i64 %padded, {-_ALIGNMENT}
  %alloc.at = getelementptr ptr, ptr %slots, i64 {ALLOC}
  %alloc = load ptr, ptr %alloc.at
  %free.at = getelementptr ptr, ptr %slots, i64 {FREE}
  %free = load ptr, ptr %free.at
  %old = load ptr, ptr %at
  br i1 %keep, label %both, label %replace
replace:
  call void %free(ptr %old)
  %fresh = call ptr %alloc(i64 {_ALIGNMENT}, i64 %size)
  br label %took
both:
  %new = call ptr %alloc(i64 {_ALIGNMENT}, i64 %size)
  %none = icmp eq ptr %new, null
  %words = select i1 %none, i64 0, i64 %capacity
  br label %copy
copy:
  %k = phi i64 [0, %both], [%next, %word]
  %left = icmp slt i64 %k, %words
  br i1 %left, label %word, label %copied
word:
  %from = getelementptr i8, ptr %old, i64 %k
  %to = getelementptr i8, ptr %new, i64 %k
  %value = load <8 x i64>, ptr %from, align 8
  store <8 x i64> %value, ptr %to, align 8
  %next = add i64 %k, 64
  br label %copy
copied:
  call void %free(ptr %old)
  br label %took
took:
  %got = phi ptr [%fresh, %replace], [%new, %copied]
  store ptr %got, ptr %at
  %nothing = icmp eq ptr %got, null
  %held = select i1 %nothing, i64 0, i64 %size
  store i64 %held, ptr %capacity.at
  br i1 %nothing, label %failed, label %done
failed:
  %state.at = getelementptr ptr, ptr %slots, i64 {STATE}
  %state = load ptr, ptr %state.at
  %wish.at = getelementptr i64, ptr %state, i64 1
  store i64 %nbytes, ptr %wish.at
  store i64 {OUT_OF_MEMORY}, ptr %state
  br label %done
done:
  ret void
}}
"""
"""Makes a dynamic buffer large enough. Called by one worker; what could not be had is reported by the status ``OUT_OF_MEMORY``."""


_STAMP = """
declare i64 @llvm.readcyclecounter()
define internal void @ts_stamp(ptr %stamps, i64 %word, i64 %sign) nounwind noinline {
entry:
  %none = icmp eq ptr %stamps, null
  br i1 %none, label %done, label %wanted
wanted:
  %count = call i64 @llvm.readcyclecounter()
  %signed = mul i64 %count, %sign
  %at = getelementptr i64, ptr %stamps, i64 %word
  %before = load i64, ptr %at
  %after = add i64 %before, %signed
  store i64 %after, ptr %at
  br label %done
done:
  ret void
}
"""
"""Adds the cycle count, or takes it away, in a word of stamps if there are any. A function: in its callers it would be branches at every call,
whose number costs LLVM more than linear time."""


def main_text(program: Program) -> str:
    """``ts_main(slots, tid, nthreads, pool, stamps)`` and ``ts_prepare(state)``.

    Where stamps is not null, its words being zero, the cycle counts when the run begins and ends go to words 0 and 1, and the cycles of call
    number n are added to word 2 + n.
    """
    return "\n".join([_Prepare(program).text(), _Main(program).text(), ""])


def _stored(writer: IndexWriter, base: str, position: int, value: str) -> None:
    place = writer.ins(f"getelementptr i64, ptr {base}, i64 {position}")
    writer.do(f"store i64 {value}, ptr {place}")


class _Prepare:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._writer = IndexWriter(self._load)
        self._known = {name: program.state.symbols + k for k, name in enumerate(program.symbols)}

    def _load(self, name: str) -> str:
        place = self._writer.ins(f"getelementptr i64, ptr %state, i64 {self._known[name]}")
        return self._writer.ins(f"load i64, ptr {place}")

    def text(self) -> str:
        program, layout, w = self._program, self._program.state, self._writer
        for number, definition in enumerate(program.definitions):
            _stored(w, "%state", layout.definitions + number, w.value(definition.value))
            self._known[definition.symbol] = layout.definitions + number
            w.estimates[definition.symbol] = w.estimate(definition.value)
        _stored(w, "%state", layout.arena, w.size(program.arena_bytes))
        _stored(w, "%state", layout.scratch, w.size(program.scratch_bytes))
        for value, at in zip(program.outputs, layout.outputs, strict=True):
            for axis, dim in enumerate(value.type.shape):
                early = all(name in self._known for name in symbols(dim))
                _stored(w, "%state", at + axis, w.value(dim) if early else "-1")
        return "\n".join(["define void @ts_prepare(ptr %state) nounwind {", "entry:", *w.lines, "  ret void", "}"])


class _Main:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._writer = IndexWriter(self._load)
        layout = program.state
        names = (*program.symbols, *(definition.symbol for definition in program.definitions))
        self._early = {name: layout.symbols + k for k, name in enumerate(names)} | {TEXTS: layout.texts}
        self._late = {name: f"%var{k}" for k, name in enumerate(dict.fromkeys(_defined(program.body)))}
        self._calls = self._checks = self._labels = 0

    def text(self) -> str:
        program, w = self._program, self._writer
        lines = [_STAMP]
        for function in program.functions:
            params = ", ".join(["ptr"] * len(function.buffers) + ["i64"] * len(function.params) + ["i64", "i64"])
            lines.append(f"declare void @{function.name}({params}) nounwind")
        if program.dynamic:
            lines.append(_GROW)
        lines += ["define void @ts_main(ptr %slots, i64 %tid, i64 %nthreads, ptr %pool, ptr %stamps) nounwind {", "entry:"]
        lines += [f"  {place} = alloca i64" for place in self._late.values()]
        for slot in range(FIRST_TENSOR):
            lines += [f"  %p{slot} = getelementptr ptr, ptr %slots, i64 {slot}", f"  %slot{slot} = load ptr, ptr %p{slot}"]
        if program.scratch_bytes != 0:
            w.do(f"%own = mul i64 %tid, {w.value(program.scratch_bytes)}")
            w.do(f"%behind = add i64 %own, {w.value(program.arena_bytes)}")
            w.do("%scratch = getelementptr i8, ptr %slot0, i64 %behind")
        w.do("%first = icmp eq i64 %tid, 0")
        w.do("%own.stamps = select i1 %first, ptr %stamps, ptr null")
        self._stamp(0)
        self._steps(program.body)
        self._results()
        self._stamp(1)
        w.do("br label %end")
        self._open("end")
        w.do("ret void")
        return "\n".join([*lines, *w.lines, "}"])

    # -- values -------------------------------------------------------------------------------------------------

    def _load(self, name: str) -> str:
        if name == WORKERS:
            return "%nthreads"
        place = self._late.get(name)
        if place is None:
            place = self._writer.ins(f"getelementptr i64, ptr %slot{STATE}, i64 {self._early[name]}")
        return self._writer.ins(f"load i64, ptr {place}")

    def _pointer(self, address: Address) -> str:
        w = self._writer
        match address.space:
            case Space.ARENA:
                base = f"%slot{ARENA}"
            case Space.WEIGHTS:
                base = f"%slot{WEIGHTS}"
            case Space.INPUT:
                base = self._slot(FIRST_TENSOR + address.index)
            case Space.OUTPUT:
                base = self._slot(FIRST_TENSOR + len(self._program.inputs) + address.index)
            case Space.SCRATCH:
                base = "%scratch" if self._program.scratch_bytes != 0 else f"%slot{ARENA}"
            case Space.STATUS:
                base = f"%slot{STATE}"
            case Space.TEXTS_END:
                base = w.ins(f"getelementptr i64, ptr %slot{STATE}, i64 {self._program.state.texts}")
            case Space.DYNAMIC:
                base = self._slot(self._dynamic(address.index))
        if address.each != 0:
            own = w.ins(f"mul i64 %tid, {w.value(address.each)}")
            base = w.ins(f"getelementptr i8, ptr {base}, i64 {own}")
        return base if address.offset == 0 else w.ins(f"getelementptr i8, ptr {base}, i64 {w.value(address.offset)}")

    def _slot(self, number: int) -> str:
        """What a slot holds, read where it is used: thousands of addresses would not stay in registers."""
        return self._writer.ins(f"load ptr, ptr {self._writer.ins(f'getelementptr ptr, ptr %slots, i64 {number}')}")

    def _dynamic(self, index: int) -> int:
        """The slot of a dynamic buffer's address; its capacity stands in the next."""
        return FIRST_TENSOR + len(self._program.inputs) + len(self._program.outputs) + 2 * index

    def _bool(self, address: Address) -> str:
        byte = self._writer.ins(f"load i8, ptr {self._pointer(address)}")
        return self._writer.ins(f"icmp ne i8 {byte}, 0")

    # -- control ------------------------------------------------------------------------------------------------

    def _label(self, stem: str) -> str:
        self._labels += 1
        return f"{stem}{self._labels}"

    def _open(self, label: str) -> None:
        self._writer.lines.append(f"{label}:")

    def _barrier(self) -> None:
        self._writer.do("call void @ts_barrier(ptr %pool, i64 %nthreads)")

    def _stamp(self, word: int, sign: int = 1) -> None:
        self._writer.do(f"call void @ts_stamp(ptr %own.stamps, i64 {word}, i64 {sign})")

    def _end_where(self, failed: str) -> None:
        """Leave where ``failed`` holds, which it must for all workers or for none."""
        go = self._label("go")
        self._writer.do(f"br i1 {failed}, label %end, label %{go}")
        self._open(go)

    def _first_only(self, write: list[str]) -> None:
        """Lines that one worker runs."""
        w, only, go = self._writer, self._label("only"), self._label("go")
        w.do(f"br i1 %first, label %{only}, label %{go}")
        self._open(only)
        for line in write:
            w.do(line)
        w.do(f"br label %{go}")
        self._open(go)

    def _failed(self) -> str:
        """Whether a status is set: one answer for all workers, as none may go on to what sets one before all have looked."""
        w = self._writer
        failed = w.ins(f"icmp ne i64 {w.ins(f'load i64, ptr %slot{STATE}')}, 0")
        self._barrier()
        return failed

    # -- steps --------------------------------------------------------------------------------------------------

    def _steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case KernelCall():
                    self._call(step)
                case Read():
                    self._read(step)
                case Define():
                    self._set(step.symbol, self._writer.value(step.value))
                case Check():
                    self._check(step)
                case Allocate():
                    self._allocate(step)
                case Swap():
                    self._swap(step)
                case Branch():
                    self._branch(step)
                case Repeat():
                    self._repeat(step)
                case Shares():
                    self._shares(step)

    def _call(self, call: KernelCall) -> None:
        w, number = self._writer, self._calls
        self._calls += 1
        self._stamp(2 + number, -1)
        self._kernel(call, "%tid", "%nthreads")
        self._barrier()
        self._stamp(2 + number)
        # A block for each call: what LLVM takes for one of thousands of calls is their number squared.
        go = self._label("go")
        if any(address.space is Space.STATUS for address in call.args):
            report = self._label("report")
            what = w.ins(f"load i64, ptr %slot{STATE}")
            w.do(f"br i1 {self._failed()}, label %{report}, label %{go}")
            self._open(report)
            self._first_only([f"store i64 {w.ins(f'add i64 {what}, {number << CALL_BITS}')}, ptr %slot{STATE}"])
            w.do("br label %end")
        else:
            w.do(f"br label %{go}")
        self._open(go)

    def _kernel(self, call: KernelCall, worker: str, workers: str) -> None:
        args = [f"ptr {self._pointer(address)}" for address in call.args]
        args += [f"i64 {self._writer.value(param)}" for param in call.params]
        self._writer.do(f"call void @{self._program.functions[call.function].name}({', '.join([*args, f'i64 {worker}', f'i64 {workers}'])})")

    def _shares(self, step: Shares) -> None:
        w = self._writer
        test, body, after = (self._label(stem) for stem in ("test", "body", "after"))
        first, stop = (w.ins(f"sdiv i64 {w.ins(f'mul i64 {worker}, {step.count}')}, %nthreads") for worker in ("%tid", w.ins("add i64 %tid, 1")))
        self._set(SHARE, first)
        w.do(f"br label %{test}")
        self._open(test)
        w.do(f"br i1 {w.ins(f'icmp slt i64 {w.value(sym(SHARE))}, {stop}')}, label %{body}, label %{after}")
        self._open(body)
        for call in step.body:
            self._stamp(2 + self._calls, -1)
            self._kernel(call, "0", "1")
            self._stamp(2 + self._calls)
            self._calls += 1
        self._set(SHARE, w.value(sym(SHARE) + 1))
        w.do(f"br label %{test}")
        self._open(after)
        self._stamp(1 + self._calls, -1)
        self._barrier()
        self._stamp(1 + self._calls)

    def _set(self, symbol: str, value: str) -> None:
        self._writer.do(f"store i64 {value}, ptr {self._late[symbol]}")

    def _read(self, step: Read) -> None:
        w = self._writer
        ty = f"i{8 * step.dtype.itemsize}"
        base = self._pointer(step.address)
        for number, symbol in enumerate(step.symbols):
            value = w.ins(f"load {ty}, ptr {w.ins(f'getelementptr {ty}, ptr {base}, i64 {number}')}")
            if step.dtype.itemsize < 8:
                value = w.ins(f"{'sext' if step.dtype.is_signed else 'zext'} {ty} {value} to i64")
            self._set(symbol, value)
        self._barrier()

    def _check(self, step: Check) -> None:
        w, number = self._writer, self._checks
        self._checks += 1
        value = w.value(step.value)
        bounds = [("sge", step.low), ("sle", step.high)]
        kept = [(compare, w.value(bound)) for compare, bound in bounds if bound is not None]
        tests = [w.ins(f"icmp {compare} i64 {value}, {bound}") for compare, bound in kept]
        holds = tests[0] if len(tests) == 1 else w.ins(f"and i1 {tests[0]}, {tests[1]}")
        report, go = self._label("report"), self._label("go")
        w.do(f"br i1 {holds}, label %{go}, label %{report}")
        self._open(report)
        numbers = [w.value(0 if bound is None else bound) for bound in (step.low, step.value, step.high)]
        writes = [f"store i64 {-1 - number}, ptr %slot{STATE}"]
        for k, reported in enumerate(numbers, 1):
            place = w.ins(f"getelementptr i64, ptr %slot{STATE}, i64 {k}")
            writes.append(f"store i64 {reported}, ptr {place}")
        self._first_only(writes)
        w.do("br label %end")
        self._open(go)

    def _allocate(self, step: Allocate) -> None:
        nbytes = self._writer.size(step.nbytes)
        self._first_only([f"call void @ts_grow(ptr %slots, i64 {self._dynamic(step.index)}, i64 {nbytes}, i1 {str(step.keep).lower()})"])
        self._barrier()
        self._end_where(self._failed())

    def _swap(self, step: Swap) -> None:
        w = self._writer
        places = [w.ins(f"getelementptr ptr, ptr %slots, i64 {self._dynamic(index)}") for index in (step.first, step.second)]
        pairs = [w.ins(f"load <2 x i64>, ptr {place}, align 8") for place in places]
        self._barrier()
        self._first_only([f"store <2 x i64> {pair}, ptr {place}, align 8" for pair, place in zip(reversed(pairs), places, strict=True)])
        self._barrier()

    def _branch(self, step: Branch) -> None:
        w = self._writer
        then, orelse, after = self._label("then"), self._label("else"), self._label("after")
        condition = self._bool(step.condition)
        self._barrier()
        w.do(f"br i1 {condition}, label %{then}, label %{orelse}")
        for label, steps in ((then, step.then), (orelse, step.orelse)):
            self._open(label)
            self._steps(steps)
            w.do(f"br label %{after}")
        self._open(after)

    def _repeat(self, step: Repeat) -> None:
        w = self._writer
        test, more, body, after = (self._label(stem) for stem in ("test", "more", "body", "after"))
        going = self._late[_going(step)]
        self._set(step.iteration, "0")
        first = "1"
        if step.first is not None:
            first = w.ins(f"zext i1 {self._bool(step.first)} to i64")
            self._barrier()
        w.do(f"store i64 {first}, ptr {going}")
        w.do(f"br label %{test}")
        self._open(test)
        flag = w.ins(f"load i64, ptr {going}")
        w.do(f"br i1 {w.ins(f'icmp ne i64 {flag}, 0')}, label %{more}, label %{after}")
        self._open(more)
        if step.trips is None:
            w.do(f"br label %{body}")
        else:
            below = w.ins(f"icmp slt i64 {w.value(sym(step.iteration))}, {w.value(step.trips)}")
            w.do(f"br i1 {below}, label %{body}, label %{after}")
        self._open(body)
        self._steps(step.body)
        if step.following is not None:
            w.do(f"store i64 {w.ins(f'zext i1 {self._bool(step.following)} to i64')}, ptr {going}")
            self._barrier()
        values = [w.value(definition.value) for definition in step.carried]
        for definition, value in zip(step.carried, values, strict=True):
            self._set(definition.symbol, value)
        self._set(step.iteration, w.value(sym(step.iteration) + 1))
        w.do(f"br label %{test}")
        self._open(after)
        self._set(step.count, w.value(sym(step.iteration)))

    def _results(self) -> None:
        """The dims of outputs that are known only now go where the caller finds them."""
        writes = []
        program = self._program
        for value, at, buffer in zip(program.outputs, program.state.outputs, program.results or (None,) * len(program.outputs), strict=True):
            for axis, dim in enumerate(value.type.shape if buffer is not None else ()):
                place = self._writer.ins(f"getelementptr i64, ptr %slot{STATE}, i64 {at + axis}")
                writes.append(f"store i64 {self._writer.value(dim)}, ptr {place}")
        if writes:
            self._first_only(writes)


def _going(step: Repeat) -> str:
    """The variable that holds whether a loop goes on; no symbol has such a name."""
    return f"{step.iteration}?"


def _defined(steps: tuple[Step, ...]) -> list[str]:
    """Every name that a step gives a value."""
    names: list[str] = []
    for step in walk(steps):
        match step:
            case Read():
                names += step.symbols
            case Define():
                names.append(step.symbol)
            case Repeat():
                names += [step.iteration, step.count, _going(step), *(definition.symbol for definition in step.carried)]
            case Shares():
                names.append(SHARE)
    return names
