"""Start a program on two ranks, as torchrun would."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import freezetrain

WORLD = 2


def launch(folder: Path, *command: Any) -> list[str]:
    """Run ``python command...`` on each rank in ``folder``; what each printed."""
    package, here = Path(freezetrain.__file__).parents[1], Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [package, here, here.parent / "support"])),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    outputs = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(WORLD)]
    ranks = []
    try:
        for rank, (out, err) in enumerate(outputs):
            with out.open("w") as stdout, err.open("w") as stderr:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        cwd=folder,
                        stdout=stdout,
                        stderr=stderr,
                    )
                )
        for rank, (_, err) in zip(ranks, outputs, strict=True):
            assert rank.wait(timeout=200) == 0, err.read_text()[-5000:]
    finally:
        for rank in ranks:
            rank.kill()
    return [out.read_text() for out, _ in outputs]
