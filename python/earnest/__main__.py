# SPDX-License-Identifier: Apache-2.0
"""``python -m earnest`` is the command line."""

import sys

from earnest.cli import main

sys.exit(main())
