"""Laws that others have measured, to start from and to compare with. Loss in nats a token."""

from bigjax.study.fits.law import Law
from bigjax.study.fits.rates import Monomial

HOFFMANN = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
"""Hoffmann et al. 2022, equation 10, as printed."""

HOFFMANN_A = {'envelope': 0.50, 'isoflop': 0.49, 'parametric': 0.46}
"""The exponent of N*(C) by each approach (Hoffmann et al. 2022, table 2)."""

PORIAN_A = {
    'kaplan': (0.835, 0.824, 0.846),
    'head': 0.706,
    'warmup': 0.602,
    'cosine': 0.571,
    'tuned': (0.497, 0.491, 0.505),
}
"""The same from Kaplan's setup to a tuned one, 95 % (Porian et al. 2024, figure 1, RefinedWeb)."""

PF_DAY = 1e15 * 24 * 3600
"""FLOPs."""

KAPLAN_N = Monomial(8.8e13**0.076, {'N': -0.076})
"""L(N) = (N_c / N)^alpha_N, without embeddings, data and time enough (Kaplan et al. 2020, 1.1)."""

KAPLAN_D = Monomial(5.4e13**0.095, {'D': -0.095})
"""L(D) = (D_c / D)^alpha_D, a large model stopped early (1.2)."""

KAPLAN_C = Monomial((3.1e8 * PF_DAY) ** 0.050, {'C': -0.050})
"""L(C_min) = (C_c / C)^alpha_C, FLOPs, spent optimally (1.3)."""

DEEPSEEK_RATE = Monomial(0.3118, {'C': -0.1250})
DEEPSEEK_BATCH = Monomial(0.2920, {'C': 0.3271})
"""Tokens (DeepSeek-AI 2024, equation 1). C counts non-embedding FLOPs, attention included."""

STEP_RATE = Monomial(1.79, {'N': -0.713, 'D': 0.307})
STEP_BATCH = Monomial(0.58, {'D': 0.571})
"""Tokens (Li et al. 2025, equation 1)."""
