# SPDX-License-Identifier: Apache-2.0
"""The ledger: what closeness each family promises, and why. Budgets are relative to honest arithmetic: a kernel's
error against float64 is at most `FACTOR` times that of plain same-precision arithmetic, plus a floor of rounding."""

FACTOR = 2.0
