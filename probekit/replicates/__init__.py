"""Statistics over a few replicates: intervals, comparisons, trends and verdicts over seeds."""
