"""jax's CUDA plugin, which has XLA's compiler for GPUs. It compiles without a GPU, a driver or any CUDA library."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from mmrlhf_jax.errors import UserError

CUDA = (13, 12)  # versions of CUDA for which jax has plugins


def plugin_packages() -> tuple[str, ...]:
    """The names of the plugin's packages if it is installed, else ()."""
    return next((_packages(version) for version in CUDA if _found(f"jax_plugins.xla_cuda{version}")), ())


def check_plugin() -> None:
    """UserError if a package of the plugin is missing, or is of another version than jaxlib: jax would not load it."""
    needed, names = importlib.metadata.version("jaxlib"), plugin_packages()
    install = f"pip install --no-deps {' '.join(f'{name}=={needed}' for name in names)}"
    for name in names:
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed, so there is no compiler for GPUs; {install}") from None
        if here != needed:
            raise UserError(f"{name} {here} does not work with jaxlib {needed}; {install}")


def _packages(version: int) -> tuple[str, ...]:
    return f"jax-cuda{version}-plugin", f"jax-cuda{version}-pjrt"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # no plugin at all: its parent package is missing
        return False
