"""fit, validate, test and predict: links, the run's folder, what is refused before any work."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from whisper_lightning.callbacks.best import KeepBest
from whisper_lightning.callbacks.checkpoint import ExactResume, last_checkpoint
from whisper_lightning.callbacks.interpolate import settle
from whisper_lightning.callbacks.length import RunLength
from whisper_lightning.callbacks.speed import LogSteps
from whisper_lightning.callbacks.wer import EvaluateWER
from whisper_lightning.commands.checks import check_fit, find_cuda, warn_of_cpu
from whisper_lightning.commands.options import (
    CONFIG_FOLDERS,
    NamedConfig,
    Parser,
    find_shipped,
    refuse_environment,
    settle_length,
)
from whisper_lightning.commands.summary import describe, remarks, sum_up
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.data.splits import check_sources, name_sources
from whisper_lightning.errors import UserError
from whisper_lightning.files import find_whole, previous_checkpoint, read_checkpoint
from whisper_lightning.hub import language_code
from whisper_lightning.loggers import WandbOptions, make_loggers
from whisper_lightning.model.load import reload
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.report.run import ReportOptions, report_run
from whisper_lightning.run import hold_folder, is_first_process
from whisper_lightning.terminal import expand_home, forget_keys

logger = logging.getLogger(__name__)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder, wherever loggers write, when nothing has refused the run.

    Without the checkpoint that it was resumed from: `test` must not load that again.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        config = config.clone()
        config.ckpt_path = None
        super().__init__(parser, config)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: the checkpoint to resume from has not been looked at yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            self.parser.save(self.config, path, skip_none=False, overwrite=True)


class WhisperCLI(LightningCLI):
    """Command line > overlay > base.yaml > signature."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._held:  # Lightning's constructor does all there is to do
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Let `--config` find shipped configurations."""
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=NamedConfig, help="A configuration, shipped or your own (YAML).")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our options, each callback under a key of its own, then Lightning's many; link what must be equal."""
        parser.add_lightning_class_args(WhisperModule, "model")
        parser.add_lightning_class_args(SpeechDataModule, "data")
        parser.add_lightning_class_args(EvaluateWER, "evaluate")
        parser.add_lightning_class_args(KeepBest, "best")
        parser.add_lightning_class_args(ExactResume, "resume")
        parser.add_lightning_class_args(LogSteps, "steps")
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.add_class_arguments(ReportOptions, "report")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and settle whether the run's length is given in steps or in epochs."""
        super().parse_arguments(parser, args)
        settle_length(self.config[self.config.subcommand], args)

    def _parse_ckpt_path(self) -> None:
        """Leave the command line as it is: Lightning would let a checkpoint's hyperparameters beat it."""

    def before_instantiate_classes(self) -> None:
        """Refuse impossible combinations before any work, and find shipped files."""
        config = _find_files(self.config[self.config.subcommand])
        language_code(config.model.language)
        if self.config.subcommand == "fit":
            check_fit(config)
        data = config.data
        named = (data.train, data.val, data.test, data.predict, data.guard)
        check_sources(name_sources(*named, noise=data.noise, reverb=data.reverb), self.config.subcommand)
        folder = Path(config.trainer.default_root_dir)
        if self.config.subcommand == "fit":
            if is_first_process() and not config.trainer.fast_dev_run:
                self._held.enter_context(hold_folder(folder))
            _check_folder(config, folder)
        else:
            self.save_config_callback = None
            _find_checkpoint(config, folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer its loggers. From here on the configuration is written down: without keys of addresses."""
        self._dump_config()
        forget_keys([self.config, self.config_dump])
        config = self.config_init[self.subcommand]
        if config.trainer.logger in (None, True):
            enabled = config.wandb.enabled and self.subcommand == "fit"
            options = WandbOptions(enabled, config.wandb.project, config.wandb.name)
            fresh = self.subcommand == "fit" and config.ckpt_path is None
            kwargs["logger"] = make_loggers(Path(config.trainer.default_root_dir), options, keep=not fresh)
        given = config.trainer.callbacks or []
        kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), RunLength()]
        if config.trainer.enable_progress_bar is not False:
            # Drawing the bar reads the loss from the device: at every batch it would slow a GPU.
            kwargs["callbacks"].append(TQDMProgressBar(refresh_rate=config.trainer.log_every_n_steps or 1))
        config.resume.begin_from = config.ckpt_path and Path(config.ckpt_path)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            remedy = f" ({find_cuda()})" if config.trainer.accelerator in ("gpu", "cuda") else ""
            raise UserError(f"trainer: {' '.join(str(error).split())}{remedy}") from None
        if self.subcommand == "fit" and config.trainer.accelerator != "cpu":
            warn_of_cpu(trainer)
        if self.subcommand == "fit" and config.ckpt_path is not None and isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "--ckpt_path: a run with trainer.strategy fsdp is not continued exactly; start anew from its weights "
                f"with --model.initial_weights {config.ckpt_path} and a new --trainer.default_root_dir"
            )
        for each in trainer.loggers:
            if trainer.is_global_zero and self.subcommand == "fit":
                each.log_hyperparams(self.config_dump)
        return trainer

    def before_fit(self) -> None:
        """Say how much of the model is trained, where a part of it is frozen."""
        if not (self.model.hparams["lora_rank"] or self.model.hparams["freeze_encoder"]):
            return
        weights = list(self.model.whisper.parameters())
        total, trained = (sum(each.numel() for each in weights if not only or each.requires_grad) for only in (0, 1))
        logger.info("Trains %.2f of %.2f M weights (%.1f %%)", trained / 1e6, total / 1e6, 100 * trained / total)

    def after_fit(self) -> None:
        """Decode with the best model at full context, and say what came out and how to use it."""
        trainer, data = self.trainer, self.datamodule
        folder = Path(trainer.default_root_dir) / "best"
        if trainer.fast_dev_run or not folder.is_dir():  # type: ignore[attr-defined]
            return
        chosen = settle(trainer, self.model, data)
        # As anybody else will: from the folder. The module that was trained may be sharded over processes.
        model = reload(self.model, folder)
        trainer.test(model, datamodule=data, verbose=False)
        if not trainer.is_global_zero:
            return
        best = next(c for c in trainer.callbacks if isinstance(c, KeepBest))  # type: ignore[attr-defined]
        said = remarks(folder.parent, data, best, chosen)
        sum_up(trainer, data, best, chosen, said)
        if self.config_init[self.subcommand].report.enabled:
            report_run(
                Path(trainer.default_root_dir),
                data,
                model,
                best_step=best.step,
                best=describe(best, chosen),
                remarks=said,
                defaults=self._defaults,
                progress=trainer.progress_bar_callback is not None,
            )

    def _defaults(self) -> dict[str, Any]:
        """Return what config.yaml would hold if nothing had been set."""
        parser = self._parser(self.subcommand)
        defaults: dict[str, Any] = yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False))
        return defaults


def _find_files(config: Namespace) -> Namespace:
    """Write out `~`, and the paths of shipped files."""
    config = expand_home(config)
    for group, keys in (("data", ("train", "val", "test", "predict")), ("model", ("checkpoint",))):
        for key in keys:
            if isinstance(config[group][key], str) and find_shipped(config[group][key]).exists():
                config[group][key] = str(find_shipped(config[group][key]))
    return config


def _check_folder(config: Namespace, folder: Path) -> None:
    """Find the checkpoint to resume from, or refuse a folder that already holds a run.

    A job that SLURM has requeued has the same command as the first time, and continues by itself. A run that was
    stopped before its first checkpoint is continued from its beginning.
    """
    started = (folder / "config.yaml").exists()
    if config.ckpt_path is None and started and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
        config.ckpt_path = "last"
    if config.ckpt_path == "best":
        raise UserError(
            f"--ckpt_path: best/ holds weights and nothing else; continue with --ckpt_path last, or start anew from "
            f"them: --model.checkpoint {folder / 'best'} --model.random_weights false and a new "
            "--trainer.default_root_dir"
        )
    last = last_checkpoint(folder)
    if config.ckpt_path == "last" and started and not last.exists() and not previous_checkpoint(last).exists():
        logger.info("%s: stopped before its first checkpoint; it begins again", folder)
        config.ckpt_path = None
    elif config.ckpt_path is not None:
        _find_checkpoint(config, folder)
    elif started and is_first_process() and not config.trainer.fast_dev_run:  # the first may have begun this run
        raise UserError(
            f"trainer.default_root_dir: {folder} already holds a run; continue it with --ckpt_path last, "
            "or choose another folder with --trainer.default_root_dir runs/NAME"
        )


def _find_checkpoint(config: Namespace, folder: Path) -> None:
    """Let `--ckpt_path last` and `best` mean those of the run's folder; make sure of the file."""
    if config.ckpt_path == "best":
        if not (folder / "best").is_dir():
            raise UserError(f"--ckpt_path: there is no best model in {folder}; choose a run's folder")
        config.model.checkpoint = str(folder / "best")
        config.model.random_weights, config.model.initial_weights, config.ckpt_path = False, None, None
    if config.ckpt_path is None:
        return
    given = last_checkpoint(folder) if config.ckpt_path == "last" else Path(config.ckpt_path)
    path = find_whole(given) if config.ckpt_path == "last" else given
    if path is None or not path.is_file():
        raise UserError(f"--ckpt_path: there is no checkpoint at {given}")
    try:
        read_checkpoint(path, verify=config.ckpt_path != "last")
    except UserError as error:
        raise UserError(f"--ckpt_path: {error}") from None
    config.ckpt_path = str(path)


class OptionsOnly(WhisperCLI):
    """Parses what `fit` takes, refuses what it refuses without looking at a run's folder, and does nothing."""

    def before_instantiate_classes(self) -> None:
        """Find shipped files."""
        config = _find_files(self.config[self.config.subcommand])
        check_fit(config)

    def _set_seed(self) -> None:
        """Draw nothing."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def fit_options(args: list[str]) -> Namespace:
    """Return the options of `fit`, parsed as there.

    Raises:
        UserError: There is no such option, or a value is wrong.
    """
    options: Namespace = _enter(OptionsOnly, ["fit", *args]).config["fit"]
    return options


def run(args: list[str] | None = None) -> int:
    """Train, validate, test or predict; return 0 where nothing is raised."""
    _enter(WhisperCLI, sys.argv[1:] if args is None else args)
    return 0


def _enter(cli: type[WhisperCLI], args: list[str]) -> WhisperCLI:
    base = [str(folder / "base.yaml") for folder in CONFIG_FOLDERS]
    commands = LightningCLI.subcommands()
    refuse_environment(commands)
    typed = args[0]

    class OneCommand(cli):  # type: ignore[valid-type, misc]
        """Builds the parser of the command that was typed, not those of the other three: each takes 0.1 s."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {typed: commands[typed]} if typed in commands else commands

    return OneCommand(
        WhisperModule,
        SpeechDataModule,
        args=args,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_callback=SaveConfig,
        parser_kwargs={name: {"default_config_files": base} for name in OneCommand.subcommands()},
    )
