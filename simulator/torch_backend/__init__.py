"""The same networks as torch modules: a third engine beside theory and Monte Carlo, and training.

torch is an extra: nothing outside this package imports it, and commands ask `require_torch` first.
"""

from varprop.simulator.errors import UserError

__all__ = ["require_torch"]


def require_torch() -> None:
    """Raise UserError if torch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UserError("torch", "not installed", "the extra of that name", "run pip install 'varprop[torch]'")
