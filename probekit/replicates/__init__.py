"""What a few replicates show: intervals, comparisons, trends and verdicts over seeds."""
