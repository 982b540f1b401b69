"""The only room that prints: lines, tables, progress bars, and the sentences of notes."""

from fastdb.console.sentences import SENTENCES, sentence
from fastdb.console.tables import (
    free_space,
    show_evaluation,
    show_examination,
    show_overview,
    show_removal,
    show_sessions,
    show_token_trial,
    show_usage,
)
from fastdb.console.terminal import bar, boundary, complain, reword, say, table, whole_output
from fastdb.console.views import ConsoleReport, TrainingView

__all__ = [
    "SENTENCES",
    "ConsoleReport",
    "TrainingView",
    "bar",
    "boundary",
    "complain",
    "free_space",
    "reword",
    "say",
    "sentence",
    "show_evaluation",
    "show_examination",
    "show_overview",
    "show_removal",
    "show_sessions",
    "show_token_trial",
    "show_usage",
    "table",
    "whole_output",
]
