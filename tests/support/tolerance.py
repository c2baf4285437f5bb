"""How far a result may be from the exact one, derived from the dtype; an unknown dtype raises."""

import torch
from torch import Tensor

# float64: about 4,500 roundings of 2.2e-16; float32: about 30 of 6e-8, an order below what a
# forgotten eps of 1e-5 shows
_ARITHMETIC = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,  # computed in float32 ...
    torch.float16: 2e-6,
}
# ... and rounded once when stored
_STORAGE = {
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def bound(dtype: torch.dtype, scale: float, offset: float = 1.0) -> float:
    """Largest allowed absolute error of a result of size ``scale``.

    Args:
        dtype: of the input; statistics of half types are float32.
        scale: the size of the exact result, or of the terms that are added up to it.
        offset: |mean| / std of the input, which multiplies the rounding of x - mean.
    """
    return scale * (_ARITHMETIC[dtype] * max(1.0, offset) + _STORAGE[dtype])


def assert_close(
    name: str,
    actual: Tensor | None,
    exact: Tensor,
    dtype: torch.dtype,
    *,
    scale: float | None = None,
    offset: float = 1.0,
) -> None:
    """Raise unless ``actual`` is within ``bound`` of ``exact`` everywhere; NaN is never close."""
    assert actual is not None, f"{name} is None"
    assert actual.shape == exact.shape, f"{name} has shape {actual.shape}, not {exact.shape}"
    if exact.numel() == 0:
        return
    size = float(exact.abs().max()) if scale is None else scale
    error = float((actual.detach().to(torch.float64) - exact).abs().max())
    allowed = bound(dtype, size, offset)
    assert error <= allowed, f"{name} is off by {error:.3g}, allowed are {allowed:.3g}"
