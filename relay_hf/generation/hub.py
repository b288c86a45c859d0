"""`model.relay.push_to_hub()` and `load_from_hub()`: files of kept prefixes on the Hub, by its own client."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from ..prefix import KeptPrefix

_FILE = "prefixes.safetensors"


class HubPrefixes(ABC):
    """What saves kept prefixes to a file and loads them, and so can do it with a file in a repository of the Hub."""

    @abstractmethod
    def save(
        self, path: str | os.PathLike[str], prefixes: KeptPrefix | Collection[KeptPrefix] | None = None
    ) -> tuple[KeptPrefix, ...]:
        """Write kept prefixes to a file; None: all."""

    @abstractmethod
    def load(self, path: str | os.PathLike[str], *, mmap: bool = False) -> tuple[KeptPrefix, ...]:
        """Keep the prefixes of a file."""

    def push_to_hub(
        self,
        repo_id: str,
        prefixes: KeptPrefix | Collection[KeptPrefix] | None = None,
        *,
        filename: str = _FILE,
        private: bool = True,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload kept prefixes",
    ) -> CommitInfo:
        """Save kept prefixes to a file in a repository of the Hub, which is made if there is none.

        The file holds the prompts as token ids: whoever can read the repository can read them. So the repository is
        private, other than with the `push_to_hub` of Transformers.

        Args:
            repo_id: the repository, such as `"name/support-bot"`.
            prefixes: as in `save`; None: all that are kept.
            filename: path of the file in the repository. An old file is replaced by a new commit, and stays in the
                repository's history.
            private: make a private repository, and refuse a public one. False: it may be public.
            token: of the Hub; None: the one that is stored on this machine.
            revision: the branch; None: `main`.
            commit_message: the first line of the commit.

        Returns:
            The commit. Its `oid` as `revision` of `load_from_hub` names this very file for good.

        Raises:
            ValueError: the repository is public, and `private` is not False; or as in `save`.
            RelayError, PrefixFileError, OSError: as in `save`. Of the Hub its client's own: OSErrors, and a
                ValueError for a `repo_id` that can be none.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _FILE
            self.save(path, prefixes)
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(
                    f"repo_id must name a private repository, because the file holds prompts; {repo_id} is public. "
                    "Name another, make it private, or pass private=False if everybody may read the prompts."
                )
            return api.upload_file(
                path_or_fileobj=path,
                path_in_repo=filename,
                repo_id=repo_id,
                revision=revision,
                commit_message=commit_message,
            )

    def load_from_hub(
        self,
        repo_id: str,
        filename: str = _FILE,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        mmap: bool = False,
    ) -> tuple[KeptPrefix, ...]:
        """Keep the prefixes of a file in a repository of the Hub; it is downloaded once, into the Hub's cache.

        Load files only from those you trust: whoever can write to the repository can write any keys and values.

        Args:
            repo_id: the repository.
            filename: path of the file in it.
            revision: branch, tag or commit; None: `main`. A commit's hash makes sure that the file is the one you know.
            token: of the Hub; None: the one that is stored on this machine.
            mmap: as in `load`. Nobody writes in place to a file in the cache.

        Returns:
            As `load`.

        Raises:
            PrefixFileError, RelayError, OSError: as in `load`. Of the Hub its client's own: OSErrors, and a
                ValueError for a `repo_id` that can be none.
        """
        path = HfApi(token=token).hf_hub_download(repo_id, filename, revision=revision)
        return self.load(path, mmap=mmap)
