"""The Trainer of transformers finds its best model by its own figures, whatever callbacks log."""

import pytest
from hf_runs import trainer
from trainer_reference import llama
from watched_texts import LENGTH, texts

from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback
from freezetrain.integrations.hf_pull import BasePullCallback


@pytest.mark.exhaustive
def test_names_do_not_meet_those_that_decide_which_model_is_best(tmp_path):
    """With languages that are called as the Trainer's own figures are."""
    runs = []
    for number in range(2):
        folder = tmp_path / str(number)
        run = trainer(
            llama(), folder, steps=4, eval_strategy="steps", eval_steps=1, save_strategy="steps",
            save_steps=1, load_best_model_at_end=True, metric_for_best_model="loss",
            learning_rate=0.3, per_device_eval_batch_size=2,
        )  # fmt: skip
        if number:
            texts_ = dict(zip(["loss", "eval_loss", "best"], texts().values(), strict=True))
            run.model.save_pretrained(folder / "base")
            names = "forgetting/", "pull/"
            for callback in (
                ForgettingTrackerCallback(
                    texts_, "best", every_n_steps=1, max_length=LENGTH, table=False, log=run.log
                ),
                BasePullCallback(0.0, str(folder / "base"), log_every_n_steps=1, log=run.log),
            ):
                run.add_callback(callback)
        run.train()
        runs.append(run)
    plain, watched = runs
    found = [line["eval_loss"] for line in watched.state.log_history if "eval_loss" in line]
    assert len(found) == 4
    assert watched.state.best_metric == plain.state.best_metric == min(found)
    assert watched.state.best_global_step == plain.state.best_global_step
    assert watched.state.best_model_checkpoint.endswith(f"checkpoint-{found.index(min(found)) + 1}")
    own = {name for line in plain.state.log_history for name in line}
    ours = {name for line in watched.state.log_history for name in line} - own
    assert {name for name in ours if not name.startswith(names)} == set()
    assert {"forgetting/mean", "forgetting/eval_loss/perplexity"} <= ours
