"""Hand tuned weights over to a serving stack: the merged model, or the adapter."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml

from tunescope import engine, models
from tunescope.errors import ModelError, RunError, did_you_mean
from tunescope.runs import ledger
from tunescope.runs.environment import user_name
from tunescope.runs.folder import RunFolder


def run(run_folder: Path, arm: str, target: Path, *, form: str = "merged") -> Path:
    """Writes the weights of one arm in a form that other tools load.

    Args:
        run_folder: a finished run.
        arm: one of its tuned arms.
        target: must not exist, or be empty; made whole or not at all.
        form: ``merged`` for a complete model (``AutoModelForCausalLM.from_pretrained``, vLLM, llama.cpp's converter), ``adapter`` for the
            PEFT adapter as it is.

    Returns:
        The folder.

    Raises:
        RunError: the run has no such weights, or the target holds something.
        ModelError: an adapter is wanted of an arm whose weights moved themselves.
    """
    folder = RunFolder.open(run_folder)
    source = folder.path / "weights" / arm
    there = (
        sorted(p.name for p in (folder.path / "weights").glob("*") if p.is_dir())
        if (folder.path / "weights").is_dir()
        else []
    )
    if arm not in there:
        raise RunError(
            f"{run_folder}: no weights of arm {arm!r}{did_you_mean(arm, there)}; there are: {', '.join(there) or 'none'}"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target}: exists and is not an empty folder; choose another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if form == "adapter":
            if not (source / "adapter_config.json").is_file():
                raise ModelError(f"arm {arm}: its weights moved themselves, there is no adapter; use --format merged")
            shutil.copytree(source, scratch, dirs_exist_ok=True)
        else:
            _write_merged(folder, source, scratch)
        if target.exists():
            target.rmdir()
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    hashes = {path.name: models.sha256_of(path) for path in sorted(target.glob("*.safetensors"))}
    details = {"arm": arm, "format": form, "to": str(target), "sha256": hashes}
    ledger.append(folder.path / "ledger.jsonl", "export", details, actor=user_name(), key=ledger.key_from_environment())
    return target


def _write_merged(folder: RunFolder, source: Path, scratch: Path) -> None:
    if (source / "config.json").is_file():  # arm `full` is a complete model already
        shutil.copytree(source, scratch, dirs_exist_ok=True)
        return
    config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    environment = folder.read_json("environment.json")
    loaded = models.load(config["model"], revision=config["revision"], dtype=environment["dtype"])
    if loaded.info.sha256 != environment["model"]["sha256"]:
        raise ModelError(
            f"{config['model']}: the base weights are not those of the run; an adapter on them would be something else"
        )
    model = engine.attach(loaded, source)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(scratch)
    loaded.tokenizer.save_pretrained(scratch)
    shutil.copyfile(source / "README.md", scratch / "README.md")
