"""Processes: children that are sent this one's signals, ranks that are lost."""
