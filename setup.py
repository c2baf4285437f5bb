"""The optional C extension; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

CPU = Path("src/renorm/kernels/cpu")

setup(
    ext_modules=[
        Extension(
            "renorm.kernels.cpu._native",
            sources=sorted(str(path) for path in CPU.glob("*.c")),
            depends=sorted(str(path) for path in CPU.glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            # contraction to fused multiply-add, no errno after sqrt and no floating-point traps
            # change no result but the last bit: NaN and infinity behave as they must
            extra_compile_args=[
                "-std=c11",
                "-O2",
                "-ftree-vectorize",
                "-fvisibility=hidden",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
            ],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
