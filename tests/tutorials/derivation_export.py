"""Where a formula comes from, in a form to paste.  Run: python tests/tutorials/derivation_export.py

The same from a shell:

    varprop derive relu --check
    varprop derive relu --format latex --out relu.tex
    varprop derive relu --format python --out relu.py
    varprop derive --expr "x*tanh(log(1+exp(x)))"
"""

from __future__ import annotations

from pathlib import Path

from varprop.derivations import derivation
from varprop.derivations.checking import check
from varprop.derivations.printing import render

theorem = derivation("relu")

# Every step is proved, by SymPy where it can, else at random points with many digits.
for outcome in check(theorem):
    print(f"{outcome.step}: {'holds' if outcome.holds else 'FAILS'} ({outcome.method})")

# For a paper, for a page, for code.
for form, name in (("latex", "relu.tex"), ("markdown", "relu.md"), ("python", "relu_moments.py"), ("c", "relu.c")):
    Path(name).write_text(render([theorem], form))
    print(f"{form}: {name}")
