"""Scaling laws: fits of loss against parameters, tokens and FLOPs, and what follows from them.

Everything is float64 NumPy. A law may hold arrays, one entry a bootstrap sample, so that a
prediction and its interval are the same formula.
"""
