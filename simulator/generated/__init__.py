"""Code written by `python -m varprop.derivations.generate`; do not edit."""
