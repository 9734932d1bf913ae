"""The training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from whisper_lightning.audio.augment import mask_log_mel
from whisper_lightning.audio.constants import HOP_LENGTH, POSITIONS_PER_SECOND, SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.audio.features import log_mel, mel_filters
from whisper_lightning.audio.read import Clip, to_waveform
from whisper_lightning.batch import Batch, Decoded
from whisper_lightning.hub import language_code, load_processor
from whisper_lightning.model.adapters import add_adapters, halve_frozen, merge, write_adapter
from whisper_lightning.model.cost import rows_at_once
from whisper_lightning.model.decode import decode, detect_languages
from whisper_lightning.model.gradients import FiniteLosses, TokenMean, clip_gradients
from whisper_lightning.model.optim import Rates, Schedule, adamw, check_shares
from whisper_lightning.model.suppress import let_write, never_written
from whisper_lightning.model.tail import Encoded, Tail, encode
from whisper_lightning.model.weights import identify, take_weights
from whisper_lightning.model.whisper import decoder_states, label_loss, load_whisper, save_whisper, training_states
from whisper_lightning.text import LabelEncoder, Task


class WhisperModule(LightningModule):
    """Fine-tunes a Whisper.

    Args:
        checkpoint: Hub name, or folder in Hugging Face layout.
        random_weights: Start from random weights of that configuration instead of its weights.
        initial_weights: Checkpoint file (`last.ckpt`) of a run to take the weights from, and nothing else: optimizer,
            steps and data begin anew.
        language: Language of the speech, by code or English name.
        task: What the decoder is asked for.
        tail: Cells in which the silence behind the speech, up to the model's own maximum, is sampled; or `exact`.
        suppress_tokens: What is never written. Published Whispers list marks with which they would write `[Música]` on
            noise: `published` keeps them, `none` empties the list, `auto` takes out what the training sentences have.
        learning_rate: Peak learning rate.
        warmup_steps: Optimizer steps of linear warm-up.
        schedule: Learning rate after the warm-up.
        weight_decay: AdamW's decay, on matrices only.
        layer_decay: Factor on the learning rate from each layer to the one before it, from the decoder's last down.
        freeze_encoder: Train the decoder alone.
        lora_rank: Train small matrices of this rank beside the weights, which stay; 0 trains the weights.
        lora_targets: Matrices that have them: `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1` and `fc2` by default.
        dora: Train the lengths of their rows apart.
        label_smoothing: Share of each label that is spread over all tokens in training.
        layer_drop: Share of the utterances that each layer is left out for in training.
        activation_seconds: Padded seconds of audio whose activations are kept at once. A longer batch goes through the
            model in parts that are computed again in the backward pass: the same gradients, bounded memory.
        max_tokens: Longest decoded transcript, in tokens.
        num_beams: Transcripts of each utterance that the decode follows at once; 1 is greedy.
        spec_augment: Mask stretches of time and bands of frequency in training (Park et al. 2019).
    """

    def __init__(
        self,
        checkpoint: str = "openai/whisper-base",
        random_weights: bool = False,
        initial_weights: str | None = None,
        language: str = "es",
        task: Task = "transcribe",
        tail: int | Literal["exact"] = 40,
        suppress_tokens: Literal["auto", "none", "published"] = "auto",
        learning_rate: float = 1e-5,
        warmup_steps: int = 50,
        schedule: Schedule = "linear",
        weight_decay: float = 0.01,
        layer_decay: float = 1.0,
        freeze_encoder: bool = False,
        lora_rank: int = 0,
        lora_targets: list[str] | None = None,
        dora: bool = False,
        label_smoothing: float = 0.0,
        layer_drop: float = 0.0,
        activation_seconds: float = 120.0,
        max_tokens: int = 225,
        num_beams: int = 1,
        spec_augment: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.checkpoint, self.task, self.suppress_tokens = checkpoint, task, suppress_tokens
        self.rates = Rates(learning_rate, warmup_steps, schedule, weight_decay, layer_decay)
        check_shares(layer_decay=layer_decay, label_smoothing=label_smoothing, layer_drop=layer_drop)
        self.activation_seconds, self.label_smoothing = activation_seconds, label_smoothing
        self.spec_augment, self.max_tokens = spec_augment, max_tokens
        self.processor = load_processor(checkpoint)
        self.encoder = LabelEncoder(self.processor.tokenizer, language_code(language), task)
        suppress = suppress_tokens != "none"
        self.whisper = load_whisper(checkpoint, self.encoder, random_weights=random_weights, suppress=suppress)
        self.whisper.model.encoder.layerdrop = self.whisper.model.decoder.layerdrop = layer_drop
        self.whisper.generation_config.num_beams = num_beams
        self.identity = identify(self.whisper, self.processor.tokenizer, with_weights=not random_weights)
        if initial_weights is not None:
            take_weights(self, Path(initial_weights))
        add_adapters(self.whisper, lora_rank, lora_targets, dora=dora)
        if freeze_encoder:
            self.whisper.model.encoder.requires_grad_(False)
        self.full_frames: int = 2 * self.whisper.config.max_source_positions
        self.full_samples = self.full_frames * HOP_LENGTH
        self.max_label_tokens: int = self.whisper.config.max_target_positions
        self.tail = Tail(self.whisper.model.encoder, None if tail == "exact" else tail)
        self.register_buffer("filters", mel_filters(self.whisper.config.num_mel_bins), persistent=False)
        self._token_mean, self._losses = TokenMean(), FiniteLosses()
        self._step_metrics: dict[str, torch.Tensor | float] = {}

    def setup(self, stage: str) -> None:
        """Let the decoder write the marks that the training sentences have, and say whether they have times."""
        if stage == "fit" and "mixed" in self.trainer.precision and not isinstance(self.trainer.strategy, FSDPStrategy):
            halve_frozen(self.whisper)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None:
            self.whisper.generation_config.tells_times = bool(data.timestamps or data.pack)
            if self.suppress_tokens == "auto":
                self.let_write(data.marks)

    def let_write(self, written: set[str] | None) -> None:
        """Suppress no token all of whose marks occur in some text, as `marks` gives them; None: no token at all."""
        let_write(self.whisper.generation_config, self.processor.tokenizer, written)

    def never_written(self) -> dict[int, str]:
        """Return the tokens that are suppressed, but for special ones, and their texts."""
        return never_written(self.whisper.generation_config, self.processor.tokenizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is never written, which the training data decide."""
        checkpoint["suppress_tokens"] = list(self.whisper.generation_config.suppress_tokens)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never write what that run does not."""
        self.whisper.generation_config.suppress_tokens = checkpoint["suppress_tokens"]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Log-mel, a sample of the silence, encoder, decoder, loss.

        The loss of a step is the sum over all label tokens of its accumulation group, on all ranks, divided by their
        number: `TokenMean`.
        """
        features = self.log_mel(batch.waveforms)  # (B, F, T)
        if self.spec_augment:
            features = mask_log_mel(features)
        sample = self.tail.sample(self.whisper.model.encoder, features.shape[2])
        seconds = self.tail.num_positions(features.shape[2]) / POSITIONS_PER_SECOND
        rows = rows_at_once(len(features), seconds, self.activation_seconds)
        states = training_states(self.whisper, features, sample, batch.decoder_input_ids, rows)  # (B, L, D)
        loss_sum = label_loss(self.whisper, states, batch.label_positions, batch.label_tokens, self.label_smoothing)
        self._losses.add(batch.keys, loss_sum.detach())
        return self._token_mean.add(loss_sum, len(batch.label_tokens))

    def on_fit_start(self) -> None:
        """Turn dropout on: transformers gives a loaded model without, and Lightning leaves it as it finds it."""
        self.train()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make a gradient of means of the accumulated gradient of sums, then clip it as the trainer is told."""
        loss = self._token_mean.normalize(optimizer, self.trainer)
        self._step_metrics = {
            "train/loss": loss,
            "train/gradient_norm": clip_gradients(optimizer, self.trainer, gradient_clip_val, gradient_clip_algorithm),
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and free the gradients: Lightning would keep them through the next forward pass, and validations."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def take_step_metrics(self) -> dict[str, torch.Tensor | float]:
        """Return loss, gradient norm and learning rate of the optimizer step just finished, once; else nothing."""
        metrics, self._step_metrics = self._step_metrics, {}
        return metrics

    def check_losses(self) -> None:
        """Stop the run if a loss since the last check is not finite, and name the utterances.

        It waits for the device, so it is called at logging steps and before a checkpoint is written.

        Raises:
            UserError: With the keys of the first such batch.
        """
        self._losses.check(self.global_step)

    def on_validation_start(self) -> None:
        """Check the losses before a bad model is scored."""
        self.check_losses()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Decoded:  # type: ignore[override]
        """Encode once; take loss and transcripts from the same states."""
        encoded = self.encode(batch.waveforms)
        states = decoder_states(self.whisper, encoded, batch.decoder_input_ids)
        loss_sum = label_loss(self.whisper, states, batch.label_positions, batch.label_tokens)
        if batch.timed:
            rows = decode(self.whisper, encoded, self.prompts[:, :-1], self.max_tokens, timestamps=True)
            pairs = zip(batch.decoder_input_ids.tolist(), rows, strict=True)
            times = [(self.encoder.times(given), self.encoder.times(heard)) for given, heard in pairs]
            return Decoded([self.text(row) for row in rows], loss_sum, len(batch.label_tokens), times=times)
        transcripts = self.decode(encoded, batch.decoder_input_ids[:, : len(self.encoder.prompt)])
        told = batch.languages and self.encoder.is_multilingual and detect_languages(self.whisper, encoded)
        return Decoded(transcripts, loss_sum, len(batch.label_tokens), told or None)

    def decode(
        self, encoded: Encoded, prompts: torch.Tensor | None = None, *, max_new_tokens: int | None = None
    ) -> list[str]:
        """Return each utterance's transcript, of at most `max_tokens`, after a prompt of its own, `(B, P)`, if any."""
        limit = self.max_tokens if max_new_tokens is None else max_new_tokens
        num_beams = self.whisper.generation_config.num_beams
        prompts = self.prompts if prompts is None else prompts
        return [self.text(row) for row in decode(self.whisper, encoded, prompts, limit, num_beams)]

    @property
    def prompts(self) -> torch.Tensor:
        """`(1, P)`, what every transcript begins with."""
        return torch.tensor([self.encoder.prompt], device=self.device)

    @torch.no_grad()
    def transcribe(
        self,
        clips: Sequence[Clip],
        *,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        progress: str | None = None,
    ) -> list[str]:
        """Transcribe clips, decoded as the WER of a test is.

        Args:
            clips: Audio files, or `(N,)` waveforms at 16 kHz; none longer than the model's own context.
            batch_size: Clips that are decoded together.
            max_new_tokens: Longest transcript in tokens; `max_tokens` by default.
            progress: Title of a progress bar; none by default.

        Raises:
            AudioError: A file cannot be used; the reason is in it.
            ValueError: A waveform is not `(N,)`, or longer than the context.
        """
        training, texts, seconds = self.training, list[str](), self.full_samples / SAMPLE_RATE_HZ
        self.eval()
        try:
            for start in tqdm(range(0, len(clips), batch_size), progress, leave=False, disable=progress is None):
                waveforms = [to_waveform(clip, seconds) for clip in clips[start : start + batch_size]]
                batch = pad_sequence(waveforms, batch_first=True).to(self.device)
                texts += self.decode(self.encode(batch), max_new_tokens=max_new_tokens)
        finally:
            self.train(training)
        return texts

    def text(self, tokens: Sequence[int]) -> str:
        """Return the transcript of generated ids, without special tokens, time stamps and outer blanks."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Turn `(B, N)` waveforms into `(B, F, T)` features on their device, in float32: speech and some silence."""
        num_frames = self.tail.num_frames(-(-waveforms.shape[1] // SAMPLES_PER_POSITION) * 2)
        return log_mel(waveforms, self.get_buffer("filters"), num_frames, self.full_frames)

    def encode(self, waveforms: torch.Tensor) -> Encoded:
        """Encode `(B, N)` waveforms and the silence that follows them."""
        features = self.log_mel(waveforms)
        sample = self.tail.sample(self.whisper.model.encoder, features.shape[2])
        return encode(self.whisper.model.encoder, features, sample)

    def configure_optimizers(self) -> Any:
        """Fused AdamW with a learning rate that is a function of the step."""
        # With float16 a fused AdamW would unscale inside, after our division and clipping.
        fused = self.trainer.precision != "16-mixed"
        return adamw(self.named_parameters(), self.rates, self.trainer.max_steps, fused=fused)

    def save_pretrained(
        self, folder: Path, weights: dict[str, torch.Tensor] | None = None, dtype: torch.dtype = torch.float16
    ) -> None:
        """Write the model as a Hugging Face folder.

        Args:
            folder: Where.
            weights: State of this module to write; its own by default. Adapters are merged, and written beside it too.
            dtype: Of the weights in the file; float16 by default, as OpenAI published Whisper.
        """
        state = weights or self.state_dict()
        named = {name.removeprefix("whisper."): weight for name, weight in merge(state).items()}
        save_whisper(self.whisper, self.processor, folder, named, dtype)
        write_adapter(state, self.whisper, folder / "adapter")
