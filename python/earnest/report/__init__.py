# SPDX-License-Identifier: Apache-2.0
"""What a run showed: the table for the terminal, report.html, a plot, and several runs together."""

from earnest.report.page import write_report
from earnest.report.plot import plot
from earnest.report.table import markdown, table, table_by_manner, table_of_runs

__all__ = ["markdown", "plot", "table", "table_by_manner", "table_of_runs", "write_report"]
