"""The stages of a run: each reads what the last one left in the run folder and writes its own files there."""
