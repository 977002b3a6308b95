"""Reads the text of a compiled program: computations, instructions, and how often a step executes them."""

import re
from collections.abc import Iterator

ENTRY = "ENTRY"
Computations = dict[str, dict[str, str]]  # name (ENTRY for the main one) -> instructions by name
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(
    r"(calls|body|condition|branch_computations|called_computations)=(?:%?([\w.\-]+)|\{([^}]*)\})"
)


def computations(text: str) -> Computations:
    """Splits a program, `compiled.as_text()`, into computations and instructions."""
    found: Computations = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = found[ENTRY if match[1] else match[2]] = {}
        elif match := INSTRUCTION.match(line):
            current[match[1]] = match[2]
    return found


def executed(computations: Computations, name: str = ENTRY, times: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yields (executions in a step, name of the computation, text) of every instruction."""
    for line in computations[name].values():
        yield times, name, line
        called = {
            kind: [callee.strip("% ") for callee in (one or several).split(",")]
            for kind, one, several in CALLED.findall(line)
        }
        repeat = 1
        if "condition" in called:
            repeat = _trip_count(*(computations[called[part][0]] for part in ("condition", "body")))
        for callees in called.values():
            for callee in callees:
                if callee in computations:
                    yield from executed(computations, callee, times * repeat)


def _trip_count(condition: dict[str, str], body: dict[str, str]) -> int:
    """Repetitions of a loop whose counter starts at 0 and grows by a constant up to another constant."""
    *_, test = condition.values()
    counter, limit = _operands(test)[:2]
    place = int(_searched(r"index=(\d+)", condition[counter]))
    *_, result = body.values()
    grown = body[_operands(result)[place]]
    step = next((n for name in _operands(grown) if (n := _constant(body.get(name, "")))), 1)
    return -(-(_constant(condition[limit]) or 1) // step)


def _operands(line: str) -> list[str]:
    """Names the operands of an instruction."""
    return re.findall(r"%([\w.\-]+)", _searched(r" [\w\-]+\(((?:/\*.*?\*/|[^()])*)\)", line))


def _searched(pattern: str, line: str) -> str:
    """Returns the pattern's group in a line that must match."""
    match = re.search(pattern, line)
    assert match, line
    return match[1]


def _constant(line: str) -> int | None:
    match = re.search(r" constant\((\d+)\)", line)
    return int(match[1]) if match else None
