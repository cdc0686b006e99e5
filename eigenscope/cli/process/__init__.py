"""Child processes that receive forwarded signals, and ranks that are lost."""
