"""Pretrained parts that need no model hub: fetch, check, convert, cache."""
