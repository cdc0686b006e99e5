"""Codecs: what compresses blocks of keys and values."""
