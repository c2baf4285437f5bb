"""How the device programs are launched: tile sizes, parts and warps, from sizes alone."""

from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

# (N, C, S) as the values lie in memory; S == 1 for rows of channels
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Settings:
    """Every number that a launch depends on.

    All are derived from the registers that Triton 3.7 takes when it compiles for compute capability
    9.0, and from the sizes there (65,536 registers and 2,048 threads a multiprocessor, sectors of
    32 bytes in lines of 128). None was tuned by time.

    Args:
        whole: most values of a tile that holds all of its channels: 512 threads, of which the
            registers allow one or two programs a multiprocessor.
        whole_values: values a thread of such a tile. The backward holds x and dy, and where lines
            are too odd to be loaded 4 at a time an offset for each value; with 32 it would take
            up to 200 registers.
        whole_channels: width of such a tile where channels lie side by side: 16 values of 2
            bytes are one sector.
        tile: values of a tile in a loop over one part: 4 warps of 16 values a thread, which loads
            64 bytes of float32 at once. In 64 to 140 registers, 3 to 8 such programs keep 24 KB
            or more under way, about what a multiprocessor's share of bandwidth times latency is.
        tile_warps: of such a tile.
        tile_channels: width of such a tile where channels lie side by side: 32 values of 2 bytes
            are two sectors.
        programs: a multiprocessor's programs, as many as run there at once by their registers.
            Parts are cut until there are so many; whole channels share one if there are more.
        part_tiles: least tiles in a part, so that a loop pays for what surrounds it.
        part_share: a part has so many times as many values a channel as there are parts: each
            program of the second pass reads 3 numbers of every part, which should stay below a
            quarter of its own work.
        merge: most values of a tile over parts and channels: 32 a thread of 4 warps; at 128 a
            thread they no longer fit into registers.
        commit: channels that the one program of the commit takes at a time, one a thread of 32
            warps.
    """

    whole: int = 8_192
    whole_values: int = 16
    whole_channels: int = 16
    tile: int = 2_048
    tile_warps: int = 4
    tile_channels: int = 32
    programs: int = 4
    part_tiles: int = 4
    part_share: int = 16
    merge: int = 4_096
    commit: int = 1_024


SETTINGS = Settings()


class Plan(NamedTuple):
    """One launch over values (N, C, S) in tiles (BN, BC, BS)."""

    tile: tuple[int, int, int]
    blocks: int  # programs across the channels
    parts: int  # programs that share a channel; 0: one program takes whole channels
    n_part: int  # examples of a part
    s_part: int  # positions of a part
    warps: int


def plan(sizes: Sizes, processors: int, settings: Settings | None = None) -> Plan:
    """The launch for tensors of these sizes on a device of so many multiprocessors."""
    t = SETTINGS if settings is None else settings
    n, c, s = sizes
    bn, bc, bs = power(n), _width(t.whole_channels, c, s), power(s)
    if bn * bc * bs > t.whole:
        return _in_parts(sizes, processors, t)
    while bc < c and -(-c // bc) > t.programs * processors and 2 * bn * bc * bs <= t.whole:
        bc *= 2
    warps = max(1, min(16, bn * bc * bs // (32 * t.whole_values)))
    return Plan((bn, bc, bs), -(-c // bc), 0, n, s, warps)


def _in_parts(sizes: Sizes, processors: int, t: Settings) -> Plan:
    n, c, s = sizes
    bs = min(power(s), t.tile)
    bc = min(_width(t.tile_channels, c, s), t.tile // bs)
    bn = min(power(n), t.tile // (bs * bc))
    blocks, rows, columns = -(-c // bc), -(-n // bn), -(-s // bs)
    wanted = min(
        t.programs * processors // blocks,
        rows * columns // t.part_tiles,
        isqrt(n * s // t.part_share),
        t.merge // bc,
    )
    across_n = max(1, min(wanted, rows))
    across_s = max(1, min(wanted // across_n, columns))
    n_part, s_part = -(-rows // across_n) * bn, -(-columns // across_s) * bs
    parts = -(-n // n_part) * -(-s // s_part)
    return Plan((bn, bc, bs), blocks, parts, n_part, s_part, t.tile_warps)


def _width(channels: int, c: int, s: int) -> int:
    """Channels of a tile whose lines have about ``channels`` values."""
    return min(max(1, channels // power(s)), power(c))


def power(n: int) -> int:
    """The smallest power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()
