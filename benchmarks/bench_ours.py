"""Our side of bench.py: the command line of the package, with its stages marked."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.bench_turns import Job, Turns
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards


class Boundaries(Callback):
    """Ends a stage at each boundary. It stands first among the callbacks, and `Saved` last."""

    turns: Turns

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put `Saved` behind the standing callbacks."""
        if stage == "fit":
            trainer.callbacks.append(Saved())  # type: ignore[attr-defined]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is loaded."""
        self.turns.done("start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """A step has ended; what follows is logging."""
        self.turns.done("step", len(batch.keys))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation has ended; what follows saves."""
        name = "baseline" if trainer.sanity_checking else "evaluate"
        self.turns.done(name, len(trainer.datamodule.splits["val"].members))  # type: ignore[attr-defined]


class Saved(Callback):
    """Ends the stage of saving."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is written."""
        if not trainer.sanity_checking:
            Boundaries.turns.done("checkpoint")


def run_ours(turns: Turns, job: Job) -> None:
    """Build shards, then `fit`."""
    turns.done("imports")
    for table in (job.train, job.test):
        build_shards(table, job.folder / table.stem)
    turns.done("prepare", sum(1 for table in (job.train, job.test) for _ in table.open(encoding="utf-8")) - 2)
    Boundaries.turns = turns
    status = main(
        [
            "fit",
            "--trainer.callbacks=benchmarks.bench_ours.Boundaries",
            f"--trainer.default_root_dir={job.folder / 'run'}",
            f"--trainer.max_steps={job.max_steps}",
            f"--trainer.val_check_interval={job.eval_every}",
            f"--trainer.precision={'bf16-mixed' if job.bf16 else '32-true'}",
            "--trainer.enable_progress_bar=false",
            f"--model.checkpoint={job.model}",
            f"--model.warmup_steps={job.max_steps // 2}",
            f"--model.max_tokens={job.max_tokens}",
            f"--data.train={job.folder / job.train.stem}",
            f"--data.val={job.folder / job.test.stem}",
            f"--data.batch_size={job.batch_size}",
            f"--model.tail={job.tail}",
            # Reading ahead in the other side's turn would be time that nobody counts.
            "--data.num_workers=0",
        ]
    )
    assert status == 0, f"exit code {status}"
    turns.done("end")
