"""The fast path of a kernel, counted in its machine code: what a warp issues per element.

The instructions of a kernel are a graph, and what a warp executes on ordinary input is one path of it. It
is found from the listing alone. How often a loop runs depends on the shape, so that is said: trips per
entry, of each loop in the order of the listing, an outer one before those inside. Of all paths from the
first instruction to an `EXIT` the fast one runs the most of the loops that have trips, makes the most of
the widest loads, then the most stores, calls the fewest subroutines (to which nvcc leaves rare cases of a
division or a square root), and then is the shortest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# executed by units with 16 lanes per multiprocessor and cycle
SPECIAL = re.compile(r"(MUFU|F2I|F2F|FRND|I2F)\b")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([^\s;]+)\s*([^;]*);", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_x_\d+):", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True, order=True)
class Cost:
    """What a path costs; of two paths the smaller is taken, so what is to be had the most of is negative."""

    loops: int = 0  # negative
    wide_loads: int = 0  # negative
    stores: int = 0  # negative
    calls: int = 0
    instructions: int = 0
    special: int = 0

    def __add__(self, other: Cost) -> Cost:
        return self.plus(other, 1)

    def plus(self, other: Cost, times: int) -> Cost:
        return Cost(
            self.loops + times * other.loops,
            self.wide_loads + times * other.wide_loads,
            self.stores + times * other.stores,
            self.calls + times * other.calls,
            self.instructions + times * other.instructions,
            self.special + times * other.special,
        )


@dataclass
class Block:
    """Instructions that are executed one after the other, and the blocks that may follow."""

    cost: Cost = field(default_factory=Cost)
    after: list[int] = field(default_factory=list)
    ends: bool = False


def blocks_of(listing: str) -> dict[int, Block]:
    """The blocks of a kernel's listing, by the address of their first instruction."""
    instructions = [
        (int(match[1], 16), bool(match[2]), match[3], match[4], match.start())
        for match in _INSTRUCTION.finditer(listing)
    ]
    place_of = {match[1]: match.start() for match in _LABEL.finditer(listing)}
    address_of = {
        label: next((address for address, *_, at in instructions if at > place), -1)
        for label, place in place_of.items()
    }
    widest = max((_width(opcode) for _, _, opcode, *_ in instructions if opcode.startswith("LDG")), default=0)

    blocks: dict[int, Block] = {}
    barriers: dict[str, int] = {}  # where the lanes meet again, by the barrier's name
    leaders = {0, *address_of.values()}
    block = blocks[0] = Block()
    fallen = True  # whether the block before goes on to this one
    for number, (address, predicated, opcode, operands, _) in enumerate(instructions):
        if address in leaders and address != 0:
            if fallen:
                block.after.append(address)
            block = blocks.setdefault(address, Block())
        block.cost += Cost(
            wide_loads=-(opcode.startswith("LDG") and _width(opcode) == widest),
            stores=-opcode.startswith(("STG", "STS", "RED", "ATOM")),
            calls=opcode.startswith("CALL"),
            instructions=opcode != "NOP",
            special=bool(SPECIAL.match(opcode)),
        )
        kind = opcode.partition(".")[0]
        target = _TARGET.search(operands)
        fallen = True
        ends_block = False
        if kind == "BSSY":
            barriers[operands.partition(",")[0]] = address_of[target[1]]
        elif kind == "BSYNC":
            block.after.append(barriers[operands.strip()])
            fallen, ends_block = predicated, True
        elif kind == "BRA" and not opcode.startswith(
            "BRA.DIV"
        ):  # that one is taken by a warp in pieces alone
            block.after.append(address_of[target[1]])
            fallen, ends_block = predicated or bool(re.match(r"!?U?P\w+,", operands)), True
        elif kind in ("EXIT", "RET") and not predicated:  # the lanes that do not leave go on
            block.ends, fallen, ends_block = True, False, True
        elif kind in ("BRX", "JMP", "JMX"):
            raise ValueError(f"{opcode} at {address:#x} goes to where the listing does not say")
        if ends_block and number + 1 < len(instructions):
            leaders.add(instructions[number + 1][0])
    return blocks


def _width(opcode: str) -> int:
    width = re.search(r"\.(64|128)\b", opcode)
    return int(width[1]) if width else 32


@dataclass
class Loop:
    """The blocks of a loop; `head` is entered from outside."""

    head: int
    blocks: set[int]
    latches: set[int]  # those that go back to the head


def loops_of(blocks: dict[int, Block]) -> list[Loop]:
    """The loops in the order of the listing, an outer one before those inside."""
    before: dict[int, set[int]] = {address: set() for address in blocks}
    order: list[int] = []
    on_path: set[int] = set()
    seen: set[int] = set()
    back: list[tuple[int, int]] = []
    stack: list[tuple[int, Iterable[int]]] = [(0, iter(blocks[0].after))]
    seen.add(0)
    on_path.add(0)
    while stack:
        address, after = stack[-1]
        for following in after:
            before[following].add(address)
            if following in on_path:
                back.append((address, following))
            elif following not in seen:
                seen.add(following)
                on_path.add(following)
                stack.append((following, iter(blocks[following].after)))
                break
        else:
            stack.pop()
            on_path.remove(address)
            order.append(address)

    loops: dict[int, Loop] = {}
    for latch, head in back:
        loop = loops.setdefault(head, Loop(head, {head}, set()))
        loop.latches.add(latch)
        reached = [latch]
        while reached:
            address = reached.pop()
            if address not in loop.blocks:
                loop.blocks.add(address)
                reached += before[address]
    return sorted(loops.values(), key=lambda loop: (loop.head, -len(loop.blocks)))


def fast_path(listing: str, trips: Sequence[int]) -> Cost:
    """The cost of the fast path, where the loops run `trips` times.

    Raises a ValueError where the number of loops is another, or where no path has these trips.
    """
    blocks, loops = _blocks_and_loops(listing, len(trips))
    runs = {loop.head: count for loop, count in zip(loops, trips, strict=True)}
    ends = _costs(blocks, set(blocks), 0, loops, runs)
    costs = [cost for address, cost in ends.items() if blocks[address].ends]
    if not costs:
        raise ValueError("no path to its end has these trips")
    return min(costs)


def one_turn(listing: str, number: int, num_loops: int) -> Cost:
    """The cost of one turn of a loop, where those inside it do not run; raises as `fast_path` does."""
    blocks, loops = _blocks_and_loops(listing, num_loops)
    loop = loops[number]
    ends = _costs(blocks, loop.blocks, loop.head, loops, dict.fromkeys((each.head for each in loops), 0))
    costs = [cost for address, cost in ends.items() if address in loop.latches]
    if not costs:
        raise ValueError(f"no turn of loop {number} is without those inside it")
    return min(costs)


def _blocks_and_loops(listing: str, num_loops: int) -> tuple[dict[int, Block], list[Loop]]:
    blocks = blocks_of(listing)
    loops = loops_of(blocks)
    if len(loops) != num_loops:
        heads = ", ".join(f"{loop.head:#x}" for loop in loops)
        raise ValueError(f"it has {len(loops)} loops ({heads}), not {num_loops}")
    return blocks, loops


def _costs(
    blocks: dict[int, Block], region: set[int], head: int, loops: Sequence[Loop], runs: dict[int, int]
) -> dict[int, Cost]:
    """The least cost from the start of `head` to the end of each block of the region, never back at head."""
    inner = [loop for loop in loops if loop.blocks <= region and loop.head != head]
    outermost = [loop for loop in inner if not any(loop.blocks < other.blocks for other in inner)]
    loop_at = {loop.head: loop for loop in outermost}

    def leave(address: int) -> list[tuple[int, Cost]]:
        """Where a block, or the loop that it heads, is left, and the cost from its start to there."""
        if address not in loop_at:
            return [(address, blocks[address].cost)]
        loop, count = loop_at[address], runs[address]
        once = _costs(blocks, loop.blocks, address, inner, runs)
        around = min((once[latch] for latch in loop.latches if latch in once), default=None)
        if around is None:
            return []
        entered = Cost(loops=-(count > 0))
        exits = []
        for block in loop.blocks & set(once):
            if blocks[block].ends or any(following not in loop.blocks for following in blocks[block].after):
                times = count - 1 if block in loop.latches else count  # the last time is not gone back from
                if times >= 0:
                    exits.append((block, entered + once[block].plus(around, times)))
        return exits

    costs: dict[int, Cost] = {}
    reached: dict[int, Cost] = {head: Cost()}
    for address in _order(blocks, region, head, loop_at):
        if address not in reached:  # by no path with these trips
            continue
        for block, cost in leave(address):
            total = reached[address] + cost
            costs[block] = min(costs.get(block, total), total)
            of_loop = loop_at[address].blocks if address in loop_at else {address}
            for following in blocks[block].after:
                if following in region and following != head and following not in of_loop:
                    reached[following] = min(reached.get(following, total), total)
    return costs


def _order(blocks: dict[int, Block], region: set[int], head: int, loop_at: dict[int, Loop]) -> list[int]:
    """The region's blocks, each after those that go to it; of a loop inside its head alone."""
    order: list[int] = []
    seen = {head}

    def following(address: int) -> set[int]:
        members = loop_at[address].blocks if address in loop_at else {address}
        return {
            after
            for member in members
            for after in blocks[member].after
            if after in region and after not in members and after != head
        }

    stack = [(head, iter(sorted(following(head))))]
    while stack:
        address, after = stack[-1]
        for following_block in after:
            if following_block not in seen:
                seen.add(following_block)
                stack.append((following_block, iter(sorted(following(following_block)))))
                break
        else:
            stack.pop()
            order.append(address)
    return order[::-1]
