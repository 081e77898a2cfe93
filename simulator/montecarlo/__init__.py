"""Monte Carlo over weight draws: the batch forward and a random cotangent back, trial after trial."""

from varprop.simulator.montecarlo.aggregate import TrialMoments
from varprop.simulator.montecarlo.engine import compile_kernels, simulate, simulate_trials

__all__ = ["TrialMoments", "compile_kernels", "simulate", "simulate_trials"]
