"""Paths of the embedded demo: its base model and its three text files."""

from pathlib import Path

DEMO = "demo"
FOLDER = Path(__file__).resolve().parent
BASE_FOLDER = FOLDER / "base"
TRAIN_FILE = FOLDER / "data" / "train.jsonl"
HELDOUT_FILE = FOLDER / "data" / "heldout.jsonl"
GENERAL_FILE = FOLDER / "data" / "general.jsonl"
