"""From texts to training sequences: read, tokenized once, packed, in an order that resumes."""
