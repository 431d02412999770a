# SPDX-License-Identifier: Apache-2.0
"""What a model can do, measured: verified answers, the listener's preferences, the judge's calibration."""
