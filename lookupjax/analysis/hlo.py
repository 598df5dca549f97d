"""Reading XLA's compiled modules: collectives by kind and bytes, the largest buffers, memory traffic."""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "s4": 4, "u4": 4}  # others end in their bits
CONTROL = ("while", "call", "conditional")  # whose computations hold instructions as the module itself does
NO_BUFFER = ("parameter", "tuple", "get-tuple-element", "bitcast", *CONTROL)

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\([^=]*?\)|\S+) ([\w-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|called_computations)=\{?%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERANDS = re.compile(r"\((.*?)\)(?:, |$)")
_NAME = re.compile(r"%([\w.-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")  # "/*index=5*/" in long tuples
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_OPERATION = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    name: str
    kind: str
    arrays: tuple[int, ...]  # bytes of the results
    runs: int  # per execution of the module: bodies of loops run several times
    operation: str  # of the traced program, such as "jit(train_step)/.../dot_general"
    type: str
    operands: tuple[str, ...]  # names of instructions
    computation: str
    alone: bool  # not a part of a fusion or a reduction


def array_bytes(text: str) -> tuple[int, ...]:
    """Bytes of every array in a type, such as "(f32[8,128]{1,0}, bf16[4])"."""
    sizes = []
    for dtype, dims in _ARRAY.findall(text):
        digits = re.search(r"\d+$", dtype)
        bits = BITS.get(dtype) or (int(digits[0]) if digits else 0)
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * bits // 8)
    return tuple(sizes)


def _trips(line: str, bounds: dict[str, list[str]]) -> int:
    """How often the loop of this line runs; 1 when the module does not say."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    bound = bounds[condition[1]] if condition else []
    return int(bound[0]) if len(bound) == 1 else 1


def instructions(text: str) -> list[Instruction]:
    """Every instruction of a module, with how often one execution runs it.

    CPU modules say how often a loop runs; in a TPU module it is the constant its condition compares with.
    """
    text = _COMMENT.sub("", text)
    bounds: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[tuple[str, str, str, str, tuple[str, ...]]]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int, bool]]] = defaultdict(list)
    entry = computation = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            computation = head[1]
            entry = computation if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            name, kind_of, kind = match.groups()
            operation = _OPERATION.search(line)
            operands = _OPERANDS.match(line, match.end(3))
            names = tuple(_NAME.findall(operands[1])) if operands else ()
            found[computation].append((name, kind_of, kind, operation[1] if operation else "", names))
            bounds[computation] += _BOUND.findall(line)
            times = _trips(line, bounds) if kind == "while" else 1
            called = _CALLED.findall(line) + [n for b in _BRANCHES.findall(line) for n in _NAME.findall(b)]
            calls[computation] += [(one, times, kind in CONTROL) for one in called]
    runs: Counter[str] = Counter()
    alone: set[str] = set()

    def visit(name: str, times: int, control: bool) -> None:
        runs[name] += times
        if control:
            alone.add(name)
        for called, trips, in_turn in calls[name]:
            visit(called, times * trips, control and in_turn)

    visit(entry, 1, True)
    return [
        Instruction(
            name, kind, array_bytes(type_), runs[inside], operation, type_, operands, inside, inside in alone
        )
        for inside, rows in found.items()
        for name, type_, kind, operation, operands in rows
    ]


def collectives(program: list[Instruction]) -> dict[str, tuple[int, int]]:
    """{kind: (executions, bytes of the results per device)} of the communication in one execution."""
    totals: dict[str, tuple[int, int]] = {}
    for one in program:
        kind = one.kind.removesuffix("-start")
        if kind not in COLLECTIVES or not one.runs:
            continue
        # an asynchronous start holds its operand beside its result, except for all-reduce
        alone = one.kind == kind or kind == "all-reduce"
        size = sum(one.arrays) if alone else max(one.arrays, default=0)
        count, total = totals.get(kind, (0, 0))
        totals[kind] = (count + one.runs, total + one.runs * size)
    return totals


def largest_buffers(program: list[Instruction], count: int = 8) -> list[str]:
    """Lines naming the largest results of operations of the traced program."""
    named = {}
    for one in program:
        if one.runs and one.operation and one.kind not in NO_BUFFER:
            key = (one.type.partition("{")[0], one.operation)
            named[key] = max(sum(one.arrays), named.get(key, 0))
    largest = sorted(named.items(), key=lambda item: -item[1])[:count]
    return [f"{size / 2**20:10.1f} MiB  {kind:28s} {operation}" for (kind, operation), size in largest]


def traffic(program: list[Instruction]) -> int:
    """Bytes of operands and results of all instructions that one execution runs, prefetches left out."""
    sizes = {(one.computation, one.name): sum(one.arrays) for one in program}
    total = 0
    for one in program:
        moves = one.kind not in (*NO_BUFFER, "constant") and not one.kind.endswith(("-start", "-done"))
        if one.alone and one.runs and moves:
            read = sum(sizes.get((one.computation, name), 0) for name in one.operands)
            total += one.runs * (sum(one.arrays) + read)
    return total
