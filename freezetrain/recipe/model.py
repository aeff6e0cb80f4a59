"""Which model."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16", "stored"]
Attention = Literal["auto", "flash_attention_2", "sdpa", "eager"]


@dataclass
class ModelSource:
    """A Hugging Face causal language model."""

    path: str
    """Folder in Hugging Face format, or an id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Type that the weights are held in; stored: the one they were saved in."""
    attention: Attention = "auto"
    """How attention is computed. auto: as transformers chooses, scaled_dot_product_attention for
    most; to train in 16 bits on a GPU, flash attention where it is installed."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
