"""What codecs do to the keys, values and attention of a network, measured as it runs."""
