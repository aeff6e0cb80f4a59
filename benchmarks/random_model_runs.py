"""What the benchmarks of memory share: a Llama of random weights, and commands in ranks of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import freezetrain


def make_model(folder: Path, hidden_size: int, rows: int, **more: int) -> None:
    """A Llama of random weights with the tokenizer of freezetrain's small base, and a region."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from freezetrain.regions import Region

    torch.manual_seed(0)
    heads = max(1, hidden_size // 64)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        **more,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    base = Path(freezetrain.__file__).parent / "base"
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    Region.random(model, 0.01, seed=0).save(folder / "region.safetensors")


def run_ranks(worker: str, words: list[str], world: int, folder: Path) -> list[str]:
    """Run ``worker``, a program that ends with freezetrain's main, with ``words`` on each rank.

    Returns what each rank wrote to the file that HELD names. Threads: one a rank. Freed memory is
    given back at once. SystemExit with the end of a rank's log where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "FREEZETRAIN_CACHE": str(folder / "cache"),
            "HELD": str(folder / f"held-{rank}"),
        }
        if world > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        log = (folder / f"log-{rank}").open("w")
        command = [sys.executable, "-c", worker, *words]
        ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    for rank, process in enumerate(ranks):
        if process.wait():
            raise SystemExit((folder / f"log-{rank}").read_text()[-3000:])
    return [(folder / f"held-{rank}").read_text() for rank in range(world)]
