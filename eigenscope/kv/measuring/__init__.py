"""Evaluation of KV codecs in a running network: capture, error measures, sums of metrics."""
