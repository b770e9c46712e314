"""One training story: prepare, load, measure, train, measure again, save, report."""

from qlora_space.train.run import train

__all__ = ["train"]
