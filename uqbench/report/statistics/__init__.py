"""Numbers of a report: means with intervals, paired differences, contrasts over blocks, ranks."""
