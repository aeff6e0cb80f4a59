"""The head of a language model, and losses of its logits that are never whole.

``find_head`` finds it; ``head_loss`` and ``chunks_of_logits`` compute from hidden states some
places at a time; ``inside`` lets a model's own forward pass call them in place of its head.
"""
