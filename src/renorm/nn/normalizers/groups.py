"""Groups of neighbouring channels, told by their number or by their size."""

from renorm.errors import ArgumentError

GROUPS = 32


def group_count(channels: int, groups: int | None, group_size: int | None) -> int:
    """The number of groups.

    Args:
        channels: at least 1.
        groups: how many groups; 32 without, or one per channel where there are fewer.
        group_size: channels per group, instead of ``groups``.

    Raises:
        ArgumentError: both are given, or one that does not divide the channels.

    >>> group_count(64, None, 4)
    16
    """
    if groups is not None and group_size is not None:
        raise ArgumentError(
            f"groups and group_size say the same twice, got groups={groups} and "
            f"group_size={group_size}. Give one of them."
        )
    name, value = ("groups", groups) if group_size is None else ("group_size", group_size)
    if value is None:
        value = min(GROUPS, channels)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or channels % value:
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        raise ArgumentError(
            f"{name} must divide the {channels} channels, got {value!r}. It can be one of "
            f"{', '.join(map(str, divisors))}."
        )
    return value if group_size is None else channels // value
