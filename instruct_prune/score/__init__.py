"""One column made of measured columns: how hard is each row? numpy only."""

from instruct_prune.score.columns import Columns
from instruct_prune.score.scores import SCORES, Score, aggregate, find_score, rescored, score
from instruct_prune.score.table import ScoreTable

__all__ = ["SCORES", "Columns", "Score", "ScoreTable", "aggregate", "find_score", "rescored", "score"]
