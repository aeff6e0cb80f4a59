"""Tokens that a causal model puts after others, as its own logits say."""
