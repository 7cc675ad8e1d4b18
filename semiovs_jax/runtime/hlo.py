"""Inspects optimized HLO: the collectives of a program, and what a train step must not contain.

The text is that of `jax.stages.Compiled.as_text()`: tables of the Python source lines, then one instruction per line,
`%name = shape opcode(operands), attributes`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.errors import first_few

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_DYNAMIC_OPCODES = ("dynamic-reshape", "set-dimension-size", "get-dimension-size")
_DYNAMIC_TARGETS = ("PadToStatic", "SliceToDynamic")
_HOST_OPCODES = ("infeed", "outfeed")
_LISTED = 3  # operations listed per kind of fault

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[^\]]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One HLO instruction.

    Attributes:
      name: unique within its computation.
      shape: the shape or tuple of shapes as text, such as "(f32[8,16]{1,0}, u32[])".
      opcode: such as "all-reduce".
      attributes: the text after the opcode, operands included.
      source: the operation in the traced program, with its Python line if the text has it.
    """

    name: str
    shape: str
    opcode: str
    attributes: str
    source: str


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: opcode without "-start".
      num_bytes: size of its result on each device.
      source: see `Instruction`.
    """

    kind: str
    num_bytes: int
    source: str


def parse_instructions(text: str) -> list[Instruction]:
    """All instructions of all computations, in the order of the text."""
    lines = text.splitlines()
    source_lines = _source_lines(lines)
    instructions = []
    for line in lines:
        if (match := _INSTRUCTION.match(line)) and (parts := _split_shape(match["rest"])):
            shape, opcode, attributes = parts
            instructions.append(
                Instruction(match["name"], shape, opcode, attributes, _source(attributes, source_lines))
            )
    return instructions


def shape_bytes(shape: str) -> int:
    """Bytes of a shape, without the padding of its layout; the elements of a tuple are summed."""
    return sum(_array_bytes(match) for match in _ARRAY.finditer(shape))


def find_collectives(instructions: Iterable[Instruction]) -> list[Collective]:
    """The collectives of a program; one inside a loop counts once.

    A collective that is fused with computation occurs several times in the text, with the same channel; it counts once.
    """
    found: dict[tuple[str, str | int], Collective] = {}
    for index, instruction in enumerate(instructions):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            continue
        arrays = [_array_bytes(match) for match in _ARRAY.finditer(instruction.shape)]
        # The shapes of these are (operands, results, context); only the results count.
        if instruction.opcode in ("all-gather-start", "collective-permute-start") and len(arrays) > 1:
            arrays = arrays[1:2]
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = (kind, channel[1]) if channel else (kind, index)
        found.setdefault(key, Collective(kind, sum(arrays), instruction.source))
    return list(found.values())


def find_faults(instructions: Sequence[Instruction], *, data_parallel: bool) -> list[str]:
    """Finds what a train step must not contain.

    Args:
      instructions: the program.
      data_parallel: whether only the batch is split over the devices. Devices then need to exchange only sums, of
        gradients, statistics and losses.

    Returns:
      One line per kind of fault, with its operations; empty for a clean program.
    """
    faults = {
        "calls back to the host": [i.source for i in instructions if _calls_host(i)],
        "computes in float64": [i.source for i in instructions if re.search(r"\b(f64|c128)\[", i.shape)],
        "has a dynamic shape": [i.source for i in instructions if _is_dynamic(i)],
    }
    if data_parallel:
        faults["moves data between devices other than by all-reduce"] = [
            f"{c.kind} of {c.num_bytes:,} bytes: {c.source}"
            for c in find_collectives(instructions)
            if c.kind != "all-reduce"
        ]
    unique = {fault: list(dict.fromkeys(sources)) for fault, sources in faults.items() if sources}
    return [f"{fault}: {first_few(sources, _LISTED)}" for fault, sources in unique.items()]


def _calls_host(instruction: Instruction) -> bool:
    target = _call_target(instruction)
    return (
        instruction.opcode in _HOST_OPCODES
        or "is_host_transfer=true" in instruction.attributes
        or "callback" in target.lower()
    )


def _is_dynamic(instruction: Instruction) -> bool:
    return (
        instruction.opcode in _DYNAMIC_OPCODES
        or _call_target(instruction) in _DYNAMIC_TARGETS
        or any("<=" in match["dims"] for match in _ARRAY.finditer(instruction.shape))
    )


def _call_target(instruction: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return match[1] if match else ""


def _split_shape(rest: str) -> tuple[str, str, str] | None:
    """Splits "shape opcode(operands), attributes"; None for other text."""
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == " ":
            opcode, parenthesis, attributes = rest[end + 1 :].partition("(")
            return (rest[:end], opcode, attributes) if parenthesis else None
    return None


def _array_bytes(array: re.Match[str]) -> int:
    elements = 1
    for size in array["dims"].split(","):
        elements *= int(size.removeprefix("<=")) if size else 1
    return (elements * _bits(array["dtype"]) + 7) // 8


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    match = _BITS.match(dtype)
    return int(match[1]) if match else 0  # token[] and opaque[] have no size


def _source(attributes: str, source_lines: dict[str, str]) -> str:
    operation = re.search(r'op_name="([^"]*)"', attributes)
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    line = source_lines.get(frame[1]) if frame else None
    name = operation[1] if operation else "an operation without a name"
    return f"{name} ({line})" if line else name


def _source_lines(lines: Sequence[str]) -> dict[str, str]:
    """FILE:LINE by stack frame id, from the tables at the start of the text."""
    files = {number: name.strip('"') for number, name in _table(lines, "FileNames")}
    locations = {}
    for number, entry in _table(lines, "FileLocations"):
        fields = dict(re.findall(r"(\w+)=(\d+)", entry))
        locations[number] = f"{files.get(fields['file_name_id'], '?')}:{fields['line']}"
    frames = {}
    for number, entry in _table(lines, "StackFrames"):
        fields = dict(re.findall(r"(\w+)=(\d+)", entry))
        if location := locations.get(fields["file_location_id"]):
            frames[number] = location
    return frames


def _table(lines: Sequence[str], title: str) -> Iterator[tuple[str, str]]:
    if title not in lines:
        return
    for line in lines[lines.index(title) + 1 :]:
        number, _, entry = line.partition(" ")
        if not number.isdigit():
            return
        yield number, entry
