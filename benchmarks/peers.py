"""The peers, set up as their documentation advises, in every setting that could be their best on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import work
from tunescope.data import Encoded

TRL = {
    "trl, bf16 weights": {"dtype": "bfloat16", "bf16": False, "attention": "sdpa"},
    "trl, bf16 weights, eager": {"dtype": "bfloat16", "bf16": False, "attention": "eager"},
    "trl, bf16 autocast": {"dtype": "bfloat16", "bf16": True, "attention": "sdpa"},
    "trl, bf16 autocast, eager": {"dtype": "bfloat16", "bf16": True, "attention": "eager"},
    "trl, float32": {"dtype": "float32", "bf16": False, "attention": "sdpa"},
}


class Sft:
    """TRL's SFTTrainer with PEFT LoRA on all linear layers, loss on the answers, rows of similar length together.

    Args:
        how: a value of `TRL`.
        rows: the training rows, encoded by us, so that both sides read the same tokens.
    """

    def __init__(self, how: dict[str, Any], rows: Sequence[Encoded]) -> None:
        from peft import LoraConfig, get_peft_model

        loaded, _ = work.load(how["dtype"])
        loaded.model.set_attn_implementation(how["attention"])
        self.tokenizer = loaded.tokenizer
        config = LoraConfig(
            r=work.LORA_RANK,
            lora_alpha=work.LORA_ALPHA,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        self.model = get_peft_model(loaded.model, config)
        self._start = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self._rows = rows
        self._how = how
        self._folder = tempfile.TemporaryDirectory()

    def train(self, num_epochs: int) -> float:
        """Trains from the start and returns the seconds of training alone."""
        trainer = self._trainer(num_epochs)
        started = work.now()
        trainer.train()
        return work.now() - started

    def curve(self, num_epochs: int, held_out: Sequence[Encoded]) -> list[dict[str, float]]:
        """Trains from the start and returns seconds of training alone and held-out loss, as `work.curve` does for us."""
        from transformers import TrainerCallback

        steps_per_epoch = -(-len(self._rows) // work.BATCH_SIZE)
        every, last = max(1, steps_per_epoch // work.CHECKS_PER_EPOCH), steps_per_epoch * num_epochs
        model, found = self.model, []
        clock = {"seconds": 0.0, "started": 0.0}

        class Look(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                clock["seconds"] += work.now() - clock["started"]
                if state.global_step % every == 0 or state.global_step == last:
                    loss = work.held_out_loss(model, held_out)
                    model.train()
                    found.append({"seconds": clock["seconds"], "held-out loss": loss})
                clock["started"] = work.now()

        trainer = self._trainer(num_epochs)
        trainer.add_callback(Look())
        clock["started"] = work.now()
        trainer.train()
        return found

    def _trainer(self, num_epochs: int) -> Any:
        """A trainer at the start weights."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self._start:
                    parameter.copy_(self._start[name])
        dataset = Dataset.from_list(
            [
                {
                    "input_ids": [*row.prompt_ids, *row.target_ids],
                    "completion_mask": [0] * len(row.prompt_ids) + [1] * len(row.target_ids),
                }
                for row in self._rows
            ]
        )
        settings = SFTConfig(
            output_dir=self._folder.name,
            per_device_train_batch_size=work.BATCH_SIZE,
            num_train_epochs=num_epochs,
            learning_rate=work.LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=work.WARMUP_FRACTION,
            weight_decay=0.0,
            completion_only_loss=True,
            max_length=None,
            bf16=self._how["bf16"],
            fp16=False,
            use_cpu=work.DEVICE == "cpu",
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        return SFTTrainer(self.model, settings, train_dataset=dataset, processing_class=self.tokenizer)
