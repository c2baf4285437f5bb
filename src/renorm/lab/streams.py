"""Random numbers for one purpose each, all from the seed of a run."""

from numpy.random import SeedSequence
from torch import Generator

# what draws; the weights draw from torch's own generator, which the run seeds
ORDER, TEST, VIEWS, TEST_VIEWS = range(1, 5)


def stream(seed: int, purpose: int) -> Generator:
    """A generator that is independent of those of other seeds and other purposes.

    torch's CPU generator looks at 32 bits of a seed alone, so seeds that are far apart can be the
    same to it; these are mixed from both numbers.

    >>> import torch
    >>> first, second = (torch.rand(2, generator=stream(0, use)) for use in (ORDER, TEST))
    >>> bool((first != second).all())
    True

    Args:
        seed: of the run, at least 0.
        purpose: any number of its own, at least 0.
    """
    (mixed,) = SeedSequence(seed, spawn_key=(purpose,)).generate_state(1).tolist()
    return Generator().manual_seed(mixed)
