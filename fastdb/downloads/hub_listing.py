"""A repository on the Hub: what is in it at which commit, and why it may be closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdb.downloads.download import Again, Patience
from fastdb.downloads.http_request import Remote
from fastdb.downloads.http_response import AGAIN, safe_name
from fastdb.downloads.source import HubFile, HubRepository, hub_endpoint
from fastdb.downloads.tokens import Token, hub_token
from fastdb.errors import ModelError


@dataclass(frozen=True)
class Entry:
    """A file in a repository; `sha256` is known of large ones."""

    size: int | None
    sha256: str


@dataclass(frozen=True)
class Listing:
    """A repository as it is at one commit."""

    pinned: HubRepository
    entries: Mapping[str, Entry]
    token: Token | None

    def remote(self, path: str) -> Remote:
        """One of its files, as a download."""
        from huggingface_hub import hf_hub_url

        entry, name = self.entries[path], self.pinned.name
        return Remote(
            url=hf_hub_url(name, path, revision=self.pinned.revision, endpoint=hub_endpoint()),
            shown=str(HubFile(name, path, self.pinned.revision)),
            token=self.token,
            sha256=entry.sha256,
            size=entry.size,
            name=path.rpartition("/")[2],
            gate=gate(name),
        )


def gate(name: str) -> str:
    """What to do where a repository is closed."""
    return (
        f"Sign in on huggingface.co, accept the licence on https://huggingface.co/{name}, and give a token: in "
        "HF_TOKEN (in Colab: a secret of that name), by `hf auth login`, or in token.txt."
    )


def list_repository(source: HubRepository | HubFile) -> Listing:
    """Ask the Hub what is in a repository.

    Raises:
        ModelError: it is closed, not there, or the Hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = hub_token(hub_endpoint())
    api = HfApi(endpoint=hub_endpoint(), token=token.value if token else False)
    patience = Patience(str(source))
    while True:
        try:
            found = api.model_info(source.name, revision=source.revision or None, files_metadata=True, timeout=30)
            break
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in AGAIN:
                raise _refused(source, error, token) from None
            patience.after(Again(f"the Hub answers {status}"))
        except httpx.RequestError as error:
            patience.after(error)
        except OfflineModeIsEnabled:
            raise ModelError(
                "is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
                where=source,
                fix="Unset HF_HUB_OFFLINE, or give the path of a folder.",
            ) from None
        except (HFValidationError, ValueError, TypeError, KeyError):
            raise ModelError(
                "is no name the Hub knows, or its answer cannot be read", where=source, fix="Check the spelling."
            ) from None
    entries = {
        one.rfilename: Entry(one.size, one.lfs.sha256 if one.lfs else "")
        for one in found.siblings or ()
        if all(part and part == safe_name(part) for part in one.rfilename.replace("%", "_").split("/"))
    }
    return Listing(HubRepository(source.name, str(found.sha)), entries, token)


def _refused(source: HubRepository | HubFile, error: Any, token: Token | None) -> ModelError:
    """The line for an answer of the Hub; its own text holds addresses and is long."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        what = "its licence was not accepted by whoever the token is of" if token else "has a licence to accept first"
        return ModelError(f"{what} ({status})", where=source, fix=gate(source.name))
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"has no revision {source.revision!r}",
            where=source,
            fix="Leave it out for the newest, or check the spelling.",
        )
    if status == 401 and token and not isinstance(error, RepositoryNotFoundError):
        return ModelError("the Hub does not accept the token that was found (401)", where=source, fix=gate(source.name))
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            "there is no such repository on the Hub, or it is private; nor is there a folder of this name here",
            where=source,
            fix="Check the spelling; a private one needs a token: HF_TOKEN, or `hf auth login`.",
        )
    return ModelError(f"the Hub answers {status}", where=source, fix="Try again later, or choose another source.")
