"""What loggers have written, read back: name -> the steps and values under it, in their order."""

import csv
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Points = dict[str, list[tuple[int, float]]]


def csv_points(run: Path) -> Points:
    points: Points = defaultdict(list)
    with (run / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    points[name].append((step, float(value)))
    return dict(points)


def tensorboard_points(run: Path) -> Points:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def mlflow_points(client: Any, run_id: str) -> Points:
    return {
        name: [(found.step, found.value) for found in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def wandb_points(start: Path) -> tuple[Points, dict[str, Any]]:
    """The points and the settings in the folder of one start of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = defaultdict(list)
    settings: dict[str, Any] = {}
    (path,) = start.glob("run-*.wandb")
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        for update in record.config.update:
            settings[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("history"):
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = row["trainer/global_step"]
            for name, value in row.items():
                if not name.startswith("_") and name != "trainer/global_step":
                    points[name].append((step, value))
    return dict(points), settings


def _records(data: bytes) -> list[bytes]:
    """Those of a log as LevelDB writes it, in blocks of 32 KiB, behind a header of 7 bytes."""
    records, parts, place = [], b"", 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(parts)
            parts = b""
        elif kind == 0:
            break
    return records
