# SPDX-License-Identifier: Apache-2.0
"""The instrument: every kernel family checked against float64, then timed beside its peers."""
