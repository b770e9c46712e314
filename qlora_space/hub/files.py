"""A file to push with the hashes that the Hub knows it by, and whether what is there is the same."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class PublishedFile:
    """One file with both hashes that the Hub may know it by: sha256 with LFS, git's blob id without."""

    name: str
    source: Path | bytes
    num_bytes: int
    sha256: str
    blob_id: str

    def is_same(self, remote: RepoFile) -> bool:
        """Whether the file on the Hub has this content."""
        if remote.size != self.num_bytes:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == self.blob_id


def hashed(name: str, source: Path | bytes) -> PublishedFile:
    """The file under the name that it will have. Read in chunks: it may be larger than the free memory."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    return PublishedFile(name, source, size, sha256.hexdigest(), blob.hexdigest())
