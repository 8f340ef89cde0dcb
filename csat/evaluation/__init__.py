"""How models are judged: fidelity, scores, comparisons, leakage, and the reports that show them."""
