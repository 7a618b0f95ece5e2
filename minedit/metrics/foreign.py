"""A user's folder of a network by transformers -> the network: CLIP, or DINO's ViT. Nothing is downloaded."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from minedit.config import MineditError, foreign_json, shown
from minedit.files.formats import named


def config(folder: str | os.PathLike, kind: str, expected: str) -> tuple[Path, dict]:
    """The folder, and what its config.json says. kind: the `model_type` there. Raises MineditError."""
    path = named(folder, expected)
    found = settings(path, "config.json")
    if found.get("model_type") != kind:
        held = f"is of a {shown(repr(found['model_type']), 60)}" if found.get("model_type") else "has no config.json"
        raise MineditError(f"{shown(path, 300)} {held}; {expected}")
    return path, found


def settings(folder: Path, name: str) -> dict:
    """What a JSON file of the folder says; nothing where it is missing. Raises MineditError for one that is damaged."""
    try:
        found = foreign_json((folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or shown(error)
        raise MineditError(f"{shown(folder / name, 300)} cannot be read ({reason}); download it again") from error
    return found if isinstance(found, dict) else {}


def network(kind: type[PreTrainedModel], folder: Path, expected: str, **options: object) -> PreTrainedModel:
    """The network in float32, in eval mode. Raises MineditError where it lacks a tensor, too."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what it says of spare and missing tensors is said below, in a line
    logging.disable_progress_bar()
    try:
        found, told = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except Exception as error:  # whatever it is that transformers, torch or safetensors find wrong
        fault = f"{shown(folder, 300)} cannot be loaded ({shown(' '.join(str(error).split()), 200)})"
        raise MineditError(f"{fault}; {expected}") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(name for name in told["missing_keys"] if not name.endswith("position_ids"))
    if missing or told["mismatched_keys"]:
        name = missing[0] if missing else next(iter(told["mismatched_keys"]))
        raise MineditError(f"{shown(folder, 300)} lacks {shown(name, 100)}, or has it of another shape; {expected}")
    return found.float().eval().requires_grad_(False)
