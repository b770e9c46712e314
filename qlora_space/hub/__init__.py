"""The only code that talks to the Hugging Face Hub. Tokens are arguments and are never kept.

Read in this order: `connection` (one client, one way to explain errors) and `account`; what comes from the Hub:
`search`, `models` (with `model_config` and `headers`), `datasets`, `download`, `adapter_config`; what goes to it:
`rehearsal`, `publish_run` (with `card/`, `publish_export`, `demo_space`), `publish`, `target`, `adapter_files`; both
ways: `mirror`, `mirrored_runs`; this app itself: `deploy`, `space_files`.
"""

from qlora_space.hub.account import (
    Account,
    is_repo_name,
    local_token,
    read_account,
)
from qlora_space.hub.adapter_config import read_adapter
from qlora_space.hub.card.model_card import model_card
from qlora_space.hub.datasets import HubDataset, dataset_source
from qlora_space.hub.download import (
    copy_tokenizer,
    fetch_adapter,
    fetch_base,
    fetch_tokenizer,
)
from qlora_space.hub.mirror import Mirror, check_can_mirror, fetch_copy
from qlora_space.hub.mirrored_runs import MirroredRun, mirror_name, mirrored_runs
from qlora_space.hub.models import model_facts
from qlora_space.hub.publish import Published, PushOptions, publish_adapter
from qlora_space.hub.published_run import fetch_record
from qlora_space.hub.rehearsal import named_repos, rehearse, suggested_repo, suggested_repos
from qlora_space.hub.search import DatasetHit, ModelHit, search_datasets, search_models
from qlora_space.hub.sign_in import expiry_warning, may_create_repos
from qlora_space.hub.target import Target, read_target

__all__ = [
    "Account",
    "DatasetHit",
    "HubDataset",
    "Mirror",
    "MirroredRun",
    "ModelHit",
    "Published",
    "PushOptions",
    "Target",
    "check_can_mirror",
    "copy_tokenizer",
    "dataset_source",
    "expiry_warning",
    "fetch_adapter",
    "fetch_base",
    "fetch_copy",
    "fetch_record",
    "fetch_tokenizer",
    "is_repo_name",
    "local_token",
    "may_create_repos",
    "mirror_name",
    "mirrored_runs",
    "model_card",
    "model_facts",
    "named_repos",
    "publish_adapter",
    "read_account",
    "read_adapter",
    "read_target",
    "rehearse",
    "search_datasets",
    "search_models",
    "suggested_repo",
    "suggested_repos",
]
