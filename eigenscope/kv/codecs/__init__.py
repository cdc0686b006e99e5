"""KV codecs: compression of blocks of keys and values."""
