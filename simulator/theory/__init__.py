"""Closed-form propagation of signal and gradient through a whole network."""

from varprop.simulator.theory.engine import predict

__all__ = ["predict"]
