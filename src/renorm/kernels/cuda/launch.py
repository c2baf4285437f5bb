"""How the device programs are launched: tile sizes, parts and warps, from sizes alone."""

from dataclasses import dataclass
from typing import NamedTuple

from renorm.kernels.cpu import Sizes


@dataclass(frozen=True)
class Settings:
    """Every number that a launch depends on.

    All are derived from the sizes of register files and memory transactions (compute capability
    8.0 to 9.0: 65,536 registers and 2,048 threads a multiprocessor, sectors of 32 bytes); none
    was tuned on a device.

    Args:
        whole: most values of a tile that holds all of its channels. At 32 values a thread the
            backward keeps x and dy in 64 registers, and 16,384 values take 512 threads: two such
            programs fill a register file when each thread has 64.
        whole_channels: width of such a tile where channels lie side by side: 16 values of 2
            bytes are one sector.
        values_per_thread: of a tile that holds all of its channels.
        tile: values of a tile in a loop over one part. 4 warps of 16 values each: the forward
            keeps three sums and shifts of each value in registers and loads 64 bytes a thread
            at once, so 8 programs a multiprocessor have 64 KB under way; bandwidth times latency
            is about 20 KB there.
        tile_channels: width of such a tile where channels lie side by side: 64 values of 2 bytes
            are a whole line of 128 bytes.
        tile_warps: of such a tile.
        programs: parts are cut until there are this many programs a multiprocessor: 8 of 4 warps
            with 64 registers a thread fill the register file.
        part_tiles: least tiles in a part: below 4, merging costs as much as measuring.
        most_parts: bounds what each program of the second pass reads to merge them.
        commit: channels that the one program of the commit takes at a time, one a thread of 32
            warps.
    """

    whole: int = 16_384
    whole_channels: int = 16
    values_per_thread: int = 32
    tile: int = 2_048
    tile_channels: int = 64
    tile_warps: int = 4
    programs: int = 8
    part_tiles: int = 4
    most_parts: int = 256
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
    tile = (power(n), _width(t.whole_channels, c, s), power(s))
    values = tile[0] * tile[1] * tile[2]
    if values <= t.whole:
        warps = max(1, min(16, power(values // (32 * t.values_per_thread))))
        return Plan(tile, -(-c // tile[1]), 0, n, s, warps)
    return _in_parts(sizes, processors, t)


def _in_parts(sizes: Sizes, processors: int, t: Settings) -> Plan:
    n, c, s = sizes
    bs = min(power(s), t.tile)
    bc = min(_width(t.tile_channels, c, s), t.tile // bs)
    bn = min(power(n), t.tile // (bs * bc))
    blocks, rows, columns = -(-c // bc), -(-n // bn), -(-s // bs)
    wanted = min(t.programs * processors // blocks, rows * columns // t.part_tiles, t.most_parts)
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
