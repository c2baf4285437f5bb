"""All that a model is, to compare before and after."""

import copy

import torch


def everything(model):
    """All that can be seen of a model from outside, in comparable form."""
    seen = []
    for module in model.modules():
        attributes = dict(vars(module))
        for name in ("_parameters", "_buffers"):
            tensors = attributes.pop(name)
            seen += [(name, key, id(t), t.tolist()) for key, t in tensors.items() if t is not None]
        attributes.pop("_modules")
        hooks = {k: list(v) for k, v in attributes.items() if k.endswith(("hooks", "kwargs"))}
        rest = {k: v for k, v in attributes.items() if k not in hooks}
        seen.append((rest, hooks))
    return copy.copy(seen), torch.get_rng_state().tolist()
