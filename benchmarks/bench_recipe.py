"""The usual Hugging Face recipe for fine-tuning Whisper, as blogs and notebooks have it; what bench.py compares with.

Features of 30 s for every clip computed in advance with `datasets`, in batches of 500; `Seq2SeqTrainer` with activation
checkpointing; the collator that pads lists; evaluation one clip at a time, by generation plus loss; a full checkpoint
at each evaluation; the best model by WER.
"""

from __future__ import annotations

import csv
from typing import Any

import jiwer
import soundfile
import torch
from datasets import Dataset
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from benchmarks.bench_turns import Job, Turns

PROMPT_TOKENS = 4


def run_recipe(turns: Turns, job: Job) -> None:
    """Prepare, train, evaluate and keep the best model."""
    turns.done("imports")
    processor = WhisperProcessor.from_pretrained(job.model, language="es", task="transcribe")

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        waveforms = [soundfile.read(path, dtype="float32")[0] for path in rows["audio"]]
        features = processor.feature_extractor(waveforms, sampling_rate=16_000).input_features
        return {"input_features": features, "labels": processor.tokenizer(rows["sentence"]).input_ids}

    splits = {}
    for name, table in (("train", job.train), ("test", job.test)):
        with table.open(encoding="utf-8", newline="") as file:
            rows = [
                {"audio": str(table.parent / row["audio"]), "sentence": row["sentence"]} for row in csv.DictReader(file)
            ]
        splits[name] = Dataset.from_list(rows).map(
            prepare,
            batched=True,
            batch_size=500,
            remove_columns=["audio", "sentence"],
            cache_file_name=str(job.folder / f"{name}.arrow"),
        )
    turns.done("prepare", sum(len(split) for split in splits.values()))

    model = WhisperForConditionalGeneration.from_pretrained(job.model)
    model.generation_config.language = "es"
    model.generation_config.task = "transcribe"
    model.generation_config.forced_decoder_ids = None

    def collate(rows: list[dict[str, Any]]) -> Any:
        features = [{"input_features": row["input_features"]} for row in rows]
        batch = processor.feature_extractor.pad(features, return_tensors="pt")
        labels = processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        batch["labels"] = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
        if (batch["labels"][:, 0] == processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")).all():
            batch["labels"] = batch["labels"][:, 1:]
        return batch

    def compute_metrics(predicted: Any) -> dict[str, float]:
        labels = predicted.label_ids.copy()
        labels[labels == -100] = processor.tokenizer.pad_token_id
        hypotheses = processor.tokenizer.batch_decode(predicted.predictions, skip_special_tokens=True)
        references = processor.tokenizer.batch_decode(labels, skip_special_tokens=True)
        return {"wer": 100 * jiwer.wer(references, hypotheses)}

    class Boundaries(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.done("start")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.done("step", job.batch_size)

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            turns.done("evaluate", len(splits["test"]))

        def on_save(self, *_: Any, **__: Any) -> None:
            turns.done("checkpoint")

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(job.folder / "run"),
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=1,
        learning_rate=1e-5,
        warmup_steps=job.max_steps // 2,
        max_steps=job.max_steps,
        gradient_checkpointing=True,
        bf16=job.bf16,
        eval_strategy="steps",
        eval_steps=job.eval_every,
        save_steps=job.eval_every,
        logging_steps=job.eval_every,
        predict_with_generate=True,
        generation_max_length=job.max_tokens + PROMPT_TOKENS,
        load_best_model_at_end=True,
        metric_for_best_model="wer",
        greater_is_better=False,
        dataloader_drop_last=True,  # every step has a whole batch
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        data_collator=collate,
        compute_metrics=compute_metrics,
        processing_class=processor.feature_extractor,
        callbacks=[Boundaries()],
    ).train()
    turns.done("end")
