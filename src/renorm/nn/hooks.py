"""What else takes part in the call of a module, so that leaving the call out would be noticed."""

from torch import nn


def watched(module: nn.Module) -> bool:
    """Whether anything of the module's own sees or replaces its call."""
    return bool(module._forward_pre_hooks or output_watched(module))


def output_watched(module: nn.Module) -> bool:
    """Whether anything of the module's own sees its output or the gradient of that.

    A forward that was set on the instance, as some wrappers do, stands for all they might see.
    """
    return bool(
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
