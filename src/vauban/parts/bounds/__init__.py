"""Proofs by bound propagation: what no input within a radius can change.

`trace` turns a module into a graph, `prove` and `prove_value` bound it from cheap to dear. Sources: interval bounds
(Gowal et al. 2018, arXiv:1810.12715), CROWN (Zhang et al. 2018, arXiv:1811.00866), its parallel lines (Wong and Kolter
2018, arXiv:1711.00851), tuned slopes (Xu et al. 2021, arXiv:2011.13824), multipliers of splits (Wang et al. 2021,
arXiv:2103.06624).
"""

from vauban.parts.bounds.graph import Graph, Unprovable, trace
from vauban.parts.bounds.prove import EFFORTS, Proof, prove, prove_value

__all__ = ["EFFORTS", "Graph", "Proof", "Unprovable", "prove", "prove_value", "trace"]
