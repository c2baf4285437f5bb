"""Whether a program is being exported, which is not the same as compiled."""

import torch

_HAS_FLAG = hasattr(torch.compiler, "_is_exporting_flag")


def is_exporting() -> bool:
    """Whether torch.export is at work.

    While torch.compile traces, torch 2.10 takes torch's own function of this name to be true; the
    flag that it reads says what is the case.
    """
    if _HAS_FLAG:
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting()
