"""From texts to training sequences: token ids kept on disk, packed, in an order that resumes."""
