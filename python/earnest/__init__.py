# SPDX-License-Identifier: Apache-2.0
"""earnest: audio language models that reason about what they hear."""

__version__ = "0.1.0"
