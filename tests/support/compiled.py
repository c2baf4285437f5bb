"""Compile every device program, for a device that need not be there: no launch, no interpreter."""

import os
import sys
from typing import Any

import torch


class Device:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> Any:
        """One of compute capability 8.0, the oldest that is served."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(dtype: torch.dtype) -> None:
    """Raise if a program does not compile; each in the variant with the most in it."""
    import triton.language as tl
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    from renorm.kernels.cuda import programs

    active: Any = Device()
    driver.set_active(active)
    double = dtype == torch.float64
    acc = torch.float64 if double else torch.float32
    x, vector, counter, flag = (MockTensor(t) for t in (dtype, acc, torch.int64, torch.bool))
    setting: Any = (vector, None) if double else (None, 0.1)
    limit = setting if double else (1.0, 3.0, 5, 9)
    sizes, part = (16, 8, 7), (8, 28)  # S = 28 = 7 * 4
    tile = {"BN": 16, "BC": 2, "BS": 32, "V": 4, "INDEX": tl.int32, "num_warps": 2}
    tile["ACC"] = tl.float64 if double else tl.float32
    relu, eps, merge = {"RELU": True}, {"EPS": 1e-5}, {"BP": 4}
    settings = (*[vector] * 5, limit, limit, setting, None if double else counter, *sizes)
    results = (vector, vector, vector, *sizes)
    for residual in (x, None):
        programs.whole_forward.warmup(x, x, residual, *settings, **tile, **relu, **eps, grid=(1,))
        programs.whole_backward.warmup(
            x, x, residual, x, residual, *results, **tile, **relu, grid=(1,)
        )
    programs.measure.warmup(x, vector, *sizes, *part, **tile, grid=(1,))
    programs.normalize.warmup(
        x, x, x, vector, *settings, *part, 4, **tile, **relu, **eps, **merge, grid=(1,)
    )
    programs.measure_gradient.warmup(
        x, x, None, vector, vector, *sizes, *part, **tile, **relu, grid=(1,)
    )
    programs.propagate.warmup(
        x, x, x, x, x, vector, *results, *part, 4, **tile, **relu, **merge, grid=(1,)
    )
    shape = {"ACC": tile["ACC"], "BC": 32, "num_warps": 1}
    programs.commit.warmup(*[vector] * 5, counter, None, 8, **shape, grid=(1,))
    programs.commit.warmup(*[vector] * 5, None, flag, 8, **shape, grid=(1,))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    _, os.environ["TRITON_CACHE_DIR"], *names = sys.argv
    for name in names:
        print(name, file=sys.stderr)
        compile_all(getattr(torch, name))
